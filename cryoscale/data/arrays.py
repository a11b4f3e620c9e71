"""Named arrays as one safetensors object: parts of blocks, and what the review shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from cryoscale.data.folder import Folder
from cryoscale.errors import FormatError, StateError


def write_arrays(folder: Folder, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write named arrays; the same arrays give the same bytes."""
    plain = {key: np.ascontiguousarray(value) for key, value in sorted(arrays.items())}
    folder.write_bytes(name, safetensors.numpy.save(plain))


def read_arrays(folder: Folder, name: str) -> dict[str, npt.NDArray[Any]]:
    """Read named arrays; raises `StateError` when missing, `FormatError` when damaged."""
    try:
        return dict(safetensors.numpy.load(folder.read_bytes(name)))
    except FileNotFoundError as error:
        raise StateError(f"{folder.path(name)} does not exist.") from error
    except safetensors.SafetensorError as error:
        raise FormatError(f"{folder.path(name)} is not a readable safetensors file: {error}.") from error
