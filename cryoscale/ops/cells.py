"""Dense prediction in cells: a network sees each cell with a margin around it, and only the cell is kept.

::

    +-- window: always the same shape --+
    |   +-- cell -------+               |    Windows share their margins and nothing is blended: a voxel
    |   |  what is kept |               |    comes from one window, the one in whose middle it lies.
    |   +---------------+               |
    |      margin                       |
    +-----------------------------------+

Cells stand on a grid that begins anew every `unit` voxels, so that blocks which are unions of such units
share no cell. At a face of the volume a window is moved inside, so there is no margin beyond it. Windows
begin at multiples of `alignment`: a network that pools then sees each voxel in the same place of its pooling
cells, as if it were given the whole volume at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Box, Zyx, round_up

ONE = Zyx(1, 1, 1)


@dataclass(frozen=True)
class Cells:
    """Where the cells of a dense prediction lie, and the windows around them.

    Parameters
    ----------
    shape : Zyx
        Extent of the volume, voxels.
    cell : Zyx
        Extent of a cell, voxels; clipped at the end of its unit and of the volume.
    margin : int
        How far a window reaches beyond its cell, voxels.
    unit : int
        The grid of cells begins anew at multiples of it.
    alignment : int
        What starts and sides of windows divide by.
    least : Zyx
        Windows are at least this large, also where the volume is thinner (the caller reflects).

    Raises
    ------
    ConfigurationError
        Cells, margin or unit are not multiples of `alignment`.
    """

    shape: Zyx
    cell: Zyx
    margin: int
    unit: int
    alignment: int = 4
    least: Zyx = ONE

    def __post_init__(self) -> None:
        numbers = (*self.cell, self.unit, self.alignment)
        if min(*numbers, *self.shape, *self.least) < 1 or self.margin < 0:
            raise ConfigurationError(f"cells need extents above 0 and a margin of at least 0, got {self}.")
        if any(n % self.alignment for n in (*self.cell, self.unit, self.margin)):
            raise ConfigurationError(f"cell, margin and unit must divide by {self.alignment}, got {self}.")

    @classmethod
    def fitted(
        cls,
        shape: Sequence[int],
        *,
        largest: int,
        margin: int,
        unit: int,
        alignment: int = 4,
        least: Sequence[int] = (1, 1, 1),
    ) -> Cells:
        """Choose the cells that cover a volume at the least cost, along each axis on its own.

        Parameters
        ----------
        shape : three int
            Extent of the volume, voxels.
        largest : int
            No cell is larger than this, voxels.

        Notes
        -----
        200 voxels by cells of at most 128 are two of 100, not 128 and 72: all windows have one shape, so the
        smaller one would cost as much as the larger one.
        """
        extent = Zyx.of(shape)
        sides = range(alignment, round_up(largest, alignment) + 1, alignment)
        best = []
        for axis, n in enumerate(extent):
            trials = [
                cls(extent, Zyx.of([side if a == axis else alignment for a in range(3)]), margin, unit,
                    alignment, Zyx.of(least))
                for side in sides if 2 * side > min(largest, n)
            ]  # fmt: skip
            best.append(min(trials, key=lambda t: (t._axis_cost(axis), -t.cell[axis])).cell[axis])
        return cls(extent, Zyx.of(best), margin, unit, alignment, Zyx.of(least))

    def _axis_cost(self, axis: int) -> int:
        return len(self.axis_cells(axis)) * self.size[axis]

    def axis_cells(self, axis: int) -> list[tuple[int, int]]:
        """Return where cells begin and end along one axis, ascending."""
        n, side = self.shape[axis], self.cell[axis]
        return [
            (start, min(start + side, first + self.unit, n))
            for first in range(0, n, self.unit)
            for start in range(first, min(first + self.unit, n), side)
        ]

    @property
    def size(self) -> Zyx:
        """Extent of every window, voxels: a cell and its margins, or the volume where that is smaller."""
        sides = []
        for axis, n in enumerate(self.shape):
            neighbours = min(2, len(self.axis_cells(axis)) - 1)
            side = min(self.cell[axis] + neighbours * self.margin, round_up(n, self.alignment))
            sides.append(round_up(max(side, self.least[axis]), self.alignment))
        return Zyx.of(sides)

    @property
    def cost(self) -> float:
        """Voxels that the network computes for each voxel of the volume."""
        windows = [len(self.axis_cells(axis)) for axis in range(3)]
        return Zyx.of(windows).voxels * self.size.voxels / self.shape.voxels

    def overlapping(self, core: Box) -> Iterator[tuple[Box, Box]]:
        """Yield each cell that shares a voxel with `core`, and its window, in raster order.

        A window leaves the volume where that is thinner than it, and by less than `alignment` where the
        volume's extent does not divide by it.
        """
        inside = core.intersect(Box.whole(self.shape))
        if inside.empty:
            return
        touching = [
            [(a, b) for a, b in self.axis_cells(axis) if a < inside.stop[axis] and b > inside.start[axis]]
            for axis in range(3)
        ]
        for spans in itertools.product(*touching):
            cell = Box.of([a for a, _ in spans], [b for _, b in spans])
            yield cell, self.window(cell)

    def window(self, cell: Box) -> Box:
        """Return the window of a cell: the cell in its middle, but at the faces of the volume."""
        size = self.size
        starts = [
            max(0, min(a - self.margin, round_up(n, self.alignment) - side))
            for a, n, side in zip(cell.start, self.shape, size, strict=True)
        ]
        return Box.of(starts, [a + side for a, side in zip(starts, size, strict=True)])
