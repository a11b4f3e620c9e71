"""The folder of a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cryoscale.config import RunConfig
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.errors import StateError, SurroundingsError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.at(tmp_path / "run")
    made.save_config(RunConfig())
    return made


def test_run_without_its_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cryoscale init"):
        Run.open(tmp_path)


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SurroundingsError, match=r"run\.toml"):
        Run.at(tmp_path / "file" / "run").save_config(RunConfig())


def test_failures_are_listed_and_the_list_goes_when_all_is_well(run: Run) -> None:
    run.write_failures([{"stage": "pick", "tomogram": "a", "block": 3, "reason": 'has, commas and "quotes"'}])
    assert run.folder.read_bytes("failures.csv").startswith(b"stage,tomogram,block,reason\n")
    run.write_failures([])
    assert not run.folder.exists("failures.csv")


def test_a_place_that_takes_no_byte_is_named_before_any_work(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(Path(run.folder.url).rglob("*"))
    run.require_writable()
    run.folder.child("ledger").delete()
    assert sorted(Path(run.folder.url).rglob("*")) == before, "the trial was left behind"

    def full(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(Folder, "write_bytes", full)
    with pytest.raises(SurroundingsError, match=r"cannot write into .*run: Disk quota exceeded"):
        run.require_writable()
