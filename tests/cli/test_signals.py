"""A command that is asked to end keeps its work, gives the lock back, and says by which signal."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from cryoscale.cli import run_command
from cryoscale.data.ledger import unit_states
from cryoscale.data.run import Run
from cryoscale.pipeline.driver import _beat
from cryoscale.runtime import signals
from cryoscale.runtime.signals import Interrupted
from cryoscale.testing.artifacts import artifact_digest, differences
from tests.pipeline.driving import drive

DRIVER = """
import sys
import cryoscale.cli.run as running
from cryoscale.runtime.events import StageSealed, StageStarted, TaskEnded
from cryoscale.runtime import progress
from cryoscale import cli

where = sys.argv[1]
class Stand(progress.ProgressDisplay):  # says where the driver is and waits there to be asked to end
    def __call__(self, event):
        name = getattr(event, "stage", "") + ":" + type(event).__name__
        if name == where:
            print(name, flush=True)
            sys.stdin.readline()
progress.ProgressDisplay = Stand
cli.main(sys.argv[2:])
"""


@contextmanager
def driver(where: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A driver that stops at an event and says so."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, where, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_driver_that_is_asked_to_end_keeps_marks_and_gives_the_lock_back(
    make_run: Callable[..., Run], finished_run: Run, number: signal.Signals, code: int
) -> None:
    run = make_run()
    words = ("run", run.folder.url, "--executor", "serial", "--until", "pick")
    with driver("pick:StageStarted", *words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "pick:StageStarted\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "finished work is kept" in said
    assert "Traceback" not in said
    assert not run.folder.exists("ledger/driver.json")
    assert [s.state for s in unit_states(run.ledger) if s.stage == "ingest"].count("done") >= 1
    ended = drive(run, until="pick")
    assert ended.exit_code == 0
    assert "alpha" not in {task.tomogram for task in ended.tasks if task.stage in ("identify", "ingest")}
    mine, whole = artifact_digest(run), artifact_digest(finished_run)
    both = [key for key in mine if key in whole and "labels" not in key]
    assert not differences({k: mine[k] for k in both}, {k: whole[k] for k in both})


def test_marks_of_blocks_that_ended_a_moment_ago_are_kept(make_run: Callable[..., Run]) -> None:
    run = make_run()
    words = ("run", run.folder.url, "--executor", "serial", "--until", "ingest")
    with driver("ingest:TaskEnded", *words) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        for _ in range(3):  # the third block is not settled yet
            process.stdout.readline()
            if _ < 2:
                process.stdin.write("\n")
                process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 143
    (state,) = [s for s in unit_states(run.ledger) if s.stage == "ingest" and s.state == "running"]
    assert state.done == 2


def test_failures_are_written_when_a_signal_ends_the_run(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "aaa.mrc").write_bytes(small_sources[0].read_bytes()[:5000])
    run = make_run(sources=[*small_sources, tmp_path / "aaa.mrc"])
    with driver("ingest:StageStarted", "run", run.folder.url, "--executor", "serial") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    assert process.returncode == 143
    assert "aaa" in run.folder.read_bytes("failures.csv").decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_says_so_by_its_code(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> int:
        os.kill(os.getpid(), number)
        pytest.fail("the signal was not obeyed")

    monkeypatch.setattr("cryoscale.cli.run.drive", fail)
    before = signal.getsignal(signal.SIGTERM)
    assert run_command(["run", "somewhere"]) == 128 + number
    assert "finished work is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_watch_ends_by_its_signal(
    monkeypatch: pytest.MonkeyPatch, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    monkeypatch.setattr("cryoscale.pipeline.watch._wait", lambda: os.kill(os.getpid(), signal.SIGTERM))
    (tmp_path / "incoming").mkdir()
    monkeypatch.setattr("cryoscale.cli.run.drive", lambda *_, **__: 1)
    words = ["run", make_run().folder.url, "--watch", str(tmp_path / "incoming")]
    assert run_command(words) == 143


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.obeyed():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(signals, "_end", ended.append)
    with signals.obeyed():
        with pytest.raises(Interrupted, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []
        with pytest.raises(Interrupted):  # this test outlives it, since `_end` does nothing here
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [signal.SIGTERM]


def test_a_library_that_takes_the_signal_for_itself_does_not_get_it() -> None:
    with signals.obeyed():
        handler = signal.getsignal(signal.SIGTERM)
        with signals.kept():
            signal.signal(signal.SIGTERM, lambda *_: None)
            usual = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, usual)
        assert signal.getsignal(signal.SIGTERM) is handler


def test_other_threads_leave_signals_alone() -> None:
    found: list[object] = []

    def look() -> None:
        with signals.obeyed():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_interrupts_that_click_turned_into_its_own_are_understood() -> None:
    assert Interrupted(signal.SIGTERM).exit_code == 143
    assert json.dumps(Interrupted(signal.SIGINT).exit_code) == "130"
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, click.Abort)


class Collected:
    """Python drops what is raised while it is collected."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Lock:
    """Stands for the lock of a driver."""

    beats = 0

    def heartbeat(self) -> None:
        self.beats += 1


def test_a_signal_that_came_while_garbage_was_collected_is_obeyed_at_the_next_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    lock: Any = Lock()
    with signals.obeyed():
        _beat(lock)
        Collected()
        assert len(lost) == 1
        with pytest.raises(Interrupted, match="SIGTERM"):
            _beat(lock)
        assert lock.beats == 1, "nothing is written any more but marks"


def test_on_its_way_out_it_is_not_raised_again() -> None:
    lock: Any = Lock()
    with signals.obeyed():
        try:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                raise ValueError("a library's own")  # noqa: B904
        except ValueError:
            with contextlib.suppress(Interrupted):  # which would end all tests
                _beat(lock)  # as the controller does before it writes the last marks
    assert lock.beats == 1
    _beat(lock)
