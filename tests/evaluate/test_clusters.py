"""Clusters against hand counts, scikit-learn, and every possible choice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.cluster import contingency_matrix

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate import clusters as c
from cryoscale.evaluate.matching import f1_of


def test_purity_by_hand() -> None:
    ids = [0, 0, 0, 1, 1, 5]
    classes = ["a", "a", "b", "b", "b", "a"]
    assert c.purity(ids, classes) == pytest.approx(5 / 6)
    assert c.purity(classes, ids) == pytest.approx(4 / 6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 5))
def test_purity_is_that_of_the_contingency_table(seed: int, k: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, k, 60), rng.integers(0, classes, 60)
    assert c.purity(a, b) == pytest.approx(contingency_matrix(b, a).max(axis=0).sum() / 60)


def test_agreement_of_partitions() -> None:
    truth = np.repeat(np.arange(4), 50)
    renamed = (truth * 7 + 3) % 11
    assert c.adjusted_rand(renamed, truth) == 1
    assert c.normalised_mutual_information(renamed, truth) == pytest.approx(1)
    shuffled = np.random.default_rng(0).permutation(renamed)
    assert abs(c.adjusted_rand(shuffled, truth)) < 0.03
    assert c.normalised_mutual_information(shuffled, truth) < 0.1
    assert c.purity(shuffled, truth) == pytest.approx(
        c.shuffled_purity(renamed, truth, seed=1).mean(), abs=0.06
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 8), st.integers(0, 30))
def test_no_choice_of_clusters_is_better(seed: int, k: int, most: int, missed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, k, 50) * 3
    match = rng.random(50) < rng.random(k)[ids // 3]
    n_truth = int(match.sum()) + missed
    found = c.best_selection_f1(ids, match, n_truth, most)
    best = 0.0
    for size in range(min(k, most) + 1):
        for chosen in itertools.combinations(np.unique(ids), size):
            taken = np.isin(ids, chosen)
            best = max(best, f1_of(int((taken & match).sum()), int(taken.sum()), n_truth))
    assert found.f1 == pytest.approx(best)
    assert len(found.clusters) <= most
    assert c.selection_f1(ids, match, n_truth, found.clusters) == found


def test_chance_and_split_halves() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 20, 2000)
    match = (ids < 3) & (rng.random(2000) < 0.9)
    n_truth = int(match.sum()) + 20
    found = c.best_selection_f1(ids, match, n_truth, 4)
    assert found.clusters == (0, 1, 2)
    assert found.precision == pytest.approx(match.sum() / (ids < 3).sum())
    assert found.recall == pytest.approx(match.sum() / n_truth)
    null = c.shuffled_selection_f1(ids, match, n_truth, 4, seed=0)
    assert null.shape == (20,)
    assert null.max() < 0.3 < found.f1
    first = rng.random(2000) < 0.5
    halves = int(match[first].sum()) + 10, int(match[~first].sum()) + 10
    split = c.split_half_selection(ids, match, first, halves, 4)
    assert split.mean == pytest.approx(found.f1, abs=0.03)
    by_chance = c.split_half_selection(rng.permutation(ids), match, first, halves, 4)
    assert by_chance.mean < 0.3


def test_split_half_threshold() -> None:
    score = np.array([9.0, 8, 7, 1, 9.5, 7.5, 6.5, 0.5])
    match = np.array([True, True, False, False, True, True, False, False])
    first = np.array([True] * 4 + [False] * 4)
    split = c.split_half_threshold(score, match, first, (2, 2))
    assert split.first_to_second == pytest.approx(2 / 3)  # threshold 8 keeps 9.5 alone
    assert split.second_to_first == pytest.approx(1)  # threshold 7.5 keeps 9 and 8
    assert split.mean == pytest.approx(5 / 6)


def test_what_does_not_fit_together() -> None:
    with pytest.raises(ConfigurationError, match="do not fit"):
        c.best_selection_f1([0, 1], [True, True], 1, 1)
    with pytest.raises(ConfigurationError, match="two label arrays"):
        c.purity([0, 1], [0])
