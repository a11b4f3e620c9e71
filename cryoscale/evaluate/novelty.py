"""Clusters of features in which a class that nobody was told of may lie together, beside what chance reaches.

Shape suffixes: N subtomograms, F features, K clusters, R repeats, 2 coordinates of a picture.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.errors import DataError
from cryoscale.evaluate.enrichment import group_enrichment
from cryoscale.evaluate.partition import agreement
from cryoscale.evaluate.subtomogram_scores import plain

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

COMPONENTS = 50
"""Principal components that the picture, and the plain alternative, are made from."""
REPEATS = 1000  # shuffles of what chance reaches
RESTARTS = 10  # of k-means
PERPLEXITY = 30.0  # of t-SNE: scikit-learn's and the method's own default


def clusters_of(features_NF: Floats, n_clusters: int, seed: int) -> Ints:
    """Cluster rows by k-means as they are, without scaling.

    Returns
    -------
    ids_N : (N,) int64
        By size, largest first; equal sizes by their first row.

    Raises
    ------
    DataError
        Features that are not finite, or fewer different rows than clusters.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    features = np.ascontiguousarray(features_NF, dtype=np.float64)
    if not np.isfinite(features).all():
        raise DataError("features are not finite: they cannot be clustered.", remedy="Train again.")
    different = len(np.unique(features, axis=0))
    if different < n_clusters:
        raise DataError(
            f"only {different} of {len(features)} subtomograms have different features, too few for "
            f"{n_clusters} clusters.",
            remedy="Give fewer --clusters; where nearly all are alike, the training did not converge.",
        )
    with threadpool_limits(limits=1):  # sums in one order
        ids_N = KMeans(n_clusters, n_init=RESTARTS, random_state=seed).fit(features).labels_
    names, first, counts = np.unique(ids_N, return_index=True, return_counts=True)
    rank = np.empty(len(names), np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(names))
    ranked: Ints = rank[np.searchsorted(names, ids_N)]
    return ranked


def principal_components(rows_NF: Floats, n_components: int, seed: int) -> npt.NDArray[np.float32]:
    """Return the scores of rows on their first principal components."""
    from sklearn.decomposition import PCA

    flat = np.asarray(rows_NF, dtype=np.float32).reshape(len(rows_NF), -1)
    most = min(n_components, *flat.shape)
    solver = "randomized" if most < 0.8 * min(flat.shape) else "full"
    scores: npt.NDArray[np.float32] = PCA(most, svd_solver=solver, random_state=seed).fit_transform(flat)
    return scores


def picture_of(features_NF: Floats, seed: int) -> npt.NDArray[np.float32]:
    """Lay rows out in two dimensions by t-SNE (van der Maaten and Hinton 2008), components first."""
    from sklearn.manifold import TSNE

    components = principal_components(features_NF, COMPONENTS, seed)
    components = components / (components[:, 0].std() or 1.0)
    if len(components) < 4:
        return np.pad(components, ((0, 0), (0, 2)))[:, :2]
    tsne = TSNE(
        perplexity=min(PERPLEXITY, (len(components) - 1) / 3),
        init="pca",
        random_state=seed,
        learning_rate="auto",
    )
    layout: npt.NDArray[np.float32] = tsne.fit_transform(np.pad(components, ((0, 0), (0, 2)))).astype(
        np.float32
    )
    return layout


def overlap(hits: npt.NDArray[Any], sizes: npt.NDArray[Any], total: int) -> npt.NDArray[np.float64]:
    """Return F1 of clusters for a class: twice the members that both have over the sum of their sizes."""
    f1: npt.NDArray[np.float64] = 2 * hits / np.maximum(np.asarray(sizes) + total, 1)
    return f1


