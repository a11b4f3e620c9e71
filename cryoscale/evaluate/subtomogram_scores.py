"""What a network says of subtomograms against their truth: class, mask and density, also by class.

Shape suffixes: S subtomograms, K classes of particles, L labels of voxels (0 is background), ZYX voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.segmentation import (
    SegmentationScores,
    confusion,
    mean_iou_by_sample,
    pooled_scores,
)

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Found:
    """What a network gave for subtomograms, or what is true of them; None for heads that it has not.

    Parameters
    ----------
    class_S : (S,) int, optional
        Row of the class names; -1 where the class is none of them (one that the network never saw).
    labels_SZYX : (S, Z, Y, X) int, optional
        Label of each voxel.
    density_SZYX : (S, Z, Y, X) float, optional
        The particle without its neighbours.
    """

    class_S: Ints | None = None
    labels_SZYX: Ints | None = None
    density_SZYX: Floats | None = None

    def only(self, rows_S: npt.NDArray[Any]) -> Found:
        """Return some of the subtomograms."""
        parts = (self.class_S, self.labels_SZYX, self.density_SZYX)
        return Found(*(None if part is None else part[rows_S] for part in parts))


def subtomogram_scores(
    truth: Found,
    found: Found,
    class_names: Sequence[str],
    *,
    n_labels: int = 2,
    group_S: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Score class, mask and density of subtomograms.

    Parameters
    ----------
    truth, found : Found
        What is in both is scored.
    class_names : sequence of str
        Names of the classes, by index.
    n_labels : int
        Labels of voxels, background included.
    group_S : (S,) str, optional
        What `by_class` goes by; by default the name of the true class.

    Returns
    -------
    scores : dict
        Plain values; None where nothing can be told. `samples`; of the class `object_accuracy`, the share of
        right ones, and `confusion` (names, counts; rows are truth); of the mask `pixel_accuracy`,
        `mean_iou_by_sample` (in each sample and label, averaged over samples, then over labels: the papers'
        one) and `mean_iou` (of all voxels together); of the density `recovery_error`, the mean squared error,
        and `recovery_error_of_nothing`, that of an answer of zeros. With `random_…`: what the same answers
        reach, shuffled. `by_class`: the same for the samples of each group.

    Raises
    ------
    ConfigurationError
        Arrays of different lengths or shapes, or nothing to score.
    """
    samples = _samples(truth, found)
    scores = _scores(truth, found, class_names, n_labels, samples)
    if group_S is not None:
        groups_S = np.asarray(group_S)
    elif truth.class_S is not None:
        groups_S = np.array([*class_names, "none of them"])[truth.class_S]
    else:
        return scores
    scores["by_class"] = {
        str(name): _scores(
            truth.only(groups_S == name), found.only(groups_S == name), class_names, n_labels,
            int((groups_S == name).sum()), table=False,
        )
        for name in np.unique(groups_S)
    }  # fmt: skip
    return scores


def _samples(truth: Found, found: Found) -> int:
    """Return how many subtomograms both have, and check that they fit together."""
    sizes = set()
    for name in ("class_S", "labels_SZYX", "density_SZYX"):
        true, ours = getattr(truth, name), getattr(found, name)
        if true is None or ours is None:
            continue
        if true.shape != ours.shape:
            raise ConfigurationError(
                f"{name.partition('_')[0]} of subtomograms: truth has shape {true.shape}, found {ours.shape}."
            )
        sizes.add(len(true))
    if len(sizes) != 1 or sizes == {0}:
        raise ConfigurationError(
            "there is nothing to score: class, labels and density are of "
            f"{sorted(sizes) or 'no'} subtomograms."
        )
    return sizes.pop()


def _scores(
    truth: Found, found: Found, class_names: Sequence[str], n_labels: int, samples: int, *, table: bool = True
) -> dict[str, Any]:
    scores: dict[str, Any] = {"samples": samples}
    if truth.class_S is not None and found.class_S is not None:
        scores |= _of_class(truth.class_S, found.class_S, class_names, table=table)
    if truth.labels_SZYX is not None and found.labels_SZYX is not None:
        scores |= _of_mask(truth.labels_SZYX, found.labels_SZYX, n_labels)
    if truth.density_SZYX is not None and found.density_SZYX is not None:
        scores |= _of_density(truth.density_SZYX, found.density_SZYX)
    return scores


def _of_class(true_S: Ints, found_S: Ints, names: Sequence[str], *, table: bool) -> dict[str, Any]:
    known_S = true_S >= 0
    if not known_S.any():
        return {"object_accuracy": None}
    counts_KK = confusion(true_S[known_S], found_S[known_S], len(names))
    chance = SegmentationScores(counts_KK.astype(np.float64)).by_chance()
    scores: dict[str, Any] = {
        "object_accuracy": float(np.trace(counts_KK) / counts_KK.sum()),
    }
    if table:
        scores["random_object_accuracy"] = chance.pixel_accuracy
        scores["confusion"] = {"names": list(names), "counts": counts_KK.tolist()}
    return scores


def _of_mask(true_SZYX: Ints, found_SZYX: Ints, n_labels: int) -> dict[str, Any]:
    counts_SLL = np.stack([confusion(t, f, n_labels) for t, f in zip(true_SZYX, found_SZYX, strict=True)])
    pooled = pooled_scores([counts_SLL.sum(axis=0)])
    chance = pooled.by_chance()
    chances = [SegmentationScores(counts.astype(np.float64)).by_chance().counts_CC for counts in counts_SLL]
    return {
        "pixel_accuracy": plain(pooled.pixel_accuracy), "random_pixel_accuracy": plain(chance.pixel_accuracy),
        "mean_iou_by_sample": plain(mean_iou_by_sample(counts_SLL)),
        "random_mean_iou_by_sample": plain(mean_iou_by_sample(chances)),
        "mean_iou": plain(pooled.mean_iou), "random_mean_iou": plain(chance.mean_iou),
        "iou_by_label": [plain(iou) for iou in pooled.iou_C],
    }  # fmt: skip


def _of_density(true_SZYX: Floats, found_SZYX: Floats) -> dict[str, Any]:
    pairs = list(zip(true_SZYX, found_SZYX, strict=True))
    errors = [float(np.mean((f.astype(np.float64) - t) ** 2)) for t, f in pairs]
    nothing = [float(np.mean(t.astype(np.float64) ** 2)) for t, _ in pairs]
    return {
        "recovery_error": float(np.mean(errors)),
        "recovery_error_of_nothing": float(np.mean(nothing)),
    }


def plain(value: float) -> float | None:
    """Return a number that JSON can hold: None for one that is not finite."""
    return float(value) if np.isfinite(value) else None
