"""Picks against scikit-learn and hand counts, alone and pooled over tomograms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, fbeta_score

from cryoscale.evaluate.detection import Detection, Pairs, detect
from cryoscale.evaluate.matching import f1_of, f_beta_of, match_points, score_threshold_curve


def a_detection(seed: int, n: int = 120, m: int = 50) -> tuple[Detection, tuple]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, (m, 3))
    picks = np.concatenate(
        [truth[: m * 4 // 5] + rng.normal(0, 1, (m * 4 // 5, 3)), rng.uniform(0, 100, (n, 3))]
    )
    scores = np.concatenate([rng.normal(2, 1, m * 4 // 5), rng.normal(0, 1, n)]).round(1)
    random = rng.uniform(0, 100, picks.shape)
    return detect(picks, scores, truth, 4.0, middle_x=50, random_RN3=random[None]), (picks, scores, truth)


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_f_beta_is_that_of_scikit_learn(beta: float) -> None:
    hits, picks, truth = 30, 50, 70  # of 90 things that are picked, true, or both
    predicted = np.r_[np.ones(picks), np.zeros(truth - hits)]
    true = np.r_[np.ones(hits), np.zeros(picks - hits), np.ones(truth - hits)]
    assert f_beta_of(hits, picks, truth, beta) == pytest.approx(fbeta_score(true, predicted, beta=beta))
    assert f_beta_of(hits, picks, truth, 1) == pytest.approx(f1_of(hits, picks, truth))
    assert f_beta_of(0, 0, 0, beta) == 0


def test_scores_by_hand() -> None:
    truth = [[0, 0, 0], [10, 0, 0], [20, 0, 0], [30, 0, 0]]
    scores = Pairs.between([[0, 0, 3], [10, 4, 0], [50, 0, 0]], truth, 5.0).scores()
    assert (scores["found"], scores["truth"], scores["matched"]) == (3, 4, 2)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(1 / 2)
    assert scores["f1"] == pytest.approx(4 / 7)
    assert scores["f_beta4"] == pytest.approx(17 * 2 / (3 + 16 * 4))
    assert scores["mean_error_angstrom"] == scores["median_error_angstrom"] == pytest.approx(3.5)
    assert scores["rms_error_angstrom"] == pytest.approx(np.sqrt(12.5))
    nothing = Pairs.between([], truth, 5.0).scores()
    assert nothing["mean_error_angstrom"] is nothing["rms_error_angstrom"] is None
    assert nothing["f1"] == nothing["f_beta4"] == 0


def test_thresholds_agree_with_matching_at_each_of_them() -> None:
    detection, (picks, scores, truth) = a_detection(0)
    found = detection.scores()
    curve = score_threshold_curve(picks, scores, truth, 4.0)
    best = match_points(picks[scores >= curve.best_threshold], truth, 4.0)
    assert found["best_threshold_f1"] == pytest.approx(best.f1)
    assert found["best_threshold"] == curve.best_threshold
    assert found["best_threshold_precision"] == pytest.approx(best.precision)
    assert found["best_threshold_recall"] == pytest.approx(best.recall)
    betas = [match_points(picks[scores >= t], truth, 4.0).f_beta(4) for t in curve.threshold_T]
    assert found["best_threshold_f_beta4"] == pytest.approx(max(betas))
    expected = average_precision_score(detection.hit_N, scores) * detection.hit_N.sum() / len(truth)
    assert found["average_precision"] == pytest.approx(expected)
    kept = np.sort(scores)[-100]
    assert found["recall_among_best"]["100"] == pytest.approx(
        match_points(picks[scores >= kept], truth, 4.0).recall
    )


def test_tomograms_pool_as_one_that_holds_them_far_apart() -> None:
    (one, first), (two, second) = a_detection(1), a_detection(2)
    apart = np.array([1000.0, 0, 0])
    picks, scores, truth = (
        np.concatenate([a, b + apart if a.ndim == 2 else b]) for a, b in zip(first, second, strict=True)
    )
    random = np.zeros_like(picks)
    whole = detect(picks, scores, truth, 4.0, middle_x=50, random_RN3=random[None])
    joined = Detection.together([one, two])
    a, b = joined.scores(), whole.scores()
    for key in ("found", "truth", "matched", "f1", "f_beta4", "average_precision", "best_threshold_f1"):
        assert a[key] == pytest.approx(b[key]), key
    assert a["curve"] == b["curve"]
    assert joined.halves == whole.halves
    assert a["random_recall"] == pytest.approx(
        (one.random_R[0].hits + two.random_R[0].hits) / (one.pairs.n_truth + two.pairs.n_truth)
    )


def test_shuffled_truth_scores_at_chance() -> None:
    rng = np.random.default_rng(5)
    truth = rng.uniform(0, 200, (400, 3))
    picks = truth + rng.normal(0, 1, truth.shape)
    random = rng.uniform(0, 200, picks.shape)
    scores = rng.normal(size=400)
    found = detect(picks, scores, truth, 8.0, middle_x=100, random_RN3=random[None]).scores()
    assert found["f1"] > 0.95
    shuffled = np.stack([rng.permutation(truth[:, axis]) for axis in range(3)], axis=1)
    chance = detect(picks, scores, shuffled, 8.0, middle_x=100, random_RN3=random[None]).scores()
    assert chance["f1"] == pytest.approx(chance["random_f1"], abs=0.05)
    assert chance["f1"] < 0.25


def test_a_class_without_positions() -> None:
    nothing = a_detection(3)[0].of_nothing().scores()
    assert nothing["truth"] == nothing["recall"] == nothing["average_precision"] == 0
    empty = detect([], [], [[0, 0, 0]], 1.0, middle_x=1, random_RN3=np.empty((2, 0, 3))).scores()
    assert empty["best_threshold"] is None
    assert empty["curve"] == {"recall": [], "precision": []}
    assert empty["recall_among_best"] == {}
