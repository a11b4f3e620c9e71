"""One suite, three executors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryoscale.runtime.executor import ExecutorSettings, open_executor
from cryoscale.testing.executors import (
    CHECKS,
    FOLDER_CHECKS,
    GUARD_CHECKS,
    check_close,
    check_lost,
    check_threads,
    drain,
    one,
)
from cryoscale.testing.works import task

DRIVER = Path(__file__).with_name("driver.py")
KINDS = ("serial", "dask", "ray")


@pytest.fixture(scope="session", params=KINDS)
def executor(request):
    made = open_executor(
        request.param, ExecutorSettings(workers=2, start_timeout_s=60, no_progress_timeout_s=60)
    )
    made.start()
    yield made
    made.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, executor):
    check(executor)


@pytest.mark.parametrize("check", FOLDER_CHECKS, ids=lambda check: check.__name__)
def test_contract_with_folder(check, executor, tmp_path):
    if check is check_lost and executor.name == "serial":
        pytest.skip("by design: under serial the worker is the driver, and its death is the run's")
    check(executor, tmp_path)


@pytest.mark.parametrize("check", GUARD_CHECKS, ids=lambda check: check.__name__)
def test_guards_under_dask(check, tmp_path):
    check(
        lambda guard: open_executor("dask", ExecutorSettings(workers=2, start_timeout_s=3, guard=guard)),
        tmp_path,
    )


def test_guards_under_ray(tmp_path):
    """In a process of its own: a second Ray in this one would be the session's, whose cores are taken."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), "ray", "guards", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(DRIVER.parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", ["serial", "dask"])  # ray: in test_processes.py
def test_close_is_idempotent_with_work_in_flight(kind):
    made = open_executor(kind, ExecutorSettings(workers=1))
    made.close()
    made.start()
    check_close(made)


def test_workers_use_few_threads(executor):
    if executor.name == "serial":
        pytest.skip("by design: under serial the worker is this process")
    check_threads(executor)


def test_a_worker_above_its_memory_is_lost_and_the_driver_keeps_its_environment(monkeypatch):
    monkeypatch.delenv("BLOSC_NTHREADS", raising=False)
    settings = ExecutorSettings(workers=1, memory_per_worker_bytes=400_000_000, start_timeout_s=60)
    with open_executor("dask", settings) as executor:
        assert "BLOSC_NTHREADS" not in os.environ
        assert one(executor, task("allocate", 3_000_000_000)).status == "lost"
        assert one(executor, task("square", 4)).value == 16


def test_alone_under_ray_is_a_new_process(executor):
    if executor.name != "ray":
        pytest.skip("by design: only Ray's actors can be replaced one by one; the others open afresh")
    before = {outcome.worker for outcome in drain(executor, [task("process-id", n) for n in range(8)])}
    assert one(executor, task("process-id", 0, alone=True)).worker not in before
