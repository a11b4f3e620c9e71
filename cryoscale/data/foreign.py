"""Zarr groups that somebody else wrote: opened for reading, and not trusted.

Zarr v2 and v3, on this machine's disks. A stranger's metadata may promise anything, so shapes and chunks are
checked against limits before a byte of data is read, and a path may not leave its store.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr.storage

from cryoscale.errors import FormatError

LARGEST_CHUNK = 2**31  # bytes that are read together
LARGEST_SIDE = 1 << 17  # voxels


class ForeignArray:
    """An array in a store, read box by box.

    Parameters
    ----------
    place : path
        The store.
    path : str
        The array in it; empty for the store itself.

    Raises
    ------
    FormatError
        It is not there, is no Zarr array, or promises what cannot be.
    """

    def __init__(self, place: Path, path: str) -> None:
        self.place, self.path = place, path
        if path.startswith("/") or ".." in path.split("/"):
            raise FormatError(f"{place}: the path '{path}' of an array leaves the store.")
        try:
            self._array = zarr.open_array(_store(place), path=path, mode="r")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise FormatError(f"{self.name} is not a Zarr array that can be read ({error}).") from error
        chunk = math.prod(self._array.shards or self._array.chunks) * self._array.dtype.itemsize
        if chunk > LARGEST_CHUNK or max(self._array.shape, default=0) > LARGEST_SIDE:
            raise FormatError(
                f"{self.name}: shape {self._array.shape} in chunks of {chunk} bytes is too large to be read.",
                remedy="Write it in chunks of 64 to 256 voxels per side.",
            )
        self.chunk_bytes = chunk

    @property
    def name(self) -> str:
        """Where it is."""
        return str(self.place / self.path) if self.path else str(self.place)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of all axes."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return np.dtype(self._array.dtype)

    def read(self, place: tuple[slice | int, ...]) -> npt.NDArray[Any]:
        """Read a part.

        Raises
        ------
        FormatError
            The data is damaged.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr warns of codecs that are not yet in its specification
                return np.asarray(self._array[place])
        except (ValueError, RuntimeError) as error:
            raise FormatError(f"{self.name}: damaged data ({error}).") from error


def group_attributes(place: Path, path: str = "") -> Mapping[str, Any] | None:
    """Return the attributes of a Zarr group, or None where there is none."""
    try:
        group = zarr.open_group(_store(place), path=path, mode="r")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return dict(group.attrs)


def is_array(place: Path) -> bool:
    """Tell whether a folder is a Zarr array itself."""
    return (place / ".zarray").is_file() or (
        (place / "zarr.json").is_file() and group_attributes(place) is None
    )


def _store(place: Path) -> Any:
    return zarr.storage.LocalStore(place, read_only=True)
