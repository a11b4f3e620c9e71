"""The actors of a Ray executor: what runs in their processes, what is known of them here, how they end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryoscale.runtime.probe import examine, run_guarded
from cryoscale.runtime.ray_start import quietly
from cryoscale.runtime.serial import dask_in_process
from cryoscale.runtime.task import WorkCache

if TYPE_CHECKING:
    from cryoscale.runtime.settings import ExecutorSettings

_CONNECT_S = 0.5


class Runner:
    """The actor: one process, one cache of opened works, one task at a time."""

    def __init__(self) -> None:
        self._cache = WorkCache()

    def describe(self, guard: bytes) -> tuple[tuple[str, str, int, float], str]:
        """Answer once: what this process found out about itself, and which node it is on."""
        import ray

        return examine(guard), ray.get_runtime_context().get_node_id()

    def run(self, guard: bytes, payload: bytes) -> bytes:
        """Run one packed task."""
        return run_guarded(guard, payload, self._cache, dask_in_process)

    def release(self) -> None:
        """Close what is held open."""
        self._cache.close()


@dataclass(eq=False)
class Actor:
    """An actor as the executor sees it.

    Parameters
    ----------
    handle, answer : ray handle and reference
        It, and its first answer.
    asked : float
        When it was asked for, seconds since the epoch.
    ready, alone : bool
        Whether it proved itself; whether its one task is to take no other along if it kills it.
    node : str
        Ray's name of its machine.
    idle_since : float
        When its last task ended, by the monotonic clock.
    tickets : set of str
        Tasks that it holds.
    """

    handle: Any
    answer: Any
    asked: float
    ready: bool = False
    node: str = ""
    idle_since: float = 0.0
    alone: bool = False
    tickets: set[str] = field(default_factory=set)


def start_actor(
    settings: ExecutorSettings, gpus: float, guard: bytes, elsewhere: Iterable[str] | None
) -> Actor:
    """Ask Ray for an actor.

    Parameters
    ----------
    settings : ExecutorSettings
        Its cores and environment.
    gpus : float
        CUDA devices of it.
    guard : bytes
        What it must prove.
    elsewhere : iterable of str or None
        Machines of a cluster that it must not be on; None for an embedded Ray.
    """
    import ray

    options: dict[str, Any] = {}
    if elsewhere is not None:
        options["scheduling_strategy"] = "SPREAD"
        if names := sorted(elsewhere):
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(names)})"}
    handle = (
        ray.remote(Runner)
        .options(
            num_cpus=settings.threads_per_worker,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": settings.thread_environment},
            **options,
        )
        .remote()
    )
    return Actor(handle, handle.describe.remote(guard), time.time())


def end_actor(actor: Actor) -> None:
    """End an actor, also one that may only be out of reach; never raises."""
    import ray

    with suppress(Exception):
        ray.kill(actor.handle, no_restart=True)


def end_ray(actors: list[Actor], owns: bool) -> None:
    """End actors, and Ray itself if this process started or joined it; never raises."""
    import ray

    with quietly():
        with suppress(Exception):
            if ray.is_initialized():
                _release(actors)
        with suppress(Exception):
            if owns:
                ray.shutdown()


def _release(actors: list[Actor]) -> None:
    import ray

    idle = [actor.handle.release.remote() for actor in actors if actor.ready and not actor.tickets]
    if idle:
        ray.wait(idle, num_returns=len(idle), timeout=5.0)
    for actor in actors:
        ray.kill(actor.handle, no_restart=True)


def unreachable(address: str) -> str:
    """Say why nothing answers at an address; empty if something does, or if only Ray understands it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"Nothing answers there ({error.strerror or error})."
    return ""
