"""Running clusters: joined, empty, emptied, unreachable."""

from __future__ import annotations

import socket
import threading
import time
import warnings

import dask
import pytest

from cryoscale.errors import SurroundingsError
from cryoscale.runtime.executor import ExecutorSettings, open_executor
from cryoscale.testing.executors import check_needs_client, check_results, drain
from cryoscale.testing.works import Behaviour, notes, task


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    with warnings.catch_warnings(), dask.config.set({"distributed.scheduler.allowed-failures": 3}):
        warnings.simplefilter("ignore")
        made = LocalCluster(
            n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, scheduler_port=0
        )
        yield made
        made.close()


def _scale(cluster, count):
    cluster.scale(count)
    pause, deadline = threading.Event(), time.monotonic() + 60
    while len(cluster.scheduler.workers) > count:
        assert time.monotonic() < deadline
        pause.wait(0.02)
    if count:
        from distributed import Client

        with Client(cluster, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)


def test_a_dask_cluster_without_workers_is_reported_within_the_limit(cluster):
    settings = ExecutorSettings(address=cluster.scheduler_address, start_timeout_s=1.0)
    before = time.monotonic()
    with pytest.raises(SurroundingsError, match=r"no worker answered.*waited up to 1 s.*Check that workers"):
        open_executor("dask", settings).start()
    assert time.monotonic() - before < 20


def test_a_dask_cluster_is_joined_left_clean_and_may_lose_its_workers(cluster, tmp_path):
    _scale(cluster, 1)
    settings = ExecutorSettings(address=cluster.scheduler_address, start_timeout_s=30)
    work = Behaviour(key="held", journal=str(tmp_path))
    with open_executor("dask", settings) as executor:
        assert executor.window == 2  # one worker with one thread, two tasks each
        check_results(executor)
        check_needs_client(executor)
        drain(executor, [task("square", 1, work=work)])
    assert [words[0] for _, _, words in notes(tmp_path)] == [
        "open",
        "close",
    ]  # the workers hold nothing of ours

    with open_executor(
        "dask", ExecutorSettings(address=cluster.scheduler_address, start_timeout_s=2)
    ) as executor:
        _scale(cluster, 0)
        executor.submit(task("square", 3))
        with pytest.raises(SurroundingsError, match="no worker answered"):
            drain(executor)
        _scale(cluster, 1)
        assert [outcome.value for outcome in drain(executor)] == [9]  # it was still in flight


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_an_address_where_nothing_listens_is_reported(kind):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port
        port = taken.getsockname()[1]
        address = {"dask": f"tcp://127.0.0.1:{port}", "ray": f"127.0.0.1:{port}"}[kind]
        executor = open_executor(kind, ExecutorSettings(address=address, start_timeout_s=1.0))
        before = time.monotonic()
        with pytest.raises(SurroundingsError, match=str(port)):
            executor.start()
        assert time.monotonic() - before < 20
        executor.close()
