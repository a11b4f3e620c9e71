"""A driver that ends, or is killed, on one host goes on on another; they share a folder alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cryoscale.data.run import Run
from cryoscale.testing.artifacts import artifact_digest, differences

# A driver on a host of its own: another name, another kernel. A sign of life every 0.05 s.
HOST = """
import sys, socket
name, place, wait, pause = sys.argv[1:5]
from cryoscale.data import holder, lock
socket.gethostname = lambda: name
holder.this_kernel = lambda: {"boot": "boot of " + name, "namespace": "pid:[1]"}
lock.STALE_LOCK_SECONDS = 0.6
from cryoscale.cli import main
import cryoscale.cli.run as running
from cryoscale.runtime import progress

class Stand(progress.ProgressDisplay):
    seen = 0
    def __call__(self, event):
        if hasattr(event, "text"):
            print("said " + event.text, flush=True)
        if type(event).__name__ == "TaskEnded":
            Stand.seen += 1
            if Stand.seen == int(pause):
                print("half way", flush=True)
                sys.stdin.readline()
progress.ProgressDisplay = Stand
main(["run", place, "--executor", "serial", "--until", "pick", "--wait-for-driver", wait])
"""


@contextmanager
def host(name: str, run: Run, *, wait: float = 0.0, pause: int = 0) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", HOST, name, run.folder.url, str(wait), str(pause)]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_ended_on_one_host_goes_on_on_another(
    make_run: Callable[..., Run], finished_run: Run, number: signal.Signals
) -> None:
    run = make_run()
    with host("first", run, pause=5) as first:
        assert line(first) == "half way"
        with host("second", run, wait=100) as second:
            assert line(second) == (
                f"said waiting up to 100 s for another driver of this run: process {first.pid} on first"
            )
            first.send_signal(number)
            first.wait(100)
            said, errors = second.communicate(timeout=100)
    assert second.returncode == 0, (said, errors)
    assert first.returncode == (-9 if number == signal.SIGKILL else 143)
    mine, whole = artifact_digest(run), artifact_digest(finished_run)
    both = [key for key in mine if key in whole and "labels" not in key]
    assert not differences({k: mine[k] for k in both}, {k: whole[k] for k in both})
    assert not run.folder.exists("ledger/driver.json")


def test_a_driver_that_slept_while_another_took_over_writes_nothing_more(
    make_run: Callable[..., Run],
) -> None:
    """It is stopped as a suspended machine is, wakes when all is done with other parameters, and says so."""
    from tests.pipeline.driving import settle

    run = make_run()
    with host("first", run, pause=5) as first:
        assert line(first) == "half way"
        os.kill(first.pid, signal.SIGSTOP)
        settle(run, "ingest.contrast=bright")
        with host("second", run, wait=100) as second:
            said, errors = second.communicate(timeout=100)
            assert second.returncode == 0, (said, errors)
        done = artifact_digest(run)
        ledger = {name: run.ledger.names(name) for name in ("ingest/alpha", "ingest/beta", "pick/alpha")}
        # a third one holds the run now, as somebody always may
        holder = {"host": "third", "pid": 1, "boot": "x", "namespace": "y", "token": "z", "heartbeat": 1e11}
        run.folder.write_bytes("ledger/driver.json", json.dumps(holder).encode())
        os.kill(first.pid, signal.SIGCONT)
        _, errors = first.communicate("\n", timeout=100)
    assert first.returncode == 75, errors
    assert "process 1 on third took this run over" in errors
    assert not differences(done, artifact_digest(run))
    assert {name: run.ledger.names(name) for name in ledger} == ledger
    assert run.folder.read_json("ledger/driver.json") == holder


def test_who_waited_in_vain_is_asked_to_come_again(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with host("first", run, pause=1) as first:
        assert line(first) == "half way"
        with host("second", run, wait=0.1) as second:
            _, errors = second.communicate(timeout=100)
            assert second.returncode == 75
            assert "still after 0.1 s" in errors
        with host("third", run) as third:
            _, errors = third.communicate(timeout=100)
            assert third.returncode == 2
            assert f"process {first.pid} on first" in errors
