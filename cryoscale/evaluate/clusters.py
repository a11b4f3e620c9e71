"""Clusters against known classes, and what choosing among clusters can reach.

Shape suffixes: N picks, C clusters, R repeats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.matching import curve_from_hits, f1_of

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def purity(cluster_ids_N: npt.ArrayLike, class_ids_N: npt.ArrayLike) -> float:
    """Return the share of picks that belong to the commonest class of their cluster.

    It rises with the number of clusters whatever they hold: read it beside `shuffled_purity`.
    """
    clusters, classes = _labels(cluster_ids_N, class_ids_N)
    _, c = np.unique(clusters, return_inverse=True)
    names, k = np.unique(classes, return_inverse=True)
    table = np.bincount(c * len(names) + k, minlength=(c.max() + 1) * len(names)).reshape(-1, len(names))
    return float(table.max(axis=1).sum() / len(clusters))


def shuffled_purity(
    cluster_ids_N: npt.ArrayLike, class_ids_N: npt.ArrayLike, *, repeats: int = 20, seed: int
) -> Floats:
    """Return the purity of the same clusters with the classes shuffled, `repeats` times."""
    clusters, classes = _labels(cluster_ids_N, class_ids_N)
    rng = np.random.default_rng(seed)
    return np.array([purity(clusters, rng.permutation(classes)) for _ in range(repeats)])


def adjusted_rand(cluster_ids_N: npt.ArrayLike, class_ids_N: npt.ArrayLike) -> float:
    """Return the Rand index adjusted for chance: 1 for equal partitions, 0 expected for random ones."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*reversed(_labels(cluster_ids_N, class_ids_N))))


def normalised_mutual_information(cluster_ids_N: npt.ArrayLike, class_ids_N: npt.ArrayLike) -> float:
    """Return the mutual information over the mean of both entropies; not adjusted for chance."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*reversed(_labels(cluster_ids_N, class_ids_N))))


def _labels(
    clusters: npt.ArrayLike, classes: npt.ArrayLike
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Check two label arrays."""
    a, b = np.asarray(clusters), np.asarray(classes)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ConfigurationError(
            f"expected two label arrays of one length, got shapes {a.shape} and {b.shape}."
        )
    return a, b


@dataclass(frozen=True)
class Selection:
    """Some clusters taken together as one class.

    Parameters
    ----------
    clusters : tuple of int
        The chosen ids, rising.
    hits, picks, n_truth : int
        Matched picks in them, picks in them, true positions.
    """

    clusters: tuple[int, ...]
    hits: int
    picks: int
    n_truth: int

    @property
    def precision(self) -> float:
        """Matched picks over chosen picks."""
        return self.hits / self.picks if self.picks else 0.0

    @property
    def recall(self) -> float:
        """Matched picks over true positions."""
        return self.hits / self.n_truth if self.n_truth else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return f1_of(self.hits, self.picks, self.n_truth)


def best_selection_f1(
    cluster_ids_N: npt.ArrayLike, is_match_N: npt.ArrayLike, n_truth: int, max_clusters: int
) -> Selection:
    """Return the at most `max_clusters` clusters whose picks have the best F1 together.

    Parameters
    ----------
    cluster_ids_N : (N,) int
        Cluster of each pick.
    is_match_N : (N,) bool
        Whether the pick is matched with a true position of the class in question, one to one.
    n_truth : int
        True positions of that class, found or not.
    max_clusters : int
        Most clusters to choose.

    Returns
    -------
    selection : Selection
        Exact. Among choices of equal F1 the one with fewer clusters is preferred.

    Notes
    -----
    F1 = 2 hits / (picks + truth) is a ratio of sums, so Dinkelbach's iteration is exact (1967,
    doi:10.1287/mnsc.13.7.492): for a trial value f choose the clusters with the largest positive
    2 hits - f picks, set f to the F1 of that choice, repeat until it stays.
    """
    clusters = np.asarray(cluster_ids_N)
    match = np.asarray(is_match_N, dtype=np.bool_)
    if clusters.shape != match.shape or clusters.ndim != 1 or max_clusters < 0 or n_truth < match.sum():
        raise ConfigurationError(
            f"{match.sum()} matches of {n_truth} true positions, cluster ids {clusters.shape}, "
            f"matches {match.shape}, at most {max_clusters} clusters: these do not fit together."
        )
    ids_C, index_N = np.unique(clusters, return_inverse=True)
    picks_C = np.bincount(index_N, minlength=len(ids_C))
    hits_C = np.bincount(index_N[match], minlength=len(ids_C))
    chosen = best_of_counts(hits_C, picks_C, n_truth, max_clusters)
    names = tuple(sorted(int(i) for i in ids_C[chosen]))
    return Selection(names, int(hits_C[chosen].sum()), int(picks_C[chosen].sum()), n_truth)


