"""What the engines leave behind, and who can reach them: looked at from outside, on a driver of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

DRIVER = Path(__file__).with_name("driver.py")
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
PATIENCE_S = 40


@contextlib.contextmanager
def driver(kind, mode, folder):
    """Start a driver in another folder, with the package found through PYTHONPATH alone."""
    root = str(DRIVER.parents[2])
    with subprocess.Popen(
        [sys.executable, str(DRIVER), kind, mode],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, psutil.Process(process.pid)
        finally:
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            for child in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def listening(family):
    found = set()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found |= {
                (process.name(), c.laddr.ip, c.laddr.port)
                for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN
            }
    return found


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_loopback_alone_and_nothing_left_when_the_driver_is_killed(kind, tmp_path):
    with driver(kind, "hold", tmp_path) as (process, watched):
        workers = json.loads(process.stdout.readline())
        family = watched.children(recursive=True)
        sockets = listening([watched, *family])
        assert sockets, "nothing listens: the test looks at the wrong processes"
        assert {ip for _, ip, _ in sockets} <= LOOPBACK, sockets
        assert {int(name.rpartition(":")[2]) for name in workers} <= {child.pid for child in family}

        process.kill()
        process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert alive == [], [child.cmdline() for child in alive]


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_nothing_left_after_close(kind, tmp_path):
    with driver(kind, "close", tmp_path) as (process, watched):
        workers = json.loads(process.stdout.readline())
        family = watched.children(recursive=True)
        process.stdin.write("\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == "closed"
        pids = {int(name.rpartition(":")[2]) for name in workers}
        _, alive = psutil.wait_procs([p for p in family if p.pid in pids], timeout=PATIENCE_S)
        assert alive == [], "workers outlive close()"
        assert listening(watched.children(recursive=True)) == set()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(PATIENCE_S) == 0
        _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
        assert alive == [], [child.cmdline() for child in alive]
