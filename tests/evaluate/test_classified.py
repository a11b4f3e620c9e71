"""Classes that a network gave to picks against the truth: by hand, pooled, stale, in a run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cryoscale.config import apply_settings
from cryoscale.data.classes import write_classes
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.truth import read_truth
from cryoscale.evaluate import evidence
from cryoscale.evaluate.classified import Classified
from cryoscale.evaluate.labels import LabelCounts
from cryoscale.evaluate.matching import match_points
from cryoscale.evaluate.run import evaluate_run
from cryoscale.evaluate.tables import as_csv, as_text
from tests.evaluate.scored_run import NAMES, VOXEL, paint, whole_run, write_labels

KNOWN = NAMES[1:3]


def classify(run: Run, name: str, *, rows: int | None = None) -> np.ndarray:
    """Write classes that are those of the nearest clusters of `scored_run`, and return the names."""
    picks, truth = read_picks(run.picks, name), read_truth(run.truth, name)
    match = match_points(picks.positions_N3, truth.positions_N3, 3 * VOXEL)
    class_N = np.random.default_rng(3).integers(0, 2, len(picks))
    right = truth.class_N[match.truth_K] < 3
    class_N[match.pick_K[right]] = truth.class_N[match.truth_K[right]] - 1
    shares = np.where(np.arange(2) == class_N[:, None], 0.8, 0.2).astype(np.float32)
    write_classes(run.classes, name, KNOWN, shares[:rows])
    return np.array(KNOWN)[class_N]


@pytest.fixture
def run(tmp_path) -> Run:
    made = whole_run(tmp_path / "run")
    config = apply_settings(made.config, ["supervised.model=dsm-net", "supervised.labels=/data/drawn.mrc"])
    made.save_config(config)
    return made


def test_scores_by_hand() -> None:
    found = np.array(["a", "a", "b", "b", "a", "b"])
    true = np.array(["a", "b", "b", "c", "none", "none"])
    scores = Classified(found, true, ("a", "b"), "none").scores()
    assert (scores["picks"], scores["matched"], scores["unknown"]) == (6, 4, 1)
    assert scores["object_accuracy"] == pytest.approx(2 / 3)
    assert scores["random_object_accuracy"] == pytest.approx((1 * 2 + 2 * 1) / 9)
    assert scores["by_class"]["a"] == {
        "truth": 1, "found": 3, "precision": 1 / 3, "recall": 1.0, "f1": pytest.approx(0.5),
    }  # fmt: skip
    assert scores["by_class"]["c"]["precision"] is None
    assert scores["by_class"]["c"]["recall"] == 0
    assert scores["confusion"]["names"] == ["none", "a", "b", "c"]
    assert scores["confusion"]["counts"] == [[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]


def test_nothing_matched_has_no_accuracy() -> None:
    scores = Classified(np.array(["a"]), np.array(["none"]), ("a",), "none").scores()
    assert scores["object_accuracy"] is None
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_a_run_is_scored_by_tomogram_and_together(run) -> None:
    found = {name: classify(run, name) for name in ("one", "two")}
    report = evaluate_run(run, None, ["one", "two"])
    for scores in report["tomograms"]:
        own = scores["classes"]
        assert own["object_accuracy"] == 1, "the network of this test knows"
        assert own["unknown"] > 0, "of class 'small' it knows nothing"
        assert own["picks"] == len(found[scores["tomogram"]])
        assert own["by_class"]["$barrel"]["recall"] == 1
        assert 0 < own["by_class"]["$barrel"]["precision"] < 1, "picks of nothing got a class, too"
    pooled = report["pooled"]["classes"]
    assert pooled["picks"] == sum(len(names) for names in found.values())
    words = as_text(report["pooled"])
    assert "classes of the picks" in words
    assert f"right, of {pooled['matched']} matched" in words
    assert "pooled,classes,by_class.small,recall,0.0" in as_csv(report)


def test_classes_of_an_earlier_state_are_left_out(run, monkeypatch) -> None:
    classify(run, "one", rows=5)
    (scores,) = evaluate_run(run, None, ["one"])["tomograms"]
    assert "classes" not in scores
    assert "there are 5 of them" in next(
        w for w in scores["left_out"] if w.startswith("classes of the picks")
    )
    classify(run, "one")
    done = {("classify", "one"): 1.0, ("segment", "one"): 1.0, ("train_supervised", "_all"): 2.0}
    monkeypatch.setattr(evidence, "finished_units", lambda run: done)
    (scores,) = evaluate_run(run, None, ["one"])["tomograms"]
    told = " ".join(scores["left_out"])
    assert "classes of the picks of 'one': train_supervised was done again after classify" in told
    assert "label volume of 'one': train_supervised was done again after segment" in told
    assert {"classes", "segmentation"}.isdisjoint(scores)


def test_a_network_of_masks_alone_is_scored_on_all_particles(run) -> None:
    truth = read_truth(run.truth, "one")
    _, labels = paint(truth)
    masks = ((labels > 0) & (labels < 4)).astype(np.uint8)
    run.tomogram("one").child("labels", "classes").delete()
    write_labels(run, "one", "classes", masks, ("particle",))
    (scores,) = evaluate_run(run, None, ["one"])["tomograms"]
    by_class = scores["segmentation"]["by_class"]
    assert list(by_class) == ["background", "membrane", "particle"]
    assert by_class["particle"]["iou"] == 1
    assert by_class["particle"]["truth"] == masks.sum()
    assert scores["segmentation"]["unmatched"] == {"found": [], "truth": ["membrane"]}


def test_joined_counts_keep_every_voxel() -> None:
    counts = LabelCounts(np.arange(8).reshape(4, 2), ("background", "a", "m", "b"), ("background", "p"))
    joined = counts.joined(("a", "b"), "p")
    assert joined.true_names == ("background", "m", "p")
    assert joined.counts_TF.tolist() == [[0, 1], [4, 5], [2 + 6, 3 + 7]]
