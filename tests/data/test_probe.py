"""Whether a machine sees the same run."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import pytest

from cryoscale.data.folder import Folder
from cryoscale.data.probe import FOLDER, placed_probe
from cryoscale.errors import SurroundingsError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").touch()
    return tmp_path / "run"


def test_the_same_folder_is_seen_and_nothing_is_left(run: Path) -> None:
    with placed_probe(Folder.of(run)) as probe:
        assert pickle.loads(pickle.dumps(probe))("host-1") == ""
        assert os.listdir(run / FOLDER) == [probe.name]
    assert not (run / FOLDER).exists()


def test_another_folder_at_the_same_path_is_named(run: Path, tmp_path: Path) -> None:
    with placed_probe(Folder.of(run)) as probe:
        os.rename(run, tmp_path / "real")
        assert f"does not see {run}" in probe("host-1")
        run.mkdir()
        assert f"does not see {run}" in probe("host-1")
        (run / "run.toml").touch()
        assert f"{run} is not the same folder" in probe("host-1")
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "real", run)
        (run / FOLDER / probe.name).write_text("of another run")
        assert f"{run} is not the same folder" in probe("host-1")


@pytest.mark.parametrize("broken", ["write_bytes", "delete"])
def test_a_folder_that_cannot_be_written_is_named_so(
    run: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, os.strerror(30), str(run))

    with placed_probe(Folder.of(run)) as probe, monkeypatch.context() as patch:
        patch.setattr(Folder, broken, refuse)
        said = probe("host-1")
    assert f"reads {run} but cannot write there (Read-only file system). Mount it there" in said
    assert not (run / FOLDER).exists()


def test_probes_of_killed_drivers_go_when_they_are_old(run: Path) -> None:
    (run / FOLDER).mkdir(parents=True)
    old, new = f"{int(time.time()) - 7200}-dead", f"{int(time.time()) - 60}-alive"
    for name in (old, f"{old}-host-1.answer", new):
        (run / FOLDER / name).touch()
    with placed_probe(Folder.of(run)):
        pass
    assert os.listdir(run / FOLDER) == [new]  # of somebody who looks right now


def test_a_store_that_refuses_at_the_end_spoils_no_good_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise SurroundingsError("the store refuses.")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "names", refuse)
        with placed_probe(Folder.of(run)) as probe:
            assert probe("host-1") == ""
            patch.setattr(Folder, "delete", refuse)
    assert os.listdir(run / FOLDER) == [probe.name]
