"""`cryoscale train`: what it writes into `run.toml`, prints, asks for, and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoscale.cli import run_command
from cryoscale.data.run import Run
from cryoscale.formats.mrc_write import write_mrc
from tests.conftest import SHAPES

Out = pytest.CaptureFixture[str]


@pytest.fixture
def drives(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record what is asked of `drive`; of the work, only a card comes of it."""
    asked: list[dict[str, Any]] = []

    def record(place: str, **words: Any) -> int:
        asked.append({"place": place, **words})
        Run.open(place).model("segmenter").folder.write_toml("model.toml", {"version": 1})
        return 0

    monkeypatch.setattr("cryoscale.cli.run.drive", record)
    return asked


@pytest.fixture
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


def draw(place: Path, name: str) -> None:
    place.mkdir(exist_ok=True)
    write_mrc(place / f"{name}.mrc", np.ones(SHAPES[name], np.int8), 10.0)


def test_labels_are_found_and_written(
    run: Run, tmp_path: Path, drives: list[dict[str, Any]], capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "drawn", "beta")
    monkeypatch.chdir(tmp_path)
    words = ["--labels", "drawn/{tomogram}.mrc", "--set", "supervised.epochs=3", "--executor", "serial"]
    assert run_command(["train", run.folder.url, "--model", "unet3d", *words]) == 0
    asked = run.config.supervised
    assert (asked.model, asked.truth, asked.epochs) == ("unet3d", "labels", 3)
    assert asked.labels == str(tmp_path / "drawn" / "{tomogram}.mrc")
    assert asked.tomograms == ("beta",)
    shown = capsys.readouterr().out
    for line in ("supervised.model = unet3d", "supervised.epochs = 3", "labels of beta", "cryoscale segment"):
        assert line in shown
    assert (drives[0]["until"], drives[0]["executor"]) == ("train_supervised", "serial")


def test_again_without_words_it_goes_on(run: Run, tmp_path: Path, drives: list[dict[str, Any]]) -> None:
    draw(tmp_path / "drawn", "beta")
    pattern = str(tmp_path / "drawn" / "{tomogram}.mrc")
    assert run_command(["train", run.folder.url, "--model", "edss3d", "--labels", pattern]) == 0
    config = run.config
    draw(tmp_path / "drawn", "alpha")
    assert run_command(["train", run.folder.url]) == 0
    assert run.config == config
    assert [asked["until"] for asked in drives] == ["train_supervised"] * 2
    assert run_command(["train", run.folder.url, "--labels", pattern]) == 0  # one more was drawn
    assert run.config.supervised.tomograms == ("alpha", "beta")


def test_a_tomogram_that_was_taken_out_stays_out(
    run: Run, tmp_path: Path, drives: list[dict[str, Any]]
) -> None:
    for name in ("alpha", "beta"):
        draw(tmp_path / "drawn", name)
    pattern = str(tmp_path / "drawn" / "{tomogram}.mrc")
    taken = ["--set", "supervised.tomograms=['beta']"]
    assert run_command(["train", run.folder.url, "--model", "edss3d", "--labels", pattern, *taken]) == 0
    assert run_command(["train", run.folder.url, "--set", "supervised.epochs=2"]) == 0
    assert run.config.supervised.tomograms == ("beta",)
    assert run_command(["train", run.folder.url, "--set", "supervised.tomograms=[]"]) == 0
    assert run.config.supervised.tomograms == ()
    assert run_command(["train", run.folder.url, "--set", "supervised.epochs=3"]) == 0  # none: look for them
    assert run.config.supervised.tomograms == ("alpha", "beta")


def boxes(place: Path, *columns: str, size: float = 10.0) -> str:
    """Write a table of two boxes of 12 voxels."""
    for name in ("a", "b", "c", "d"):
        write_mrc(place / f"{name}.mrc", np.ones((12, 12, 12), np.float32), size)
    values = {"class": ("x", "y"), "mask": ("c.mrc", "d.mrc"), "density": ("c.mrc", "d.mrc")}
    rows = [[f"{name}.mrc", *(values[c][n] for c in columns)] for n, name in enumerate(("a", "b"))]
    (place / "boxes.csv").write_text("\n".join(",".join(row) for row in [["file", *columns], *rows]))
    return str(place / "boxes.csv")


