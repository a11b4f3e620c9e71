from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import DataError
from cryoscale.ops import peaks
from cryoscale.ops.peaks import local_maxima, noise_threshold, noise_volume, range_threshold, suppress


def naive_maxima(score):
    found = []
    for place in np.ndindex(score.shape):
        best = not np.isnan(score[place])
        for offset in itertools.product((-1, 0, 1), repeat=3):
            if sum(map(abs, offset)) not in (1, 2):
                continue
            other = tuple(p + o for p, o in zip(place, offset, strict=True))
            if (
                all(0 <= v < n for v, n in zip(other, score.shape, strict=True))
                and not score[place] > score[other]
            ):
                best = False
        if best:
            found.append(place)
    return np.array(found, dtype=np.int64).reshape(-1, 3)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    levels=st.integers(2, 60),
    seed=st.integers(0, 999),
    nan=st.booleans(),
)
def test_maxima_equal_the_plain_definition(shape, levels, seed, nan):
    random = np.random.default_rng(seed)
    score = random.integers(0, levels, shape).astype(np.float32)
    if nan:
        score[random.random(shape) < 0.05] = np.nan
    np.testing.assert_array_equal(local_maxima(score), naive_maxima(score))


def test_corners_are_no_neighbours_and_ties_are_no_maxima():
    score = np.zeros((3, 3, 3), dtype=np.float32)
    score[1, 1, 1], score[0, 0, 0] = 2.0, 3.0
    assert local_maxima(score).tolist() == [[0, 0, 0], [1, 1, 1]]
    score[1, 1, 2] = 2.0
    assert local_maxima(score).tolist() == [[0, 0, 0]]
    assert local_maxima(np.empty((0, 3, 3), dtype=np.float32)).shape == (0, 3)


def test_thresholds():
    assert range_threshold([1.0, 5.0, 21.0], t=3.0) == pytest.approx(4.0)
    assert range_threshold([]) == float("inf")
    assert noise_threshold([1.0, 3.0], 2.0) == pytest.approx(4.0)
    with pytest.raises(DataError, match="no peak"):
        noise_threshold([], 3.0)


def test_noise_volume_draws_from_the_sample():
    sample = np.array([1.0, 2.0, 5.0])
    volume = noise_volume(sample, (8, 9, 10), seed=3)
    assert volume.shape == (8, 9, 10)
    assert volume.dtype == np.float32
    assert set(np.unique(volume)) == {1.0, 2.0, 5.0}
    np.testing.assert_array_equal(volume, noise_volume(sample, (8, 9, 10), seed=3))
    assert (volume != noise_volume(sample, (8, 9, 10), seed=4)).any()
    with pytest.raises(DataError):
        noise_volume([], (2, 2, 2), seed=0)


def naive_suppress(positions, scores, distance):
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], *positions[i])):
        if all(np.sqrt(((positions[i] - positions[j]) ** 2).sum()) >= distance for j in kept):
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 150),
    extent=st.integers(3, 30),
    levels=st.integers(1, 50),
    distance=st.one_of(
        st.floats(0.0, 12.0), st.sampled_from([1.0, 2.0, 3.0, 5.0, np.sqrt(3.0), np.sqrt(14.0)])
    ),
    seed=st.integers(0, 999),
)
def test_suppression_equals_the_plain_one_in_any_order(count, extent, levels, distance, seed):
    random = np.random.default_rng(seed)
    positions = np.unique(random.integers(0, extent, (count, 3)), axis=0)
    random.shuffle(positions)
    scores = random.integers(0, levels, len(positions)).astype(np.float32)
    kept = suppress(positions, scores, distance)
    assert kept.tolist() == naive_suppress(positions, scores, distance)
    shuffle = random.permutation(len(positions))
    np.testing.assert_array_equal(shuffle[suppress(positions[shuffle], scores[shuffle], distance)], kept)


@pytest.mark.parametrize(("round_", "most"), [(7, 10**9), (64, 50), (10, 20)])
def test_rounds_and_memory_limits_change_nothing(monkeypatch, round_, most):
    random = np.random.default_rng(5)
    positions = random.integers(0, 12, (400, 3))
    scores = random.integers(0, 40, 400).astype(np.float32)
    expected = positions[suppress(positions, scores, 3.0)]
    monkeypatch.setattr(peaks, "_ROUND", round_)
    monkeypatch.setattr(peaks, "_MOST_PAIRS", most)
    np.testing.assert_array_equal(positions[suppress(positions, scores, 3.0)], expected)


def test_a_peak_at_the_minimum_distance_stays():
    assert suppress([[0, 0, 0], [0, 3, 4]], [2.0, 1.0], 5.0).tolist() == [0, 1]
    assert suppress([[0, 0, 0], [0, 3, 4]], [1.0, 2.0], 5.01).tolist() == [1]
    assert suppress([[0, 0, 1], [0, 0, 0]], [1.0, 1.0], 2.0).tolist() == [1]


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="finite"):
        suppress([[0, 0, 0]], [np.nan], 2.0)
