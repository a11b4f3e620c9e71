"""What runs inside the pods, run here: the script that makes the run, and the probes."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryoscale.data.run import Run
from cryoscale.runtime.secrets import Secrets
from cryoscale.testing.phantoms import write_phantom
from tests.k8s.building import K8S, ROOT, documents, of_kind, pods

BASH = shutil.which("bash")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two tomograms, settings as the gpu overlay mounts them, and a `cryoscale` on the path."""
    (tmp_path / "recon").mkdir()
    for name in ("a", "b"):
        write_phantom(tmp_path / "recon" / f"{name}.mrc", (16, 16, 16), seed=1)
    settings = next(c["data"] for c in of_kind(documents("gpu"), "ConfigMap") if "prepare.sh" in c["data"])
    (tmp_path / "settings").mkdir()
    for name, text in settings.items():
        (tmp_path / "settings" / name).write_text(text)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "cryoscale"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cryoscale "$@"\n')
    command.chmod(0o755)
    return tmp_path


def prepare(place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    if BASH is None:
        pytest.skip("bash is not here")
    environment = {
        **os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "SETTINGS": str(place / "settings"), "RUN": str(place / "run"), "INPUTS": f"{place}/recon/*.mrc",
        **variables,
    }  # fmt: skip
    words = [BASH, str(place / "settings" / "prepare.sh")]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_run_is_made_once_and_keeps_its_parameters(place: Path) -> None:
    settings = place / "settings" / "run.settings"
    settings.write_text("# a comment\n\npick.radius_angstrom=125\n")
    first = prepare(place)
    assert first.returncode == 0, first.stderr
    config = Run.open(str(place / "run")).config
    assert [source.name for source in config.inputs] == ["a", "b"]
    assert config.pick.radius_angstrom == 125
    assert config.execution.ray_gpus_per_worker == 1

    settings.write_text("pick.radius_angstrom=60\n")
    (place / "settings" / "gpu.where").write_text("execution.ray_workers=2\n")
    write_phantom(place / "recon" / "c.mrc", (16, 16, 16), seed=2)
    again = prepare(place)
    assert again.returncode == 0, again.stderr
    config = Run.open(str(place / "run")).config
    assert [source.name for source in config.inputs] == ["a", "b", "c"]
    assert config.pick.radius_angstrom == 125  # what it computes stays
    assert config.execution.ray_workers == 2  # where it computes follows


def options_given(place: Path, **files: bytes) -> list[str]:
    """What `cryoscale init` is given, where files of settings are these."""
    for file in (place / "settings").glob("*.where"):
        file.unlink()
    for name, data in files.items():
        (place / "settings" / name.replace("_", ".")).write_bytes(data)
    told = 'for word in "$@"; do printf "%s\\0" "$word"; done > "$RUN.told"'
    (place / "bin" / "cryoscale").write_text(f'#!/bin/sh\n[ "$1" = status ] && exit 2\n{told}\n')
    done = prepare(place)
    assert done.returncode == 0, done.stderr
    words = (place / "run.told").read_text().split("\0")
    return [after for word, after in itertools.pairwise(words) if word == "--set"]


def test_a_last_line_without_an_end_counts(place: Path) -> None:
    assert options_given(place, run_settings=b"a.b=1\nc.d=2") == ["a.b=1", "c.d=2"]


def test_files_without_an_end_stay_apart(place: Path) -> None:
    given = options_given(
        place, run_settings=b"x.y=0", cpu_where=b"a.b=1", gpu_where=b"c.d=2", spot_where=b"# no"
    )
    assert given == ["x.y=0", "a.b=1", "c.d=2"]


def test_lines_of_windows_are_lines(place: Path) -> None:
    given = options_given(place, run_settings=b"# note\r\n\r\na.b=1\r\nc.d= 2\r", cpu_where=b"\r\n")
    assert given == ["a.b=1", "c.d= 2"]


def test_misuse_ends_the_job(place: Path) -> None:
    """Exit 2 is FailJob: no file, or a key that does not exist, is not tried twenty times."""
    assert prepare(place, INPUTS=f"{place}/none/*.mrc").returncode == 2
    (place / "settings" / "run.settings").write_text("pick.radius=125\n")
    done = prepare(place)
    assert done.returncode == 2
    assert "pick.radius" in done.stderr


def test_storage_that_does_not_answer_makes_no_other_run(place: Path) -> None:
    (place / "bin" / "cryoscale").write_text('#!/bin/sh\n[ "$1" = status ] && exit 75\ntouch "$RUN.made"\n')
    assert prepare(place).returncode == 75
    assert not (place / "run.made").exists()


def probe(component: str, name: str) -> list[str]:
    (pod,) = {p.component: p for p in pods(documents("cpu")) if p.component == component}.values()
    words: list[str] = pod.spec["containers"][0][f"{name}Probe"]["exec"]["command"]
    return words


def succeeds(words: list[str], **variables: str) -> bool:
    done = subprocess.run(
        words, env={**os.environ, **variables}, capture_output=True, timeout=60, check=False
    )
    return done.returncode == 0


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="probes read /proc/net/tcp")
def test_probes_see_a_port_that_listens_and_a_connection(listening: socket.socket) -> None:
    """8786 is 2252 in hexadecimal; here another port takes its place."""
    port = listening.getsockname()[1]

    def at(words: list[str]) -> list[str]:
        found = [word.replace(f"{8786:04X}", f"{port:04X}") for word in words]
        assert found != words
        return [word for word in found if Path(word).exists() or not word.startswith("/proc")]

    ready, connected = at(probe("dask-scheduler", "readiness")), at(probe("dask-worker", "readiness"))
    assert succeeds(ready)
    assert not succeeds(connected)
    client = socket.create_connection(("127.0.0.1", port))
    server, _ = listening.accept()
    assert succeeds(connected)
    listening.close()
    assert not succeeds(ready)  # a connection is not a port that listens
    client.close()
    server.close()
    assert not succeeds(connected)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return Secrets.create(tmp_path / "secrets").folder


