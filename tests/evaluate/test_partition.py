"""Clusters as a partition beside scikit-learn, and curves of choosing n clusters beside every choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cryoscale.evaluate.clusters import best_selection_f1
from cryoscale.evaluate.detection import detect
from cryoscale.evaluate.matching import f1_of
from cryoscale.evaluate.partition import agreement, class_scores, cluster_table, selection_curve, sizes_to_try


def test_agreement_is_that_of_scikit_learn_beside_its_null() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 600)
    ids = np.where(rng.random(600) < 0.7, classes * 5, rng.integers(0, 20, 600))
    found = agreement(ids, classes, seed=1)
    assert found["adjusted_rand"]["value"] == pytest.approx(adjusted_rand_score(classes, ids))
    expected = normalized_mutual_info_score(classes, ids)
    assert found["normalised_mutual_information"]["value"] == pytest.approx(expected)
    assert found["purity"]["value"] > 0.6
    for measure in found.values():
        assert measure["value"] > measure["random"] + 10 * measure["random_sd"]
    shuffled = agreement(ids, rng.permutation(classes), seed=1)
    for measure in shuffled.values():
        assert measure["value"] == pytest.approx(measure["random"], abs=5 * measure["random_sd"] + 1e-9)
    assert abs(shuffled["adjusted_rand"]["random"]) < 0.01
    assert agreement(np.empty(0, np.int64), np.empty(0, np.int64), seed=0) == {}


@pytest.mark.parametrize("n", [1, 2, 3, 10, 15, 50, 100, 400])
def test_sizes_rise_to_all_and_hold_a_fifth(n: int) -> None:
    sizes = sizes_to_try(n)
    assert sizes[-1] == n
    assert (np.diff(sizes) > 0).all()
    assert sizes[0] == 1
    assert n < 5 or n // 5 in sizes
    assert len(sizes) <= 70


def test_curve_is_the_best_of_every_choice() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 7, 90)
    match = rng.random(90) < np.linspace(0, 0.9, 7)[ids]
    n_truth = int(match.sum()) + 4
    curve = selection_curve(ids, match, n_truth, 7, repeats=5, seed=0)
    assert curve["n"] == [1, 2, 3, 4, 5, 6, 7]
    best = 0.0
    for n, value in zip(curve["n"], curve["f1"], strict=True):
        for chosen in itertools.combinations(range(7), int(n)):
            taken = np.isin(ids, chosen)
            best = max(best, f1_of((taken & match).sum(), taken.sum(), n_truth))
        assert value == pytest.approx(best)
    assert (np.array(curve["random"]) < np.array(curve["f1"]) + 1e-9).all()


def test_random_clusters_score_as_their_null() -> None:
    rng = np.random.default_rng(4)
    match = rng.random(1500) < 0.2
    curve = selection_curve(rng.integers(0, 30, 1500), match, 400, 30, seed=0)
    value, random, sd = (np.array(curve[key]) for key in ("f1", "random", "random_sd"))
    assert (np.abs(value - random) < 5 * sd + 0.01).all()
    known = selection_curve(
        np.where(match, rng.integers(0, 6, 1500), rng.integers(6, 30, 1500)), match, 400, 30, seed=0
    )
    assert known["f1"][5] == pytest.approx(f1_of(match.sum(), match.sum(), 400))
    assert known["f1"][5] > known["random"][5] + 0.4


def test_scores_of_a_class() -> None:
    rng = np.random.default_rng(6)
    truth = rng.uniform(0, 300, (120, 3))
    picks = np.concatenate([truth + rng.normal(0, 1, truth.shape), rng.uniform(0, 300, (240, 3))])
    detection = detect(picks, rng.normal(size=360), truth, 5.0, middle_x=150, random_RN3=picks[None, ::-1])
    ids = np.where(detection.match_N, rng.integers(0, 2, 360), rng.integers(2, 20, 360))
    found = class_scores(ids, detection, 20, seed=0)
    assert found["truth"] == 120
    assert found["split_half_f1"] > 0.95
    assert found["split_half_threshold_f1"] < 0.6
    assert found["split_half_random_f1"] < 0.6
    best = best_selection_f1(ids, detection.match_N, 120, 4).f1
    assert found["best_fifth_of_clusters_f1"] == pytest.approx(best)
    assert found["best_fifth_random_f1"] < 0.5


def test_table_by_hand() -> None:
    table = cluster_table(np.array([7, 7, 2, 7]), np.array([0, 2, 1, 2]), 3)
    assert table == {"clusters": [2, 7], "counts": [[0, 1, 0], [1, 0, 2]]}
