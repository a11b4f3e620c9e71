"""Where boxes to train on lie in label volumes: about objects, and anywhere.

Positions are drawn voxel by voxel, from counts of each class in fixed blocks: no label volume is ever held
whole, and no setting of the execution changes what is drawn.

```
 |<------------ longest side ----------->|
 |  boxes to train on       |  validation |    the cut leaves `validation_fraction` of all labelled voxels
 +--------------------------+-------------+    behind it; no box lies across, so none is in both
```
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.tomogram import LabelVolume
from cryoscale.errors import DataError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.stages.supervised_set import IGNORED

BLOCK = 128  # voxels per side: what is looked at together
VALUES = 256  # of a label volume
COVERAGE = 8  # boxes for each disjoint one that would fit: more would show the same again
FEWEST = 16  # boxes
Voxels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """A tomogram with labels, at the level at work."""

    tomogram: str
    volume: LabelVolume
    level: int
    shape: Zyx
    table_V: npt.NDArray[np.uint8]  # from its values to those of the whole set

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read labels, numbered as in the whole set."""
        labels: npt.NDArray[np.uint8] = self.table_V[self.volume.read(self.level, box)]
        return labels


@dataclass(frozen=True)
class Region:
    """Part of a tomogram that boxes lie in, as blocks with their counts of each label value."""

    source: int  # which of the tomograms
    box: Box
    blocks: list[Box] = field(default_factory=list)
    counts_BV: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, VALUES), np.int64))


@dataclass(frozen=True)
class Drawn:
    """Where boxes begin, of which tomogram each is, and the class that it was drawn for (0: any)."""

    source_N: npt.NDArray[np.int64]
    start_N3: Voxels
    class_N: npt.NDArray[np.int64]

    def joined(self, other: Drawn) -> Drawn:
        """Put another draw behind this one."""
        return Drawn(
            np.concatenate([self.source_N, other.source_N]),
            np.concatenate([self.start_N3, other.start_N3]),
            np.concatenate([self.class_N, other.class_N]),
        )


def draw(
    access: Access, sources: list[Labelled], names: tuple[str, ...], share: float, *, centred: bool
) -> tuple[Drawn, npt.NDArray[np.int64] | None, dict[str, object]]:
    """Draw where boxes are: those to train on, then those to validate on.

    Parameters
    ----------
    access : Access
    sources : list of Labelled
    names : tuple of str
        Of the classes.
    share : float
        Of boxes that show an object; the others lie anywhere.
    centred : bool
        Objects are in the middle of their boxes, not anywhere in them.

    Returns
    -------
    drawn : Drawn
    validation_rows : (V,) int or None
        None where the tomograms are too small for a part of their own.
    notes : dict
    """
    for apart in (True, False):  # in one tomogram, all of a class may lie behind the cut
        drawn, validation, counts_V = _drawn(access, sources, names, share, centred=centred, apart=apart)
        missing = _unseen(drawn, validation, names)
        if not missing:
            break
    if centred and missing:
        raise DataError(
            f"no object of class {', '.join(missing)} is so far from the faces that a box about it fits.",
            remedy="Lower patch.size_voxels, or label more.",
        )
    how = "a part of each tomogram" if validation is not None else "a random share: boxes may overlap"
    voxels = {name: int(counts_V[value]) for value, name in enumerate(names, start=1)}
    return drawn, validation, {"voxels": voxels, "validation": how}


