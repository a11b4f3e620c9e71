"""What each pick is, by the truth, and what clusters add to a threshold on the picker's score.

Shape suffixes: N picks, M true positions, 3 coordinates z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.clusters import Selection, best_selection_f1, shuffled_selection_f1
from cryoscale.evaluate.matching import ThresholdCurve, match_points, score_threshold_curve

Floats = npt.NDArray[np.float64]


def classes_of_picks(
    picks_N3: npt.ArrayLike, truth_M3: npt.ArrayLike, class_M: npt.ArrayLike, radius: float
) -> npt.NDArray[np.int64]:
    """Return the class of the true position that each pick is matched with, 0 without one.

    Parameters
    ----------
    picks_N3, truth_M3 : (N, 3), (M, 3) float
        Positions in one unit.
    class_M : (M,) int
        Class of each true position, at least 1.
    radius : float
        Largest distance of a pair; each true position is given to one pick only.
    """
    classes = np.asarray(class_M)
    match = match_points(picks_N3, truth_M3, radius)
    if classes.shape != (match.n_truth,) or (classes < 1).any():
        raise ConfigurationError(f"expected {match.n_truth} classes of at least 1, got {classes.shape}.")
    class_N = np.zeros(match.n_picks, dtype=np.int64)
    class_N[match.pick_K] = classes[match.truth_K]
    return class_N


def near_label(
    index_N3: npt.ArrayLike, labels_ZYX: npt.NDArray[np.integer], value: int, distance_voxels: float
) -> npt.NDArray[np.bool_]:
    """Return which picks lie within a distance of a label: for membranes, which have no positions.

    Parameters
    ----------
    index_N3 : (N, 3) float
        Picks in voxels.
    labels_ZYX : (Z, Y, X) int
        True label volume.
    value : int
        Label in question.
    distance_voxels : float
        Largest distance from the nearest voxel with that label, inclusive.
    """
    index = np.rint(np.asarray(index_N3, dtype=np.float64)).astype(int).reshape(-1, 3)
    if ((index < 0) | (index >= labels_ZYX.shape)).any():
        raise ConfigurationError(f"some picks lie outside the label volume of shape {labels_ZYX.shape}.")
    other_ZYX = labels_ZYX != value
    if other_ZYX.all():
        return np.zeros(len(index), dtype=np.bool_)
    distance_ZYX = ndimage.distance_transform_edt(other_ZYX)
    near: npt.NDArray[np.bool_] = distance_ZYX[tuple(index.T)] <= distance_voxels
    return near


@dataclass(frozen=True)
class Margin:
    """For one class: choosing clusters against a threshold on the score.

    Parameters
    ----------
    name : str
        The class.
    n_truth : int
        True positions.
    recall : float
        Share of them that any pick found.
    threshold : ThresholdCurve
        Of the score.
    selection : Selection
        The best choice of clusters.
    chance_f1 : float
        Mean best F1 when the same clusters are shuffled over the picks.
    """

    name: str
    n_truth: int
    recall: float
    threshold: ThresholdCurve
    selection: Selection
    chance_f1: float

    @property
    def margin(self) -> float:
        """F1 of the clusters less the best F1 of a threshold."""
        return self.selection.f1 - self.threshold.best_f1


def cluster_margins(
    picks_N3: npt.ArrayLike,
    score_N: npt.ArrayLike,
    cluster_ids_N: npt.ArrayLike,
    truth: Mapping[str, npt.ArrayLike],
    radius: float,
    *,
    n_clusters: int,
    share: float = 0.2,
    seed: int = 0,
) -> list[Margin]:
    """Compare, class by class, the best choice of clusters with the best threshold on the score.

    Both choose with the truth in hand, so both are upper bounds of their kind. Use `split_half_selection` and
    `split_half_threshold` for what a choice is worth on data that it was not made on.

    Parameters
    ----------
    picks_N3, score_N, cluster_ids_N : (N, 3), (N,), (N,) arrays
        The picks of one tomogram.
    truth : dict
        Class name to positions (M, 3).
    radius : float
        Largest distance of a pick from its true position.
    n_clusters : int
        How many clusters there are in all, empty ones here included.
    share : float
        Largest share of the clusters that may be chosen.
    seed : int
        Of the shuffling.
    """
    most = math.floor(share * n_clusters + 1e-9)
    margins = []
    for name, positions_M3 in truth.items():
        match = match_points(picks_N3, positions_M3, radius)
        arguments = (cluster_ids_N, match.is_match_N, match.n_truth, most)
        margins.append(
            Margin(
                name,
                match.n_truth,
                match.recall,
                score_threshold_curve(picks_N3, score_N, positions_M3, radius),
                best_selection_f1(*arguments),
                float(shuffled_selection_f1(*arguments, seed=seed).mean()),
            )
        )
    return margins
