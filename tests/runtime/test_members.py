"""Processes of a machine: what listens, who may come in, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from cryoscale.errors import SurroundingsError
from cryoscale.runtime.keeper import Kept, descendants
from cryoscale.runtime.members import Machine, Member, run_workers, supervise
from cryoscale.runtime.members_dask import SchedulerPlan, WorkersPlan
from cryoscale.runtime.members_ray import RayNode, is_loopback, ray_environment
from cryoscale.runtime.secrets import Secrets
from cryoscale.testing.hosts import Hosts, obstacle
from cryoscale.testing.listeners import listening

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
PATIENCE_S = 90.0

# A program with a child in a session of its own whose parent then ends: what a plain kill would miss.
ORPHANS = """
import os, subprocess, sys, time
last = [sys.executable, "-c", "import time; time.sleep(600)"]
middle = f"import subprocess; print(subprocess.Popen({last!r}, start_new_session=True).pid, flush=True)"
subprocess.run([sys.executable, "-c", middle])
time.sleep(600)
"""


def _until(said, what):
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while not (value := said()):
        assert time.monotonic() < deadline, what
        pause.wait(0.05)
    return value


def _alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _read(path):
    return path.read_text() if path.exists() else ""


@linux
@pytest.mark.parametrize("way", ["kill", "program", "keeper"])
def test_what_a_program_leaves_behind_is_killed(tmp_path, way):
    with (tmp_path / "said").open("wb") as output:
        kept = Kept([sys.executable, "-c", ORPHANS], dict(os.environ), output)
    orphan = int(_until(lambda: _read(tmp_path / "said"), "the orphan's id"))
    program = next(pid for pid in descendants(kept.pid) if pid != orphan)
    if way == "kill":
        kept.kill()
    elif way == "program":
        os.kill(program, signal.SIGKILL)
        assert kept.wait(PATIENCE_S)
        assert kept.exit_code == -signal.SIGKILL
    else:
        kept.terminate()
        assert kept.wait(PATIENCE_S)
        assert kept.exit_code == -signal.SIGTERM
    _until(lambda: not _alive(orphan) and not _alive(program), "the orphan's end")
    kept.kill()  # again: nothing happens


@linux
def test_nothing_survives_a_supervisor_that_is_killed(tmp_path):
    words = f"""
import os, subprocess, sys, time
from cryoscale.runtime.keeper import Kept
kept = Kept([sys.executable, "-c", {ORPHANS!r}], dict(os.environ))
time.sleep(600)
"""
    with (tmp_path / "said").open("wb") as output:
        supervisor = subprocess.Popen([sys.executable, "-c", words], stdout=output)
    orphan = int(_until(lambda: _read(tmp_path / "said"), "the orphan's id"))
    below = descendants(supervisor.pid)
    assert orphan in below
    supervisor.kill()
    supervisor.wait()
    _until(lambda: not any(map(_alive, below)), "the end of all below")


def test_the_exit_code_of_a_program_is_its_own():
    kept = Kept([sys.executable, "-c", "raise SystemExit(7)"], dict(os.environ))
    assert kept.wait(PATIENCE_S)
    assert kept.exit_code == 7
    kept.kill()


def _member(name, words, **more):
    return Member(name, [sys.executable, "-c", words], dict(os.environ), **more)


def test_a_program_that_ends_takes_the_others_with_it():
    members = [_member("first", "raise SystemExit(3)"), _member("second", "import time; time.sleep(600)")]
    with pytest.raises(SurroundingsError, match=r"this ended: first \(exit code 3\)"):
        supervise(members)
    assert members[1].kept is not None
    assert members[1].kept.exit_code is not None


_IN_ORDER = """
import os, signal, sys, threading, time
from pathlib import Path
from cryoscale.runtime.members import Member, supervise

PROGRAM = '''
import signal, sys, time
path, name = sys.argv[1:]
def end(*_):
    with open(path, "a") as file:
        file.write(name + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open(path + name, "w").close()
time.sleep(600)
'''
path, names = sys.argv[1], ("scheduler", "workers")
members = [
    Member(name, [sys.executable, "-c", PROGRAM, path, name], dict(os.environ), 5.0, last=name == "scheduler")
    for name in names
]

