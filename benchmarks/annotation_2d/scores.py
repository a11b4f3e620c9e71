"""Per-class F1, voxel by voxel and with a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Labels = npt.NDArray[np.uint8]
UNKNOWN = 255


def confusion(found: Labels, truth: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Count voxels by true and found class, (L, L); those of unknown truth are left out."""
    known = truth != UNKNOWN
    pairs = truth[known].astype(np.int64) * classes + found[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def by_class(counts_LL: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Return F1 = 2 TP / (2 TP + FP + FN) of each class over all voxels, and the mean over the features."""
    hits, drawn, found = np.diag(counts_LL), counts_LL.sum(axis=1), counts_LL.sum(axis=0)
    f1 = 2 * hits / np.maximum(drawn + found, 1)
    share = drawn / max(drawn.sum(), 1)
    # Who labels voxels at random, each class as often as it is there, gets its share.
    return {
        "f1": dict(zip(names, f1.tolist(), strict=True)),
        "share": dict(zip(names, share.tolist(), strict=True)),
        "mean_f1": float(f1[1:][drawn[1:] > 0].mean()) if drawn[1:].any() else 0.0,
        "accuracy": float(hits.sum() / max(counts_LL.sum(), 1)),
    }


def matched(found: Labels, truth: Labels, values: int, classes: int) -> npt.NDArray[np.uint8]:
    """Give each found value the class, beyond noise, with which it has the largest F1; noise keeps 0."""
    known = truth != UNKNOWN
    counts = np.zeros((values, classes), np.int64)
    np.add.at(counts, (found[known], truth[known]), 1)
    both = counts.sum(axis=1, keepdims=True) + counts.sum(axis=0, keepdims=True)
    table = 1 + (2 * counts / np.maximum(both, 1))[:, 1:].argmax(axis=1)
    table[0] = 0
    return table.astype(np.uint8)


def tolerant_f1(found: npt.NDArray[np.bool_], truth: Labels, tolerance: float) -> dict[str, float]:
    """Count a voxel as right if one of the other kind is within so many voxels; precision, recall, F1."""
    known = truth != UNKNOWN
    drawn, said = (truth == 1) & known, found & known
    near_drawn = ndimage.distance_transform_edt(~drawn) <= tolerance if drawn.any() else np.zeros_like(drawn)
    near_said = ndimage.distance_transform_edt(~said) <= tolerance if said.any() else np.zeros_like(said)
    precision = float(near_drawn[said].mean()) if said.any() else 0.0
    recall = float(near_said[drawn].mean()) if drawn.any() else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}
