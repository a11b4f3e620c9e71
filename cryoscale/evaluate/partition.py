"""Clusters as a partition of the picks, and what choosing n of them reaches, beside random clusters.

Shape suffixes: N picks, C clusters, L classes, R repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.evaluate.clusters import (
    adjusted_rand,
    best_of_counts,
    normalised_mutual_information,
    purity,
    split_half_selection,
    split_half_threshold,
)
from cryoscale.evaluate.detection import Detection
from cryoscale.evaluate.matching import f1_of

Ints = npt.NDArray[np.int64]

REPEATS = 20
MEASURES: dict[str, Callable[[Ints, Ints], float]] = {
    "adjusted_rand": adjusted_rand,
    "normalised_mutual_information": normalised_mutual_information,
    "purity": purity,
}


def agreement(
    ids_N: Ints, class_N: Ints, *, repeats: int = REPEATS, seed: int
) -> dict[str, dict[str, float]]:
    """Compare a partition with classes by three measures, each beside the null of shuffled cluster ids.

    Parameters
    ----------
    ids_N, class_N : (N,) int
        Cluster and class of each pick; empty arrays give an empty result.
    repeats : int
        Shuffles of the null.

    Returns
    -------
    measures : dict
        Per measure `value`, and mean and standard deviation of the null as `random` and `random_sd`.
    """
    if not len(ids_N):
        return {}
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(ids_N) for _ in range(repeats)]
    result = {}
    for name, measure in MEASURES.items():
        null = np.array([measure(ids, class_N) for ids in shuffled])
        result[name] = {
            "value": measure(ids_N, class_N), "random": float(null.mean()), "random_sd": float(null.std()),
        }  # fmt: skip
    return result


def sizes_to_try(n_clusters: int) -> list[int]:
    """List numbers of clusters for a curve: small ones, then about 8 % apart, a fifth, and all."""
    sizes = [1]
    while sizes[-1] < n_clusters:
        sizes.append(max(sizes[-1] + 1, math.floor(sizes[-1] * 1.08)))
    wanted = {s for s in sizes if s < n_clusters} | {fifth_of(n_clusters), n_clusters}
    return sorted(s for s in wanted if s > 0)


def fifth_of(n_clusters: int) -> int:
    """Return how many clusters are at most a fifth of them."""
    return math.floor(n_clusters / 5 + 1e-9)


def selection_curve(
    ids_N: Ints,
    match_N: npt.NDArray[np.bool_],
    n_truth: int,
    n_clusters: int,
    *,
    repeats: int = REPEATS,
    seed: int,
) -> dict[str, list[float]]:
    """Return the best F1 of a selection of at most n clusters, for several n, beside random clusters.

    The choice is made with the truth in hand: an upper bound, for random clusters too.

    Parameters
    ----------
    ids_N, match_N : (N,) int, (N,) bool
        Cluster of each pick, and whether it is matched with a position of the class.
    n_truth : int
        Positions of the class.

    Returns
    -------
    curve : dict
        `n`, `f1`, and mean and standard deviation for shuffled ids as `random` and `random_sd`.
    """
    sizes = sizes_to_try(n_clusters)
    rng = np.random.default_rng(seed)
    null_RS = np.array([_best_f1(rng.permutation(ids_N), match_N, n_truth, sizes) for _ in range(repeats)])
    return {
        "n": [float(n) for n in sizes],
        "f1": _best_f1(ids_N, match_N, n_truth, sizes),
        "random": null_RS.mean(axis=0).tolist(),
        "random_sd": null_RS.std(axis=0).tolist(),
    }


def _best_f1(ids_N: Ints, match_N: npt.NDArray[np.bool_], n_truth: int, sizes: list[int]) -> list[float]:
    """Return the best F1 for each number of clusters, rising; larger numbers than ever chosen add nothing."""
    index_N = np.unique(ids_N, return_inverse=True)[1]
    picks_C = np.bincount(index_N)
    hits_C = np.bincount(index_N[match_N], minlength=len(picks_C))
    values: list[float] = []
    enough = len(best_of_counts(hits_C, picks_C, n_truth, len(picks_C)))
    for size in sizes:
        if values and size > max(enough, 1) and sizes[len(values) - 1] >= enough:
            values.append(values[-1])
            continue
        rows = best_of_counts(hits_C, picks_C, n_truth, size)
        values.append(f1_of(hits_C[rows].sum(), picks_C[rows].sum(), n_truth))
    return values


def class_scores(
    ids_N: Ints, detection: Detection, n_clusters: int, *, repeats: int = REPEATS, seed: int
) -> dict[str, Any]:
    """Score the choice of clusters for one class.

    Returns
    -------
    scores : dict
        `split_half_f1`: chosen on one half of each tomogram in x and scored on the other, both ways; beside
        it the same for a threshold on the score and for shuffled clusters (mean and `_sd` of `repeats`
        shuffles). `best_fifth_of_clusters_f1` and `best_fifth_random_f1`, with its `_sd`: at most
        a fifth of the clusters, with the truth in hand. `curve`: see
        `selection_curve`.
    """
    match_N, halves = detection.match_N, detection.halves
    chosen = split_half_selection(ids_N, match_N, detection.first_N, halves, n_clusters)
    threshold = split_half_threshold(detection.score_N, match_N, detection.first_N, halves)
    rng = np.random.default_rng(seed)
    chance_R = np.array([
        split_half_selection(rng.permutation(ids_N), match_N, detection.first_N, halves, n_clusters).mean
        for _ in range(repeats)
    ])  # fmt: skip
    curve = selection_curve(ids_N, match_N, detection.pairs.n_truth, n_clusters, repeats=repeats, seed=seed)
    fifth = _at(curve, fifth_of(n_clusters))
    return {
        "truth": detection.pairs.n_truth,
        "split_half_f1": chosen.mean, "split_half_threshold_f1": threshold.mean,
        "split_half_random_f1": float(chance_R.mean()), "split_half_random_f1_sd": float(chance_R.std()),
        "best_fifth_of_clusters_f1": fifth[0], "best_fifth_random_f1": fifth[1],
        "best_fifth_random_f1_sd": fifth[2],
        "curve": curve,
    }  # fmt: skip


def _at(curve: Mapping[str, list[float]], most: int) -> tuple[float, float, float]:
    """Return F1, and mean and sd of random clusters, for the largest n of a curve that is at most `most`."""
    rows = [row for row, n in enumerate(curve["n"]) if n <= most]
    if not rows:
        return 0.0, 0.0, 0.0
    return curve["f1"][rows[-1]], curve["random"][rows[-1]], curve["random_sd"][rows[-1]]


def cluster_table(ids_N: Ints, class_N: Ints, n_classes: int) -> dict[str, Any]:
    """Count picks by cluster (rows) and class (columns, 0 for none)."""
    ids_C, index_N = np.unique(ids_N, return_inverse=True)
    counts = np.bincount(index_N * n_classes + class_N, minlength=len(ids_C) * n_classes)
    return {"clusters": ids_C.tolist(), "counts": counts.reshape(len(ids_C), n_classes).tolist()}
