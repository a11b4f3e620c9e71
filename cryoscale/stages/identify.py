"""Identify: check a source file's header and hash its content, before anything is built on it."""

from __future__ import annotations

import os
from typing import Any

from cryoscale.data.access import Access
from cryoscale.errors import DataError
from cryoscale.stages.base import WholeStage


class IdentifyStage(WholeStage):
    """From a source file to its content id, recognised later by size and modification time."""

    name = "identify"
    reads = frozenset({"source"})
    writes = "source"

    def compute(self, access: Access) -> dict[str, Any]:
        """Check the header and return the content id (SHA-256) as `hash`.

        Raises
        ------
        FormatError
            The file breaks the rules of its format or is truncated.
        """
        from cryoscale.formats.inputs import content_id, source_exists, source_stamp
        from cryoscale.formats.mrc import read_header

        path = access.source()["place"]
        asked = access.given_voxel_size()
        if source_exists(path) and not os.access(path, os.R_OK):
            raise DataError(f"{path} may not be read by this user.", remedy="Change its permissions.")
        header = read_header(path, ignore_voxel_size=asked is not None)
        size, modified = source_stamp(path)
        return {
            "hash": content_id(path),
            "path": path,
            "size": size,
            "modified_ns": modified,
            "shape": list(header.shape),
            "dtype": header.dtype.name,
            "voxel_size_angstrom": asked or header.voxel_size_angstrom,
            "warnings": list(header.warnings),
        }
