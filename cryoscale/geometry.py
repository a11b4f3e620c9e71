"""Where things are: voxels, boxes, blocks, grids, and ångström.

Axes are always (z, y, x). The centre of voxel i lies at i times the voxel size, so a position in Å divided
by the voxel size is a (fractional) voxel index. Corner conventions are converted in `formats/` alone.
Boxes are half open: `start` belongs to the box, `stop` does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cryoscale.errors import LayoutError


class Zyx(NamedTuple):
    """Three integers in the order z, y, x: a voxel index or an extent in voxels."""

    z: int
    y: int
    x: int

    @classmethod
    def of(cls, value: int | Sequence[int]) -> Zyx:
        """Make a `Zyx` from one number for all axes, or from three."""
        if isinstance(value, (int, np.integer)):
            return cls(int(value), int(value), int(value))
        if len(value) != 3:
            raise LayoutError(f"expected one number or three (z, y, x), got {value!r}")
        return cls(*(int(v) for v in value))

    @property
    def voxels(self) -> int:
        """The product of the three: how many voxels a box of this extent holds."""
        return self.z * self.y * self.x


@dataclass(frozen=True, order=True)
class Box:
    """A half-open box of voxels: `start` inclusive, `stop` exclusive, both (z, y, x)."""

    start: Zyx
    stop: Zyx

    @classmethod
    def of(cls, start: Sequence[int], stop: Sequence[int]) -> Box:
        """Make a box from two triples of integers."""
        return cls(Zyx.of(start), Zyx.of(stop))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """Make the box that covers a volume of this shape."""
        return cls(Zyx(0, 0, 0), Zyx.of(shape))

    @property
    def shape(self) -> Zyx:
        """Extent along z, y, x; never negative."""
        return Zyx(*(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True)))

    @property
    def voxels(self) -> int:
        """Number of voxels inside."""
        return self.shape.voxels

    @property
    def empty(self) -> bool:
        """Whether no voxel lies inside."""
        return self.voxels == 0

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices that cut this box out of an array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def grow(self, halo: int | Sequence[int]) -> Box:
        """Make the box larger by `halo` voxels on every side; it may leave the volume."""
        h = Zyx.of(halo)
        return Box.of(
            [a - n for a, n in zip(self.start, h, strict=True)],
            [b + n for b, n in zip(self.stop, h, strict=True)],
        )

    def shift(self, offset: Sequence[int]) -> Box:
        """Move the box by a whole number of voxels."""
        return Box.of(
            [a + n for a, n in zip(self.start, offset, strict=True)],
            [b + n for b, n in zip(self.stop, offset, strict=True)],
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """Express the box in the coordinates of an array whose first voxel is `origin`."""
        return self.shift([-n for n in origin])

    def intersect(self, other: Box) -> Box:
        """Return what both boxes share; possibly empty, never of negative extent."""
        start = [max(a, b) for a, b in zip(self.start, other.start, strict=True)]
        stop = [min(a, b) for a, b in zip(self.stop, other.stop, strict=True)]
        return Box.of(start, [max(a, b) for a, b in zip(start, stop, strict=True)])

    def contains(self, other: Box) -> bool:
        """Whether `other` lies inside this box, faces included."""
        return self.intersect(other) == other


@dataclass(frozen=True)
class Block:
    """The unit of compute: what one task reads and what it alone writes.

    ::

        +-- read ---------------+
        |   +-- core -------+   |
        |   |   written     |   |    read = core plus halo, clipped to the volume
        |   +---------------+   |
        +-----------------------+

    Parameters
    ----------
    index : int
        Position in the plan of its stage and tomogram; the name of its mark.
    core : Box
        Voxels (or rows, for blocks of picks) that this block writes. Cores never overlap.
    read : Box
        Voxels that this block may read.
    level : int
        Pyramid level that the coordinates belong to.
    """

    index: int
    core: Box
    read: Box
    level: int = 0

    @classmethod
    def of_rows(cls, index: int, start: int, stop: int) -> Block:
        """Make a block of table rows; rows run along the z axis of the box."""
        box = Box.of((start, 0, 0), (stop, 1, 1))
        return cls(index, box, box)

    @property
    def rows(self) -> tuple[int, int]:
        """First row and one past the last, for a block made by `of_rows`."""
        return self.core.start.z, self.core.stop.z


@dataclass(frozen=True)
class Grid:
    """A tiling of a volume anchored at its origin; cells at the far faces are clipped.

    Parameters
    ----------
    shape : Zyx
        Extent of the volume, voxels.
    cell : Zyx
        Extent of one cell, voxels; at least 1 along each axis.
    """

    shape: Zyx
    cell: Zyx

    @classmethod
    def of(cls, shape: Sequence[int], cell: int | Sequence[int]) -> Grid:
        """Make a grid and check it; raises `LayoutError` on extents below 1."""
        grid = cls(Zyx.of(shape), Zyx.of(cell))
        if min(grid.shape) < 1 or min(grid.cell) < 1:
            raise LayoutError(f"a grid needs extents of at least 1, got {grid.shape} by {grid.cell}")
        return grid

    @property
    def counts(self) -> Zyx:
        """Number of cells along z, y, x."""
        return Zyx(*(-(-n // c) for n, c in zip(self.shape, self.cell, strict=True)))

    def __len__(self) -> int:
        return self.counts.voxels

    def box(self, position: Sequence[int]) -> Box:
        """Return the cell at a grid position, clipped to the volume."""
        start = [p * c for p, c in zip(position, self.cell, strict=True)]
        stop = [min(s + c, n) for s, c, n in zip(start, self.cell, self.shape, strict=True)]
        return Box.of(start, stop)

    def boxes(self) -> Iterator[Box]:
        """Yield all cells in raster order: x fastest."""
        for position in itertools.product(*(range(n) for n in self.counts)):
            yield self.box(position)

    def overlapping(self, box: Box) -> Iterator[Box]:
        """Yield the cells that share a voxel with `box`, in raster order."""
        inside = box.intersect(Box.whole(self.shape))
        if inside.empty:
            return
        ranges = [
            range(a // c, -(-b // c)) for a, b, c in zip(inside.start, inside.stop, self.cell, strict=True)
        ]
        for position in itertools.product(*ranges):
            yield self.box(position)

    def blocks(self, halo: int | Sequence[int] = 0, *, level: int = 0) -> Iterator[Block]:
        """Yield one block per cell, its `read` grown by `halo` and clipped to the volume."""
        whole = Box.whole(self.shape)
        for index, core in enumerate(self.boxes()):
            yield Block(index, core, core.grow(halo).intersect(whole), level)


def round_up(value: int, unit: int) -> int:
    """Return the smallest multiple of `unit` that is at least `value`."""
    return -(-value // unit) * unit


def check_aligned(core: Box, unit: int | Sequence[int], shape: Sequence[int]) -> None:
    """Raise `LayoutError` unless `core` is a union of whole write units of an array.

    The one place where the first rule (a shard has one writer) is asserted. A box may stop short of a
    multiple of the unit only at the far face of the array.
    """
    units = Zyx.of(unit)
    if core.empty or not Box.whole(shape).contains(core):
        raise LayoutError(f"the box {core} is empty or leaves the array of shape {tuple(shape)}")
    for a, b, u, n in zip(core.start, core.stop, units, shape, strict=True):
        if a % u or (b % u and b != n):
            raise LayoutError(
                f"the box {core} is not aligned to the write unit {tuple(units)} "
                f"of the array of shape {tuple(shape)}"
            )


def voxels_of(angstrom: float, voxel_size_angstrom: float) -> float:
    """Convert a length in Å to voxels."""
    return angstrom / voxel_size_angstrom


def morton_code(cells_N3: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Interleave the bits of grid positions so that near cells get near numbers.

    Parameters
    ----------
    cells_N3 : (N, 3) int
        Grid positions z, y, x; each non-negative and below 2**21.

    Returns
    -------
    code_N : (N,) uint64
        Z-order (Morton) code, x in the lowest bit.

    Notes
    -----
    Morton 1966, "A computer oriented geodetic data base and a new technique in file sequencing".
    """
    cells = np.asarray(cells_N3, dtype=np.int64).reshape(-1, 3)
    if cells.size and (cells.min() < 0 or cells.max() >= 1 << 21):
        raise LayoutError("grid positions for a Morton code must lie in [0, 2**21)")
    code = np.zeros(len(cells), dtype=np.uint64)
    for axis, place in ((0, 2), (1, 1), (2, 0)):
        code |= _spread_bits(cells[:, axis].astype(np.uint64)) << np.uint64(place)
    return code


