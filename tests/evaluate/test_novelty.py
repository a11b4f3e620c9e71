"""Clusters against a class that was left out: scores by hand, chance, and the order of ids."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from cryoscale.errors import DataError
from cryoscale.evaluate.novelty import (
    clusters_of,
    novelty_scores,
    picture_of,
    principal_components,
    without_the_truth,
)


def blobs(sizes=(40, 30, 20, 10), features=6, seed=0):
    rng = np.random.default_rng(seed)
    class_N = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(0, 20, (len(sizes), features))
    order = rng.permutation(len(class_N))
    return (centres[class_N] + rng.normal(0, 1, (len(class_N), features)))[order], class_N[order]


def test_ids_go_by_size_and_are_those_of_scikit_learn() -> None:
    rows, class_N = blobs()
    ids = clusters_of(rows, 4, seed=0)
    assert np.bincount(ids).tolist() == [40, 30, 20, 10]
    assert np.array_equal(ids, class_N)
    assert adjusted_rand_score(ids, KMeans(4, n_init=10, random_state=3).fit_predict(rows)) == 1
    assert np.array_equal(ids, clusters_of(rows, 4, seed=0))


def test_features_that_cannot_be_clustered_are_refused() -> None:
    with pytest.raises(DataError, match="only 2 of 10"):
        clusters_of(np.repeat([[0.0], [1.0]], 5, axis=0), 3, seed=0)
    with pytest.raises(DataError, match="not finite"):
        clusters_of(np.array([[np.nan], [1.0], [2.0]]), 2, seed=0)


def test_the_richest_cluster_is_counted_by_hand() -> None:
    ids = np.repeat([0, 1, 2], [10, 6, 4])
    unseen = np.zeros(20, bool)
    unseen[[0, 10, 11, 12, 13]] = True  # one in cluster 0, four in cluster 1
    scores = novelty_scores(ids, unseen, unseen.astype(int), seed=0)
    assert (scores["richest"], scores["size"], scores["hits"]) == (1, 6, 4)
    assert scores["recall"] == pytest.approx(0.8)
    assert scores["purity"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * 4 / (6 + 5))
    assert scores["enrichment"] == pytest.approx((4 / 6) / (5 / 20))
    assert scores["p"] == pytest.approx(fisher_exact([[4, 2], [1, 13]]).pvalue)
    assert [(row["n"], row["near"]) for row in scores["by_cluster"]] == [(10, 1), (6, 4), (4, 0)]


def test_chance_is_the_best_of_shuffled_clusters() -> None:
    rng = np.random.default_rng(5)
    ids, unseen = rng.integers(0, 8, 200), rng.random(200) < 0.2
    scores = novelty_scores(ids, unseen, unseen.astype(int), seed=0)
    best = []
    for _ in range(1000):
        shuffled = rng.permutation(unseen)
        best.append(
            max(2 * (shuffled & (ids == k)).sum() / ((ids == k).sum() + unseen.sum()) for k in range(8))
        )
    assert scores["random_f1"] == pytest.approx(np.mean(best), abs=0.01)
    assert scores["p_of_best"] > 0.01, "random clusters find nothing"
    perfect = novelty_scores(unseen.astype(int), unseen, unseen.astype(int), seed=0)
    assert perfect["f1"] == 1
    assert perfect["p_of_best"] == pytest.approx(1 / 1001)


def test_held_out_rows_are_counted_apart() -> None:
    ids = np.repeat([0, 1], [6, 4])
    unseen = ids == 1
    held_out = np.array([False] * 3 + [True] * 7)
    scores = novelty_scores(ids, unseen, unseen.astype(int), seed=0, held_out_N=held_out)
    assert scores["purity_held_out"] == 1
    assert scores["share_held_out"] == pytest.approx(4 / 7)


def test_confidence_finds_what_it_was_not_told_of() -> None:
    rng = np.random.default_rng(0)
    ids, unseen = np.repeat([0, 1, 2], 20), np.repeat([False, True, False], 20)
    confidence = np.where(unseen, rng.uniform(0.2, 0.7, 60), rng.uniform(0.5, 1, 60))
    held_out = rng.random(60) < 0.7
    scores = without_the_truth(confidence, ids, unseen, held_out, 1)
    assert scores["auc"] == pytest.approx(roc_auc_score(unseen[held_out], -confidence[held_out]))
    assert (scores["rank"], scores["clusters"]) == (1, 3)
    assert without_the_truth(confidence, ids, unseen, unseen, 0)["auc"] is None


def test_components_are_those_of_a_plain_decomposition() -> None:
    rows, _ = blobs()
    scores = principal_components(rows, 3, seed=0)
    centred = rows - rows.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.abs(scores), np.abs(u[:, :3] * s[:3]), rtol=1e-3, atol=1e-3)


def test_the_picture_keeps_groups_together() -> None:
    rows, class_N = blobs(sizes=(20, 20, 20))
    layout = picture_of(rows, seed=0)
    assert layout.shape == (60, 2)
    assert np.array_equal(layout, picture_of(rows, seed=0))
    nearest = np.argsort(((layout[:, None] - layout[None]) ** 2).sum(axis=-1), axis=1)[:, 1]
    assert (class_N[nearest] == class_N).all()
    assert picture_of(rows[:3], seed=0).shape == (3, 2)
