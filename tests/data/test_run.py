"""The folder of a run, and one driver at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryoscale.config import RunConfig
from cryoscale.data import run as run_module
from cryoscale.data.run import STALE_LOCK_SECONDS, Run, process_begun
from cryoscale.errors import ConfigurationError, StateError, SurroundingsError

LOCK = "ledger/driver.json"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.at(tmp_path / "run")
    made.save_config(RunConfig())
    return made


@pytest.fixture
def other_process() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


def hold(run: Run, **words: object) -> None:
    holder = {"host": socket.gethostname(), "pid": 1, "heartbeat": time.time()}
    run.folder.write_json(LOCK, holder | words)


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


def test_lock_is_held_and_given_back(run: Run) -> None:
    with run.locked() as lock:
        lock.heartbeat()
        with pytest.raises(ConfigurationError, match=f"process {os.getpid()}"), run.locked():
            pass
        assert run.folder.exists(LOCK), "a refused driver took the lock of the other away"
    assert not run.folder.exists(LOCK)


def test_living_process_on_this_machine_holds_the_lock(run: Run, other_process: int) -> None:
    # however long it has been silent: one task may take hours, and the process is there to be seen
    hold(run, pid=other_process, begun=process_begun(other_process), heartbeat=0.0)
    with pytest.raises(ConfigurationError, match=f"process {other_process}"), run.locked():
        pass


@pytest.mark.parametrize("words", [{"pid": 2**22 + 5}, {"pid": os.getpid(), "begun": "1"}])
def test_lock_of_a_dead_process_is_taken_over(run: Run, words: dict[str, object]) -> None:
    hold(run, **words)
    with run.locked():
        assert run.folder.read_json(LOCK)["pid"] == os.getpid()


@pytest.mark.parametrize(("silent", "free"), [(STALE_LOCK_SECONDS + 5, True), (1.0, False)])
def test_lock_of_another_machine_is_judged_by_its_silence(run: Run, silent: float, free: bool) -> None:
    hold(run, host="elsewhere", heartbeat=time.time() - silent)
    if free:
        with run.locked():
            pass
    else:
        with pytest.raises(ConfigurationError, match="elsewhere"), run.locked():
            pass


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"pid": 1}'])
def test_torn_lock_is_no_lock(run: Run, data: bytes) -> None:
    run.folder.write_bytes(LOCK, data)
    with run.locked():
        pass


def test_lock_is_renewed_while_the_driver_works(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines see a driver alive whose one task takes longer than their patience."""
    monkeypatch.setattr(run_module, "STALE_LOCK_SECONDS", 0.06)
    with run.locked():
        first = run.folder.read_json(LOCK)["heartbeat"]
        until = time.monotonic() + 30
        while run.folder.read_json(LOCK)["heartbeat"] == first:
            assert time.monotonic() < until, "no heartbeat while the driver was busy"


def test_driver_that_was_taken_over_stops_and_leaves_the_lock(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "STALE_LOCK_SECONDS", 0.06)
    until = time.monotonic() + 30
    with run.locked() as lock:
        hold(run, host="elsewhere")
        with pytest.raises(StateError, match="took this run over"):  # noqa: PT012 - a thread sets it
            while time.monotonic() < until:
                lock.heartbeat()
                hold(run, host="elsewhere")
    assert run.folder.read_json(LOCK)["host"] == "elsewhere"