def _spread_bits(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Put two zero bits between the 21 low bits of each number (the usual magic masks)."""
    steps = (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    )
    value = value & np.uint64(0x1FFFFF)
    for shift, mask in steps:
        value = (value | (value << np.uint64(shift))) & np.uint64(mask)
    return value


def pick_order(
    positions_N3: npt.NDArray[np.float64], voxel_size_angstrom: float, tile_voxels: int
) -> npt.NDArray[np.int64]:
    """Return the order that picks keep for ever: by tile (Morton), then z, y, x.

    Rows that are near each other in the table are then near each other in the tomogram, so a block of
    rows touches few chunks.
    """
    voxels = np.rint(np.asarray(positions_N3, dtype=np.float64) / voxel_size_angstrom)
    cells = np.maximum(voxels, 0).astype(np.int64) // tile_voxels
    code = morton_code(cells)
    z, y, x = np.asarray(positions_N3, dtype=np.float64).reshape(-1, 3).T
    return np.lexsort((x, y, z, code)).astype(np.int64)


def fast_length(minimum: int) -> int:
    """Return the smallest length of at least `minimum` with prime factors 2, 3, 5 only (fast FFTs)."""
    best = 1 << max(0, math.ceil(math.log2(max(1, minimum))))
    power5 = 1
    while power5 < best:
        power35 = power5
        while power35 < best:
            quotient = -(-minimum // power35)
            candidate = power35 << max(0, (quotient - 1).bit_length())
            if minimum <= candidate < best:
                best = candidate
            power35 *= 3
        power5 *= 5
    return best
