"""A frozen clustering: assign encodings to it, and keep its ids through a refit.

Legend of the shape suffixes: N items, F numbers of an encoding, K clusters.

Distances are Euclidean between standardised encodings. The nearest centre is that by float64 differences (see
`learn.lloyd`): a row's result depends neither on the other rows nor on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.lloyd import Centers, extended, squared_to

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

ROWS = 8192  # rows at a time, for memory's sake only


@dataclass(frozen=True)
class Clustering:
    """A frozen clustering.

    Attributes
    ----------
    centers_KF : (K, F) float64
        In the units of the encodings. Row k is cluster k.
    mean_F, scale_F : (F,) float64
        Distances are measured between (encoding - mean) / scale. A constant feature has an infinite scale:
        it counts for nothing, also in later encodings.
    counts_K : (K,) int64
        Members at the fit; never zero.
    inertia : float
        Sum of squared distances to the own centre at the fit, standardised units, float64.
    n_iter : int
        Lloyd iterations over all rows, repairs included.

    Notes
    -----
    Ids go by size, largest first; equal sizes by the centres' coordinates, lexicographically.
    """

    centers_KF: Floats
    mean_F: Floats
    scale_F: Floats
    counts_K: npt.NDArray[np.int64]
    inertia: float
    n_iter: int

    @property
    def n_clusters(self) -> int:
        """K."""
        return len(self.centers_KF)

    def standardised(self, encodings_NF: Array) -> Floats:
        """Bring encodings into the units in which distances are measured."""
        return standardised(encodings_NF, self.mean_F, self.scale_F)


def assign(
    encodings_NF: Array, clustering: Clustering
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Give each encoding the id of its nearest centre.

    Parameters
    ----------
    encodings_NF : (N, F) float
    clustering : Clustering

    Returns
    -------
    ids_N : (N,) int32
        The lower id where two centres are equally near.
    distance_N : (N,) float32
        To that centre, in standardised units. A row's results do not depend on the other rows.

    Raises
    ------
    ConfigurationError
        Another number of features than the clustering was fitted on.
    DataError
        An encoding is not finite.
    """
    if encodings_NF.ndim != 2 or encodings_NF.shape[1] != clustering.centers_KF.shape[1]:
        raise ConfigurationError(
            f"Encodings of shape {encodings_NF.shape} do not fit a clustering of"
            f" {clustering.centers_KF.shape[1]} features.",
            remedy="Encode with the weights that the clustering was fitted on, or refit it.",
        )
    centers = Centers(clustering.standardised(clustering.centers_KF))
    ids_N = np.empty(len(encodings_NF), dtype=np.int32)
    distance_N = np.empty(len(encodings_NF), dtype=np.float32)
    for start in range(0, len(encodings_NF), ROWS):
        part = slice(start, start + ROWS)
        rows_NF = clustering.standardised(encodings_NF[part])
        if not np.isfinite(rows_NF).all():
            raise DataError(
                f"Encoding {start + int(np.argmin(np.isfinite(rows_NF).all(axis=1)))} is not finite.",
                remedy="Encode this tomogram again.",
            )
        ids_N[part] = centers.nearest(extended(rows_NF), rows_NF)
        distance_N[part] = np.sqrt(squared_to(rows_NF, centers.exact_KF, ids_N[part]))
    return ids_N, distance_N


def match_to(earlier: Clustering, new: Clustering) -> Clustering:
    """Give the clusters of a new clustering the ids of the earlier ones that they correspond to.

    Parameters
    ----------
    earlier, new : Clustering
        Over encodings of one and the same network; the numbers of clusters may differ.

    Returns
    -------
    clustering : Clustering
        `new` with its rows in another order.

    Raises
    ------
    ConfigurationError
        The numbers of features differ.

    Notes
    -----
    Clusters are paired so that the sum of the distances between their centres, in the standardised units of
    `new`, is smallest (Kuhn 1955, doi:10.1002/nav.3800020109). A paired cluster takes the earlier id. Those
    without a counterpart, and those whose earlier id would lie beyond the new number of clusters, fill the
    free ids, lowest first, in the order of their size.
    """
    if earlier.centers_KF.shape[1] != new.centers_KF.shape[1]:
        raise ConfigurationError(
            f"A clustering of {new.centers_KF.shape[1]} features cannot keep the ids of one of"
            f" {earlier.centers_KF.shape[1]}.",
            remedy="Start without the earlier clustering.",
        )
    distances = cdist(new.standardised(earlier.centers_KF), new.standardised(new.centers_KF))
    old_ids, rows = linear_sum_assignment(distances)
    order = np.full(new.n_clusters, -1)
    for old_id, row in zip(old_ids, rows, strict=True):
        if old_id < new.n_clusters:
            order[old_id] = row
    homeless = [row for row in range(new.n_clusters) if row not in set(order.tolist())]
    order[order < 0] = homeless  # rows of `new` are in the order of size
    return Clustering(
        new.centers_KF[order], new.mean_F, new.scale_F, new.counts_K[order], new.inertia, new.n_iter
    )


def standardised(rows_NF: Array, mean_F: Floats, scale_F: Floats) -> Floats:
    """Bring rows into the units in which distances are measured."""
    result: Floats = (np.asarray(rows_NF, dtype=np.float64) - mean_F) / scale_F
    return result
