"""The workers of a Dask cluster as the executor sees them, and the embedded cluster that it may start."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryoscale.runtime.environment import environment

if TYPE_CHECKING:
    from cryoscale.runtime.executor import ExecutorSettings


@dataclass(eq=False)
class Member:
    """A worker process of the cluster.

    Parameters
    ----------
    address : str
        Dask's name of it.
    threads : int
        How many tasks it runs at a time.
    examination : future or None
        Set while it is asked what it is.
    asked : float
        When it was asked, seconds since the epoch.
    fit, alone : bool
        Whether it may be used; whether its one task is to take no other along if it kills it.
    again : float
        When to ask an unfit one again, by the monotonic clock.
    tickets : set of str
        Tasks that it holds.
    """

    address: str
    threads: int
    examination: Any = None
    asked: float = 0.0
    fit: bool = False
    alone: bool = False
    again: float = 0.0
    tickets: set[str] = field(default_factory=set)


class Members:
    """All workers, those with room filed by how much they have to do: the least busy one is found at once.

    Parameters
    ----------
    per_thread : int
        Most tasks that a thread of a worker is given.
    """

    def __init__(self, per_thread: int) -> None:
        self.all: dict[str, Member] = {}
        self.slots = 0  # threads of those that are fit
        self._ready: list[dict[str, Member]] = [{} for _ in range(per_thread)]

    @property
    def fit(self) -> list[Member]:
        """Those that may be used."""
        return [member for member in self.all.values() if member.fit]

    def free(self) -> Member | None:
        """Return the least busy worker with room."""
        return next((next(iter(level.values())) for level in self._ready if level), None)

    def approve(self, member: Member) -> None:
        """Use a worker from now on."""
        member.fit = True
        self.slots += member.threads
        self.file(member)

    def file(self, member: Member) -> None:
        """Put a worker where it belongs, after its tasks changed."""
        for level in self._ready:
            level.pop(member.address, None)
        busy = len(member.tickets) // member.threads
        if member.fit and not member.alone and busy < len(self._ready):
            self._ready[busy][member.address] = member

    def disuse(self, member: Member) -> None:
        """Give a worker no more tasks."""
        if member.fit:
            member.fit = False
            self.slots -= member.threads
        self.file(member)

    def drop(self, member: Member) -> None:
        """Forget a worker that is gone."""
        self.disuse(member)
        if self.all.get(member.address) is member:
            del self.all[member.address]

    def clear(self) -> None:
        """Forget all."""
        self.all.clear()
        for level in self._ready:
            level.clear()
        self.slots = 0


def start_cluster(settings: ExecutorSettings) -> Any:
    """Start a scheduler and worker processes on loopback, which end with this process."""
    import dask
    from distributed import LocalCluster

    configuration = {
        # Dask would run a dead worker's tasks again by itself, unseen. With 0 each loss is reported to us
        # once and retries are counted in one place. (A running cluster keeps its own setting.)
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.worker-saturation": float(settings.per_worker_in_flight),
        "distributed.worker.multiprocessing-method": "spawn",
        # Blocks hold nothing that Dask could spill, and a paused worker looks like a hung one.
        "distributed.worker.memory.pause": False,
        # Before the spawn: libraries read these when they are loaded.
        "distributed.nanny.pre-spawn-environ": settings.thread_environment,
        "distributed.nanny.environ": settings.thread_environment,
    }
    # Dask sets the variables in this process too, for good; here they would slow down whoever computes.
    with environment(settings.thread_environment), dask.config.set(configuration):
        return LocalCluster(
            n_workers=settings.local_workers,
            threads_per_worker=1,
            host="127.0.0.1",
            scheduler_port=0,
            dashboard_address=None,
            memory_limit=settings.memory_per_worker_bytes or 0,
            local_directory=str(settings.scratch) if settings.scratch else None,
            silence_logs=logging.CRITICAL,
            death_timeout=settings.start_timeout_s,
        )
