"""One suite, three executors."""

from __future__ import annotations

import pytest

from cryoscale.runtime.executor import ExecutorSettings, open_executor
from cryoscale.testing.executors import CHECKS, FOLDER_CHECKS, check_close, check_lost

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


@pytest.mark.parametrize("kind", KINDS)
def test_close_is_idempotent_with_work_in_flight(kind):
    if kind == "ray":
        pytest.skip("in test_processes.py: one Ray per process")
    made = open_executor(kind, ExecutorSettings(workers=1))
    made.close()
    made.start()
    check_close(made)