def best_of_counts(
    hits_C: npt.NDArray[np.int64], picks_C: npt.NDArray[np.int64], n_truth: int, max_clusters: int
) -> npt.NDArray[np.int64]:
    """Return the rows of the clusters with the best F1 together; see `best_selection_f1`.

    Parameters
    ----------
    hits_C, picks_C : (C,) int
        Matched picks and picks of each cluster.
    """
    chosen = np.empty(0, np.int64)
    value = 0.0
    while True:
        gain_C = 2 * hits_C - value * picks_C
        best = np.argsort(-gain_C, kind="stable")[:max_clusters]
        best = best[gain_C[best] > 1e-9]
        improved = f1_of(hits_C[best].sum(), picks_C[best].sum(), n_truth)
        if improved <= value + 1e-12:
            return chosen
        chosen, value = best, improved


def selection_f1(
    cluster_ids_N: npt.ArrayLike, is_match_N: npt.ArrayLike, n_truth: int, clusters: tuple[int, ...]
) -> Selection:
    """Score a given choice of clusters."""
    taken = np.isin(np.asarray(cluster_ids_N), clusters)
    hits = int((taken & np.asarray(is_match_N, dtype=np.bool_)).sum())
    return Selection(tuple(clusters), hits, int(taken.sum()), n_truth)


def shuffled_selection_f1(
    cluster_ids_N: npt.ArrayLike,
    is_match_N: npt.ArrayLike,
    n_truth: int,
    max_clusters: int,
    *,
    repeats: int = 20,
    seed: int,
) -> Floats:
    """Return the best F1 with the cluster ids shuffled: what choosing among random clusters gives."""
    rng = np.random.default_rng(seed)
    clusters = np.asarray(cluster_ids_N)
    return np.array(
        [
            best_selection_f1(rng.permutation(clusters), is_match_N, n_truth, max_clusters).f1
            for _ in range(repeats)
        ]
    )


@dataclass(frozen=True)
class SplitHalf:
    """A choice made on one half and scored on the other, both ways.

    Parameters
    ----------
    first_to_second, second_to_first : float
        F1 on the half that was not used to choose.
    """

    first_to_second: float
    second_to_first: float

    @property
    def mean(self) -> float:
        """Mean of the two."""
        return (self.first_to_second + self.second_to_first) / 2


def split_half_selection(
    cluster_ids_N: npt.ArrayLike,
    is_match_N: npt.ArrayLike,
    in_first_N: npt.ArrayLike,
    n_truth: tuple[int, int],
    max_clusters: int,
) -> SplitHalf:
    """Choose clusters on one half of the picks and score them on the other.

    Parameters
    ----------
    cluster_ids_N, is_match_N : (N,) int, (N,) bool
        As in `best_selection_f1`.
    in_first_N : (N,) bool
        Which half a pick belongs to.
    n_truth : two ints
        True positions in the first and in the second half.
    max_clusters : int
        Most clusters to choose.
    """
    clusters, match = np.asarray(cluster_ids_N), np.asarray(is_match_N, dtype=np.bool_)
    first = np.asarray(in_first_N, dtype=np.bool_)
    scores = []
    for here, n_here, n_there in ((first, *n_truth), (~first, *n_truth[::-1])):
        chosen = best_selection_f1(
            clusters[here], match[here], max(n_here, int(match[here].sum())), max_clusters
        )
        scores.append(selection_f1(clusters[~here], match[~here], n_there, chosen.clusters).f1)
    return SplitHalf(*scores)


def split_half_threshold(
    score_N: npt.ArrayLike, is_match_N: npt.ArrayLike, in_first_N: npt.ArrayLike, n_truth: tuple[int, int]
) -> SplitHalf:
    """Choose a score threshold on one half and score it on the other: the rival of choosing clusters."""
    score, match = np.asarray(score_N, dtype=np.float64), np.asarray(is_match_N, dtype=np.bool_)
    first = np.asarray(in_first_N, dtype=np.bool_)
    results = []
    for here, n_here, n_there in ((first, *n_truth), (~first, *n_truth[::-1])):
        order = np.argsort(-score[here], kind="stable")
        threshold = curve_from_hits(score[here][order], match[here][order], n_here).best_threshold
        kept = score[~here] >= threshold
        results.append(f1_of((kept & match[~here]).sum(), kept.sum(), n_there))
    return SplitHalf(*results)
