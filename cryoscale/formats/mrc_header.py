"""The 1024 bytes at the head of an MRC file, checked before any voxel is read.

Layout after Cheng et al. 2015, doi:10.1016/j.jsb.2015.04.002 (MRC2014), and IMOD's header page for the stamp
that says whether bytes are signed. Word n of the standard is at byte 4(n-1).
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cryoscale.errors import ConfigurationError, FormatError, SurroundingsError
from cryoscale.geometry import Zyx

HEADER_BYTES = 1024
MAX_EXTENT = 1 << 17
"""Longest axis taken for real, voxels: eight times the widest detectors."""

MAX_VOXELS = 1 << 42
"""Largest volume taken for real: 16 TiB of float32."""

ANISOTROPY_TOLERANCE = 0.01
"""Relative spread of the three voxel sizes that is put down to rounding in the cell lengths."""

MODES: dict[int, str] = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_REFUSED_MODES = {
    3: "complex 16-bit integers (a Fourier transform)",
    4: "complex numbers (a Fourier transform)",
    16: "RGB colours",
    101: "4-bit data packed by IMOD",
}
_IMOD_STAMP = 1146047817
_BYTES_ARE_SIGNED = 1
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2"}


@dataclass(frozen=True)
class MrcHeader:
    """What the header of an MRC file says, checked.

    Parameters
    ----------
    path : Path
        The file.
    shape : Zyx
        Extent in voxels along z, y, x, after the axes of the file have been put in that order.
    dtype : np.dtype
        Type of the voxels as handed out: native byte order.
    voxel_size_angstrom : float or None
        Isotropic voxel size; None where the header leaves it unset, see `voxel_size_note`.
    voxel_size_note : str
        Why `voxel_size_angstrom` is None; empty otherwise.
    byteorder : str
        ``"<"`` or ``">"``, of the file.
    mode : int
        MRC mode number.
    data_offset : int
        Byte at which the voxels begin.
    axis_order : tuple of int
        MAPC, MAPR, MAPS: which axis (1 x, 2 y, 3 z) runs along columns, rows, sections.
    labels : tuple of str
        The text labels of the file.
    warnings : tuple of str
        What is odd and was accepted, for the person to read once.
    """

    path: Path
    shape: Zyx
    dtype: np.dtype[np.generic]
    voxel_size_angstrom: float | None
    voxel_size_note: str
    byteorder: Literal["<", ">"]
    mode: int
    data_offset: int
    axis_order: tuple[int, int, int]
    labels: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def data_bytes(self) -> int:
        """Number of bytes of voxels in the file."""
        return self.shape.voxels * self.dtype.itemsize

    @property
    def file_axes(self) -> tuple[int, int, int]:
        """For the file's sections, rows, columns: which of z, y, x (0, 1, 2) each of them is."""
        c, r, s = self.axis_order
        return 3 - s, 3 - r, 3 - c

    @property
    def file_shape(self) -> tuple[int, int, int]:
        """Extent as stored: sections, rows, columns (NZ, NY, NX)."""
        s, r, c = self.file_axes
        return self.shape[s], self.shape[r], self.shape[c]


def read_header(path: str | os.PathLike[str], *, ignore_voxel_size: bool = False) -> MrcHeader:
    """Read and check the header of an MRC file; no voxel is touched.

    Parameters
    ----------
    path : path
        An MRC file: ``.mrc``, ``.rec``, ``.map``, ``.st``.
    ignore_voxel_size : bool
        Do not judge the cell (the person gives the voxel size), so an anisotropic one is no error.

    Raises
    ------
    ConfigurationError
        There is no such file, or it is a folder.
    FormatError
        Not an MRC file, compressed, impossible sizes, unknown mode, too few bytes, anisotropic voxels.
    SurroundingsError
        The file exists and cannot be read.
    """
    path = Path(path)
    raw, size = _first_bytes(path)
    order, warnings = _byte_order(path, raw)
    words = struct.unpack(f"{order}10i6f3i3f2i", raw[:96])
    nx, ny, nz, mode = words[:4]
    extents = _checked_extents(path, (nz, ny, nx))
    dtype = _dtype(path, raw, order, mode, warnings)
    axes = _axes(path, words[16:19], warnings)
    _check_stack(path, words[22], nz, words[9], warnings)
    offset = HEADER_BYTES + _checked_extended(path, words[23])
    _check_size(path, size, offset, math.prod(extents) * dtype.itemsize, warnings)
    s, r, c = (3 - axes[2], 3 - axes[1], 3 - axes[0])
    shape = [0, 0, 0]
    shape[s], shape[r], shape[c] = extents
    voxel, note = _voxel_size(path, words[7:10], words[10:13], ignore=ignore_voxel_size)
    if any(angle not in (0.0, 90.0) for angle in words[13:16]) and not ignore_voxel_size:
        warnings.append(f"the cell angles {words[13:16]} are not 90 degrees and are ignored")
    return MrcHeader(
        path=path,
        shape=Zyx.of(shape),
        dtype=dtype,
        voxel_size_angstrom=voxel,
        voxel_size_note=note,
        byteorder=order,
        mode=mode,
        data_offset=offset,
        axis_order=axes,
        labels=_labels(raw, order),
        warnings=tuple(warnings),
    )


