"""Numbers of clusters where the answer is known, and scikit-learn's own indices."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sklearn.cluster import KMeans
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.evaluate import choose_k as c

KS = range(1, 9)


def blobs(k: int, n: int, features: int, seed: int = 0, apart: float = 10.0) -> np.ndarray:
    """Clusters of unit width on the axes, so all pairs of centres are equally far apart."""
    rng = np.random.default_rng(seed)
    centres = apart * np.eye(k, features)
    return centres[np.arange(n) % k] + rng.normal(size=(n, features))


@pytest.fixture(scope="module")
def separated() -> c.KScores:
    return c.score_k(blobs(5, 600, 6), KS, references=5, stability_repeats=3, seed=0)


def test_separated_blobs(separated: c.KScores) -> None:
    s = separated
    assert s.best_calinski_harabasz == s.best_davies_bouldin == s.best_silhouette == 5
    assert s.best_stability == 5
    assert s.stability_K[4] > 0.99
    assert s.reference_stability_K[4] < 0.8
    assert s.k_K.tolist() == list(KS)
    assert (np.diff(s.inertia_K) < 0).all()
    assert s.rows == 600
    assert np.isnan(
        [s.calinski_harabasz_K[0], s.silhouette_K[0], s.davies_bouldin_K[0], s.stability_K[0]]
    ).all()
    assert (s.gap_error_K > 0).all()


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_gap_rule_counts_blobs_in_a_plane(k: int) -> None:
    rng = np.random.default_rng(k)
    centres = np.array([[0, 0], [12, 1], [1, 14], [13, 13], [26, 5]])[:k]
    rows = centres[np.arange(500) % k] + rng.normal(size=(500, 2))
    found = c.score_k(rows, range(1, 8), references=8, stability_repeats=0, seed=k)
    assert found.best_gap == found.best_silhouette == k
    if k > 2:
        assert found.best_calinski_harabasz == k


def test_equally_distant_clusters_stop_the_gap_rule_too_soon(separated: c.KScores) -> None:
    """A weakness of the published rule, kept; the steepest rise and the largest gap show the clusters."""
    assert separated.best_gap == 1
    assert separated.k_K[1:][np.argmax(np.diff(separated.gap_K))] == 5
    assert 5 <= separated.largest_gap <= 8
    assert separated.gap_K[4] > separated.gap_K[0] + 0.9


def test_indices_are_those_of_scikit_learn(separated: c.KScores) -> None:
    rows = blobs(5, 600, 6)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    labels = KMeans(5, n_init=5, random_state=1).fit(rows)
    assert separated.inertia_K[4] == pytest.approx(labels.inertia_)
    assert separated.inertia_K[0] == pytest.approx(rows.size)
    assert separated.calinski_harabasz_K[4] == pytest.approx(calinski_harabasz_score(rows, labels.labels_))
    assert separated.davies_bouldin_K[4] == pytest.approx(davies_bouldin_score(rows, labels.labels_))


@pytest.mark.parametrize("features", [2, 6])
def test_one_gaussian_is_one_cluster(features: int) -> None:
    for seed in range(4):
        rows = np.random.default_rng(seed).normal(size=(400, features))
        found = c.score_k(rows, [1, 2, 3, 4], references=6, stability_repeats=0, seed=seed)
        assert found.best_gap == 1, seed
        assert found.best_stability is None


def test_the_gap_of_two_points_by_hand() -> None:
    """Rows at 0 and 1, five of each: the reference is uniform on an interval of that length."""
    rows = np.repeat([[0.0], [1.0]], 200, axis=0)
    found = c.score_k(rows, [1, 2], references=40, n_init=1, stability_repeats=0, standardise=False)
    assert found.inertia_K[0] == pytest.approx(400 / 4)
    # A uniform interval has variance 1/12, against 1/4 of two points: E log(1/12) - log(1/4) = -log 3.
    assert found.gap_K[0] == pytest.approx(-np.log(3), abs=0.02)
    sd_of_variance = np.sqrt((1 / 80 - 1 / 144) / 400) * 12  # of the log: (mu4 - mu2^2) / n, over mu2
    assert found.gap_error_K[0] == pytest.approx(sd_of_variance, rel=0.4)
    assert found.best_gap is None


def test_the_reference_box_is_turned_with_the_data() -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(-1, 1, (5000, 3)) * [10, 2, 0.1]
    turn = Rotation.from_euler("zyx", [30, 50, 20], degrees=True).as_matrix()
    reference = c.uniform_reference(flat @ turn.T + 7, rng)
    back = (reference - 7) @ turn
    np.testing.assert_allclose(back.std(axis=0), flat.std(axis=0), rtol=0.06)
    assert (np.abs(back).max(axis=0) < [10.5, 2.6, 0.5]).all()


def test_it_repeats_by_seed_and_draws_a_sample() -> None:
    rows = blobs(3, 500, 4)
    arguments = {"references": 2, "stability_repeats": 1, "n_init": 1, "sample_rows": 200}
    a, b = (c.score_k(rows, [2, 3], seed=4, **arguments) for _ in range(2))
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    assert a.rows == 200
    other = c.score_k(rows, [2, 3], seed=5, **arguments)
    assert other.inertia_K[0] != a.inertia_K[0]


def test_scales_count_only_when_asked() -> None:
    rows = np.concatenate([blobs(3, 300, 2), np.full((300, 1), 5.0)], axis=1)
    rows[:, 0] *= 1000
    kept = c.score_k(rows, [2], references=2, stability_repeats=0, standardise=False)
    even = c.score_k(rows, [2], references=2, stability_repeats=0)
    scaled = c.score_k(rows / [1000, 1, 1], [2], references=2, stability_repeats=0)
    assert even.inertia_K[0] == pytest.approx(scaled.inertia_K[0])
    assert kept.inertia_K[0] > 100 * even.inertia_K[0]


def test_no_best_where_there_is_none() -> None:
    scores = c.score_k(blobs(3, 100, 3), [1], references=2, stability_repeats=1)
    assert scores.best_gap is None
    assert scores.best_calinski_harabasz is None
    assert scores.best_stability is None


def test_bad_input() -> None:
    rows = blobs(3, 50, 3)
    for arguments in (
        {"ks": []},
        {"ks": [0, 1]},
        {"ks": [11]},
        {"ks": [2], "references": 1},
        {"ks": [2], "n_init": 0},
    ):
        with pytest.raises(ConfigurationError, match="numbers of clusters"):
            c.score_k(rows, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="encodings"):
        c.score_k(rows[0], [2])
    with pytest.raises(DataError, match="finite"):
        c.score_k(rows * np.nan, [2])
    with pytest.raises(DataError, match="fewer different"):
        c.score_k(np.repeat(rows[:2], 25, axis=0), [3])