def stop():
    while not all(Path(path + name).exists() for name in names):
        threading.Event().wait(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

before = signal.getsignal(signal.SIGTERM)
threading.Thread(target=stop).start()
supervise(members)
assert signal.getsignal(signal.SIGTERM) is before
"""


def test_a_signal_ends_all_in_order_within_the_grace(tmp_path):
    """In a process of its own, as it is for people: what Ray left in this one may take signals too."""
    path = tmp_path / "order"
    subprocess.run([sys.executable, "-c", _IN_ORDER, str(path)], check=True, timeout=120)
    assert path.read_text().split() == ["workers", "scheduler"]


def test_the_command_line_of_ray_opens_no_more_than_it_must():
    node = RayNode("10.0.0.1", "10.0.0.1:6379", Path("/tmp/x"), cpus=0, gpus=0, leads=True)
    words = node.command()
    assert {"--no-monitor", "--include-dashboard=false", "--node-ip-address=10.0.0.1", "--num-cpus=0"} < set(
        words
    )
    assert (
        ray_environment("127.0.0.1", {"RAY_AUTH_MODE": "token"})["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    )
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in ray_environment("10.0.0.1", {"RAY_AUTH_MODE": "token"})
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "10.0.0.1", "node1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_workers_without_a_scheduler_give_up(tmp_path):
    secrets = Secrets.create(tmp_path / "secrets")
    machine = Machine("127.0.0.1", workers=1, secrets=secrets, wait_s=0.0)
    with pytest.raises(SurroundingsError, match=r"no Dask scheduler at tls://127\.0\.0\.1:1 within 0 s"):
        run_workers(machine, "tls://127.0.0.1:1")


@linux
@pytest.mark.slow
def test_workers_that_are_told_to_leave_end_their_block_and_take_no_other(tmp_path):
    from distributed import Client

    secrets = Secrets.create(tmp_path / "secrets")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "DASK_LOGGING__DISTRIBUTED": "error"}
    address, folder = f"tls://127.0.0.1:{port}", str(secrets.folder)
    plan = WorkersPlan(address, "127.0.0.1", 1, None, str(tmp_path), secrets=folder)
    started = [Kept(SchedulerPlan("127.0.0.1", port, folder).command(), environment)]
    try:
        started += [Kept(plan.command(), environment) for _ in range(2)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = Client(address, security=secrets.dask_security(), timeout=60, set_as_default=False)
        with client:
            client.wait_for_workers(2, timeout=60)
            pids = client.run(os.getpid)
            leaving = next(where for where, pid in pids.items() if pid in descendants(started[1].pid))
            running = client.submit(_wait_for, str(tmp_path / "go"), workers=[leaving], pure=False)
            _until((tmp_path / "go.begun").exists, "the block to begin")
            behind = client.submit(_wait_for, str(tmp_path / "go"), workers=[leaving], pure=False,
                                   allow_other_workers=True)  # fmt: skip
            started[1].terminate()
            started[1].terminate()  # batch systems signal more than once
            _until(lambda: _status(client, leaving) == "paused", "the worker to pause")
            assert not running.done()
            (tmp_path / "go").touch()
            assert running.result(timeout=60) in pids.values()
            assert running.result() == pids[leaving]
            assert behind.result(timeout=60) != pids[leaving]
            assert started[1].wait(PATIENCE_S)
            assert started[1].exit_code == 0
            assert list(client.scheduler_info()["workers"]) == [where for where in pids if where != leaving]
        started[0].terminate()
        assert started[0].wait(PATIENCE_S)
        assert started[2].wait(PATIENCE_S)  # it lost its scheduler
        assert started[2].exit_code == 75
    finally:
        for kept in reversed(started):
            kept.kill()


def _wait_for(path):
    Path(path + ".begun").touch()
    deadline = time.monotonic() + PATIENCE_S
    while not Path(path).exists() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    return os.getpid()


def _status(client, where):
    return client.run_on_scheduler(_status_there, where)


def _status_there(where, dask_scheduler):
    worker = dask_scheduler.workers.get(where)
    return worker.status.name if worker is not None else "gone"


# -- a cluster of two machines, as namespaces --------------------------------------------------------------

slow = pytest.mark.slow
DASK_CLIENT = """
import sys, warnings
warnings.simplefilter("ignore")
from distributed import Client
from cryoscale.runtime.secrets import Secrets
security = Secrets.open(sys.argv[1]).dask_security() if sys.argv[1] != "none" else None
try:
    with Client(sys.argv[2], security=security, timeout=8) as client:
        print("in", client.submit(lambda x: x + 1, 1).result(timeout=30))
except Exception as error:
    print("out", type(error).__name__)
"""
RAY_CLIENT = """
import os, sys
from cryoscale.runtime.secrets import Secrets
if sys.argv[1] != "none":
    os.environ.update(Secrets.open(sys.argv[1]).ray_environment())
from cryoscale.runtime.ray_start import import_ray, join_cluster, leave_cluster
ray = import_ray(embedded=False)
try:
    join_cluster(sys.argv[2], 60)
    print("in", ray.get(ray.remote(lambda x: x + 1).remote(1)))
    ray.shutdown()
    leave_cluster()
except Exception as error:
    print("out", error)
"""


@pytest.fixture(scope="module", params=["token", "tls"])
def cluster(request, tmp_path_factory):
    if reason := obstacle():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    names = [f"10.77.0.{n}" for n in (1, 2, 3)] if request.param == "tls" else []
    for name in ("secrets", "other"):
        Secrets.create(folder / name, hosts=names)
    root = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    common = ["--workers", "1", "--cpus", "1", "--gpus", "0", "--secrets", folder / "secrets"]
    with Hosts(3, keep=[folder]) as hosts:
        for host in hosts:
            host.environment.update(root)
        for number, words in ((1, ["lead"]), (2, ["join", hosts[1].ip])):
            log = (folder / f"log{number}").open("w")
            with log:
                hosts[number].popen(
                    [
                        sys.executable,
                        "-m",
                        "cryoscale",
                        "engine",
                        *words,
                        "--host",
                        hosts[number].ip,
                        *common,
                    ],
                    stdout=log,
                )
            _until(lambda n=number: "runtime started" in _read(folder / f"log{n}"), f"Ray on host {number}")
            _until(lambda n=number: "Dask workers at" in _read(folder / f"log{n}"), f"Dask on host {number}")
        yield hosts, folder


def _ask(hosts, program, *words):
    return hosts[3].run([sys.executable, "-c", program, *words], timeout=150).stdout


@slow
def test_only_members_come_in_and_nothing_else_listens(cluster):
    hosts, folder = cluster
    dask, ray = f"tls://{hosts[1].ip}:8786", f"{hosts[1].ip}:6379"
    assert "in 2" in _ask(hosts, DASK_CLIENT, folder / "secrets", dask)
    assert "out" in _ask(hosts, DASK_CLIENT, folder / "other", dask)
    assert "out" in _ask(hosts, DASK_CLIENT, "none", dask.replace("tls", "tcp"))
    assert "in 2" in _ask(hosts, RAY_CLIENT, folder / "secrets", ray)
    assert any(word in _ask(hosts, RAY_CLIENT, folder / "other", ray) for word in ("refuses our token", "CA"))
    assert any(word in _ask(hosts, RAY_CLIENT, "none", ray) for word in ("refuses our token", "TLS"))
    check = [
        "-m",
        "cryoscale",
        "engine",
        "check",
        "--dask",
        dask,
        "--ray",
        ray,
        "--secrets",
        folder / "secrets",
    ]
    said = hosts[3].run([sys.executable, *check], timeout=150)
    assert said.returncode == 0, said.stdout

    # Dask: TLS. Ray: gRPC with the token (gcs_server, raylet, workers), its agent likewise by HTTP.
    allowed = ("members_dask", "multiprocessing.spawn", "gcs_server", "raylet", "ray::", "default_worker.py")
    for number in (1, 2):
        for found in listening(hosts[number]):
            assert found.loopback or any(word in found.command for word in allowed), found
            if "members_dask" in found.command or "multiprocessing" in found.command:
                assert found.loopback or found.ip == hosts[number].ip, found

    for agent in (found for found in listening(hosts[1]) if "RuntimeEnv" in found.command):
        words = f"import urllib.request as r; r.urlopen('http://{agent.ip}:{agent.port}/', b'')"
        assert "401" in hosts[3].run([sys.executable, "-c", words], timeout=60).stdout

    token = (folder / "secrets" / "ray-token").read_text().strip()
    key = (folder / "secrets" / "key.pem").read_text().splitlines()[1]
    for host in hosts:
        for pid in host.processes():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            assert token not in words
            assert key not in words
    for path in folder.glob("log*"):
        assert token not in path.read_text()

    # The end: a SIGKILL of one supervisor, a SIGTERM of the other; the first process of a host is ours.
    lead, join = (process for process in hosts.started if process.poll() is None)
    join.signal(signal.SIGKILL)
    _until(lambda: len(hosts[2].processes()) == 1, "the end of all on host 2")
    lead.signal(signal.SIGTERM)
    assert lead.wait(PATIENCE_S) == 0
    _until(lambda: len(hosts[1].processes()) == 1, "the end of all on host 1")