async def _handshake(folder: Path, words: list[str], *, security: Any) -> bool:
    """Ask a scheduler on loopback, in place of the pod's address."""
    from distributed import Scheduler

    async with Scheduler(
        protocol="tls" if security else "tcp", host="127.0.0.1", port=0, security=security, dashboard=False
    ) as scheduler:
        place = scheduler.address.rpartition(":")[2]
        found = [w.replace("/secrets/", f"{folder}/").replace("8786", place) for w in words]
        return await asyncio.to_thread(succeeds, [sys.executable, *found[1:]], POD_IP="127.0.0.1")


def test_liveness_takes_a_handshake(secrets: Path, tmp_path: Path) -> None:
    words = probe("dask-scheduler", "liveness")
    assert words[0] == "python"
    security = Secrets.open(secrets).dask_security()
    assert asyncio.run(_handshake(secrets, words, security=security))
    other = Secrets.create(tmp_path / "others").folder
    assert not asyncio.run(_handshake(other, words, security=security))
    assert not asyncio.run(_handshake(secrets, words, security=None))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the probe reads /proc")
def test_liveness_of_the_driver_takes_a_main_thread_that_runs(tmp_path: Path) -> None:
    """A process that answers in its place: it runs, is stopped, goes on, is gone."""
    children, seen = tmp_path / "children", tmp_path / "ran"
    words = [
        word.replace("/proc/1/task/1/children", str(children)).replace("/tmp/driver-ran", str(seen))
        for word in probe("driver", "liveness")
    ]
    words[0] = sys.executable
    driver = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def runs() -> None:
        driver.stdin.write(b"x")
        assert driver.stdout.read(1) == b"x"

    try:
        assert succeeds(words)  # /proc does not tell
        children.write_text(f"{driver.pid} 4000000 ")
        runs()
        assert succeeds(words)  # the first look
        runs()
        assert succeeds(words)
        os.kill(driver.pid, signal.SIGSTOP)
        os.waitpid(driver.pid, os.WUNTRACED)
        succeeds(words)  # it ran until it was stopped
        assert not succeeds(words)
        os.kill(driver.pid, signal.SIGCONT)
        runs()
        assert succeeds(words)
    finally:
        driver.kill()
        driver.communicate()
    assert succeeds(words)  # it has ended, and so does its container


def test_shellcheck_takes_the_scripts() -> None:
    found = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("shellcheck is not here")
    for script in K8S.rglob("*.sh"):
        done = subprocess.run([found, str(script)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