def _first_bytes(path: Path) -> tuple[bytes, int]:
    """Return the first 1024 bytes and the size of the file."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(HEADER_BYTES)
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise ConfigurationError(f"there is no file {path}.", remedy="Check the path.") from None
    except IsADirectoryError:
        raise ConfigurationError(
            f"{path} is a folder, not an MRC file.", remedy=f"Give the files in it, such as '{path}/*.mrc'."
        ) from None
    except OSError as error:
        raise SurroundingsError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check the permissions and the storage."
        ) from error
    for magic, tool in _COMPRESSED.items():
        if raw.startswith(magic) and (path.suffix.lower() in (".gz", ".bz2") or raw[208:211] != b"MAP"):
            raise FormatError(
                f"{path} is compressed; blocks cannot be read from it.",
                remedy=f"Decompress it first ({tool} '{path}').",
            )
    if len(raw) < HEADER_BYTES:
        raise FormatError(
            f"{path} has {len(raw)} bytes, fewer than the {HEADER_BYTES} of an MRC header.",
            remedy="The file is empty or cut short: copy it again.",
        )
    return raw, size


def _byte_order(path: Path, raw: bytes) -> tuple[Literal["<", ">"], list[str]]:
    """Return the byte order: by the machine stamp, else by which one makes the header plausible."""
    warnings = []
    if raw[208:211] != b"MAP":
        warnings.append("the header lacks the word MAP of the MRC standard (an old file); read all the same")
    stamp = raw[212]
    stamped: Literal["<", ">"] | None = {0x44: "<", 0x11: ">"}.get(stamp)  # type: ignore[assignment]
    if stamped and _plausible(raw, stamped):
        return stamped, warnings
    for order in ("<", ">"):
        if _plausible(raw, order):
            if stamped:
                warnings.append(f"the machine stamp {raw[212:216].hex()} contradicts the header; ignored")
            return order, warnings
    if stamped and raw[208:211] == b"MAP":
        return stamped, warnings  # the checks that follow name the value that is wrong
    raise FormatError(
        f"{path} is not an MRC file: neither byte order gives possible sizes and a known mode.",
        remedy="Check that the file is what its name says.",
    )


def _plausible(raw: bytes, order: str) -> bool:
    """Whether extents, mode and axes make sense in this byte order."""
    nx, ny, nz, mode = struct.unpack(f"{order}4i", raw[:16])
    axes = struct.unpack(f"{order}3i", raw[64:76])
    sizes = all(0 < n <= MAX_EXTENT for n in (nx, ny, nz))
    return sizes and (mode in MODES or mode in _REFUSED_MODES) and all(0 <= a <= 3 for a in axes)


def _checked_extents(path: Path, extents: tuple[int, int, int]) -> tuple[int, int, int]:
    """Refuse extents that are not positive or too large to be a tomogram."""
    nz, ny, nx = extents
    if min(extents) < 1:
        raise FormatError(
            f"{path}: the header gives the size {nx} x {ny} x {nz} (x, y, z); each must be at least 1.",
            remedy="The file is broken or was never finished: write it again.",
        )
    if max(extents) > MAX_EXTENT or math.prod(extents) > MAX_VOXELS:
        raise FormatError(
            f"{path}: the header gives the size {nx} x {ny} x {nz} (x, y, z), more than "
            f"{MAX_EXTENT} along an axis or {MAX_VOXELS} voxels.",
            remedy="The header is broken: write the file again.",
        )
    return extents


def _dtype(path: Path, raw: bytes, order: str, mode: int, warnings: list[str]) -> np.dtype[np.generic]:
    """Return the native dtype of a mode; mode 0 may be unsigned bytes of IMOD."""
    if mode not in MODES:
        what = _REFUSED_MODES.get(mode, "unknown")
        hint = "newstack -mode 1 of IMOD" if mode == 101 else "the program that wrote it"
        raise FormatError(
            f"{path} has MRC mode {mode}: {what}; cryoscale reads modes {sorted(MODES)}.",
            remedy=f"Convert it to a real-valued mode with {hint}.",
        )
    if mode != 0:
        return np.dtype(MODES[mode])
    stamp, flags = struct.unpack(f"{order}2i", raw[152:160])
    low, high = struct.unpack(f"{order}2f", raw[76:84])
    if stamp == _IMOD_STAMP:
        return np.dtype("i1" if flags & _BYTES_ARE_SIGNED else "u1")
    if 0 <= low < high and 127 < high <= 255:
        warnings.append(f"mode 0 read as unsigned bytes, because the header's range is {low:g} to {high:g}")
        return np.dtype("u1")
    return np.dtype("i1")


def _axes(path: Path, axes: tuple[int, ...], warnings: list[str]) -> tuple[int, int, int]:
    """Return MAPC, MAPR, MAPS; all zero means 1, 2, 3."""
    if tuple(axes) == (0, 0, 0):
        warnings.append(
            "the axis order (MAPC, MAPR, MAPS) is unset; columns, rows, sections taken as x, y, z"
        )
        return 1, 2, 3
    if sorted(axes) != [1, 2, 3]:
        raise FormatError(
            f"{path}: the axis order (MAPC, MAPR, MAPS) is {tuple(axes)}, not an order of 1, 2, 3.",
            remedy="The header is broken: write the file again.",
        )
    c, r, s = axes
    return c, r, s


def _check_stack(path: Path, ispg: int, nz: int, mz: int, warnings: list[str]) -> None:
    """Refuse stacks of volumes; accept what is an image stack by the letter, with a warning."""
    if ispg >= 401 and 0 < mz < nz:
        raise FormatError(
            f"{path} is a stack of {nz // mz} volumes (ISPG {ispg}, MZ {mz}, NZ {nz}), not one tomogram.",
            remedy="Write each volume to a file of its own.",
        )
    if ispg == 0 and mz == 1 and nz > 1:
        warnings.append("ISPG 0 with MZ=1 treated as a volume, although by the letter it is an image stack")


def _checked_extended(path: Path, nsymbt: int) -> int:
    """Return the length of the extended header, bytes."""
    if nsymbt < 0:
        raise FormatError(
            f"{path}: the extended header is {nsymbt} bytes long (NSYMBT); it cannot be negative.",
            remedy="The header is broken: write the file again.",
        )
    return nsymbt


def _check_size(path: Path, size: int, offset: int, data: int, warnings: list[str]) -> None:
    """Refuse a file that is shorter than its header promises."""
    expected = offset + data
    if size < expected:
        raise FormatError(
            f"{path} is truncated: the header promises {expected} bytes ({offset} of header, "
            f"{data} of voxels), the file has {size}.",
            remedy="Copy or reconstruct it again.",
        )
    if size > expected:
        warnings.append(
            f"the file is {size - expected} bytes longer than its header promises; the rest is ignored"
        )


def _voxel_size(
    path: Path, intervals: tuple[int, ...], cell: tuple[float, ...], *, ignore: bool
) -> tuple[float | None, str]:
    """Return cell / M as one number, or None and the reason.

    M and the cell belong to the axes x, y, z, not to columns, rows, sections.
    """
    if ignore:
        return None, "the header's voxel size is not used"
    if min(intervals) < 1 or not all(math.isfinite(a) and a > 0 for a in cell):
        return None, f"the header's cell {cell} Å over {intervals} intervals leaves the voxel size unset"
    sizes = [a / m for a, m in zip(cell, intervals, strict=True)]
    if max(sizes) > min(sizes) * (1 + ANISOTROPY_TOLERANCE):
        x, y, z = sizes
        raise FormatError(
            f"{path}: the voxels are not cubes: {x:.4g} x {y:.4g} x {z:.4g} Å along x, y, z.",
            remedy="If the header is wrong, give --voxel-size; else resample the volume to cubic voxels.",
        )
    # The cell is stored as float32: what was meant is the shortest number that rounds to it.
    size = float(str(np.float32(sum(sizes) / 3)))
    if math.isclose(size, 1.0, rel_tol=1e-6):
        return None, "the header's voxel size is exactly 1 Å, which programs write when they do not know it"
    return size, ""


def _labels(raw: bytes, order: str) -> tuple[str, ...]:
    """Return the text labels, ten of 80 characters at most."""
    count = min(10, max(0, struct.unpack(f"{order}i", raw[220:224])[0]))
    texts = (raw[224 + 80 * n : 304 + 80 * n] for n in range(count))
    return tuple(t.split(b"\0")[0].decode("ascii", "replace").strip() for t in texts)