def novelty_scores(
    ids_N: Ints, unseen_N: Bools, class_N: Ints, *, seed: int, held_out_N: Bools | None = None
) -> dict[str, Any]:
    """Score clusters by how well one of them holds the class that was left out.

    The cluster is chosen with the truth in hand, as in the paper: it is the one with the best F1 for the
    class. What chance reaches is chosen in the same way among clusters whose members are shuffled.

    Parameters
    ----------
    ids_N : (N,) int
        Clusters.
    unseen_N : (N,) bool
        Members of the class.
    class_N : (N,) int
        All classes, for how well clusters agree with them.
    seed : int
        Of the shuffles.
    held_out_N : (N,) bool, optional
        Rows that the training did not see; then `purity_held_out` is the purity among them.

    Returns
    -------
    scores : dict
        `richest` (its id), `size`, `hits`, `recall` (share of the class that it holds), `purity` (share of it
        that is the class), `f1`, `enrichment` (purity over the share of the class in all), `p` and
        `log2_odds` (Fisher's exact test against the other rows, q by Benjamini and Hochberg over the
        clusters), `verdict`; `random_recall`, `random_purity`, `random_f1` (mean, with `_sd`, of the best
        cluster when members are shuffled) and `p_of_best`, how often shuffled clusters do as well;
        `agreement` with all classes; `by_cluster`: size, hits and test of each.
    """
    sizes_K = np.bincount(ids_N)
    hits_K = np.bincount(ids_N[unseen_N], minlength=len(sizes_K))
    total = int(unseen_N.sum())
    richest = int(np.argmax(overlap(hits_K, sizes_K, total)))
    tests = group_enrichment(ids_N, unseen_N)
    own = next(test for test in tests if test.group == richest)
    size, hits = int(sizes_K[richest]), int(hits_K[richest])
    scores: dict[str, Any] = {
        "richest": richest, "size": size, "hits": hits, "recall": hits / total, "purity": hits / size,
        "f1": float(overlap(hits_K, sizes_K, total)[richest]),
        "enrichment": (hits / size) / (total / len(ids_N)),
        "p": own.p, "q": own.q, "log2_odds": plain(own.log2_odds), "log2_odds_low": plain(own.low),
        "log2_odds_high": plain(own.high), "verdict": own.verdict,
        **_by_chance(sizes_K, hits_K, total, seed),
        "agreement": agreement(ids_N, class_N, seed=seed),
        "by_cluster": [
            {k: plain(v) if isinstance(v, float) else v for k, v in asdict(test).items()}
            for test in tests
        ],
    }  # fmt: skip
    if held_out_N is not None:
        fresh_N = (ids_N == richest) & held_out_N
        scores["purity_held_out"] = float(unseen_N[fresh_N].mean()) if fresh_N.any() else None
        scores["share_held_out"] = float(unseen_N[held_out_N].mean()) if held_out_N.any() else None
    return scores


def _by_chance(sizes_K: Ints, hits_K: Ints, total: int, seed: int) -> dict[str, float]:
    """Return what the best of shuffled clusters reaches."""
    rng = np.random.default_rng([seed, 1])
    hits_RK = rng.multivariate_hypergeometric(sizes_K, total, size=REPEATS)
    f1_RK = overlap(hits_RK, sizes_K[None], total)
    best_R = f1_RK.argmax(axis=1)
    rows = np.arange(REPEATS)
    values = {
        "f1": f1_RK[rows, best_R],
        "recall": hits_RK[rows, best_R] / total,
        "purity": hits_RK[rows, best_R] / sizes_K[best_R],
    }
    ours = float(overlap(hits_K, sizes_K, total).max())
    scores: dict[str, float] = {}
    for name, found in values.items():
        scores |= {f"random_{name}": float(found.mean()), f"random_{name}_sd": float(found.std())}
    return scores | {"p_of_best": float((1 + (values["f1"] >= ours - 1e-12).sum()) / (1 + REPEATS))}


def without_the_truth(
    confidence_N: Floats, ids_N: Ints, unseen_N: Bools, held_out_N: Bools, richest: int
) -> dict[str, Any]:
    """Say whether the class would have been noticed by somebody who does not know of it.

    A network is less sure of what it never saw. Asked of rows that the training did not see, since it is
    surer of those that it did.

    Returns
    -------
    scores : dict
        `auc`: probability that a member of the class has a lower confidence than another held-out row (0.5 by
        chance); `rank` of the richest cluster among `clusters`, the one with the lowest mean confidence
        first.
    """
    from scipy.stats import rankdata

    scores: dict[str, Any] = {"auc": None}
    one, other = confidence_N[unseen_N & held_out_N], confidence_N[~unseen_N & held_out_N]
    if len(one) and len(other):
        rank = rankdata(-np.concatenate([one, other]))[: len(one)].sum()
        scores["auc"] = float((rank - len(one) * (len(one) + 1) / 2) / (len(one) * len(other)))
    mean_K = np.bincount(ids_N, weights=confidence_N) / np.maximum(np.bincount(ids_N), 1)
    rank_of = int(np.argsort(np.argsort(mean_K, kind="stable"), kind="stable")[richest]) + 1
    return scores | {"rank": rank_of, "clusters": len(mean_K), "mean_confidence": float(mean_K[richest])}
