"""Where tiles lie in the slices of labelled tomograms: to train on, and to validate on.

Shapes: T tomograms, K cells, P planes, L classes with the background.

Planes at the end of each tomogram are held back to validate on, as `label_drawing` holds back a part of it:

```
 |<------------------ planes along the axis ------------------>|
 |  tiles to train on            | neighbours |  validation    |   no tile to train on sees a plane whose
 +-------------------------------+------------+----------------+   labels are validated on
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.access import Access
from cryoscale.data.rows import PICK_TILE_VOXELS
from cryoscale.errors import DataError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.stages.label_boxes import Labelled
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.supervised_set import IGNORED

CELL = PICK_TILE_VOXELS  # smoothing works in these: a cell is filtered once, however many tiles it is in
VALUES = 256
FEWEST_PLANES = 4  # that show objects: with fewer, whole tomograms train

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tiling:
    """The form of all tiles: their axis and side, and what is read around them."""

    axis: int  # 0, 1, 2 for z, y, x
    tile: int
    neighbours: int
    halo: int  # read on each side of the tile, to filter it

    @property
    def planes(self) -> int:
        """How many planes a tile has."""
        return 2 * self.neighbours + 1

    @property
    def side(self) -> int:
        """Extent of what is read across a slice."""
        return self.tile + 2 * self.halo

    def window(self, place: Place) -> Box:
        """Return what is read for a tile; it may leave the volume."""
        start, size = [v - self.halo for v in place.first], [self.side, self.side]
        start.insert(self.axis, place.plane - self.neighbours)
        size.insert(self.axis, self.planes)
        return Box.of(start, [a + n for a, n in zip(start, size, strict=True)])

    def flat(self, window_ZYX: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Put the planes first: (C, U, V), a view."""
        return np.moveaxis(window_ZYX, self.axis, 0)


@dataclass(frozen=True, order=True)
class Place:
    """Where a tile is cut: number of the tomogram, plane along the axis, and its first pixel across."""

    source: int
    plane: int
    first: tuple[int, int]


