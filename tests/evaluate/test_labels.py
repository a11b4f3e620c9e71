"""Label volumes on storage against truth: any blocks, classes by name, chance."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.errors import FormatError
from cryoscale.evaluate.labels import LabelCounts, count_labels, segmentation_scores
from tests.evaluate.scored_run import write_labels

SHAPE = (40, 70, 33)


@pytest.fixture
def volumes(tmp_path):
    def write(
        truth: np.ndarray, found: np.ndarray, true_names, found_names
    ) -> tuple[LabelVolume, LabelVolume]:
        run = Run.at(tmp_path)
        write_labels(run, "t", "truth", truth, true_names)
        write_labels(run, "t", "classes", found, found_names)
        return LabelVolume(run.tomogram("t"), "classes"), LabelVolume(run.tomogram("t"), "truth")

    return write


@pytest.mark.parametrize("block", [7, 32, 256])
def test_blocks_add_up_to_scikit_learn_by_name(volumes, block: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, SHAPE).astype(np.uint8)
    found = np.where(rng.random(SHAPE) < 0.7, truth, rng.integers(0, 4, SHAPE)).astype(np.uint8)
    other = np.array([0, 3, 1, 2], np.uint8)  # the same classes under other values
    counts = count_labels(
        *volumes(truth, other[found], ("a", "b", "c"), ("b", "c", "a")), largest_block=block
    )
    scores = segmentation_scores([counts])
    t, f = truth.ravel(), found.ravel()
    assert scores["confusion"]["names"] == ["background", "a", "b", "c"]
    iou = jaccard_score(t, f, average=None)
    dice = f1_score(t, f, average=None)
    for row, name in enumerate(scores["confusion"]["names"]):
        assert scores["by_class"][name]["iou"] == pytest.approx(iou[row])
        assert scores["by_class"][name]["dice"] == pytest.approx(dice[row])
    assert scores["pixel_accuracy"] == pytest.approx((t == f).mean())
    assert scores["mean_iou"] == scores["mean_iou_by_sample"] == pytest.approx(iou.mean())
    assert scores["unmatched"] == {"found": [], "truth": []}


def test_shuffled_labels_score_at_chance(volumes) -> None:
    rng = np.random.default_rng(1)
    truth = (rng.random(SHAPE) < 0.3).astype(np.uint8)
    scores = segmentation_scores([count_labels(*volumes(truth, truth, ("a",), ("a",)))])
    assert scores["mean_iou"] == 1
    shuffled = rng.permutation(truth.ravel()).reshape(SHAPE)
    chance = segmentation_scores([count_labels(*volumes(truth, shuffled, ("a",), ("a",)))])
    for key in ("pixel_accuracy", "mean_iou", "mean_iou_by_sample"):
        assert chance[key] == pytest.approx(scores[f"random_{key}"], abs=0.02)
    assert chance["by_class"]["a"]["dice"] == pytest.approx(scores["by_class"]["a"]["random_dice"], abs=0.02)


def test_names_without_a_partner_are_rows_of_their_own() -> None:
    counts = LabelCounts(
        np.array([[80, 0, 4], [2, 6, 2], [0, 0, 5]]), ("background", "a", "b"), ("background", "a", "x")
    )
    scores = segmentation_scores([counts])
    assert scores["unmatched"] == {"found": ["x"], "truth": ["b"]}
    assert scores["confusion"] == {
        "names": ["background", "a", "b", "x"],
        "counts": [[80, 0, 0, 4], [2, 6, 0, 2], [0, 0, 0, 5], [0, 0, 0, 0]],
    }
    assert scores["by_class"]["x"]["found"] == 11
    assert scores["by_class"]["x"]["truth"] == scores["by_class"]["x"]["iou"] == 0
    assert scores["by_class"]["b"]["iou"] == 0
    assert scores["pixel_accuracy"] == pytest.approx(86 / 99)
    assert scores["mean_iou"] == pytest.approx((80 / 86 + 6 / 10 + 0) / 3)
    assert scores["mean_iou_shared"] == pytest.approx((80 / 86 + 6 / 10) / 2)


def test_samples_first_or_pooled_by_hand() -> None:
    names = ("background", "a")
    one = LabelCounts(np.array([[90, 0], [0, 10]]), names, names)
    two = LabelCounts(np.array([[98, 0], [2, 0]]), names, ("background", "other")[:2])
    scores = segmentation_scores([one, two])
    assert scores["mean_iou"] == pytest.approx((188 / 190 + 10 / 12) / 2)
    assert scores["mean_iou_by_sample"] == pytest.approx(((1 + 98 / 100) / 2 + (1 + 0) / 2) / 2)


def test_truth_for_another_shape_and_values_without_a_name(volumes) -> None:
    zeros = np.zeros(SHAPE, np.uint8)
    with pytest.raises(FormatError, match="another shape"):
        count_labels(*volumes(np.zeros((40, 70, 34), np.uint8), zeros, ("a",), ("a",)))
    with pytest.raises(FormatError, match="label 3, but has 1 classes: a"):
        count_labels(*volumes(zeros, zeros + 3, ("a",), ("a",)))


def test_tomograms_may_number_their_classes_differently() -> None:
    one = LabelCounts(np.diag([50, 5, 3]), ("background", "a", "b"), ("background", "a", "b"))
    two = LabelCounts(np.diag([40, 2, 7]), ("background", "b", "a"), ("background", "b", "a"))
    scores = segmentation_scores([one, two])
    assert scores["pixel_accuracy"] == scores["mean_iou"] == scores["mean_iou_by_sample"] == 1
    assert scores["by_class"]["a"]["truth"] == scores["by_class"]["a"]["found"] == 12
