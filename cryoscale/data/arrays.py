"""Named arrays as one safetensors object: parts of blocks, and what the review shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from cryoscale.data.folder import Folder
from cryoscale.errors import FormatError, StateError

# The safetensors names of numpy's types.
_DTYPES = {"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
           "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}  # fmt: skip


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


def read_some(folder: Folder, name: str, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read some of the named arrays and nothing else of the object; raises as `read_arrays` does."""
    try:
        with folder.open_read(name) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            return {key: _read_one(stream, 8 + length, header[key]) for key in keys}
    except FileNotFoundError as error:
        raise StateError(f"{folder.path(name)} does not exist.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder.path(name)} is not a readable safetensors file: {error}.") from error


def _read_one(stream: Any, offset: int, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    first, last = entry["data_offsets"]
    stream.seek(offset + first)
    flat = np.frombuffer(stream.read(last - first), dtype=_DTYPES[entry["dtype"]])
    return flat.reshape(entry["shape"])
