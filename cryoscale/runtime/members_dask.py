"""One machine's part in a Dask cluster, as programs: the scheduler, or workers with their nannies.

Both are told what to do by a line of JSON, in which secrets are the name of their folder.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

from cryoscale.errors import CryoscaleError, SurroundingsError

# When a scheduler or worker whose machine is cut off is given up (TCP's own limit, then heartbeats).
_CUT_OFF_S = 30
_SILENT_S = 120
# Finished results wait at a leaving worker until the driver has fetched them: bytes, so seconds do.
_FETCH_S = 5.0
_POLL_S = 0.1
_CLOSE_S = 10.0


@dataclass(frozen=True)
class SchedulerPlan:
    """Where the scheduler listens."""

    host: str
    port: int
    secrets: str | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        return _command("scheduler", self)


@dataclass(frozen=True)
class WorkersPlan:
    """Which workers join which scheduler.

    Parameters
    ----------
    address : str
        Of the scheduler.
    host : str
        Of this machine, as the others reach it.
    count : int
        Worker processes; each runs one block at a time.
    memory_bytes : int or None
        A worker above this is ended and its block lost; None sets no limit.
    scratch : str
        Folder for Dask's own files.
    grace_s : float
        How long a running block may take to end when the workers are told to leave.
    wait_s : float
        How long to try to reach the scheduler.
    secrets : str or None
        Folder of the certificates.
    """

    address: str
    host: str
    count: int
    memory_bytes: int | None
    scratch: str
    grace_s: float = 60.0
    wait_s: float = 120.0
    secrets: str | None = None

    def command(self) -> list[str]:
        """Return the command line."""
        return _command("workers", self)


def _command(role: str, plan: SchedulerPlan | WorkersPlan) -> list[str]:
    return [sys.executable, "-m", "cryoscale.runtime.members_dask", role, json.dumps(asdict(plan))]


def _configure() -> None:
    import dask

    dask.config.set(
        {
            # A lost task is reported once; retries are counted by the driver.
            "distributed.scheduler.allowed-failures": 0,
            "distributed.scheduler.worker-ttl": f"{_SILENT_S}s",
            "distributed.comm.timeouts.tcp": f"{_CUT_OFF_S}s",
            "distributed.comm.timeouts.connect": f"{_CUT_OFF_S}s",
            # Pages that say what runs here, without a password: none are served. Dask opens the port anyhow,
            # so it is one of loopback.
            "distributed.scheduler.http.routes": [],
            "distributed.worker.http.routes": [],
            # Blocks hold nothing that Dask could spill, and a paused worker looks like a hung one.
            "distributed.worker.memory.pause": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.target": False,
            "distributed.worker.multiprocessing-method": "spawn",
        }
    )


def _security(folder: str | None) -> dict[str, Any]:
    """Return protocol and certificates, as keywords for Dask."""
    if folder is None:
        return {"protocol": "tcp://"}
    from cryoscale.runtime.secrets import Secrets

    return {"protocol": "tls://", "security": Secrets.open(folder).dask_security()}


def _told_to_end() -> asyncio.Event:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def serve_scheduler(plan: SchedulerPlan) -> None:
    """Run a scheduler until it is told to end.

    Raises
    ------
    SurroundingsError
        If it cannot listen there.
    """
    from distributed import Scheduler

    told = _told_to_end()
    scheduler = Scheduler(
        host=plan.host, port=plan.port, dashboard=False, dashboard_address="127.0.0.1:0",
        **_security(plan.secrets),
    )  # fmt: skip
    try:
        await scheduler
    except (OSError, ValueError, RuntimeError) as error:
        raise SurroundingsError(
            f"the Dask scheduler cannot listen at {plan.host}:{plan.port} ({error}).",
            remedy="Choose a free --port, and for --host an address of this machine.",
        ) from error
    print(f"Dask scheduler at {scheduler.address}", flush=True)
    await _first(told.wait(), scheduler.finished())
    await scheduler.close()


async def serve_workers(plan: WorkersPlan) -> None:
    """Run workers until they are told to leave, or have lost their scheduler.

    Raises
    ------
    SurroundingsError
        If the scheduler could not be reached in time, or went.
    """
    from distributed import Nanny

    told = _told_to_end()
    options = {
        "nthreads": 1, "host": plan.host, "memory_limit": plan.memory_bytes or 0,
        "local_directory": plan.scratch, "death_timeout": plan.wait_s,
        "dashboard": False, "dashboard_address": "127.0.0.1:0", "preload": ["cryoscale.runtime.members_dask"],
        **_security(plan.secrets),
    }  # fmt: skip
    nannies = [Nanny(plan.address, **options) for _ in range(plan.count)]
    try:
        await asyncio.gather(*nannies)
    except Exception as error:
        await _close(nannies)
        raise SurroundingsError(
            f"the Dask workers could not join {plan.address} within {plan.wait_s:.0f} s "
            f"({type(error).__name__}: {error})."
        ) from error
    print(f"{plan.count} Dask workers at {plan.host} joined {plan.address}", flush=True)
    await _first(told.wait(), *(nanny.finished() for nanny in nannies))
    if told.is_set():
        print(f"told to leave: running blocks have {plan.grace_s:.0f} s to end.", flush=True)
        await leave(nannies, plan.grace_s)
    await _close(nannies)
    if not told.is_set():
        raise SurroundingsError(f"the Dask scheduler at {plan.address} went, or sent the workers away.")


async def leave(nannies: list[Any], grace_s: float) -> None:
    """Let each worker end its block and take no other, then take it out of the cluster."""
    await asyncio.gather(*(_drain(nanny, grace_s) for nanny in nannies), return_exceptions=True)


async def _drain(nanny: Any, grace_s: float) -> None:
    address = nanny.worker_address
    if address is None:
        return
    from distributed.protocol.pickle import dumps

    async with nanny.rpc(address) as worker:
        await asyncio.wait_for(
            worker.run(function=dumps(finish), args=dumps((grace_s,)), wait=True), grace_s + _CLOSE_S
        )
    async with nanny.rpc(nanny.scheduler_addr) as scheduler:
        # In order: what it had not begun goes to others, and counts as nobody's failure.
        await asyncio.wait_for(
            scheduler.retire_workers(workers=[address], close_workers=False, remove=True), _CLOSE_S
        )


async def finish(grace_s: float, dask_worker: Any = None) -> None:
    """On a worker: begin nothing more, wait for what runs, then for its results to be fetched."""
    from distributed.core import Status

    loop = asyncio.get_running_loop()
    end = loop.time() + grace_s
    dask_worker.status = Status.paused
    while dask_worker.state.executing or dask_worker.state.long_running:
        if loop.time() >= end:
            return
        await asyncio.sleep(_POLL_S)
    end = loop.time() + _FETCH_S
    while dask_worker.data and loop.time() < end:
        await asyncio.sleep(_POLL_S)


async def _close(nannies: list[Any]) -> None:
    await asyncio.gather(*(nanny.close(timeout=_CLOSE_S) for nanny in nannies), return_exceptions=True)


def dask_setup(_worker: Any) -> None:
    """Ignore signals in worker processes (Dask calls this): batch systems signal all, the nanny decides."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def main(role: str, plan: str) -> int:
    """Serve until the end; 75 where the surroundings are at fault."""
    _configure()
    words = json.loads(plan)
    work = (
        serve_scheduler(SchedulerPlan(**words))
        if role == "scheduler"
        else serve_workers(WorkersPlan(**words))
    )
    try:
        asyncio.run(work)
    except CryoscaleError as error:
        print(f"cryoscale: {error}", file=sys.stderr, flush=True)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