class Source:
    """One tomogram: its density as networks see it, and its labels."""

    def __init__(self, access: Access, labelled: Labelled, names: Sequence[str]) -> None:
        self.name, self.names, self.labelled = labelled.tomogram, names, labelled
        self.reader = PatchReader.for_access(access, labelled.tomogram)
        self.shape = labelled.shape
        self.grid = list(Grid.of(self.shape, CELL).boxes())

    def labels(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read labels of a box inside the tomogram."""
        found_ZYX: npt.NDArray[np.uint8] = self.labelled.read(box)
        return found_ZYX

    def counts(self, axis: int) -> Indices:
        """Count the voxels of each class in each plane across an axis, (P, L)."""
        counts = np.zeros((self.shape[axis], VALUES), np.int64)
        for cell in self.grid:
            planes = np.moveaxis(self.labels(cell), axis, 0)
            for plane, labels in enumerate(planes, start=cell.start[axis]):
                counts[plane] += np.bincount(labels.ravel(), minlength=VALUES)
        if counts[:, len(self.names) + 1 : IGNORED].any():
            raise DataError(
                f"the labels of '{self.name}' have values beyond their {len(self.names)} classes"
                f" ({', '.join(self.names)}).",
                remedy="Name them by supervised.classes, or set them to 255: unknown.",
            )
        return counts[:, : len(self.names) + 1]

    def counts_of(self, cells: Sequence[Box]) -> Indices:
        """Count the voxels of each class in each of some boxes, (K, L)."""
        values = len(self.names) + 1
        counts = [np.bincount(self.labels(cell).ravel(), minlength=VALUES)[:values] for cell in cells]
        return np.array(counts, np.int64).reshape(-1, values)

    def cells(self, axis: int, planes: range) -> list[Box]:
        """Cut cells to a range of planes."""
        start, stop = [0, 0, 0], list(self.shape)
        start[axis], stop[axis] = planes.start, planes.stop
        cut = [cell.intersect(Box.of(start, stop)) for cell in self.grid]
        return [cell for cell in cut if not cell.empty]


@dataclass(frozen=True)
class Part:
    """Which planes of a tomogram train, and which are held back (none: all train)."""

    train: range
    held: range


def tile_count(asked: SupervisedConfig, shapes: Sequence[Zyx], tiling: Tiling) -> int:
    """Return how many tiles are wanted: at most `max_patches`, and at most what fits beside each other."""
    return min(asked.max_patches, _beside(shapes, [range(shape[tiling.axis]) for shape in shapes], tiling))


def _beside(shapes: Sequence[Zyx], planes: Sequence[range], tiling: Tiling) -> int:
    """Count the tiles that fit beside each other into some planes of each tomogram."""
    across = [
        math.prod(math.ceil(n / tiling.tile) for axis, n in enumerate(shape) if axis != tiling.axis)
        for shape in shapes
    ]
    return sum(len(some) * tiles for some, tiles in zip(planes, across, strict=True))


def _parts(asked: SupervisedConfig, counts_TPL: Sequence[Indices], tiling: Tiling) -> list[Part]:
    """Cut each tomogram into planes that train and planes that are held back."""
    parts = [_part(counts_PL, asked.validation_fraction, tiling.neighbours) for counts_PL in counts_TPL]
    seen_TL = [
        counts_PL[part.train.start : part.train.stop].sum(axis=0)
        for counts_PL, part in zip(counts_TPL, parts, strict=True)
    ]
    if np.all(np.sum(seen_TL, axis=0)[1:] > 0):
        return parts
    return [_whole(len(counts_PL)) for counts_PL in counts_TPL]  # a class is drawn in held planes alone


def _part(counts_PL: Indices, fraction: float, gap: int) -> Part:
    """Hold back planes at the end of one tomogram: so many that they show a share of all that is drawn."""
    drawn_P = counts_PL[:, 1:].sum(axis=1)
    if np.count_nonzero(drawn_P) < FEWEST_PLANES:
        return _whole(len(drawn_P))
    cut = int(np.searchsorted(np.cumsum(drawn_P), (1 - fraction) * drawn_P.sum()))
    if not drawn_P[: max(cut - gap, 0)].any():
        return _whole(len(drawn_P))
    return Part(range(cut - gap), range(cut, len(drawn_P)))


def _whole(planes: int) -> Part:
    return Part(range(planes), range(planes, planes))


def _how(parts: Sequence[Part]) -> str:
    """Say for the card what is validated on."""
    cut = sum(1 for part in parts if part.held)
    return "planes of their own" + (f" in {cut} of {len(parts)} tomograms" if cut < len(parts) else "")


def draw_tiles(
    asked: SupervisedConfig, sources: Sequence[Source], counts_TPL: Sequence[Indices], tiling: Tiling
) -> tuple[list[Place], Indices, str]:
    """Draw the tiles to train on, then those to validate on.

    Parameters
    ----------
    asked : SupervisedConfig
    sources : sequence of Source
    counts_TPL : sequence of (P, L) int
        Of each source, see `Source.counts`.
    tiling : Tiling

    Returns
    -------
    places : list of Place
        None twice.
    validation_rows : (V,) int64
    how : str
        What is validated on, for the card.
    """
    shapes = [source.shape for source in sources]
    total = tile_count(asked, shapes, tiling)
    parts = _parts(asked, counts_TPL, tiling)
    if any(part.held for part in parts):
        train, held = [part.train for part in parts], [part.held for part in parts]
        behind = min(max(1, round(asked.validation_fraction * total)), _beside(shapes, held, tiling))
        wanted = max(1, min(total - behind, _beside(shapes, train, tiling)))
        places = _places(asked, sources, train, tiling, wanted, 3)
        apart = _places(asked, sources, held, tiling, behind, 4)
        if places and apart:
            rows: Indices = np.arange(len(places), len(places) + len(apart))
            return [*places, *apart], rows, _how(parts)
    whole = [range(shape[tiling.axis]) for shape in shapes]
    places = _places(asked, sources, whole, tiling, total, 3)
    return places, _random_share(len(places), asked), "a random share: tiles may overlap"


def _places(
    asked: SupervisedConfig,
    sources: Sequence[Source],
    planes: Sequence[range],
    tiling: Tiling,
    wanted: int,
    purpose: int,
) -> list[Place]:
    """Draw places in some planes, about voxels of objects and of the background; sorted, none twice."""
    rng = np.random.default_rng([asked.seed, purpose])
    cells_TK = [source.cells(tiling.axis, some) for source, some in zip(sources, planes, strict=True)]
    counts_TKL = [source.counts_of(cells) for source, cells in zip(sources, cells_TK, strict=True)]
    draws = 4 * wanted  # where a tile is a whole plane most draws are the same one: more find nearly all
    objects, n_classes = round(asked.object_share * draws), counts_TKL[0].shape[1] - 1
    quotas = [objects * (n + 1) // n_classes - objects * n // n_classes for n in range(n_classes)]
    found = [
        _place_about(voxel, number, sources[number].shape, tiling, rng)
        for number, voxel in _drawn_voxels(sources, cells_TK, counts_TKL, [draws - objects, *quotas], rng)
    ]
    return sorted(list(dict.fromkeys(found[n] for n in rng.permutation(len(found))))[:wanted])


def _drawn_voxels(
    sources: Sequence[Source],
    cells_TK: Sequence[Sequence[Box]],
    counts_TKL: Sequence[Indices],
    quota_L: Sequence[int],
    rng: np.random.Generator,
) -> Iterator[tuple[int, Indices]]:
    """Draw so many voxels of each class, evenly over all its voxels: number of the tomogram, voxel."""
    cells = [(number, cell) for number, counts_KL in enumerate(counts_TKL) for cell in range(len(counts_KL))]
    counts_KL = np.concatenate(counts_TKL)
    drawn: dict[int, list[tuple[int, Indices]]] = {}
    for value, quota in enumerate(quota_L):
        ends = np.cumsum(counts_KL[:, value])
        if not quota or not ends[-1]:
            continue
        ordinals = np.sort(rng.integers(ends[-1], size=quota))
        inside = np.searchsorted(ends, ordinals, side="right")
        for cell in np.unique(inside).tolist():
            before = ends[cell] - counts_KL[cell, value]
            drawn.setdefault(cell, []).append((value, ordinals[inside == cell] - before))
    for cell in sorted(drawn):
        number, place = cells[cell]
        box = cells_TK[number][place]
        labels = sources[number].labels(box)
        for value, ordinals in drawn[cell]:
            voxels = np.flatnonzero(labels == value)[ordinals]
            for voxel in np.stack(np.unravel_index(voxels, labels.shape), axis=1):
                yield number, voxel + np.array(box.start)


def _place_about(voxel: Indices, number: int, shape: Zyx, tiling: Tiling, rng: np.random.Generator) -> Place:
    """Put a tile so that a voxel lies in its middle half, and inside of the slice where it fits into that."""
    shift = rng.integers(tiling.tile // 4, tiling.tile - tiling.tile // 4, size=2)
    across = [axis for axis in range(3) if axis != tiling.axis]
    first = []
    for axis, ahead in zip(across, shift.tolist(), strict=True):
        room = shape[axis] - tiling.tile
        first.append(room // 2 if room <= 0 else min(max(int(voxel[axis]) - ahead, 0), room))
    return Place(number, int(voxel[tiling.axis]), (first[0], first[1]))


def _random_share(tiles: int, asked: SupervisedConfig) -> Indices:
    """Draw the tiles to validate on; one at least is left to train on."""
    share = max(0, min(max(1, round(tiles * asked.validation_fraction)), tiles - 1))
    rows: Indices = np.sort(np.random.default_rng([asked.seed, 5]).permutation(tiles)[:share])
    return rows
