"""MRC volumes, written slab by slab to a temporary name and renamed when whole."""

from __future__ import annotations

import errno
import math
import os
import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, LayoutError, SurroundingsError
from cryoscale.formats.mrc_header import HEADER_BYTES, MODES
from cryoscale.geometry import Zyx

_MODE_OF = {"i1": 0, "i2": 1, "f4": 2, "f8": 2, "u1": 6, "u2": 6, "f2": 12, "b1": 0}
_NVERSION = 20140
"""Year times ten plus a letter: the revision of the standard that the header follows."""


def mode_of(dtype: npt.DTypeLike) -> int:
    """Return the MRC mode that holds a dtype: labels as integers (0, 6, 1), never as floats.

    float64 becomes mode 2 and loses precision; uint8 is widened to mode 6, since mode 0 is signed.

    Raises
    ------
    ConfigurationError
        No mode holds it.
    """
    dtype = np.dtype(dtype)
    mode = _MODE_OF.get(f"{dtype.kind}{dtype.itemsize}")
    if mode is None:
        raise ConfigurationError(
            f"MRC has no mode for {dtype}.",
            remedy="Convert it to one of int8, int16, uint16, float16, float32.",
        )
    return mode


def write_mrc(
    path: str | os.PathLike[str],
    volume_ZYX: npt.NDArray[Any],
    voxel_size_angstrom: float,
    *,
    mode: int | None = None,
) -> None:
    """Write a whole volume; the file appears under its name only when it is complete.

    Parameters
    ----------
    path : path
        The file to write; an existing one is replaced.
    volume_ZYX : (Z, Y, X) array
        Values.
    voxel_size_angstrom : float
        Isotropic voxel size, Å.
    mode : int, optional
        MRC mode; by default the one of `mode_of`.

    Raises
    ------
    ConfigurationError
        No mode for the dtype, or a value does not fit the mode.
    SurroundingsError
        No space, no permission.
    """
    with MrcWriter(path, volume_ZYX.shape, volume_ZYX.dtype, voxel_size_angstrom, mode=mode) as writer:
        planes = max(1, (8 << 20) // max(1, volume_ZYX[0].nbytes))
        for z in range(0, len(volume_ZYX), planes):
            writer.write(volume_ZYX[z : z + planes])


class MrcWriter:
    """Write a volume by slabs along z, in order; a context manager.

    Leaving the context without an error and with all sections written publishes the file; otherwise nothing
    is left behind.

    Parameters
    ----------
    path : path
        The file to write.
    shape : three ints
        Extent along z, y, x.
    dtype : dtype
        Type of the slabs that will come.
    voxel_size_angstrom : float
        Isotropic voxel size, Å.
    mode : int, optional
        MRC mode; by default the one of `mode_of`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: Sequence[int],
        dtype: npt.DTypeLike,
        voxel_size_angstrom: float,
        *,
        mode: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.shape = Zyx.of(shape)
        self.mode = mode_of(dtype) if mode is None else mode
        if self.mode not in MODES:
            raise ConfigurationError(f"mode {mode} cannot be written.", remedy=f"Use one of {sorted(MODES)}.")
        if min(self.shape) < 1:
            raise ConfigurationError(
                f"a volume of shape {tuple(self.shape)} has no voxel to write to {path}."
            )
        if not (math.isfinite(voxel_size_angstrom) and voxel_size_angstrom > 0):
            raise ConfigurationError(
                f"the voxel size must be above 0 Å, got {voxel_size_angstrom} for {path}."
            )
        self.voxel_size_angstrom = float(voxel_size_angstrom)
        self._stored = np.dtype(MODES[self.mode]).newbyteorder("<")
        self._written = 0
        self._low, self._high = math.inf, -math.inf
        self._mean, self._squares = 0.0, 0.0
        self._partial = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.partial")

    def __enter__(self) -> Self:
        try:
            self._stream = self._partial.open("wb")
        except OSError as error:
            raise _surroundings(self.path, error) from error
        self._stream.write(bytes(HEADER_BYTES))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as error:
            raise _surroundings(self.path, error) from error
        finally:
            self._stream.close()
            self._partial.unlink(missing_ok=True)

    def write(self, slab_ZYX: npt.NDArray[Any]) -> None:
        """Append sections.

        Raises
        ------
        LayoutError
            The slab does not match the shape, or there is one section too many.
        ConfigurationError
            A value does not fit the mode.
        SurroundingsError
            No space.
        """
        slab_ZYX = np.asarray(slab_ZYX)
        sections = self._written + len(slab_ZYX)
        if slab_ZYX.ndim != 3 or slab_ZYX.shape[1:] != tuple(self.shape[1:]) or sections > self.shape.z:
            raise LayoutError(
                f"a slab of shape {slab_ZYX.shape} after {self._written} sections does not fit "
                f"{tuple(self.shape)}"
            )
        if not slab_ZYX.size:
            return
        self._check_range(slab_ZYX)
        stored_ZYX = np.ascontiguousarray(slab_ZYX, dtype=self._stored)
        self._add_statistics(stored_ZYX)
        try:
            self._stream.write(stored_ZYX.data)
        except OSError as error:
            raise _surroundings(self.path, error) from error
        self._written = sections

    def _check_range(self, slab_ZYX: npt.NDArray[Any]) -> None:
        """Refuse integers that would wrap round and floats in an integer mode."""
        if self._stored.kind == "f":
            return
        if slab_ZYX.dtype.kind not in "iub":
            raise ConfigurationError(
                f"{slab_ZYX.dtype} values cannot be stored in MRC mode {self.mode} without loss "
                f"({self.path}).",
                remedy="Use mode 2, or round them to integers first.",
            )
        limits = np.iinfo(self._stored)
        low, high = int(slab_ZYX.min()), int(slab_ZYX.max())
        if low < limits.min or high > limits.max:
            raise ConfigurationError(
                f"values from {low} to {high} do not fit MRC mode {self.mode} ({self.path}), which holds "
                f"{limits.min} to {limits.max}.",
                remedy="Use mode 1, 6 or 2.",
            )

    def _add_statistics(self, slab_ZYX: npt.NDArray[Any]) -> None:
        """Update range, mean and sum of squared deviations (Chan, Golub, LeVeque 1983) in float64."""
        before = self._written * self.shape.y * self.shape.x
        for plane_YX in slab_ZYX:
            values = plane_YX.astype(np.float64)
            mean, count = float(values.mean()), values.size
            delta = mean - self._mean
            total = before + count
            self._squares += float(np.square(values - mean).sum()) + delta * delta * before * count / total
            self._mean += delta * count / total
            self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))
            before = total

    def _finish(self) -> None:
        """Write the header, flush to the disk and rename."""
        if self._written != self.shape.z:
            raise LayoutError(f"{self._written} of {self.shape.z} sections were written to {self.path}")
        self._stream.seek(0)
        self._stream.write(self._header())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        os.replace(self._partial, self.path)

    def _header(self) -> bytes:
        """Return the 1024 bytes of an MRC2014 header for one volume (ISPG 1)."""
        nz, ny, nx = self.shape
        raw = bytearray(HEADER_BYTES)
        struct.pack_into("<10i", raw, 0, nx, ny, nz, self.mode, 0, 0, 0, nx, ny, nz)
        cell = [n * self.voxel_size_angstrom for n in (nx, ny, nz)]
        struct.pack_into("<6f3i", raw, 40, *cell, 90.0, 90.0, 90.0, 1, 2, 3)
        deviation = math.sqrt(self._squares / self.shape.voxels)
        struct.pack_into("<3f2i", raw, 76, self._low, self._high, self._mean, 1, 0)
        struct.pack_into("<i", raw, 108, _NVERSION)
        raw[208:216] = b"MAP " + bytes((0x44, 0x44, 0, 0))
        struct.pack_into("<fi", raw, 216, deviation, 1)
        raw[224:304] = b"written by cryoscale".ljust(80)
        return bytes(raw)


def _surroundings(path: Path, error: OSError) -> SurroundingsError:
    """Turn an operating-system error into one that says what to do."""
    remedy = (
        "Free some space and start again."
        if error.errno == errno.ENOSPC
        else "Check the folder and its permissions."
    )
    return SurroundingsError(f"{path} cannot be written: {error.strerror}.", remedy=remedy)
