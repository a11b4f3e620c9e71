"""Workers of a running Dask cluster that come late, leave, die, are unfit; schedulers that come back."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import dask
import pytest

from cryoscale.data.folder import Folder
from cryoscale.data.probe import placed_probe
from cryoscale.errors import SurroundingsError
from cryoscale.runtime.executor import ExecutorSettings, open_executor
from cryoscale.runtime.probe import Guard, versions
from cryoscale.runtime.secrets import Secrets
from cryoscale.testing.executors import drain, one
from cryoscale.testing.works import Behaviour, task

ROOT = str(Path(__file__).parents[2])
PATIENCE_S = 60


@pytest.fixture
def cluster():
    """A cluster of somebody else: without workers, and with a patience for failures that is not ours."""
    from distributed import LocalCluster

    with warnings.catch_warnings(), dask.config.set({"distributed.scheduler.allowed-failures": 3}):
        warnings.simplefilter("ignore")
        with LocalCluster(
            n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, scheduler_port=0
        ) as made:
            yield made


@contextlib.contextmanager
def joined(address, **settings):
    executor = open_executor("dask", ExecutorSettings(address=address, **{"start_timeout_s": 30, **settings}))
    said = []
    executor.tell = lambda text, level: said.append(text)
    executor.begin()
    try:
        yield executor, said
    finally:
        executor.close()


@contextlib.contextmanager
def process(*words, before=(), **variables):
    """A scheduler or worker in a process of its own, as another machine has it."""
    command = [*before, sys.executable, "-W", "ignore", "-m", *words]
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", **variables}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        threading.Thread(target=started.stderr.read, daemon=True).start()
        try:
            yield started
        finally:
            started.kill()


def worker(address, **options):
    words = ["--nthreads=1", "--no-nanny", "--no-dashboard", "--host=127.0.0.1", "--death-timeout=60"]
    return process("distributed.cli.dask_worker", address, *words, **options)


def scheduler(port):
    words = ["--host=127.0.0.1", f"--port={port}", "--no-dashboard", "--no-show"]
    return process("distributed.cli.dask_scheduler", *words)


def until(executor, condition, outcomes=None):
    """Let the executor look around until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        executor._take(0.05)
        executor._check_deadlines()
        if outcomes is not None:
            outcomes += executor.wait(0)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def pauses(count, seconds, journal=""):
    return [task("pause", (seconds, str(journal), f"n{n}"), identifier=f"n{n}") for n in range(count)]


def test_work_waits_for_the_first_worker_and_the_window_follows_them(cluster):
    with joined(cluster.scheduler_address) as (executor, said):
        for n in range(8):
            executor.submit(task("square", n))
        assert executor.window == 2
        until(executor, lambda: said)
        assert "waiting for a worker of dask" in said[0]
        assert "s left. The scheduler is there, without workers." in said[0]
        assert executor.wait(0) == []
        cluster.scale(1)
        assert sorted(outcome.value for outcome in drain(executor)) == [n * n for n in range(8)]
        cluster.scale(2)
        until(executor, lambda: executor.window == 4)
        assert len({outcome.worker for outcome in drain(executor, pauses(4, 0.3))}) == 2
        cluster.scale(1)
        until(executor, lambda: executor.window == 2)
        assert len(drain(executor, [task("square", n) for n in range(4)])) == 4


def test_a_worker_that_leaves_in_order_costs_no_try(cluster):
    from distributed import Client

    cluster.scale(2)
    with joined(cluster.scheduler_address) as (executor, _):
        until(executor, lambda: executor.window == 4)
        for single in pauses(4, 1.0):
            executor.submit(single)
        leaving = next(iter(executor._members.all))
        with Client(cluster, set_as_default=False) as client:
            client.retire_workers([leaving], close_workers=True)
        outcomes = drain(executor)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert sorted(outcome.value for outcome in outcomes) == ["n0", "n1", "n2", "n3"]


def test_a_killed_worker_loses_its_tasks_once_whatever_the_cluster_allows(cluster, tmp_path):
    cluster.scale(2)
    with joined(cluster.scheduler_address) as (executor, _):
        until(executor, lambda: executor.window == 4)
        flag = task("kill-if-first", str(tmp_path / "flag"), identifier="flag")
        outcomes = drain(executor, [flag, *pauses(6, 0.05)])
        lost = [outcome for outcome in outcomes if outcome.status == "lost"]
        assert "flag" in {outcome.task.identifier for outcome in lost}
        assert len(lost) <= 2, "more than what that worker held"
        assert {outcome.status for outcome in outcomes if outcome not in lost} == {"finished"}
        assert one(executor, flag).value == "survived"


def _fake_version(folder):
    """Make this folder, on the path of a process, say that numpy is another one."""
    metadata = folder / "numpy-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    return os.pathsep.join([str(folder), ROOT])


