"""Engines and drivers on hosts, by the commands that people give; what they say is kept in files."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoscale.testing.hosts import Host, HostProcess, Hosts
from cryoscale.testing.listeners import listening

PROJECT = str(Path(__file__).parents[2])
BIN = Path(sys.executable).parent
CRYOSCALE = str(BIN / "cryoscale")
DASK_PORT, RAY_PORT = 8786, 6379
ON_DASK, ON_RAY = {"ingest", "pick", "instances"}, {"encode", "segment"}
PATIENCE_S = 150.0

# For drivers and Ray's own commands; members set their own, half a minute. Dask refuses less than 11 s.
IMPATIENT = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "20s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# Run on a host: wait until so many workers of Dask and nodes of Ray with CPUs are there.
_COUNT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
address, dask_wanted, ray_wanted, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
deadline, seen = time.monotonic() + limit, {"dask": -1, "ray": -1}
if ray_wanted >= 0:
    from ray._raylet import GcsClient
    while time.monotonic() < deadline and seen["ray"] != ray_wanted:
        try:
            nodes = GcsClient(address=address + ":6379").get_all_node_info().values()
            seen["ray"] = sum(n.state == 0 and n.resources_total.get("CPU", 0) > 0 for n in nodes)
        except Exception as error:
            seen["why"] = str(error)[-300:]
        time.sleep(0.2)
if dask_wanted >= 0:
    from distributed import Client
    with Client("tls://" + address + ":8786", timeout=limit) as client:
        while time.monotonic() < deadline and seen["dask"] != dask_wanted:
            seen["dask"] = len(client.nthreads())
            time.sleep(0.2)
print(json.dumps(seen))
"""


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait for something to be so, and return what the condition says."""
    pause, deadline = threading.Event(), time.monotonic() + patience_s
    while not (met := condition()):
        assert time.monotonic() < deadline, f"waited {patience_s:g} s: {what}"
        pause.wait(0.05)
    return met


@dataclass(frozen=True)
class Journal:
    """What happened in the drives of a run, one after the other; see `told`."""

    file: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.file.read_text().split("\n")[:-1] if self.file.exists() else []
        return [json.loads(line) for line in lines]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "TaskEnded"]

    @property
    def messages(self) -> list[str]:
        return [event["text"] for event in self.events if "text" in event]  # messages and pauses

    def done_by(self, stages: set[str]) -> Counter[str]:
        """Count finished blocks of some stages by host."""
        return Counter(
            task["worker"].partition(":")[0]
            for task in self.tasks
            if task["stage"] in stages and task["status"] in ("done", "empty")
        )

    def sealed(self, stage: str) -> int:
        return sum(event["event"] == "StageSealed" and event["stage"] == stage for event in self.events)

    def started(self, stage: str) -> bool:
        return any(event["event"] == "StageStarted" and event["stage"] == stage for event in self.events)


class Machines:
    """Hosts with engines on them."""

    def __init__(self, hosts: Hosts, folder: Path, secrets: Path) -> None:
        self.hosts, self.folder, self.secrets = hosts, folder, secrets
        self.count = 0
        self.started: list[tuple[str, HostProcess]] = []

    def start(self, host: Host, name: str, *words: object, **env: str) -> HostProcess:
        """Start a command; its output goes to a file of its name."""
        self.count += 1
        log = self.folder / f"{self.count:02d}-{name}-{host.name}.log"
        with log.open("w") as stream:
            process = host.popen(
                [str(word) for word in words], stdout=stream, stderr=stream,
                env={**IMPATIENT, "OMP_NUM_THREADS": "1", **env},
            )  # fmt: skip
        process.log = log
        self.started.append((name, process))
        return process

    def engine(self, host: Host, verb: str, *words: object, **env: str) -> HostProcess:
        return self.start(host, verb, CRYOSCALE, "engine", verb, *words, "--secrets", self.secrets, **env)

    def lead(self, host: Host, *words: object, **env: str) -> HostProcess:
        """Scheduler, one Dask worker, Ray's head with one CPU."""
        return self.engine(
            host, "lead", "--host", host.ip, "--workers", 1, "--cpus", 1, "--memory", "2GB", *words, **env
        )

    def join(self, host: Host, lead: Host, *words: object, **env: str) -> HostProcess:
        return self.engine(
            host, "join", lead.ip, "--host", host.ip, "--workers", 1, "--cpus", 1, "--memory", "2GB",
            *words, **env,
        )  # fmt: skip

    def ray_start(self, host: Host, *words: object, cpus: int = 1) -> HostProcess:
        """Start Ray by its own command with the token in the environment, as KubeRay does."""
        from cryoscale.runtime.secrets import Secrets

        return self.start(
            host, "ray", BIN / "ray", "start", *words, f"--node-ip-address={host.ip}", f"--num-cpus={cpus}",
            "--object-store-memory=100000000", "--block", RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=Secrets(self.secrets).environment()["RAY_AUTH_TOKEN_PATH"],
        )  # fmt: skip

    def ray_head(self, host: Host) -> HostProcess:
        return self.ray_start(
            host, "--head", f"--port={RAY_PORT}", "--include-dashboard=false", "--no-monitor"
        )

    def ray_node(self, host: Host, head: Host, cpus: int = 1) -> HostProcess:
        return self.ray_start(host, f"--address={head.ip}:{RAY_PORT}", cpus=cpus)

    def drive(self, host: Host, run: Path, lead: Host, *words: object, **env: str) -> HostProcess:
        """`cryoscale run` on a host, against the engines of a lead."""
        return self.start(
            host, "run", sys.executable, "-m", "tests.cluster.told", self.journal(run).file,
            "run", run, "--quiet", "--dask", f"tls://{lead.ip}:{DASK_PORT}",
            "--ray", f"{lead.ip}:{RAY_PORT}", "--secrets", self.secrets, *words, PYTHONPATH=PROJECT, **env,
        )  # fmt: skip

    def journal(self, run: Path) -> Journal:
        return Journal(self.folder / f"events-{run.name}.jsonl")

    def ready(self, lead: Host, *, dask: int = -1, ray: int = -1, patience_s: float = 90.0) -> None:
        """Wait until so many workers and nodes with CPUs are there; -1 asks nothing."""
        ports = {port for port, wanted in ((DASK_PORT, dask), (RAY_PORT, ray)) if wanted >= 0}
        until(
            lambda: ports <= {one.port for one in listening(lead)},
            f"{ports} of {lead.name}\n{self.tail()}",
            60,
        )
        done = lead.run(
            [sys.executable, "-c", _COUNT, lead.ip, str(dask), str(ray), str(patience_s)],
            timeout=patience_s + 60, env=self.environment(), stderr=None,
        )  # fmt: skip
        seen = json.loads(done.stdout.splitlines()[-1])
        assert (seen["dask"], seen["ray"]) == (dask, ray), f"{seen}\n{self.tail()}"

    def environment(self) -> dict[str, str]:
        from cryoscale.runtime.secrets import Secrets

        return {**IMPATIENT, **Secrets(self.secrets).environment()}

    def tail(self, lines: int = 25) -> str:
        """Return the last words of every process, for the message of a test that fails."""
        parts = []
        for name, process in self.started:
            last = process.log.read_text(errors="replace").splitlines()[-lines:]
            parts.append("\n".join([f"--- {name} ({process.log.name}) exit {process.poll()}", *last]))
        return "\n".join(parts)

    def finish(self, process: HostProcess, patience_s: float = PATIENCE_S) -> str:
        """Wait for a command to end well, and return what it said."""
        said = self.end(process, patience_s)
        assert process.returncode == 0, f"exit {process.returncode}: {said}\n{self.tail()}"
        return said

    def end(self, process: HostProcess, patience_s: float = PATIENCE_S) -> str:
        """Wait for a command to end, and return what it said."""
        until(
            lambda: process.poll() is not None, f"{process.log.name} did not end\n{self.tail()}", patience_s
        )
        return process.log.read_text(errors="replace")

    def stop(self, process: HostProcess, patience_s: float = 60.0) -> str:
        """Ask a command to end, as Slurm and Kubernetes do."""
        process.signal(signal.SIGTERM)
        return self.end(process, patience_s)
