"""The tables of the DSM-Net paper as a benchmark: its data, its rows, going on after a kill, its report."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, jaccard_score

from benchmarks.dsm_net import __main__ as program
from benchmarks.dsm_net import data as boxes
from benchmarks.dsm_net import published, report, rows, scores, tables, train
from benchmarks.dsm_net.sizes import SIZES
from benchmarks.harness import results
from cryoscale.errors import DataError
from cryoscale.evaluate.segmentation import confusion, mean_iou_by_sample
from cryoscale.simulate.recipes import STAND_INS, recipe
from tests.benchmarks.test_cases import BARE

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "benchmarks" / "reports"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boxes.make(tmp_path_factory.mktemp("data") / "tiny.npz", "tiny")


def run(out: Path, file: Path, *words: str) -> int:
    fixed = ["run", "--size", "tiny", "--jobs", "1", "--device", "cpu"]
    return program.main([*fixed, "--out", str(out), "--data", str(file), *words])


# -- data ---------------------------------------------------------------------------------------------------


def test_the_file_holds_boxes_of_all_data_sets_with_their_truth(file: Path) -> None:
    size = SIZES["tiny"]
    found = {name: boxes.load(file, name) for name in "ABCD"}
    asked = {"A": 0.06, "B": 0.01, "C": 0.1, "D": 0.5}
    for name, data in found.items():
        side = size.box // size.binning
        assert data.inputs.shape == data.density.shape == (size.boxes, 1, side, side, side)
        assert data.mask.shape == (size.boxes, side, side, side)
        assert set(np.unique(data.mask)) == {0, 1}
        assert set(data.classes) == set(range(len(data.names)))
        assert np.bincount(data.classes).tolist() == data.facts["per_class"]
        assert [int((data.split == part).sum()) for part in ("train", "validation", "test")] == [8, 4, 4]
        assert data.inputs.std() == pytest.approx(1, abs=1e-3)
        assert data.density.std() == pytest.approx(1, abs=1e-3)
        # Objects are dark in the inputs and in the densities.
        assert data.density[:, 0][data.mask == 1].mean() < data.density[:, 0][data.mask == 0].mean()
        assert data.facts["realised_snr"] == pytest.approx(asked[name], rel=0.1)
    clear = found["D"].inputs[:, 0]
    assert clear[found["D"].mask == 1].mean() < clear[found["D"].mask == 0].mean()
    for name in "BD":
        assert (found[name].mask == found["A"].mask).all()
        assert not np.array_equal(found[name].inputs, found["A"].inputs)


def test_data_is_made_once_and_never_mistaken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "_simulated", None)
    assert boxes.make(file, "tiny") == file
    with pytest.raises(SystemExit, match="holds other data"):
        boxes.make(file, "tiny", seed=2)
    with pytest.raises(SystemExit, match="holds data of size tiny, not reduced"):
        program.main(["run", "--data", str(file), "--size", "reduced"])


def test_recipes_of_a_and_b_differ_in_their_noise_alone() -> None:
    a, b = (recipe(f"dsm-net-{name}", seed=1).model_dump() for name in "ab")
    assert (a["imaging"].pop("snr"), b["imaging"].pop("snr")) == (boxes.SNR_OF["A"], boxes.SNR_OF["B"])
    assert {k: v for k, v in a.items() if k != "recipe"} == {k: v for k, v in b.items() if k != "recipe"}


def test_full_size_is_the_recipes() -> None:
    settings = boxes.settings_of("ABD", ["A", "B", "D"], SIZES["full"], maps=True)
    touched = {word.split("=")[0] for word in settings}
    assert touched == {"ingest.levels", "simulate.subtomograms.split", "simulate.variants"}
    assert recipe("dsm-net-a", seed=1).subtomograms.split == SIZES["full"].split
    assert all(f'"{name}",copies=10000' in settings[-1] for name in "ABD")
    assert set(boxes.FEW) <= {stand_in for stand_in, _ in STAND_INS.values()}


def test_binning_averages_cubes() -> None:
    volumes = np.random.default_rng(0).normal(size=(2, 4, 6, 8)).astype(np.float32)
    found = boxes.binned(volumes, 2)
    for n, z, y, x in np.ndindex(*found.shape):
        cube = volumes[n, 2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        assert found[n, z, y, x] == pytest.approx(cube.mean(), abs=1e-6)


# -- rows and scores ----------------------------------------------------------------------------------------


def test_every_published_number_has_a_row_and_the_main_ones_come_first() -> None:
    keys = [(row.data, row.name) for row in rows.all_rows()]
    assert len(set(keys)) == len(keys)
    assert set(published.PUBLISHED) <= set(keys)
    assert set(keys[:6]) == {(data, name) for data in "AB" for name in rows.FIRST}
    with pytest.raises(SystemExit, match="no row is called"):
        rows.chosen(["A/nothing"])
    assert [row.name for row in rows.chosen(["C/*"])] == ["DSM-Net", "SSN3D-ED", "Seg", "Cls", "DSRF3D-v2"]


def test_networks_and_losses_are_those_of_the_rows() -> None:
    facts = {"classes": list("abcd"), "side": 40, "id": "x"}
    made = {
        row.key: train.training_of(row, facts, "full", SIZES["full"], 1, device="cpu", threads=1)
        for row in rows.all_rows()
    }
    assert made["A/DSM-Net"].settings.batch_size == 64
    budget = ("batch_size", "betas", "epochs", "learning_rate", "min_delta", "monitor", "patience")
    paper = {name: getattr(made["A/DSM-Net"].settings, name) for name in budget}
    for name in ("A/SSN3D-ED", "B/SSN3D-ED", "C/SSN3D-ED", "A/SSN3D-ED, all"):
        assert {key: getattr(made[name].settings, key) for key in budget} == paper
    assert made["A/SSN3D-ED, all"].settings.warmup_epochs == made["A/DSM-Net, all"].settings.warmup_epochs
    assert made["D/SSN3D-ED, own recipe"].settings.monitor == "accuracy"
    assert made["A/SSN3D-FCN"].settings.batch_size == 128
    assert made["A/DSRF3D-v2"].settings.optimiser == "sgd"
    assert made["A/Cls+Seg 1:100"].row.weights == {"cls": 1, "seg": 100}
    assert made["A/DSM-Net, batch_norm"].architecture["batch_norm"] is True
    assert made["A/DSM-Net, normalisation"].recipe.normalise == "patch"
    assert made["A/DSM-Net, schedule"].settings.schedule == "cosine"
    assert train.network(made["A/Cls+Rec 1:1"])[1] == ("cls", "rec")
    assert len({training.identity for training in made.values()}) == len(made)


def test_weights_of_the_losses_tell_trainings_apart() -> None:
    facts = {"classes": list("abcd"), "side": 40, "id": "x"}
    (row,) = rows.chosen(["A/DSM-Net"])
    same = dataclasses.replace(row, weights={"cls": 1, "seg": 10, "rec": 1})
    other = dataclasses.replace(row, weights={"cls": 1, "seg": 1, "rec": 1})
    one, two, three = (
        train.training_of(r, facts, "full", SIZES["full"], 1, device="cpu", threads=1).identity
        for r in (row, same, other)
    )
    assert one == two != three


def test_scores_are_those_of_the_libraries() -> None:
    rng = np.random.default_rng(3)
    truth, found = (rng.integers(0, 2, (5, 4, 4, 4)) for _ in range(2))
    truth[0] = 0
    found[0] = 0  # nothing in one sample, and rightly so: no IoU of the object there
    counts = [confusion(t, p, 2) for t, p in zip(truth, found, strict=True)]
    got = scores.of_masks(found, truth)
    assert got["pixel"] == pytest.approx(accuracy_score(truth.ravel(), found.ravel()))
    assert got["miou"] == pytest.approx(mean_iou_by_sample(counts), abs=1e-6)
    assert got["miou_pooled"] == pytest.approx(
        jaccard_score(truth.ravel(), found.ravel(), average="macro"), abs=1e-6
    )


def test_scores_of_classes_and_densities(file: Path) -> None:
    data = boxes.load(file, "A")
    picked = np.array([1, 4, 5])
    wrong = data.classes[picked].copy()
    wrong[0] = 1 - wrong[0]
    got = scores.score({"cls": wrong, "rec": 3 * data.density[picked] + 1}, data, picked)
    assert got["object"] == pytest.approx(2 / 3)
    assert got["recovery"] == pytest.approx(1, abs=1e-5)
    assert scores.score({"rec": -data.density[picked]}, data, picked)["recovery"] == pytest.approx(
        -1, abs=1e-5
    )


def test_left_out_classes_are_tested_on_and_never_trained_on(file: Path) -> None:
    data = boxes.load(file, "A")
    (row,) = rows.chosen(["A/SSN3D-FCN, left out"])
    training = train.training_of(row, data.facts, "tiny", SIZES["tiny"], 1, device="cpu", threads=1)
    learnt, validation, test = train.rows_for(training, data)
    assert set(data.classes[learnt]) == {0}
    assert set(data.classes[test]) == {1}
    assert (data.split[learnt] != "test").all()
    assert (data.split[learnt[validation]] == "validation").all()


# -- running ------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--rows", "A/Seg", "A/Cls"]
    assert run(tmp_path, file, "--rows", "A/Seg") == 0
    path = tmp_path / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"torn')
    capsys.readouterr()
    assert run(tmp_path, file, *words) == 0
    told = capsys.readouterr().out
    assert "A/Seg, seed 1: trained before" in told
    assert "A/Cls, seed 1: object accuracy" in told
    assert [record["name"] for record in results.read(path)] == ["Seg", "Cls"]
    assert all(train.identity_of(record) == record["identity"] for record in results.read(path))
    assert all(record["facts"]["densities"] == "built-in shapes" for record in results.read(path))
    assert path.read_text().startswith(whole)
    assert not list((tmp_path / "checkpoints").glob("*"))
    run(tmp_path, file, *words, "--minutes", "1e-9", "--seeds", "2")
    assert "are over" in capsys.readouterr().out


def test_a_training_that_was_killed_goes_on_at_its_last_epoch(file: Path, tmp_path: Path) -> None:
    size = dataclasses.replace(SIZES["tiny"], epochs=3, patience=3)
    data = boxes.load(file, "B")
    (row,) = rows.chosen(["B/DSM-Net, all"])
    training = train.training_of(row, data.facts, "tiny", size, 1, device="cpu", threads=1)

    class Killed(Exception):
        pass

    epochs: list[int] = []

    def kill(record: Any) -> None:
        epochs.append(record.epoch)
        if len(epochs) == 2:
            raise Killed

    with pytest.raises(Killed):
        train.train(training, data, tmp_path / "one", on_epoch=kill)
    resumed = train.train(training, data, tmp_path / "one", on_epoch=kill)
    assert epochs == [1, 2, 3]
    whole = train.train(training, data, tmp_path / "other")
    for key in ("scores", "history", "best_epoch", "identity"):
        assert resumed[key] == whole[key]


def test_trainings_side_by_side_are_those_one_after_the_other(file: Path, tmp_path: Path) -> None:
    words = ["--rows", "A/Seg", "B/DSM-Net", "A/Cls+Rec 1:1"]
    assert run(tmp_path / "one", file, *words) == 0
    assert run(tmp_path / "two", file, *words, "--jobs", "2") == 0
    one, two = (
        {r["name"]: (r["scores"], r["history"]) for r in results.read(tmp_path / name / "results.jsonl")}
        for name in ("one", "two")
    )
    assert len(one) == 3
    assert one == two


def test_a_row_that_fails_is_named_and_tried_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any, **more: Any) -> None:
        raise DataError("The loss of epoch 1 is not finite.")

    with monkeypatch.context() as patched:
        patched.setattr(train, "fit", fail)
        assert run(tmp_path, file, "--rows", "A/Seg") == 1
    assert run(tmp_path, file, "--rows", "A/Cls") == 0
    assert "- Failed: A/Seg, seed 1: The loss of epoch 1" in report.write_report(tmp_path, "tiny").read_text()
    assert run(tmp_path, file, "--rows", "A/Seg") == 0
    assert "- Failed" not in report.write_report(tmp_path, "tiny").read_text()


def test_rows_of_what_is_not_installed_are_left_out(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    monkeypatch.setitem(sys.modules, "monai", None)
    assert run(tmp_path, file, "--rows", "A/MONAI U-Net") == 0
    assert "monai is not installed" in capsys.readouterr().out
    assert not (tmp_path / "results.jsonl").exists()


def test_training_needs_torch_numpy_and_scipy_alone(file: Path, tmp_path: Path) -> None:
    bare = BARE.split("from pathlib import Path")[0]
    code = f"{bare}\nfrom benchmarks.dsm_net.__main__ import main\nraise SystemExit(main(sys.argv[1:]))"
    words = [
        "run",
        "--size",
        "tiny",
        "--rows",
        "A/DSM-Net",
        "A/MONAI U-Net",
        "--jobs",
        "1",  # others begin without the block on what is not installed
        "--data",
        str(file),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record["name"] for record in results.read(tmp_path / "results.jsonl")] == ["DSM-Net"]


# -- report -------------------------------------------------------------------------------------------------


def test_the_report_stands_beside_the_published_numbers_and_says_that_it_is_reduced(
    file: Path, tmp_path: Path
) -> None:
    wanted = ["A/DSM-Net", "A/SSN3D-ED", "A/SSN3D-ED, left out"]
    wanted += [f"{data}/{name}" for data in "AD" for name in (rows.OWN, "SSN3D-FCN")]
    assert run(tmp_path, file, "--rows", *wanted, "--seeds", "1", "2") == 0
    path = report.write_report(tmp_path, "tiny")
    text = path.read_text()
    first = text.splitlines()[0]
    assert "REDUCED (tiny, built-in shapes instead of maps, 2 classes instead of 22)" in first
    check_report(path.with_suffix(""))
    assert "| DSM-Net | 99.21 | 89.00 | 93.75 |" in text.replace(" (no better than chance)", "")
    assert " ± " in text
    assert "B/DSM-Net" in text.split("Not trained yet")[1]
    for name in ("published", "curves", "snr", "slices-A"):
        assert f"![{name}]({path.stem}/{name}.png)" in text
        assert (path.with_suffix("") / f"{name}.png").stat().st_size > 2000
    with pytest.raises(SystemExit, match="has no training of size full"):
        report.write_report(tmp_path, "full")


def test_scores_of_seeds_are_averaged_and_the_last_of_a_row_counts() -> None:
    records = [{"scores": {"miou": value}} for value in (0.5, 0.7)]
    assert tables.spread(records, "miou") == "60.00 ± 14.14"
    assert tables.spread(records[:1], "miou") == "50.00"
    assert tables.spread(records, "object") == "-"
    old, new = ({"data": "A", "size": "tiny", "seed": 1, "facts": {"id": id_}} for id_ in "xy")
    known = [
        old | {"name": "Seg"},
        old | {"name": "DSM-Net"},
        new | {"name": "Seg"},
        new | {"name": "Seg", "run": 2},
    ]
    assert report.latest(known, "tiny") == [new | {"name": "Seg", "run": 2}]


def record(name: str, scores: tuple[float, float], validation: tuple[float, float], **more: Any) -> Any:
    facts = {"classes": [str(k) for k in range(22)], "densities": "maps"}
    both = (dict(zip(("miou", "object"), values, strict=True)) for values in (scores, validation))
    told = dict(zip(("scores", "validation"), both, strict=True))
    return {"data": "A", "name": name, "size": "full", "left_out": [], "facts": facts, **told} | more


@pytest.mark.parametrize(
    ("seeds", "change", "said"),
    [
        ((0.95, 0.951, 0.952), {}, "**reached**"),
        ((0.99, 0.95, 0.80), {}, "above the published number, 3 seeds"),
        ((0.95,), {}, "above the published number, one seed"),
        ((0.5, 0.5, 0.5), {}, "not above the published number, 3 seeds"),
        ((0.95, 0.951, 0.952), {"size": "reduced"}, "no verdict: size reduced"),
        ((0.95, 0.951, 0.952), {"facts": {"classes": ["ball"]}}, "no verdict: not recorded instead of maps"),
    ],
)
def test_the_aim_is_reached_by_several_seeds_of_the_full_size_alone(
    seeds: tuple[float, ...], change: dict[str, Any], said: str
) -> None:
    records = [record("DSM-Net", (score, 0.5), (0.9, 0.9), **change) for score in seeds]
    line = next(line for line in tables.aims(tables.by_row(records)).splitlines() if "- mIoU" in line)
    assert f"; {said}" in line


def test_the_aim_is_measured_on_the_network_that_validation_chose() -> None:
    chosen, lucky = record("one", (0.6, 0.6), (0.9, 0.9)), record("two", (0.9, 0.9), (0.5, 0.5))
    alone = record("Seg", (0.99, 0.99), (0.99, 0.99))
    del alone["scores"]["object"]
    said = tables.aims(tables.by_row([chosen, lucky, alone]))
    assert "A: one, the best of 2 rows" in said
    assert said.count("here 60.00") == 2
    flattering = tables.aims(tables.by_row([chosen, lucky | {"validation": {}}]))
    assert "A: two, best of 2 rows on the test split, which flatters" in flattering


@pytest.mark.parametrize(("found", "verdict"), [(0.25, True), (0.34, True), (0.4, False)])
def test_what_learns_nothing_is_marked(found: float, verdict: bool) -> None:
    chance = {"object": 0.25, "miou": 0.48, "boxes": 80}
    assert tables.at_chance({"scores": {"object": found}, "chance": chance}) is verdict
    assert tables.at_chance({"scores": {"object": found, "miou": 0.7}, "chance": chance}) is False


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in REPORTS.glob("*/trainings.jsonl")), ids=lambda p: p.name
)
def test_a_report_is_that_of_its_trainings(folder: Path) -> None:
    check_report(folder)


def check_report(folder: Path) -> None:
    records = [json.loads(line) for line in (folder / report.KEPT).read_text().splitlines()]
    text = folder.with_name(f"{folder.name}.md").read_text()
    assert report.body(records).strip() in text
    for picture in folder.glob("*.png"):
        assert f"{folder.name}/{picture.name}" in text
