"""Tasks on Ray actors that load a model once and are fed blocks: an embedded Ray, or a running cluster.

::

    begin -> actors asked for (pending ones are the demand that an autoscaler sees)
    actor's first answer -> fit: takes tasks | unfit: killed, and its machine is not used any more
    machines join or leave -> more or fewer actors; idle for long -> given back, until work comes
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryoscale.errors import SurroundingsError
from cryoscale.runtime.environment import environment
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.probe import Finding, unfit
from cryoscale.runtime.ray_actors import Actor, Runner, end_ray, unreachable
from cryoscale.runtime.ray_nodes import LOOK_S, Node, NodeWatch, ask, demand, room, size_of_worker
from cryoscale.runtime.ray_start import (
    LONGEST_SCRATCH,
    import_ray,
    join_cluster,
    leave_cluster,
    start_embedded,
)
from cryoscale.runtime.reaper import Reaper
from cryoscale.runtime.scratch import claim_folder, drop_folder
from cryoscale.runtime.task import Outcome, Task, failed, lost, unpack_outcome

if TYPE_CHECKING:
    from pathlib import Path

# Actors that died before their first answer, per actor wanted, until nobody starts another one; on a running
# cluster it is tried again after a while.
_STILLBORN_LIMIT, _STILLBORN_S = 3, 30.0
# Silence of a head until it is told, and until the run stops; Ray ends the process that asks after 60 s.
_SILENT_S, _GONE_S = 15.0, 40.0
_CLOSE_S = 15.0


class RayExecutor(Executor):
    """Runs tasks on one actor per worker; Ray restarts and retries nothing, we do.

    An embedded Ray listens on loopback alone and asks for a token, and its processes end with the thread that
    called `start` (the kernel sees to it), so call it from a thread that lives as long as the run. What Ray
    forgets when this process is killed, a `Reaper` ends.
    """

    name = "ray"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self._actors: list[Actor] = []
        self._references: dict[Any, tuple[Actor, str]] = {}
        self._owns_ray = self._joined = False
        self._folder: Path | None = None
        self._reaper: Reaper | None = None
        self._watch: NodeWatch | None = None
        self._nodes: dict[str, Node] = {}
        self._unfit: set[str] = set()  # machines that are not used
        self._gpus: float | None = None  # of one actor; unknown until the machines are
        self._stillborn, self._stillborn_at, self._last_death = 0, 0.0, ""
        self._tend_at, self._problem = 0.0, ""
        self._silence_told = self._resting = False

    @property
    def window(self) -> int:
        """Actors that proved themselves, times tasks per actor; at least for one."""
        return max(1, self._live_workers()) * self.settings.per_worker_in_flight

    # -- start and end ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._stillborn, self._tend_at, self._resting = 0, 0.0, False
        if self.settings.address is None:
            ray = import_ray(embedded=True)
            if not ray.is_initialized():
                self._owns_ray = True  # also of one that starts half: `_close` must end it
                self._connect_embedded()
            self._joined = True
        self._tend()

    def _connect_embedded(self) -> None:
        base = self.settings.scratch
        short = base is not None and len(str(base)) <= LONGEST_SCRATCH
        self._folder = claim_folder(base if short else None, "cryoscale-")
        self._reaper = Reaper(self._folder) if sys.platform == "linux" else None
        try:
            start_embedded(self.settings, self._folder)
        except Exception as error:
            raise self._nobody("Ray did not start", f"{type(error).__name__}: {error}") from error

    def _reach(self, address: str) -> None:
        """Join the cluster if its head answers; raise only what waiting does not mend."""
        self._problem = unreachable(address)
        if self._problem:
            return
        with environment(self.settings.ray_environment):
            ray = import_ray(embedded=False)
            if not ray.is_initialized():
                self._owns_ray = True
                try:
                    join_cluster(address, self.settings.start_timeout_s)
                except SurroundingsError:
                    raise
                except Exception as error:
                    raise self._nobody(
                        "this machine could not join the cluster", f"{type(error).__name__}: {error}"
                    ) from error
        self._joined = True
        self._watch = NodeWatch()

    def _close(self) -> None:
        actors, self._actors = self._actors, []
        watch, self._watch = self._watch, None
        self._references.clear()
        owns, self._owns_ray, self._joined = self._owns_ray, False, False
        self._nodes, self._unfit, self._gpus = {}, set(), None
        if watch is not None:
            watch.close()
        if "ray" in sys.modules:
            # A cluster whose head is gone answers nothing: do not wait for it for ever.
            silent = watch is not None and watch.silent_s > _SILENT_S
            ending = threading.Thread(target=end_ray, args=(actors, owns), daemon=True)
            ending.start()
            ending.join(_CLOSE_S if silent else None)
        if owns:
            leave_cluster()
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.dismiss()
        folder, self._folder = self._folder, None
        if folder is not None:
            drop_folder(folder)

    # -- machines --------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Look after the cluster: join it, follow its machines, ask for actors, give idle ones back."""
        now = time.monotonic()
        if self._watch is not None and self._joined:
            self._require_head(self._watch.silent_s)
        if now < self._tend_at:
            return
        self._tend_at = now + LOOK_S
        if not self._joined:
            assert self.settings.address is not None
            self._reach(self.settings.address)
        if self._joined:
            self._follow_nodes()
            self._size(now)

    def _require_head(self, silent_s: float) -> None:
        address = self.settings.address
        if silent_s > _GONE_S:
            raise SurroundingsError(
                f"the head of the Ray cluster at {address} has not answered for {silent_s:.0f} s.",
                remedy="The run stopped with its work kept; start the cluster again, then give the same "
                "command again.",
            )
        if silent_s > _SILENT_S and not self._silence_told:
            self.tell(f"the head of the Ray cluster at {address} does not answer; waiting.", "warning")
        self._silence_told = silent_s > _SILENT_S

    def _follow_nodes(self) -> None:
        """Take in the machines that joined; replace actors on those that left."""
        if self._watch is None:
            if self._gpus is None:
                self._gpus = self.settings.embedded_gpu_share
            return
        there = self._watch.nodes()
        for identifier in self._nodes.keys() - there.keys():
            del self._nodes[identifier]
            for actor in [a for a in self._actors if a.node == identifier and not a.tickets]:
                self._remove(actor)
        for identifier, node in there.items():
            if identifier not in self._nodes:
                self._nodes[identifier] = node
                ask(node, self._guard)
        if self._gpus is None and self._watch.looks:
            self._gpus, threads = size_of_worker(self.settings, there.values())
            self.settings = replace(self.settings, threads_per_worker=threads)

    def _hear(self, node: Node) -> None:
        import ray
        from ray.exceptions import RayTaskError

        examination, node.examination = node.examination, None
        try:
            finding = Finding(*ray.get(examination))
        except RayTaskError as error:
            self._refuse(node.host, node.identifier[:8], f"it cannot be examined ({str(error)[-300:]}).")
            self._shun(node.identifier)
            return
        except Exception:  # it left meanwhile
            return
        if self._judge(finding, node.asked, f"Ray node {node.identifier[:8]}"):
            node.proved = True
        else:
            self._shun(node.identifier)

    def _shun(self, identifier: str) -> None:
        """Use a machine no more; actors on it end."""
        self._unfit.add(identifier)
        for actor in [a for a in self._actors if a.node == identifier and not a.tickets]:
            self._remove(actor)

    # -- actors ----------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        """How many actors there should be: as asked for, or as many as the fit machines hold."""
        if self.settings.address is None:
            return self.settings.local_workers
        if self.settings.workers:
            return self.settings.workers
        cpus = self.settings.threads_per_worker
        fit = (node for node in self._nodes.values() if node.identifier not in self._unfit)
        return max(1, sum(room(node, cpus, self._gpus or 0.0) for node in fit))

    def _size(self, now: float) -> None:
        """Ask for the actors that are missing, give back what is too many or idle."""
        if self._gpus is None:
            return
        wanted = self._wanted()
        if self._stillborn > _STILLBORN_LIMIT * wanted:
            if self.settings.address is None and not self._actors:
                raise self._nobody("no worker answered", self._last_death)
            if now - self._stillborn_at < _STILLBORN_S:
                return
            self._stillborn = 0
        busy = all(actor.tickets for actor in self._actors if actor.ready)
        self._resting = self._resting and not (self._backlog or (self._running and busy))
        if not self._resting:
            for _ in range(wanted - len(self._actors)):
                self._add_actor()
        surplus = len(self._actors) - wanted
        for actor in [a for a in self._actors if not a.ready and not a.tickets][: max(0, surplus)]:
            self._remove(actor)
        limit = self.settings.idle_release_s
        if self.settings.address is None or limit is None:
            return
        for actor in [a for a in self._actors if a.ready and not a.tickets]:
            if now - actor.idle_since > limit and not self._backlog:
                self._resting = True  # until there is work for more than are left
                self._remove(actor)

    def _add_actor(self) -> Actor:
        import ray

        options: dict[str, Any] = {}
        if self.settings.address is not None:
            options["scheduling_strategy"] = "SPREAD"
            if self._unfit:
                options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._unfit))})"}
        handle = (
            ray.remote(Runner)
            .options(
                num_cpus=self.settings.threads_per_worker,
                num_gpus=self._gpus or 0,
                max_restarts=0,
                max_task_retries=0,
                runtime_env={"env_vars": self.settings.thread_environment},
                **options,
            )
            .remote()
        )
        actor = Actor(handle, handle.describe.remote(self._guard), time.time())
        self._actors.append(actor)
        return actor

    def _remove(self, actor: Actor) -> bool:
        """End an actor; say whether it was still one of ours."""
        import ray

        if actor not in self._actors:
            return False
        self._actors.remove(actor)
        with suppress(Exception):  # it may only have been out of reach: make sure that it ends
            ray.kill(actor.handle, no_restart=True)
        return True

    def _replace(self, actor: Actor) -> Actor | None:
        """Put a new actor in the place of one that died or must not be used again; once per actor."""
        wanted = self._wanted()
        if not self._remove(actor) or self._stillborn > _STILLBORN_LIMIT * wanted:
            return None
        return self._add_actor() if len(self._actors) < wanted else None

    def _live_workers(self) -> int:
        return sum(actor.ready for actor in self._actors)

    def _waiting_for(self) -> str:
        if self._problem or self._last_death:
            return self._problem or self._last_death
        if self.settings.address is None:
            return ""
        if self._gpus is None:
            return "Its machines are not known yet."
        threads = self.settings.threads_per_worker
        return demand(len(self._actors), threads, self._gpus, self._nodes.values())

    # -- tasks -----------------------------------------------------------------------------------------------

    def _free_actor(self) -> Actor | None:
        most = self.settings.per_worker_in_flight
        free = [a for a in self._actors if a.ready and not a.alone and len(a.tickets) < most]
        return min(free, key=lambda a: len(a.tickets), default=None)

    def _has_room(self) -> bool:
        return self._free_actor() is not None

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        actor = self._free_actor()
        if actor is not None and (task.alone or (task.fresh and not actor.tickets)):
            actor = self._replace(actor) or self._free_actor()
        if actor is None:  # none can be started now: it waits for one
            self._give_back(ticket)
            return
        actor.tickets.add(ticket)
        actor.alone = task.fresh and len(actor.tickets) == 1
        self._references[actor.handle.run.remote(self._guard, payload)] = (actor, ticket)

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        self._tend()
        starting = {actor.answer: actor for actor in self._actors if not actor.ready}
        asked = {node.examination: node for node in self._nodes.values() if node.examination is not None}
        waited_for = [*starting, *asked, *self._references]
        if not waited_for:
            threading.Event().wait(timeout)
            return []
        import ray

        ended, _ = ray.wait(waited_for, num_returns=1, timeout=timeout)
        if ended:
            ended, _ = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        outcomes = []
        for reference in ended:
            if reference in starting:
                self._greet(starting[reference])
            elif reference in asked:
                self._hear(asked[reference])
            else:
                actor, ticket = self._references.pop(reference)
                actor.tickets.discard(ticket)
                actor.alone, actor.idle_since = False, time.monotonic()
                outcome = self._outcome(reference, actor, ticket)
                if outcome is not None:
                    outcomes.append((ticket, outcome))
        return outcomes

    def _greet(self, actor: Actor) -> None:
        import ray

        try:
            found, node = ray.get(actor.answer)
        except Exception as error:
            self._stillborn, self._stillborn_at = self._stillborn + 1, time.monotonic()
            self._last_death = f"The last one died so: {str(error).strip()[-600:]}"
            if not actor.tickets:  # else the tasks that it held say so
                self._replace(actor)
            return
        actor.node, self._stillborn, self._last_death = node, 0, ""
        fit = self._judge(Finding(*found), actor.asked, f"Ray node {node[:8]}")
        if fit and node not in self._unfit:
            actor.ready, actor.idle_since = True, time.monotonic()
            return
        self._unfit.add(node)
        self._replace(actor)

    def _outcome(self, reference: Any, actor: Actor, ticket: str) -> Outcome | None:
        """Fetch how a task ended; None if it never began and goes to another worker."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = self._running[ticket]
        try:
            reply = ray.get(reference)
        except RayTaskError as error:
            return failed(task, error)
        except RayError as error:
            self._replace(actor)
            return lost(task, f"the Ray actor that held this task died: {str(error).strip()[:600]}")
        finding = unfit(reply)
        if finding is None:
            return unpack_outcome(task, reply)
        self._judge(finding, actor.asked, f"Ray node {actor.node[:8]}")
        self._unfit.update({actor.node} - {""})
        self._give_back(ticket)
        self._replace(actor)
        return None
