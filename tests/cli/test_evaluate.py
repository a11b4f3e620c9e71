"""`cryoscale evaluate` from the outside: what it prints and writes, exit codes, bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cryoscale.cli import run_command
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.truth import read_truth
from tests.evaluate.scored_run import whole_run as make_scored_run
from tests.evaluate.scored_run import write_labels


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Run:
    return make_scored_run(tmp_path_factory.mktemp("cli") / "run")


@pytest.fixture
def copied(scored, tmp_path) -> Run:
    shutil.copytree(scored.folder.url, tmp_path / "run")
    return Run.at(tmp_path / "run")


def test_own_truth_as_text(scored, capsys) -> None:
    assert run_command(["evaluate", scored.folder.url]) == 0
    shown = capsys.readouterr().out
    for words in (
        "one: ", "two: ", "2 tomograms: ", "F-beta 4", "16 clusters", "adjusted rand, all picks",
        "instances", "label volume", "mean IoU by tomogram", "true, not found: $barrel, small",
    ):  # fmt: skip
        assert words in shown, words
    assert "structures" not in shown


def test_json_and_a_folder(scored, tmp_path, capsys) -> None:
    words = ["evaluate", scored.folder.url, "--tomogram", "one", "--json", "--to", str(tmp_path / "out")]
    assert run_command([*words, "--radius", "20"]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["pooled"]["radius_angstrom"] == 20
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == report
    assert shown.err.strip() == str(tmp_path / "out" / "index.html")
    with (tmp_path / "out" / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    (f1,) = (r for r in rows if (r["part"], r["group"], r["measure"]) == ("picks", "by_class.small", "f1"))
    assert float(f1["value"]) == report["pooled"]["picks"]["by_class"]["small"]["f1"]


def test_positions_from_a_file(scored, tmp_path, capsys) -> None:
    lines = ["tomogram,class,x_angstrom,y_angstrom,z_angstrom"]
    for name in ("one", "two"):
        truth = read_truth(scored.truth, name)
        for (z, y, x), value in zip(truth.positions_N3, truth.class_N, strict=True):
            lines.append(f"{name},{truth.class_names[value]},{x},{y},{z}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    assert run_command(["evaluate", scored.folder.url, "--truth", str(tmp_path / "all.csv"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report["pooled"]["picks"]["by_class"]) == ["$barrel", "ribo<some>", "small"]
    assert run_command(["evaluate", scored.folder.url, "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    for name, row in own["pooled"]["picks"]["by_class"].items():
        assert report["pooled"]["picks"]["by_class"][name]["f1"] == pytest.approx(row["f1"])


def test_picks_that_are_the_truth_score_one(scored, tmp_path, capsys) -> None:
    for name in ("one", "two"):
        positions = read_picks(scored.picks, name).positions_N3[:, ::-1]
        np.savetxt(
            tmp_path / f"{name}.csv", positions, delimiter=",", comments="",
            header="x_angstrom,y_angstrom,z_angstrom",
        )  # fmt: skip
    truth = str(tmp_path / "{tomogram}.csv")
    assert run_command(["evaluate", scored.folder.url, "--truth", truth, "--json"]) == 0
    picks = json.loads(capsys.readouterr().out)["pooled"]["picks"]
    assert picks["f1"] == picks["f_beta4"] == picks["average_precision"] == 1
    assert picks["rms_error_angstrom"] == pytest.approx(0, abs=1e-6)


def test_one_tomogram_without_truth_is_named(copied, capsys) -> None:
    copied.truth.delete("two.toml")
    assert run_command(["evaluate", copied.folder.url]) == 1
    shown = capsys.readouterr()
    assert "two was not scored" in shown.err
    assert shown.out.startswith("one: ")
    assert "tomograms" not in shown.out
    assert run_command(["evaluate", copied.folder.url, "--tomogram", "two"]) == 2
    assert "nothing is known of 'two'" in capsys.readouterr().err


def test_truth_for_another_shape(copied, capsys) -> None:
    write_labels(copied, "one", "truth", np.zeros((48, 96, 80), np.uint8), ("a",))
    assert run_command(["evaluate", copied.folder.url]) == 1
    assert "another shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--radius", "0"], "radius must be above 0"),
        (["--radius", "-2"], "radius must be above 0"),
        (["--radius", "5000"], "more than half of"),
        (["--reach", "0"], "reach must be above 0"),
        (["--tomogram", "three"], "no picks of three"),
        (["--truth", "nowhere.csv"], "there is no file nowhere.csv"),
        (["--truth", "x.csv", "--structures"], "needs the true orientations"),
        (["--seed", "-1"], "--seed"),
        (["--most-particles", "2"], "--most-particles"),
    ],
)
def test_bad_words(scored, words: list[str], said: str, capsys) -> None:
    assert run_command(["evaluate", scored.folder.url, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(scored, tmp_path, capsys) -> None:
    """A file stands where the folder would be: said before anything is scored."""
    (tmp_path / "taken").write_text("")
    assert run_command(["evaluate", scored.folder.url, "--to", str(tmp_path / "taken")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "scores cannot be written to" in shown.err
    assert "--to" in shown.err


def test_structures_are_compared_with_the_densities_of_the_run(scored, capsys) -> None:
    assert run_command(["evaluate", scored.folder.url, "--structures", "--tomogram", "one", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["pooled"]["structures"]["ribo<some>"]
    assert row["fsc_0.5_angstrom"] < row["random_fsc_0.5_angstrom"]


def test_what_is_left_out_is_said(copied, capsys) -> None:
    copied.clusters.save(copied.clusters.load(), {**copied.clusters.card, "n_clusters": 6})
    assert run_command(["evaluate", copied.folder.url]) == 0
    assert "not scored: clusters of the picks of 'one'" in capsys.readouterr().out


def test_no_picks_and_no_truth(copied, capsys) -> None:
    for name in ("one", "two"):
        copied.truth.delete(f"{name}.toml")
    assert run_command(["evaluate", copied.folder.url]) == 2
    assert "holds no truth of its own" in capsys.readouterr().err
    shutil.rmtree(Path(copied.folder.url) / "picks")
    assert run_command(["evaluate", copied.folder.url]) == 2
    assert "no picks of any tomogram" in capsys.readouterr().err
