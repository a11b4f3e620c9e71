"""Segmentation scores against hand counts and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.segmentation import (
    SegmentationScores,
    confusion,
    mean_iou_by_sample,
    pooled_scores,
    shuffled_scores,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_scores_are_those_of_scikit_learn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n, (5, 6, 7)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, n, truth.shape)).astype(
        np.uint16
    )
    counts = confusion(truth, predicted, n)
    t, p = truth.ravel(), predicted.ravel()
    np.testing.assert_array_equal(counts, confusion_matrix(t, p, labels=range(n)))
    scores = SegmentationScores(counts.astype(float))
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(t, p))
    np.testing.assert_allclose(
        scores.iou_C, jaccard_score(t, p, labels=range(n), average=None, zero_division=0)
    )
    np.testing.assert_allclose(scores.dice_C, f1_score(t, p, labels=range(n), average=None, zero_division=0))
    assert scores.mean_iou == pytest.approx(jaccard_score(t, p, labels=range(n), average="macro"))
    blocks = pooled_scores([confusion(truth[:2], predicted[:2], n), confusion(truth[2:], predicted[2:], n)])
    np.testing.assert_array_equal(blocks.counts_CC, counts)


def test_both_means_by_hand() -> None:
    """One sample all right with a large object, one with a small object missed."""
    first = [[90, 0], [0, 10]]
    second = [[98, 0], [2, 0]]
    pooled = pooled_scores([first, second])
    assert pooled.iou_C.tolist() == pytest.approx([188 / 190, 10 / 12])
    assert pooled.mean_iou == pytest.approx((188 / 190 + 10 / 12) / 2)
    assert mean_iou_by_sample([first, second]) == pytest.approx(((1 + 98 / 100) / 2 + (1 + 0) / 2) / 2)
    assert pooled.dice_C[1] == pytest.approx(20 / 22)


def test_an_absent_class_does_not_count() -> None:
    scores = SegmentationScores(np.array([[5.0, 0, 0], [0, 5, 0], [0, 0, 0]]))
    assert np.isnan(scores.iou_C[2])
    assert np.isnan(scores.dice_C[2])
    assert scores.mean_iou == 1
    assert mean_iou_by_sample([scores.counts_CC, [[5, 0, 0], [0, 0, 0], [5, 0, 0]]]) == pytest.approx(
        np.mean([(1 + 0.5) / 2, 1, 0])
    )


def test_chance_is_what_shuffling_gives() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((30, 30, 30)) < 0.2).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.9, truth, 1 - truth).astype(np.uint8)
    scores = SegmentationScores(confusion(truth, predicted, 2).astype(float))
    chance = scores.by_chance()
    drawn = shuffled_scores(truth, predicted, 2, seed=0)
    np.testing.assert_allclose(chance.iou_C, drawn.iou_C, atol=0.01)
    assert chance.pixel_accuracy == pytest.approx(drawn.pixel_accuracy, abs=0.01)
    assert scores.iou_C[1] > chance.iou_C[1] + 0.4


def test_bad_labels_are_named() -> None:
    with pytest.raises(ConfigurationError, match="prediction holds labels 0 to 3"):
        confusion([0, 1], [0, 3], 3)
    with pytest.raises(ConfigurationError, match="one shape"):
        confusion([0, 1], [0], 2)
    with pytest.raises(ConfigurationError, match="integers"):
        confusion([0.0, 1.0], [0, 1], 2)
    with pytest.raises(ConfigurationError, match="no confusion"):
        pooled_scores([])
    assert np.isnan(SegmentationScores(np.zeros((2, 2))).pixel_accuracy)
