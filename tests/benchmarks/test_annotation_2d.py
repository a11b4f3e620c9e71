"""The measurement of 2D annotation: its scores are right, and it runs, goes on, and reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

from benchmarks.annotation_2d import __main__ as bench
from benchmarks.annotation_2d import cells, crops
from benchmarks.annotation_2d.scores import UNKNOWN, by_class, confusion, matched, tolerant_f1
from benchmarks.annotation_2d.sizes import AUGMENT, IN_BOXES, SIZES, TURNED, in_slices
from benchmarks.annotation_2d.tables import sections


def labels(seed: int, classes: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (6, 20, 20)).astype(np.uint8)


def test_f1_is_that_of_scikit_learn_without_what_nobody_knows() -> None:
    found, truth = labels(0), labels(1)
    truth[:2] = UNKNOWN
    scores = by_class(confusion(found, truth, 4), ("noise", "a", "b", "c"))
    known = truth != UNKNOWN
    expected = f1_score(truth[known], found[known], average=None)
    assert list(scores["f1"].values()) == pytest.approx(expected.tolist())
    assert scores["mean_f1"] == pytest.approx(expected[1:].mean())
    assert scores["accuracy"] == pytest.approx((found == truth)[known].mean())


def test_a_class_that_is_not_there_does_not_count_in_the_mean() -> None:
    found, truth = labels(0, 3), labels(1, 3)
    three, four = (by_class(confusion(found, truth, n), ("noise", "a", "b", "c")[:n]) for n in (3, 4))
    assert three["mean_f1"] == pytest.approx(four["mean_f1"])


def test_clusters_take_the_class_that_they_fit_best() -> None:
    truth = labels(2)
    found = np.array([0, 2, 3, 1], np.uint8)[truth]
    assert np.array_equal(matched(found, truth, 4, 4)[found], truth)


def test_a_tolerance_forgives_a_shift() -> None:
    truth = np.zeros((1, 30, 30), np.uint8)
    truth[0, 10:13, 5:25] = 1
    shifted = np.roll(truth, 3, axis=1) > 0
    assert by_class(confusion(shifted.astype(np.uint8), truth, 2), ("no", "yes"))["f1"]["yes"] == 0
    assert tolerant_f1(shifted, truth, 3.0) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert tolerant_f1(shifted, truth, 2.0)["f1"] == pytest.approx(2 / 3)
    assert tolerant_f1(np.zeros_like(shifted), truth, 2.0)["f1"] == 0


def test_padding_is_unknown() -> None:
    volume = np.random.default_rng(0).integers(1, 200, (8, 10, 10)).astype(np.uint8)
    volume[5:] = 0
    mask = np.zeros_like(volume)
    mask[3, 2, 2] = mask[6, 2, 2] = 1
    density, drawn = crops.prepared(volume, mask)
    assert (drawn[5:] == UNKNOWN).all()
    assert drawn[3, 2, 2] == 1
    assert (density[5:] == np.median(volume[:5])).all()


def test_halves_share_what_is_drawn_and_leave_a_gap() -> None:
    drawn = np.zeros((20, 20, 20), np.uint8)
    drawn[2:6, 5:15, 3] = 1  # of all axes only the second shares it
    first, second = crops.halves(drawn)
    assert (first == 1).sum() == 4 * 1
    assert (second == 1).sum() == 4 * 1
    known = (first != UNKNOWN).any(axis=(0, 2)), (second != UNKNOWN).any(axis=(0, 2))
    assert [np.flatnonzero(side).tolist() for side in known] == [[*range(6)], [*range(14, 20)]]


def write_masks(folder: Path) -> Path:
    """Write two crops with a dark rod each, as volumes and masks."""
    from skimage.io import imsave

    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, place in (("one", 12), ("two", 22)):
        mask = np.zeros((32, 32, 32), np.uint8)
        mask[:, place : place + 6, 10:16] = 1
        volume = (120 + 20 * rng.normal(size=mask.shape) - 60 * mask).clip(1, 255).astype(np.uint8)
        imsave(folder / f"{name}.tif", volume, check_contrast=False)
        imsave(folder / f"{name}_mask.tif", mask, check_contrast=False)
    return folder


def test_it_measures_every_row_once_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    masks = write_masks(tmp_path / "masks")
    words = [str(tmp_path / "out"), "--size", "tiny", "--masks", str(masks)]
    bench.main(words)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    size = SIZES["tiny"]
    assert len(found["rows"]) == len(size.cells) + len(cells.WEAK) + 4 * len(size.crops)
    text = (tmp_path / "out" / "report.md").read_text()
    assert all(part in text for part in sections(found["rows"], "tiny"))
    for picture in ("cells.png", "crops.png"):
        assert f"(report/{picture})" in text
        assert (tmp_path / "out" / "report" / picture).exists()

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    for name in ("_supervised", "_weak", "_crop"):
        monkeypatch.setattr(bench, name, fail)
    bench.main(words)
    changed = [dict(found["rows"][0], settings="others"), *found["rows"][1:]]
    masked = [row | ({"masks": "others"} if row["part"] == "crops" else {}) for row in found["rows"]]
    lacking = [row for row in found["rows"] if row["row"] != "edss3d"]
    for rows in (changed, masked, lacking):
        (tmp_path / "out" / "results.json").write_text(json.dumps({**found, "rows": rows}))
        with pytest.raises(AssertionError, match="measured again"):
            bench.main(words)


def test_rows_keep_their_own_machine_and_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["one"]
    key = {"part": "cells", "row": "", "direction": "", "settings": "x", "masks": ""}
    monkeypatch.setattr(
        bench, "rows_of", lambda *_: [(key | {"row": name}, lambda: {"mean_f1": 0.5}) for name in names]
    )
    monkeypatch.setattr(bench, "describe", lambda: {"commit": "old"})
    bench.measure(tmp_path, "tiny", None, 1)
    names.append("two")
    monkeypatch.setattr(bench, "describe", lambda: {"commit": "new"})
    rows = bench.measure(tmp_path, "tiny", None, 1)["rows"]
    assert [(row["row"], row["machine"]["commit"], row["seed"]) for row in rows] == [
        ("one", "old", 1),
        ("two", "new", 1),
    ]
    key["settings"] = "y"
    rows = bench.measure(tmp_path, "tiny", None, 1)["rows"]
    assert [(row["row"], row["machine"]["commit"]) for row in rows] == [("one", "new"), ("two", "new")]


def test_both_kinds_of_networks_are_measured_with_and_without_augmentation() -> None:
    for size in (SIZES["small"], SIZES["full"]):
        for name in IN_BOXES:
            assert size.cells[f"{name}, turned"] == (*size.cells[name], AUGMENT)
        assert in_slices(TURNED)
        assert not in_slices("unet3d, turned")
