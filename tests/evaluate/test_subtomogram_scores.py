"""Scores of subtomograms against counting by hand and scikit-learn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, mean_squared_error

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.subtomogram_scores import Found, subtomogram_scores

NAMES = ("a", "b", "c")


@pytest.fixture
def both() -> tuple[Found, Found]:
    rng = np.random.default_rng(0)
    classes, masks = rng.integers(0, 3, 40), rng.random((40, 4, 5, 6)) < 0.3
    density = rng.normal(size=masks.shape).astype(np.float32)
    truth = Found(classes, masks.astype(np.uint8), density)
    wrong = rng.random(40) < 0.3
    flipped = masks ^ (rng.random(masks.shape) < 0.1)
    given = Found(np.where(wrong, rng.integers(0, 3, 40), classes), flipped.astype(np.uint8), density * 0.5)
    return truth, given


def test_scores_are_those_of_scikit_learn(both) -> None:
    truth, given = both
    scores = subtomogram_scores(truth, given, NAMES)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert scores["samples"] == 40
    assert scores["object_accuracy"] == pytest.approx(accuracy_score(truth.class_S, given.class_S))
    assert scores["confusion"] == {
        "names": list(NAMES), "counts": confusion_matrix(truth.class_S, given.class_S).tolist(),
    }  # fmt: skip
    flat = truth.labels_SZYX.ravel(), given.labels_SZYX.ravel()
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(*flat))
    assert scores["iou_by_label"] == pytest.approx(jaccard_score(*flat, average=None))
    assert scores["mean_iou"] == pytest.approx(jaccard_score(*flat, average="macro"))
    by_sample = [
        jaccard_score(t.ravel(), f.ravel(), average=None)
        for t, f in zip(truth.labels_SZYX, given.labels_SZYX, strict=True)
    ]
    assert scores["mean_iou_by_sample"] == pytest.approx(np.mean(by_sample))
    error = mean_squared_error(truth.density_SZYX.ravel(), given.density_SZYX.ravel())
    assert scores["recovery_error"] == pytest.approx(error, rel=1e-5)
    assert scores["recovery_error_of_nothing"] == pytest.approx(4 * error, rel=1e-5)


def test_each_class_is_scored_as_if_it_were_alone(both) -> None:
    truth, given = both
    by_class = subtomogram_scores(truth, given, NAMES)["by_class"]
    assert list(by_class) == list(NAMES)
    rows = np.flatnonzero(truth.class_S == 1)
    alone = subtomogram_scores(truth.only(rows), given.only(rows), NAMES)
    for key, value in by_class["b"].items():
        assert value == alone[key], key
    assert sum(row["samples"] for row in by_class.values()) == 40


def test_chance_is_what_shuffled_answers_reach(both) -> None:
    truth, given = both
    rng = np.random.default_rng(1)
    shuffled = [np.mean(truth.class_S == rng.permutation(given.class_S)) for _ in range(3000)]
    scores = subtomogram_scores(truth, given, NAMES)
    assert scores["random_object_accuracy"] == pytest.approx(np.mean(shuffled), abs=0.01)
    assert scores["random_pixel_accuracy"] < scores["pixel_accuracy"]


def test_a_class_that_nobody_was_told_of_has_no_accuracy(both) -> None:
    truth, given = both
    unseen = Found(np.full(40, -1), truth.labels_SZYX)
    scores = subtomogram_scores(unseen, given, NAMES)
    assert scores["object_accuracy"] is None
    assert "recovery_error" not in scores
    assert list(scores["by_class"]) == ["none of them"]


def test_what_does_not_fit_is_refused(both) -> None:
    truth, given = both
    with pytest.raises(ConfigurationError, match="shape"):
        subtomogram_scores(truth, Found(given.class_S[:3]), NAMES)
    with pytest.raises(ConfigurationError, match="nothing to score"):
        subtomogram_scores(Found(class_S=truth.class_S), Found(labels_SZYX=given.labels_SZYX), NAMES)
