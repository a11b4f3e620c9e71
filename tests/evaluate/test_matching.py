"""Matching against brute force, scikit-learn and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.matching import augmenting_hits, f1_of, match_points, score_threshold_curve


def points(seed: int, n: int, side: float = 10.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, side, (n, 3))


def dense_reference(picks: np.ndarray, truth: np.ndarray, radius: float) -> tuple[int, float]:
    """Most pairs, then least distance, by a dense assignment with a penalty."""
    distance = np.linalg.norm(picks[:, None] - truth[None], axis=2)
    cost = np.where(distance <= radius, distance - 1e4, 0.0)
    r, c = linear_sum_assignment(cost)
    real = distance[r, c] <= radius
    return int(real.sum()), float(distance[r, c][real].sum())


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 6.0))
def test_as_many_pairs_as_possible_at_the_least_distance(seed: int, n: int, m: int, radius: float) -> None:
    picks, truth = points(seed, n), points(seed + 1, m)
    match = match_points(picks, truth, radius)
    count, total = dense_reference(picks, truth, radius)
    assert len(match.pick_K) == count
    assert match.distance_K.sum() == pytest.approx(total, abs=1e-6)
    assert len(set(match.pick_K)) == len(set(match.truth_K)) == count
    assert (match.distance_K <= radius).all()
    assert (match.n_picks, match.n_truth) == (n, m)


def test_a_greedy_choice_would_lose_a_pair() -> None:
    picks = [[0, 0, 0], [0, 0, 2.0]]
    truth = [[0, 0, 1.1], [0, 0, 3.1]]
    match = match_points(picks, truth, 1.2)  # the nearest pair of all is pick 1 with truth 0
    assert match.pick_K.tolist() == [0, 1]
    assert match.truth_K.tolist() == [0, 1]
    assert match.f1 == 1


def test_hand_counts() -> None:
    truth = [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    picks = [[0, 0, 1], [0, 1, 0], [10, 0, 0], [50, 0, 0], [60, 0, 0]]
    match = match_points(picks, truth, 2.0)
    assert match.precision == pytest.approx(2 / 5)
    assert match.recall == pytest.approx(2 / 4)
    assert match.f1 == pytest.approx(4 / 9)
    assert match.is_match_N.sum() == 2
    assert match.is_match_N[2]


def test_coinciding_points_match_at_distance_zero() -> None:
    match = match_points([[1, 2, 3]], [[1, 2, 3]], 0.5)
    assert match.distance_K.tolist() == [0.0]
    assert match.f1 == 1


@pytest.mark.parametrize(
    ("picks", "truth"), [([], [[0, 0, 0]]), ([[0, 0, 0]], []), ([], []), ([[0, 0, 0]], [[9, 9, 9]])]
)
def test_nothing_matches(picks: list, truth: list) -> None:
    match = match_points(picks, truth, 1.0)
    assert match.f1 == match.precision == match.recall == 0
    assert score_threshold_curve(picks, np.ones(len(picks)), truth, 1.0).best_f1 == 0


@pytest.mark.parametrize(
    ("picks", "radius"), [([[0, 0]], 1.0), ([[0, 0, np.nan]], 1.0), ([[0, 0, 0]], 0.0), ([[0, 0, 0]], np.inf)]
)
def test_bad_input(picks: list, radius: float) -> None:
    with pytest.raises(ConfigurationError):
        match_points(picks, [[0, 0, 0]], radius)


def test_scores_must_fit() -> None:
    with pytest.raises(ConfigurationError, match="2 finite scores"):
        score_threshold_curve([[0, 0, 0], [1, 1, 1]], [1.0, np.nan], [[0, 0, 0]], 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 25), st.floats(0.5, 6.0), st.booleans())
def test_every_threshold_has_the_largest_matching(
    seed: int, n: int, m: int, radius: float, ties: bool
) -> None:
    picks, truth = points(seed, n), points(seed + 1, m)
    scores = np.random.default_rng(seed).normal(size=n)
    scores = np.round(scores) if ties else scores
    curve = score_threshold_curve(picks, scores, truth, radius)
    assert len(curve.threshold_T) == len(np.unique(scores))
    for threshold, kept, hits in zip(curve.threshold_T, curve.kept_T, curve.hits_T, strict=True):
        chosen = scores >= threshold
        assert kept == chosen.sum()
        assert hits == dense_reference(picks[chosen], truth, radius)[0]
    match = match_points(picks[scores >= curve.best_threshold], truth, radius)
    assert curve.best_f1 == pytest.approx(match.f1)
    assert curve.best_f1 == pytest.approx(curve.f1_T.max())


def test_average_precision_is_that_of_scikit_learn() -> None:
    picks, truth = points(0, 300, 30.0), points(1, 80, 30.0)
    scores = np.random.default_rng(2).normal(size=300)
    curve = score_threshold_curve(picks, scores, truth, 2.5)
    order = np.argsort(-scores)
    hits = augmenting_hits(picks[order], truth, 2.5)
    expected = average_precision_score(hits, scores[order]) * hits.sum() / 80
    assert curve.average_precision == pytest.approx(expected)
    assert curve.recall_T[-1] == pytest.approx(hits.sum() / 80)


def test_shuffled_truth_is_at_chance() -> None:
    truth = points(0, 200, 100.0)
    picks = truth + np.random.default_rng(1).normal(0, 0.5, truth.shape)
    assert match_points(picks, truth, 3.0).f1 > 0.99
    rng = np.random.default_rng(2)
    shuffled = np.stack([rng.permutation(truth[:, axis]) for axis in range(3)], axis=1)
    chance = 200 * 4 / 3 * np.pi * 27 / 100**3  # expected neighbours of one pick
    assert match_points(picks, shuffled, 3.0).f1 < 5 * chance


def test_many_picks_are_quick() -> None:
    picks, truth = points(0, 20_000, 400.0), points(1, 5000, 400.0)
    match = match_points(picks, truth, 15.0)
    assert match.recall > 0.9


def test_f1_from_counts() -> None:
    assert f1_of(2, 5, 4) == pytest.approx(4 / 9)
    assert f1_of(0, 0, 0) == 0
