"""Refusals are one sentence with an exit code; `--voxel-size` and `--refit` reach what they are meant for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryoscale.cli import run_command
from cryoscale.data.run import Run
from cryoscale.testing.phantoms import write_phantom

Out = pytest.CaptureFixture[str]


def one_sentence(capsys: Out) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
    assert said.startswith("cryoscale: ")
    return said


def test_storage_that_is_not_known(capsys: Out) -> None:
    assert run_command(["status", "foo://x"]) == 2
    assert "foo://x" in one_sentence(capsys)


def test_place_that_cannot_be_written(tmp_path: Path, capsys: Out) -> None:
    (tmp_path / "file").write_text("")
    assert run_command(["demo", "--out", str(tmp_path / "file" / "demo"), "--quiet"]) == 1
    assert "Not a directory" in one_sentence(capsys)


def test_error_of_the_system_without_a_number_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("somebody's mistake")

    monkeypatch.setattr("cryoscale.cli.group.main", fail)
    with pytest.raises(OSError, match="mistake"):
        run_command(["status", "x"])


@pytest.mark.parametrize("data", [b"\xff", b"run = 3", b"["])
def test_damaged_run_toml(tmp_path: Path, data: bytes, capsys: Out) -> None:
    (tmp_path / "run.toml").write_bytes(data)
    assert run_command(["status", str(tmp_path)]) == 2
    assert "run.toml" in one_sentence(capsys)


def test_damaged_ledger(copied_run: Run, capsys: Out) -> None:
    (key,) = copied_run.ledger.names("cluster/_all")
    copied_run.ledger.write_bytes(f"cluster/_all/{key}/sealed.json", b"{")
    assert run_command(["status", copied_run.folder.url]) == 2
    assert "sealed.json is damaged" in one_sentence(capsys)


def voxel_sizes(place: Path) -> dict[str, float | None]:
    return {source.name: source.voxel_size_angstrom for source in Run.open(place).config.inputs}


def test_voxel_size_is_of_the_files_it_was_given_for(tmp_path: Path, capsys: Out) -> None:
    for name in ("a", "b", "c"):
        write_phantom(tmp_path / f"{name}.mrc", (8, 8, 8), seed=0, count=1)
    place = tmp_path / "run"
    assert run_command(["init", str(place), str(tmp_path / "a.mrc")]) == 0
    assert "voxel size" not in capsys.readouterr().out
    words = ["init", str(place), str(tmp_path / "[ab].mrc"), "--voxel-size"]
    assert run_command([*words, "7.5"]) == 0
    assert voxel_sizes(place) == {"a": None, "b": 7.5}
    said = capsys.readouterr().out
    assert "from the header: 1 tomogram" in said
    assert "7.5 Å, as given: 1 tomogram" in said
    assert run_command([*words, "8"]) == 0  # none of them is new: it is meant for both
    assert voxel_sizes(place) == {"a": 8.0, "b": 8.0}
    assert Run.open(place).config.ingest.voxel_size_angstrom is None
    assert run_command(["init", str(place), str(tmp_path / "c.mrc")]) == 0
    assert voxel_sizes(place) == {"a": 8.0, "b": 8.0, "c": None}


@pytest.mark.parametrize("size", ["0", "-3", "nan", "inf"])
def test_voxel_size_that_cannot_be(size: str, tmp_path: Path, capsys: Out) -> None:
    source = write_phantom(tmp_path / "a.mrc", (8, 8, 8), seed=0, count=1)
    assert run_command(["init", str(tmp_path / "run"), str(source), "--voxel-size", size]) == 2
    assert "voxel size" in one_sentence(capsys)


def test_watch_renews_a_fit_once(copied_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def three_drives(_place: str, _folder: str, drive: Callable[[], int], *, once: bool) -> int:
        assert not once
        return max(drive() for _ in range(3))

    def record(_place: str, **words: Any) -> int:
        asked.append(words["refit"])
        return 0

    monkeypatch.setattr("cryoscale.pipeline.watch.watch_folder", three_drives)
    monkeypatch.setattr("cryoscale.cli.run.drive", record)
    words = ["run", copied_run.folder.url, "--watch", str(tmp_path), "--refit", "cluster"]
    assert run_command(words) == 0
    assert asked == [("cluster",), (), ()]