def test_an_unfit_worker_is_told_and_gets_nothing_not_even_from_tasks_that_use_dask(cluster, tmp_path):
    journal = tmp_path / "journal"
    journal.mkdir()
    with (
        worker(cluster.scheduler_address, PYTHONPATH=_fake_version(tmp_path)) as other,
        joined(cluster.scheduler_address) as (executor, said),
    ):
        until(executor, lambda: any("is not used" in line for line in said))
        text = next(line for line in said if "is not used" in line)
        assert f"numpy 0.0.1 instead of {versions()['numpy']}" in text
        assert socket.gethostname() in text
        cluster.scale(1)
        work = Behaviour(journal=str(journal))
        outcomes = drain(executor, [task("process-id", n, work=work) for n in range(6)])
        outcomes += drain(executor, [task("processes-with-dask", 8, work=work, needs_client=True)])
    assert {outcome.status for outcome in outcomes} == {"finished"}, [o.failure for o in outcomes]
    assert other.pid not in {outcome.value for outcome in outcomes[:-1]} | set(outcomes[-1].value)
    assert sum("is not used" in line for line in said) == 1


def test_only_unfit_workers_stop_the_run_with_both_versions_named(cluster, tmp_path):
    with (
        worker(cluster.scheduler_address, PYTHONPATH=_fake_version(tmp_path)),
        joined(cluster.scheduler_address, start_timeout_s=8) as (executor, _),
    ):
        executor.submit(task("square", 2))
        with pytest.raises(SurroundingsError, match=r"On .*numpy 0\.0\.1 instead of"):
            drain(executor)


@pytest.mark.skipif(
    not shutil.which("unshare") or os.getuid() != 0, reason="a mount of its own for a process needs root"
)
def test_a_worker_that_sees_another_folder_at_the_same_path_is_named(cluster, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.toml").touch()
    hidden = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs tmpfs {run} && touch {run}/run.toml && exec "$@"',
        "sh",
    ]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("mounts are not permitted here")
    with placed_probe(Folder.of(run)) as probe, worker(cluster.scheduler_address, before=hidden):
        guard = Guard.of("dask", probe)
        with joined(cluster.scheduler_address, guard=guard) as (executor, said):
            until(executor, lambda: any("is not used" in line for line in said))
            assert f"{run} is not the same folder there" in next(line for line in said if "not used" in line)
            cluster.scale(1)
            assert one(executor, task("square", 3)).value == 9


def test_a_scheduler_that_comes_back_finds_the_executor_waiting():
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with joined(address) as (executor, said):
        executor.submit(task("square", 5))
        with scheduler(port) as first, worker(address):
            assert [outcome.value for outcome in drain(executor)] == [25]
            for single in pauses(2, 30.0):
                executor.submit(single)
            first.kill()
            first.wait()
            outcomes = drain(executor)
        assert [outcome.status for outcome in outcomes] == ["lost", "lost"]
        executor.submit(task("square", 6))
        with scheduler(port), worker(address):
            assert [outcome.value for outcome in drain(executor)] == [36]
        # Tasks may come back as lost before the executor has looked at its connection, so it is told by now.
        assert any("connection to dask" in line and "lost" in line for line in said), said


def test_a_scheduler_that_stays_away_ends_the_wait():
    port = free_port()
    with joined(f"tcp://127.0.0.1:{port}", start_timeout_s=2) as (executor, said):
        executor.submit(task("square", 5))
        with pytest.raises(SurroundingsError, match=r"Nothing answers there"):
            drain(executor)
    assert any("Nothing answers there" in line for line in said)


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """Two folders of secrets, and a scheduler with one worker that wants the first."""
    from distributed import LocalCluster

    base = tmp_path_factory.mktemp("secrets")
    right, wrong = (Secrets.create(base / name, 2, ["127.0.0.1"]) for name in ("right", "wrong"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(
            n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, protocol="tls://",
            scheduler_port=0, security=right.dask_security(),
        ) as made:  # fmt: skip
            yield made.scheduler_address, right.folder, wrong.folder


def test_tls_with_the_right_secrets(secured):
    address, right, _ = secured
    with joined(address, secrets=right) as (executor, _):
        assert one(executor, task("square", 3)).value == 9


@pytest.mark.parametrize(
    ("scheme", "which", "words"),
    [
        ("tls", 2, "the certificate of the Dask scheduler at .* is refused"),
        ("tls", None, "asks for certificates, and none are given.*--secrets"),
        ("tcp", None, "speaks TLS.*--dask tls://"),
    ],
)
def test_tls_with_the_wrong_ones_is_a_clear_end_at_once(secured, scheme, which, words):
    address = secured[0].replace("tls://", f"{scheme}://")
    settings = ExecutorSettings(
        address=address, secrets=None if which is None else secured[which], start_timeout_s=600
    )
    with pytest.raises(SurroundingsError, match=words):
        open_executor("dask", settings).start()


def test_tls_to_a_scheduler_without_is_told(cluster, secured):
    address = cluster.scheduler_address.replace("tcp://", "tls://")
    with pytest.raises(SurroundingsError, match=r"TLS"):
        open_executor(
            "dask", ExecutorSettings(address=address, secrets=secured[1], start_timeout_s=5)
        ).start()
