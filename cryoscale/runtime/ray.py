"""Tasks on Ray actors that load a model once and are fed blocks: an embedded Ray, or a running cluster."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryoscale.errors import SurroundingsError
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.probe import describe_worker, require_agreement
from cryoscale.runtime.ray_start import LONGEST_SCRATCH, import_ray, join_cluster, quietly, start_embedded
from cryoscale.runtime.reaper import Reaper
from cryoscale.runtime.scratch import claim_folder, drop_folder
from cryoscale.runtime.serial import dask_in_process
from cryoscale.runtime.task import Outcome, Task, WorkCache, failed, lost, run_packed, unpack_outcome

if TYPE_CHECKING:
    from pathlib import Path

# Actors that died before their first answer, per actor wanted, until nobody starts another one.
_STILLBORN_LIMIT = 3


class _Runner:
    """The actor: one process, one cache of opened works, one task at a time."""

    def __init__(self) -> None:
        self._cache = WorkCache()

    def describe(self) -> dict[str, str]:
        """Answer once; proves that the process runs and imported the package."""
        return describe_worker()

    def run(self, payload: bytes) -> bytes:
        """Run one packed task."""
        return run_packed(payload, self._cache, dask_in_process)

    def release(self) -> None:
        """Close what is held open."""
        self._cache.close()


@dataclass(eq=False)
class _Actor:
    handle: Any
    answer: Any  # the reference to its first answer
    ready: bool = False
    tickets: set[str] = field(default_factory=set)


class RayExecutor(Executor):
    """Runs tasks on one actor per worker; Ray restarts and retries nothing, we do.

    An embedded Ray listens on loopback alone and asks for a token, and its processes end with the thread that
    called `start` (the kernel sees to it), so call it from a thread that lives as long as the run. What Ray
    forgets when this process is killed, a `Reaper` ends.
    """

    name = "ray"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self._workers = settings.workers or 1
        self._gpus = settings.gpus or 0
        self._actors: list[_Actor] = []
        self._references: dict[Any, tuple[_Actor, str]] = {}
        self._owns_ray = False
        self._folder: Path | None = None
        self._reaper: Reaper | None = None
        self._stillborn = 0
        self._last_death = ""

    @property
    def window(self) -> int:
        """Actors times tasks per actor."""
        return self._workers * self.settings.per_worker_in_flight

    # -- start and end ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        ray = import_ray(embedded=self.settings.address is None)
        if not ray.is_initialized():
            self._owns_ray = True  # also of one that starts half: `_close` must end it
            self._connect()
        if self.settings.gpus is None:
            self._gpus = int(ray.cluster_resources().get("GPU", 0))
        self._workers = self._count_workers()
        self._stillborn = 0
        for _ in range(self._workers):
            self._add_actor()
        deadline = time.monotonic() + self.settings.start_timeout_s
        while self._actors and not self._live_workers() and time.monotonic() < deadline:
            self._collect(0.25)
        if not self._live_workers():
            raise self._nobody("no worker answered", self._last_death)

    def _connect(self) -> None:
        address, base = self.settings.address, self.settings.scratch
        try:
            if address is None:
                short = base is not None and len(str(base)) <= LONGEST_SCRATCH
                self._folder = claim_folder(base if short else None, "cryoscale-")
                self._reaper = Reaper(self._folder) if sys.platform == "linux" else None
                start_embedded(self.settings, self._folder)
            else:
                join_cluster(address, self.settings.start_timeout_s)
        except SurroundingsError:
            raise
        except Exception as error:
            what = "Ray did not start" if address is None else "this machine could not join the cluster"
            hint = (
                "" if address is None else " Run `ray start --address=… --num-cpus=0` on this machine first."
            )
            raise self._nobody(what, f"{type(error).__name__}: {error}{hint}") from error

    def _count_workers(self) -> int:
        import ray

        if self.settings.workers or self.settings.address is None:
            return self.settings.local_workers
        resources = ray.cluster_resources()
        if self._gpus:
            return max(1, min(self._gpus, int(resources.get("GPU", 0))))
        return max(1, int(resources.get("CPU", 0)) // self.settings.threads_per_worker)

    def _close(self) -> None:
        actors, self._actors = self._actors, []
        self._references.clear()
        owns, self._owns_ray = self._owns_ray, False
        if "ray" in sys.modules:
            import ray

            with quietly():
                with suppress(Exception):
                    if ray.is_initialized():
                        self._release(actors)
                with suppress(Exception):
                    if owns:
                        ray.shutdown()
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.dismiss()
        folder, self._folder = self._folder, None
        if folder is not None:
            drop_folder(folder)

    @staticmethod
    def _release(actors: list[_Actor]) -> None:
        import ray

        idle = [actor.handle.release.remote() for actor in actors if actor.ready and not actor.tickets]
        if idle:
            ray.wait(idle, num_returns=len(idle), timeout=5.0)
        for actor in actors:
            ray.kill(actor.handle, no_restart=True)

    # -- actors ----------------------------------------------------------------------------------------------

    def _add_actor(self) -> _Actor:
        import ray

        share = min(1.0, self._gpus / self._workers)
        handle = (
            ray.remote(_Runner)
            .options(
                num_cpus=self.settings.threads_per_worker,
                num_gpus=int(share * 1000) / 1000,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": self.settings.thread_environment},
            )
            .remote()
        )
        actor = _Actor(handle, handle.describe.remote())
        self._actors.append(actor)
        return actor

    def _replace(self, actor: _Actor) -> None:
        """Put a new actor in the place of one that died or must not be used again; once per actor."""
        import ray

        if actor not in self._actors:
            return
        self._actors.remove(actor)
        with suppress(Exception):  # it may only have been out of reach: make sure that it ends
            ray.kill(actor.handle, no_restart=True)
        if self._stillborn <= _STILLBORN_LIMIT * self._workers:
            self._add_actor()

    def _live_workers(self) -> int:
        return sum(actor.ready for actor in self._actors)

    # -- tasks -----------------------------------------------------------------------------------------------

    def _free_actor(self) -> _Actor | None:
        free = [a for a in self._actors if a.ready and len(a.tickets) < self.settings.per_worker_in_flight]
        return min(free, key=lambda a: len(a.tickets), default=None)

    def _has_room(self) -> bool:
        return self._free_actor() is not None

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        actor = self._free_actor()
        if task.alone and actor is not None:
            self._replace(actor)
            actor = self._actors[-1]
        if actor is None:
            raise AssertionError("launched without room")
        actor.tickets.add(ticket)
        self._references[actor.handle.run.remote(payload)] = (actor, ticket)

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        import ray

        starting = {actor.answer: actor for actor in self._actors if not actor.ready}
        waited_for = [*starting, *self._references]
        if not waited_for:
            threading.Event().wait(timeout)
            return []
        ended, _ = ray.wait(waited_for, num_returns=1, timeout=timeout)
        if ended:
            ended, _ = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        outcomes = []
        for reference in ended:
            if reference in starting:
                self._greet(starting[reference])
            else:
                actor, ticket = self._references.pop(reference)
                actor.tickets.discard(ticket)
                outcomes.append((ticket, self._outcome(reference, actor, self._running[ticket])))
        return outcomes

    def _greet(self, actor: _Actor) -> None:
        import ray

        try:
            said = ray.get(actor.answer)
        except Exception as error:
            self._stillborn += 1
            self._last_death = f"The last one died so: {str(error).strip()[-600:]}"
            self._replace(actor)
            return
        require_agreement(said, self.settings.address or "the embedded Ray")
        actor.ready = True
        self._stillborn = 0

    def _outcome(self, reference: Any, actor: _Actor, task: Task) -> Outcome:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return unpack_outcome(task, ray.get(reference))
        except RayTaskError as error:
            return failed(task, error)
        except RayError as error:
            self._replace(actor)
            return lost(task, f"the Ray actor that held this task died: {str(error).strip()[:600]}")