def test_heads_are_those_of_the_table_and_lines_say_what_is_set(
    run: Run, tmp_path: Path, drives: list[dict[str, Any]], capsys: Out
) -> None:
    table = boxes(tmp_path, "class", "mask")
    words = ["--subtomograms", table, "--set", "supervised.loss_weights=[1, 5, 2]"]
    assert run_command(["train", run.folder.url, "--model", "dsm-net", *words]) == 0
    asked = run.config.supervised
    assert (asked.heads, asked.loss_weights) == (("cls", "seg"), (1, 5))
    assert run.config.patch.size_voxels == 12
    lines = capsys.readouterr().out.splitlines()
    assert "supervised.heads = ['cls', 'seg'], as the truth or the given weights have them" in lines
    assert sum(line.startswith("supervised.loss_weights = [1.0, 5.0]") for line in lines) == 1
    assert "patch.size_voxels = 12, as the boxes are" in lines
    # Another table, other heads; another network, none.
    (tmp_path / "more").mkdir()
    for columns, heads in ((("mask", "density"), ("seg", "rec")), (("class",), ("cls",))):
        table = boxes(tmp_path / "more", *columns)
        table = str(Path(table).rename(tmp_path / "more" / f"{columns[0]}.csv"))
        assert run_command(["train", run.folder.url, "--subtomograms", table]) == 0
        assert run.config.supervised.heads == heads
    assert (run.config.supervised.classifies, run.config.supervised.segments) == (True, False)
    table = boxes(tmp_path, "mask")
    assert run_command(["train", run.folder.url, "--model", "edss3d", "--subtomograms", table]) == 0
    assert (run.config.supervised.heads, run.config.supervised.loss_weights) == ((), ())


@pytest.mark.parametrize(
    ("columns", "size", "words", "said"),
    [
        (("class", "mask"), 12.0, [], "voxels of 12 Å; tomogram 'alpha' has 10 Å"),
        (("class", "mask"), 20.0, [], "Set run.working_voxel_size_angstrom = 20"),
        (("class", "mask"), 10.0, ["patch.smooth_sigma_voxels=1"], "patch.smooth_sigma_voxels 1"),
        (("class", "mask"), 10.0, ["patch.size_voxels=16"], "Set patch.size_voxels = 12"),
        (("class", "mask"), 10.0, ["supervised.heads=['rec']"], "learn rec, but"),
        ((), 10.0, [], "nothing to learn from"),
    ],
)
def test_boxes_that_do_not_fit_are_refused_before_anything_is_written(
    run: Run, tmp_path: Path, columns: tuple[str, ...], size: float, words: list[str], said: str, capsys: Out
) -> None:
    before = run.folder.read_bytes("run.toml")
    table = boxes(tmp_path, *columns, size=size)
    settings = [part for word in words for part in ("--set", word)]
    call = ["train", run.folder.url, "--model", "dsm-net", "--subtomograms", table, *settings]
    assert run_command(call) == 2
    assert said in capsys.readouterr().err
    assert run.folder.read_bytes("run.toml") == before


def test_boxes_of_unknown_voxel_size_pass(run: Run, tmp_path: Path, drives: list[dict[str, Any]]) -> None:
    table = boxes(tmp_path, "mask", size=1.0)
    assert run_command(["train", run.folder.url, "--model", "edss3d", "--subtomograms", table]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "edss3d"], "what a simulated run knows"),
        (["--labels", "x/{tomogram}.mrc"], "--model NAME"),
        (["--model", "edss3d", "--labels", "x/{tomogram}.mrc"], "x/{tomogram}.mrc"),
        (["--model", "edss3d", "--labels", "one.mrc"], "one file, and the run has 2 tomograms"),
        (["--model", "edss3d", "--labels", "x", "--subtomograms", "y"], "exclude each other"),
        (["--model", "dsm-net", "--subtomograms", "nowhere.csv"], "nowhere.csv"),
        (["--model", "dsm-net", "--subtomograms", "run"], "has none of its own"),
        (["--model", "edss3d", "--labels", "truth"], "what a simulated run knows"),
        (["--model", "edss3d", "--set", "supervised.colour=1"], "unknown key"),
        (["--model", "resnet"], "Invalid value"),
    ],
)
def test_misuse_is_one_sentence(
    run: Run, words: list[str], said: str, drives: list[dict[str, Any]], capsys: Out
) -> None:
    before = run.folder.read_bytes("run.toml")
    assert run_command(["train", run.folder.url, *words]) == 2
    assert said in capsys.readouterr().err
    assert run.folder.read_bytes("run.toml") == before
    assert not drives


def test_a_place_without_a_run_is_refused(tmp_path: Path, capsys: Out) -> None:
    assert run_command(["train", str(tmp_path / "nothing"), "--model", "edss3d", "--labels", "truth"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
