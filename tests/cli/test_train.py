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
    """Record what is asked of `drive`, and do nothing."""
    asked: list[dict[str, Any]] = []

    def record(place: str, **words: Any) -> int:
        asked.append({"place": place, **words})
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
