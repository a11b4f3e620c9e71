"""Label volumes against truth, from confusion counts that add up over blocks.

Shape suffixes: C classes, S samples. Rows of a confusion matrix are truth, columns prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def confusion(truth: npt.ArrayLike, predicted: npt.ArrayLike, n_classes: int) -> Counts:
    """Count voxels by true and predicted class.

    Parameters
    ----------
    truth, predicted : int arrays of one shape
        Label values, 0 to n_classes - 1.
    n_classes : int
        Number of classes, background included.

    Returns
    -------
    counts_CC : (C, C) int64
        Add the counts of blocks to get those of the volume.

    Raises
    ------
    ConfigurationError
        Shapes differ, or a value is out of range.
    """
    t, p = np.asarray(truth), np.asarray(predicted)
    if t.shape != p.shape or t.dtype.kind not in "iub" or p.dtype.kind not in "iub":
        raise ConfigurationError(
            f"label volumes must be integers of one shape, got {t.dtype} {t.shape}, {p.dtype} {p.shape}."
        )
    for name, values in (("truth", t), ("prediction", p)):
        if values.size and (values.min() < 0 or values.max() >= n_classes):
            raise ConfigurationError(
                f"the {name} holds labels {values.min()} to {values.max()}, "
                f"but there are {n_classes} classes."
            )
    flat = t.ravel().astype(np.int64) * n_classes + p.ravel()
    return np.bincount(flat, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)


@dataclass(frozen=True)
class SegmentationScores:
    """Scores from one confusion matrix.

    Parameters
    ----------
    counts_CC : (C, C) float64
        Voxels by truth (rows) and prediction (columns). Whole numbers, or expected ones for chance.
    """

    counts_CC: Floats

    @property
    def pixel_accuracy(self) -> float:
        """Share of voxels with the right label."""
        total = self.counts_CC.sum()
        return float(np.trace(self.counts_CC) / total) if total else float("nan")

    @property
    def iou_C(self) -> Floats:
        """Intersection over union per class; NaN for a class in neither volume."""
        hit = np.diag(self.counts_CC).astype(np.float64)
        union = self.counts_CC.sum(axis=0) + self.counts_CC.sum(axis=1) - hit
        iou_C: Floats = np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)
        return iou_C

    @property
    def dice_C(self) -> Floats:
        """Dice coefficient per class: 2 intersections over the sum of sizes; NaN as in `iou_C`."""
        hit = np.diag(self.counts_CC).astype(np.float64)
        sizes = (self.counts_CC.sum(axis=0) + self.counts_CC.sum(axis=1)).astype(np.float64)
        dice_C: Floats = np.divide(2 * hit, sizes, out=np.full(len(hit), np.nan), where=sizes > 0)
        return dice_C

    @property
    def mean_iou(self) -> float:
        """Mean of `iou_C` over the classes present: the pooled mIoU."""
        return _mean_of_finite(self.iou_C)

    def by_chance(self) -> SegmentationScores:
        """Return what the prediction would score with its labels shuffled over the voxels.

        The expected counts are the product of the margins over the total, so no draw is needed.
        """
        total = self.counts_CC.sum()
        margins = np.outer(self.counts_CC.sum(axis=1), self.counts_CC.sum(axis=0)).astype(np.float64)
        return SegmentationScores(margins / total if total else margins)


def pooled_scores(confusions: Iterable[npt.ArrayLike]) -> SegmentationScores:
    """Add the counts of blocks or volumes and score them together."""
    parts = [np.asarray(c, dtype=np.float64) for c in confusions]
    if not parts:
        raise ConfigurationError("no confusion matrix to score.")
    return SegmentationScores(np.sum(parts, axis=0))


def mean_iou_by_sample(confusions_SCC: npt.ArrayLike, classes: Sequence[int] | None = None) -> float:
    """Return the mIoU taken per sample and class first, then over samples, then over classes.

    That is how SSN3D-ED and DSM-Net report it. A class absent from both volumes of a sample does not count
    there. `SegmentationScores.mean_iou` is the pooled one: report both. `classes` are those to take the mean
    over; None: all.
    """
    counts_SCC = np.asarray(confusions_SCC)
    if counts_SCC.ndim != 3 or not len(counts_SCC):
        raise ConfigurationError(f"expected confusion matrices (S, C, C), got shape {counts_SCC.shape}.")
    iou_SC = np.stack([SegmentationScores(c).iou_C for c in counts_SCC])
    taken_CS = iou_SC.T if classes is None else iou_SC.T[list(classes)]
    return _mean_of_finite(np.array([_mean_of_finite(iou_S) for iou_S in taken_CS]))


def _mean_of_finite(values: Floats) -> float:
    """Return the mean without NaN; NaN when nothing is left."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def shuffled_scores(
    truth: npt.ArrayLike, predicted: npt.ArrayLike, n_classes: int, *, seed: int
) -> SegmentationScores:
    """Score a prediction whose labels are shuffled over the voxels, by one seeded draw."""
    labels = np.asarray(predicted)
    shuffled = np.random.default_rng(seed).permutation(labels.ravel()).reshape(labels.shape)
    return SegmentationScores(confusion(truth, shuffled, n_classes).astype(np.float64))
