"""A look at running engines before a run: who works there, and does each see the run."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from cryoscale.errors import CryoscaleError, SurroundingsError
from cryoscale.runtime.dask_reach import speaks_tls, try_scheduler
from cryoscale.runtime.environment import environment
from cryoscale.runtime.probe import CLOCK_S, Finding, Guard, examine
from cryoscale.runtime.secrets import Secrets


@dataclass(frozen=True)
class WorkerReport:
    """What one worker process said.

    Parameters
    ----------
    host : str
        Name of its machine.
    where : str
        What the engine calls it.
    problem : str
        Why it would not be used; empty if it would.
    clock_s : float
        How far its clock is from ours, seconds; as exact as the question was quick.
    """

    host: str
    where: str
    problem: str
    clock_s: float

    @property
    def clock_is_off(self) -> bool:
        """Whether its clock is so far off that logs mislead."""
        return abs(self.clock_s) > CLOCK_S


@dataclass
class EngineReport:
    """What an engine said; fit if it has a worker and every one of them may be used."""

    engine: str
    address: str
    problem: str = ""
    workers: list[WorkerReport] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        """Whether a run could begin with all of it."""
        return not self.problem and bool(self.workers) and not any(worker.problem for worker in self.workers)

    @property
    def usable(self) -> bool:
        """Whether a run could begin: it works around workers that do not fit."""
        return not self.problem and any(not worker.problem for worker in self.workers)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "fit": self.fit}


def check_engine(
    engine: str,
    address: str,
    secrets: Secrets | None,
    look: Callable[[str], str] | None = None,
    limit_s: float = 30.0,
) -> EngineReport:
    """Ask every worker of a running engine to examine itself.

    Parameters
    ----------
    engine : str
        "dask" or "ray".
    address : str
        Where it runs.
    secrets : Secrets or None
        Its certificates and token.
    look : callable or None
        What a worker must see, as in `Guard`.
    limit_s : float
        How long each step may take.
    """
    report = EngineReport(engine, address)
    guard = Guard.of(engine, look).packed()
    ask = _ask_dask if engine == "dask" else _ask_ray
    before = time.time()
    try:
        for where, said, asked in ask(address, secrets, guard, limit_s):
            finding = Finding(*said)
            clock_s = finding.now - (asked + time.time()) / 2
            report.workers.append(WorkerReport(finding.host, where, finding.problem, round(clock_s, 2)))
    except CryoscaleError as error:
        report.problem = str(error)
    except Exception as error:  # engines raise what they like
        waited = time.time() - before
        report.problem = f"{address} cannot be asked, after {waited:.0f} s ({type(error).__name__}: {error})."
    if not report.problem and not report.workers:
        report.problem = f"{address} answers, but has no workers: start some, or wait for them."
    return report


_Answer = tuple[str, tuple[str, str, int, float], float]


def _ask_dask(address: str, secrets: Secrets | None, guard: bytes, limit_s: float) -> Iterator[_Answer]:
    from distributed import Client

    security = secrets.dask_security() if secrets is not None and secrets.has_certificates else None
    if reason := try_scheduler(address, security):
        raise SurroundingsError(f"no Dask scheduler at {address}. {reason}")
    if speaks_tls(address):
        secure = address.replace("tcp://", "tls://")
        raise SurroundingsError(f"the scheduler at {address} speaks TLS: give {secure} and --secrets FOLDER.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Client(address, security=security, timeout=limit_s, set_as_default=False) as client:
            asked = time.time()
            answers = client.run(examine, guard, on_error="return")
    for where, said in answers.items():
        if isinstance(said, BaseException):
            said = (f"it cannot be examined ({type(said).__name__}: {said}).", where, 0, time.time())
        yield where, said, asked


def _ask_ray(address: str, secrets: Secrets | None, guard: bytes, limit_s: float) -> Iterator[_Answer]:
    from cryoscale.runtime.ray_start import import_ray, quietly

    with environment(secrets.ray_environment() if secrets is not None else {}):
        ray = import_ray(embedded=False)
        with _joined(ray, address, limit_s), quietly():
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            for node in ray.nodes():
                if not node["Alive"] or not node["Resources"].get("CPU"):
                    continue  # gone, or a driver's
                place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": place}
                asked = time.time()
                try:
                    said = ray.get(ray.remote(examine).options(**options).remote(guard), timeout=limit_s)
                except Exception as error:
                    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                    said = (f"it cannot be examined ({reason[0]}).", node["NodeManagerHostname"], 0, asked)
                yield node["NodeManagerAddress"], said, asked


@contextmanager
def _joined(ray: Any, address: str, limit_s: float) -> Iterator[None]:
    from cryoscale.runtime.ray_start import join_cluster, leave_cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        join_cluster(address, limit_s)
        yield
    finally:
        ray.shutdown()
        leave_cluster()