def _drawn(
    access: Access,
    sources: list[Labelled],
    names: tuple[str, ...],
    share: float,
    *,
    centred: bool,
    apart: bool,
) -> tuple[Drawn, npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
    """Draw boxes once, with a part of each tomogram to validate on or without; also count the voxels."""
    config, box = access.config.supervised, Zyx.of(access.config.patch.box)
    fraction = config.validation_fraction if apart else 0.0
    parts = [_parts(source, box, fraction) for source in sources]
    train = [_census(source, n, parts[n][0]) for n, source in enumerate(sources)]
    held = [_census(source, n, rest) for n, source in enumerate(sources) if (rest := parts[n][1]) is not None]
    counts_V = sum((region.counts_BV.sum(axis=0) for region in [*train, *held]), np.zeros(VALUES, np.int64))
    _check_classes(counts_V, names, sources)
    total = wanted_boxes(config.max_patches, [source.shape for source in sources], box)
    behind = max(1, round(fraction * total)) if held else 0
    rng = np.random.default_rng([config.seed, 11])
    drawn = _draw_boxes(sources, train, total - behind, share, box, rng, centred=centred)
    first, rng = len(drawn.source_N), np.random.default_rng([config.seed, 12])
    drawn = drawn.joined(_draw_boxes(sources, held, behind, share, box, rng, centred=centred))
    rows = np.arange(first, len(drawn.source_N))
    return drawn, rows if len(rows) else None, counts_V


def _unseen(drawn: Drawn, validation_rows: npt.NDArray[np.int64] | None, names: tuple[str, ...]) -> list[str]:
    """List the classes that no box to train on was drawn for."""
    train_N = np.ones(len(drawn.class_N), bool)
    if validation_rows is not None:
        train_N[validation_rows] = False
    seen = set(drawn.class_N[train_N].tolist())
    return [f"'{name}'" for value, name in enumerate(names, start=1) if value not in seen]


def wanted_boxes(most: int, shapes: list[Zyx], box: Zyx) -> int:
    """Return how many boxes are drawn from tomograms of these shapes."""
    return min(most, max(FEWEST, COVERAGE * sum(shape.voxels for shape in shapes) // box.voxels))


def _check_classes(counts_V: npt.NDArray[np.int64], names: tuple[str, ...], sources: list[Labelled]) -> None:
    """Refuse classes that nobody drew."""
    missing = [name for value, name in enumerate(names, start=1) if not counts_V[value]]
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        where = ", ".join(source.tomogram for source in sources[:5]) + (", …" if len(sources) > 5 else "")
        raise DataError(
            f"no voxel of class {listed} is labelled in {where} (level {sources[0].level}).",
            remedy="Draw it, or leave its name out of supervised.classes.",
        )


def _parts(source: Labelled, box: Zyx, fraction: float) -> tuple[Box, Box | None]:
    """Cut a tomogram across its longest side: a part to train on, and one to validate on if it is so long."""
    whole = Box.whole(source.shape)
    if not fraction:
        return whole, None
    axis = int(np.argmax(source.shape))
    side, edge = source.shape[axis], box[axis]
    profile = np.zeros(side, np.int64)
    others = tuple(a for a in range(3) if a != axis)
    for block in Grid.of(source.shape, BLOCK).blocks():
        labels = source.read(block.core)
        drawn = (labels > 0) & (labels < IGNORED)
        profile[block.core.start[axis] : block.core.stop[axis]] += drawn.sum(axis=others)
    if side < 2 * edge or not profile.any():
        return whole, None
    behind = np.searchsorted(np.cumsum(profile), (1 - fraction) * profile.sum())
    cut = int(np.clip(behind, edge, side - edge))
    stop, start = list(whole.stop), list(whole.start)
    stop[axis] = start[axis] = cut
    return Box.of(whole.start, stop), Box.of(start, whole.stop)


def _census(source: Labelled, number: int, box: Box) -> Region:
    """Count the label values in each block of a part."""
    blocks, counts = [], []
    for block in Grid.of(source.shape, BLOCK).blocks():
        part = block.core.intersect(box)
        if not part.empty:
            blocks.append(part)
            counts.append(np.bincount(source.read(part).ravel(), minlength=VALUES))
    return Region(number, box, blocks, np.array(counts, np.int64).reshape(-1, VALUES))


def _draw_boxes(
    sources: list[Labelled],
    regions: list[Region],
    count: int,
    share: float,
    box: Zyx,
    rng: np.random.Generator,
    *,
    centred: bool,
) -> Drawn:
    """Draw boxes: a share about voxels of a class, classes equally often; the rest about any known voxel."""
    total_V = sum((region.counts_BV.sum(axis=0) for region in regions), np.zeros(VALUES, np.int64))
    present = [value for value in range(1, IGNORED) if total_V[value]]
    about = round(share * count) if present else 0
    each = [len(part) for part in np.array_split(np.arange(about), max(1, len(present)))]
    asked: list[tuple[int, tuple[int, ...]]] = [(n, (v,)) for n, v in zip(each, present, strict=False)]
    drawn = Drawn(np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    for wanted, values in [*asked, (count - about, tuple(range(IGNORED)))]:
        about_one = len(values) == 1
        many = 2 * wanted if centred and about_one else wanted  # some objects are too near to a face
        source_N, voxels_N3, region_N = _draw_voxels(sources, regions, values, many, rng)
        if centred and about_one:
            starts = _about_objects(sources, source_N, voxels_N3, values[0], box)
            fitting = _fitting(starts, [regions[r].box for r in region_N], box)
            kept = np.sort(rng.permutation(np.flatnonzero(fitting))[:wanted])
            source_N, starts = source_N[kept], starts[kept]
        else:
            starts = _shifted(voxels_N3, [regions[r].box for r in region_N], box, rng)
        class_N = np.full(len(source_N), values[0] if about_one else 0, np.int64)
        drawn = drawn.joined(Drawn(source_N, starts, class_N))
    return drawn


def _draw_voxels(
    sources: list[Labelled],
    regions: list[Region],
    values: tuple[int, ...],
    count: int,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], Voxels, npt.NDArray[np.int64]]:
    """Draw voxels that have one of some values, each as likely as every other: tomogram, voxel, region."""
    blocks = [(number, b) for number, region in enumerate(regions) for b in range(len(region.blocks))]
    sizes_B = np.array([regions[n].counts_BV[b, list(values)].sum() for n, b in blocks], np.int64)
    ends_B = np.cumsum(sizes_B)
    if not len(ends_B) or not ends_B[-1]:
        return np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
    ranks_N = np.sort(rng.integers(ends_B[-1], size=count))
    block_N = np.searchsorted(ends_B, ranks_N, side="right")
    voxels_N3 = np.zeros((count, 3), np.int64)
    region_N = np.array([blocks[b][0] for b in block_N], np.int64)
    allowed_V = np.zeros(VALUES, bool)
    allowed_V[list(values)] = True
    for b in np.unique(block_N):
        region = regions[blocks[b][0]]
        part = region.blocks[blocks[b][1]]
        source = sources[region.source]
        places = np.flatnonzero(allowed_V[source.read(part)])
        mine = block_N == b
        chosen = places[ranks_N[mine] - (ends_B[b] - sizes_B[b])]
        voxels_N3[mine] = np.stack(np.unravel_index(chosen, part.shape), axis=1) + np.array(part.start)
    source_N = np.array([regions[r].source for r in region_N], np.int64)
    return source_N, voxels_N3, region_N


def _shifted(voxels_N3: Voxels, inside: list[Box], box: Zyx, rng: np.random.Generator) -> Voxels:
    """Put each voxel anywhere in a box that stays in its region."""
    starts = voxels_N3 - rng.integers(0, np.array(box), size=voxels_N3.shape)
    low = np.array([region.start for region in inside]).reshape(-1, 3)
    high = np.array([region.stop for region in inside]).reshape(-1, 3) - np.array(box)
    clipped: Voxels = np.clip(starts, low, high)
    return clipped


def _fitting(starts_N3: Voxels, inside: list[Box], box: Zyx) -> npt.NDArray[np.bool_]:
    """Tell which boxes stay in their regions."""
    low = np.array([region.start for region in inside]).reshape(-1, 3)
    high = np.array([region.stop for region in inside]).reshape(-1, 3) - np.array(box)
    return np.asarray(((starts_N3 >= low) & (starts_N3 <= high)).all(axis=1))


def _about_objects(
    sources: list[Labelled], source_N: npt.NDArray[np.int64], voxels_N3: Voxels, value: int, box: Zyx
) -> Voxels:
    """Put the object that each voxel belongs to in the middle of a box, which may leave the tomogram.

    The object is what hangs together with the voxel within a box about it.
    """
    from scipy import ndimage

    half = np.array(box) // 2
    starts = np.empty_like(voxels_N3)
    for row, (number, voxel) in enumerate(zip(source_N, voxels_N3, strict=True)):
        source = sources[number]
        around = Box.of(voxel - half, voxel - half + np.array(box)).intersect(Box.whole(source.shape))
        pieces, _ = ndimage.label(source.read(around) == value)
        piece = pieces[tuple(voxel - np.array(around.start))]
        middle = np.argwhere(pieces == piece).mean(axis=0)
        starts[row] = np.array(around.start) + np.rint(middle).astype(np.int64) - half
    return starts
