"""Label volumes on storage against the truth, block by block, classes matched by name.

Shape suffixes: T true classes, F found classes, C classes of either; background is row 0 of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.tomogram import LabelVolume
from cryoscale.errors import FormatError
from cryoscale.evaluate.segmentation import SegmentationScores, mean_iou_by_sample, pooled_scores
from cryoscale.geometry import Grid, Zyx

Counts = npt.NDArray[np.int64]
LARGEST_BLOCK = 256  # voxels per side: two label blocks and their counts fit into 0.5 GiB
MOST_LABELS = 256  # of a uint8


@dataclass(frozen=True)
class LabelCounts:
    """Voxels by true (rows) and found (columns) class, with the names of both.

    Parameters
    ----------
    counts_TF : (T, F) int64
        Row and column 0 are background.
    true_names, found_names : tuple of str
        Names by value, "background" first.
    """

    counts_TF: Counts
    true_names: tuple[str, ...]
    found_names: tuple[str, ...]

    @property
    def found_only(self) -> tuple[str, ...]:
        """Found classes without a true one of that name."""
        return tuple(n for n in self.found_names if n not in self.true_names)

    def joined(self, names: Sequence[str], name: str) -> LabelCounts:
        """Return the counts with some true classes taken for one, of another name; it comes last."""
        rows = [row for row, true in enumerate(self.true_names) if true in names]
        kept = [row for row in range(len(self.true_names)) if row not in rows]
        counts_TF = np.concatenate([self.counts_TF[kept], self.counts_TF[rows].sum(axis=0)[None]])
        return LabelCounts(counts_TF, (*(self.true_names[row] for row in kept), name), self.found_names)

    def over(self, names: Sequence[str]) -> Counts:
        """Return the square matrix over a list of names that holds all of ours."""
        square_CC = np.zeros((len(names), len(names)), np.int64)
        rows = [names.index(n) for n in self.true_names]
        columns = [names.index(n) for n in self.found_names]
        np.add.at(square_CC, np.ix_(rows, columns), self.counts_TF)
        return square_CC


def count_labels(
    found: LabelVolume, truth: LabelVolume, *, largest_block: int = LARGEST_BLOCK
) -> LabelCounts:
    """Count voxels by true and found class at the level that the found labels were made at.

    Parameters
    ----------
    found, truth : LabelVolume
        Of one tomogram.
    largest_block : int
        Voxels per side that are in memory at once; blocks are shards if these are smaller.

    Raises
    ------
    FormatError
        The volumes are of different extents, or hold values without a name.
    """
    ours, known = found.facts, truth.facts
    level = ours.working_level
    if level >= len(known.levels) or known.levels[level].shape != ours.levels[level].shape:
        have = tuple(known.levels[min(level, len(known.levels) - 1)].shape)
        raise FormatError(
            f"{truth.pyramid.folder.url}: level {level} has {have} voxels (z, y, x), the labels "
            f"'{ours.name}' have {tuple(ours.levels[level].shape)}: this truth is for another shape."
        )
    shape = ours.levels[level].shape
    cell = Zyx(*(min(n, largest_block) for n in found.pyramid.write_unit(level)))
    table = np.zeros((MOST_LABELS, MOST_LABELS), np.int64)
    for box in Grid(shape, cell).boxes():
        t, f = truth.read(level, box), found.read(level, box)
        _check_range(t, truth, known.class_names)
        _check_range(f, found, ours.class_names)
        flat = t.ravel().astype(np.int32) * MOST_LABELS + f.ravel()
        table += np.bincount(flat, minlength=MOST_LABELS**2).reshape(MOST_LABELS, MOST_LABELS)
    true_names, found_names = ("background", *known.class_names), ("background", *ours.class_names)
    return LabelCounts(table[: len(true_names), : len(found_names)], true_names, found_names)


def _check_range(block_ZYX: npt.NDArray[Any], volume: LabelVolume, class_names: tuple[str, ...]) -> None:
    high = int(block_ZYX.max())
    if high > len(class_names):
        raise FormatError(
            f"{volume.pyramid.folder.url} holds the label {high}, but has "
            f"{len(class_names)} classes: {', '.join(class_names) or 'none'}."
        )


def segmentation_scores(parts: Sequence[LabelCounts]) -> dict[str, Any]:
    """Score the labels of one or several tomograms.

    Parameters
    ----------
    parts : sequence of LabelCounts
        One per tomogram.

    Returns
    -------
    scores : dict
        `pixel_accuracy`; `mean_iou` (of all voxels together) over background and the true classes, whether or
        not they were found; `mean_iou_by_sample`, taken in each sample first: a sample is a tomogram here
        (`sample`, `samples`), so of one it is `mean_iou`; papers take subtomograms; `mean_iou_shared`
        over background and the classes with a name on both sides; the same by chance, as
        `random_…`; `by_class`: voxels, IoU and Dice of each class, found ones
        without a true namesake too (0 by definition; `truth` says that there are none); `unmatched`: names
        that only one side has; `confusion`: names and counts.
    """
    names = list(dict.fromkeys(n for part in parts for n in part.true_names))
    true_names = tuple(names)
    found_names = tuple(dict.fromkeys(n for part in parts for n in part.found_names))
    names += [n for n in found_names if n not in names]
    matrices = [part.over(names) for part in parts]
    pooled = pooled_scores(matrices)
    chance = pooled.by_chance()
    chances = [SegmentationScores(m.astype(np.float64)).by_chance().counts_CC for m in matrices]
    true_rows = list(range(len(true_names)))
    shared = [row for row in true_rows if names[row] in found_names]
    return {
        "pixel_accuracy": pooled.pixel_accuracy, "random_pixel_accuracy": chance.pixel_accuracy,
        "sample": "tomogram", "samples": len(parts),
        "mean_iou_by_sample": _plain(mean_iou_by_sample(matrices, true_rows)),
        "random_mean_iou_by_sample": _plain(mean_iou_by_sample(chances, true_rows)),
        "mean_iou": _mean(pooled.iou_C[true_rows]), "random_mean_iou": _mean(chance.iou_C[true_rows]),
        "mean_iou_shared": _mean(pooled.iou_C[shared]),
        "by_class": {
            name: {
                "truth": int(pooled.counts_CC[row].sum()), "found": int(pooled.counts_CC[:, row].sum()),
                "iou": _plain(pooled.iou_C[row]), "random_iou": _plain(chance.iou_C[row]),
                "dice": _plain(pooled.dice_C[row]), "random_dice": _plain(chance.dice_C[row]),
            }
            for row, name in enumerate(names)
        },
        "unmatched": {
            "found": [n for n in found_names if n not in true_names],
            "truth": [n for n in true_names if n not in found_names],
        },
        "confusion": {"names": names, "counts": pooled.counts_CC.astype(np.int64).tolist()},
    }  # fmt: skip


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
