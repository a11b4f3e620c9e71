"""MRC volumes, read box by box.

Memory does not grow with the file: a box is read by offset, row by row where it is narrow, so nothing but
the box and a small buffer is ever held. (Not by memory mapping: a file that shrinks under a map kills the
process.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cryoscale.errors import FormatError, LayoutError, SurroundingsError
from cryoscale.formats.inputs import content_id, expand_inputs, names_for, tomogram_name
from cryoscale.formats.mrc_header import HEADER_BYTES, MODES, MrcHeader, read_header
from cryoscale.formats.mrc_write import MrcWriter, mode_of, write_mrc
from cryoscale.geometry import Box, Zyx

__all__ = [
    "HEADER_BYTES",
    "MODES",
    "MrcHeader",
    "MrcVolume",
    "MrcWriter",
    "content_id",
    "expand_inputs",
    "mode_of",
    "names_for",
    "read_header",
    "tomogram_name",
    "write_mrc",
]

BUFFER_BYTES = 8 << 20
"""Most bytes read at once: what a read holds beside the box itself."""

_NARROW = 4
"""Below this fraction of a row (one in so many), rows are read one by one instead of whole."""


class MrcVolume:
    """An MRC file that hands out boxes in the order z, y, x.

    Parameters
    ----------
    path : path
        The file.
    ignore_voxel_size : bool
        As in `read_header`.
    """

    def __init__(self, path: str | os.PathLike[str], *, ignore_voxel_size: bool = False) -> None:
        self.path = Path(path)
        self.header = read_header(path, ignore_voxel_size=ignore_voxel_size)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise SurroundingsError(f"{self.path} cannot be opened: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def shape(self) -> Zyx:
        """Extent along z, y, x, voxels."""
        return self.header.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the voxels."""
        return self.header.dtype

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read one box.

        Parameters
        ----------
        box : Box
            Half open, z, y, x; inside the volume, not empty.

        Returns
        -------
        values_ZYX : (Z, Y, X) array
            In the file's own dtype, native byte order, C-contiguous.

        Raises
        ------
        LayoutError
            The box is empty or leaves the volume.
        FormatError
            The file became shorter since its header was read.
        SurroundingsError
            The storage failed.
        """
        if box.empty or not Box.whole(self.header.shape).contains(box):
            raise LayoutError(
                f"the box {box} is empty or leaves {self.path} of shape {tuple(self.header.shape)}"
            )
        axes = self.header.file_axes
        start, stop = ([corner[a] for a in axes] for corner in (box.start, box.stop))
        stored_SRC = self._read_stored(start, stop)
        values_ZYX = stored_SRC.transpose(np.argsort(axes))
        return np.ascontiguousarray(values_ZYX)

    def _read_stored(self, start: list[int], stop: list[int]) -> npt.NDArray[Any]:
        """Read sections, rows, columns from `start` to `stop` in the order of the file."""
        _, rows, columns = self.header.file_shape
        shape = [b - a for a, b in zip(start, stop, strict=True)]
        out_SRC = np.empty(shape, self.header.dtype)
        whole_rows = shape[2] * _NARROW >= columns
        step = max(1, BUFFER_BYTES // (columns * self.header.dtype.itemsize)) if whole_rows else 1
        for n, section in enumerate(range(start[0], stop[0])):
            for row in range(start[1], stop[1], step):
                count = min(step, stop[1] - row)
                first = (section * rows + row) * columns
                into_RC = out_SRC[n, row - start[1] : row - start[1] + count]
                if whole_rows:
                    values = self._pread(first, count * columns).reshape(count, columns)
                    into_RC[:] = values[:, start[2] : stop[2]]
                else:
                    into_RC[0] = self._pread(first + start[2], shape[2])
        return out_SRC

    def _pread(self, first: int, count: int) -> npt.NDArray[Any]:
        """Read `count` voxels from the voxel number `first` on, in the byte order of the file."""
        size = self.header.dtype.itemsize
        offset = self.header.data_offset + first * size
        parts: list[bytes] = []
        missing = count * size
        while missing:
            try:
                part = os.pread(self._descriptor, missing, offset)
            except OSError as error:
                raise SurroundingsError(
                    f"reading {self.path} at byte {offset} failed: {error.strerror}."
                ) from error
            if not part:
                raise FormatError(
                    f"{self.path} ends at byte {offset}, {missing} bytes early: it changed during the run.",
                    remedy="Copy it again and start again.",
                )
            parts.append(part)
            offset += len(part)
            missing -= len(part)
        stored = self.header.dtype.newbyteorder(self.header.byteorder)
        return np.frombuffer(b"".join(parts), dtype=stored)
