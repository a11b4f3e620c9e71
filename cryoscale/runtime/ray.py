"""Tasks on Ray actors that load a model once and are fed blocks: an embedded Ray, or a running cluster.

::

    begin -> actors asked for (pending ones are the demand that an autoscaler sees)
    actor's first answer -> fit: takes tasks | unfit: killed, and its machine is not used any more
    machines join or leave -> more or fewer actors; idle for long -> given back, until work comes
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from cryoscale.errors import RefusedError, SurroundingsError
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.packing import unpack_outcome
from cryoscale.runtime.probe import Finding, unfit
from cryoscale.runtime.ray_actors import Actor, end_actor, start_actor
from cryoscale.runtime.ray_link import RayLink
from cryoscale.runtime.ray_nodes import LOOK_S, SILENT_S, Node, ask, demand, room, size_of_worker
from cryoscale.runtime.task import Outcome, Task, failed, lost

# Actors that were never ready, per actor wanted, until nobody starts another one; it is tried again after a
# while.
_STILLBORN_LIMIT, _STILLBORN_S = 3, 30.0
# Silence of a head until the cluster is given up, when an unfit machine is asked again, when machines are
# looked for again while none is known.
_GONE_S, _RECONSIDER_S, _EAGER_S = 40.0, 60.0, 0.2


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
        self._link = RayLink()
        self._asked = settings  # `settings` has the size of a worker that was chosen
        self._nodes: dict[str, Node] = {}
        self._unfit: set[str] = set()  # machines that are not used
        self._gpus: float | None = None  # of one actor; unknown until the machines are
        self._stillborn, self._stillborn_at, self._last_death = 0, 0.0, ""
        self._tend_at, self._problem = 0.0, ""
        # Resting: some actors were given back while these tasks ran, and nothing has needed them since.
        self._resting, self._ran_then = False, set[str]()
        self._silence_told = self._away = self._sized = False

    @property
    def window(self) -> int:
        """Actors that proved themselves, times tasks per actor; at least for one."""
        return max(1, self._live_workers()) * self.settings.per_worker_in_flight

    # -- start and end ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._stillborn, self._tend_at, self._resting, self._away = 0, 0.0, False, False
        if self.settings.address is None:
            try:
                self._link.start(self.settings)
            except ImportError:
                raise
            except Exception as error:
                raise self._nobody("Ray did not start", f"{type(error).__name__}: {error}") from error
        self._tend()

    def _reach(self) -> None:
        """Join the cluster if its head answers; raise only what waiting does not mend."""
        try:
            self._problem = self._link.reach(self._asked)
        except RefusedError:
            raise
        except TimeoutError as error:
            raise self._nobody("this machine could not join the cluster", str(error)) from error

    def _close(self) -> None:
        actors, self._actors = self._actors, []
        self._references.clear()
        self._nodes, self._unfit, self._gpus = {}, set(), None
        self._stillborn, self._last_death, self._silence_told, self._sized = 0, "", False, False
        self._link.close(actors)

    def tend(self) -> None:
        """Look after the cluster between tasks: is its head there, who is idle; at most every `LOOK_S`."""
        if self._started and time.monotonic() >= self._tend_at:
            self._take(0.0)

    # -- machines --------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Look after the cluster: join it, follow its machines, ask for actors, give idle ones back."""
        now = time.monotonic()
        if self._link.joined:
            self._require_head(self._link.silent_s)
        if now < self._tend_at:
            return
        self._tend_at = now + LOOK_S
        if not self._link.joined and (self.in_flight or not self._away):
            self._away = False
            self._reach()
        # What is asked of a head that is gone does not come back for a minute.
        if not self._link.joined or self._link.silent_s > 2 * LOOK_S:
            return
        try:
            self._follow_nodes()
            self._size(now)
            if self._gpus is None:  # the first look at the machines is under way
                self._tend_at = now + _EAGER_S
        except SurroundingsError:
            raise
        except Exception:
            if self._link.silent_s <= 2 * LOOK_S:
                raise

    def _require_head(self, silent_s: float) -> None:
        """Tell that a head is silent; leave one that is gone, and stop if there is work."""
        head = f"the head of the Ray cluster at {self.settings.address}"
        if silent_s > _GONE_S and not self.in_flight:
            self.tell(
                f"{head} is gone ({silent_s:.0f} s); it is looked for again when there is work.", "warning"
            )
            self._close()
            self._away = True
        elif silent_s > _GONE_S:
            raise SurroundingsError(
                f"{head} has not answered for {silent_s:.0f} s.",
                remedy="The run stopped with its work kept; start the cluster again, then give the same "
                "command again.",
            )
        elif silent_s > SILENT_S and not self._silence_told:
            self.tell(f"{head} does not answer; waiting.", "warning")
        self._silence_told = SILENT_S < silent_s <= _GONE_S

    def _follow_nodes(self) -> None:
        """Take in the machines that joined; replace actors on those that left."""
        watch = self._link.watch
        if watch is None:
            if self._gpus is None:
                self._gpus = self.settings.embedded_gpu_share
            return
        there = watch.nodes()
        for identifier in self._nodes.keys() - there.keys():
            del self._nodes[identifier]
            self._unfit.discard(identifier)
            self._remove_idle(identifier)
        for identifier, node in there.items():
            known = self._nodes.setdefault(identifier, node)
            if known.examination is None and not known.proved and time.monotonic() >= known.again:
                ask(known, self._guard)
        if watch.looks and not self._sized:
            self._choose_size()

    def _choose_size(self) -> None:
        """Choose the size of an actor; again with each look until one is ready: machines join one by one."""
        gpus, threads = size_of_worker(self._asked, self._nodes.values())
        if (gpus, threads) == (self._gpus, self.settings.threads_per_worker):
            return
        self._gpus, self.settings = gpus, replace(self._asked, threads_per_worker=threads)
        for actor in [a for a in self._actors if not a.ready]:
            self._remove(actor)

    def _hear(self, node: Node) -> None:
        import ray
        from ray.exceptions import RayTaskError

        examination, node.examination = node.examination, None
        node.again = time.monotonic() + _RECONSIDER_S
        try:
            finding = Finding(*ray.get(examination))
        except RayTaskError as error:
            self._refuse(
                node.host, f"Ray node {node.identifier[:8]}", f"it cannot be examined ({str(error)[-300:]})."
            )
            self._shun(node.identifier)
            return
        except Exception:  # it left meanwhile
            return
        node.proved = self._judge(finding, node.asked, f"Ray node {node.identifier[:8]}")
        if node.proved:
            self._unfit.discard(node.identifier)
        else:
            self._shun(node.identifier)

    def _shun(self, identifier: str) -> None:
        """Use a machine no more until it is examined again; actors on it end."""
        self._unfit.add(identifier)
        if node := self._nodes.get(identifier):
            node.proved, node.again = False, time.monotonic() + _RECONSIDER_S
        self._remove_idle(identifier)

    def _remove_idle(self, identifier: str) -> None:
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
            if self.settings.address is None and not self._actors and self._last_death:
                raise self._nobody("no worker answered", self._last_death)
            if now - self._stillborn_at < _STILLBORN_S:
                return
            self._stillborn = 0
        self._resting = self._resting and not self._needs_more()
        if not self._resting:
            for _ in range(wanted - len(self._actors)):
                self._add_actor()
        surplus = len(self._actors) - wanted
        for actor in [a for a in self._actors if not a.ready and not a.tickets][: max(0, surplus)]:
            self._remove(actor)
        self._release_idle(now)

    def _needs_more(self) -> bool:
        """Whether work came that those who were not given back have no room for."""
        full = len(self._running) >= self.window and not self._running.keys() <= self._ran_then
        return bool(self._backlog) or full

    def _release_idle(self, now: float) -> None:
        limit = self.settings.idle_release_s
        if self.settings.address is None or limit is None or self._backlog:
            return
        for actor in [a for a in self._actors if a.ready and not a.tickets]:
            if now - actor.idle_since > limit:
                self._resting, self._ran_then = True, set(self._running)
                self._remove(actor)

    def _add_actor(self) -> Actor:
        elsewhere = self._unfit if self.settings.address is not None else None
        actor = start_actor(self.settings, self._gpus or 0.0, self._guard, elsewhere)
        self._actors.append(actor)
        return actor

    def _remove(self, actor: Actor) -> bool:
        """End an actor; say whether it was still one of ours."""
        if actor not in self._actors:
            return False
        self._actors.remove(actor)
        end_actor(actor)
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
        for reference in sorted(
            ended, key=lambda one: one not in starting
        ):  # who is ready is to be known first
            if reference in starting:
                self._greet(starting[reference])
            elif reference in asked:
                self._hear(asked[reference])
            elif reference in self._references:
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
            self._bury(actor)
            return
        actor.node, self._last_death = node, ""
        if self._judge(Finding(*found), actor.asked, f"Ray node {node[:8]}") and node not in self._unfit:
            actor.ready, actor.idle_since = True, time.monotonic()
            self._stillborn, self._sized = 0, True
            return
        if self.settings.address is None:  # there is no other machine: count it, or it goes on without end
            self._stillborn, self._stillborn_at = self._stillborn + 1, time.monotonic()
        else:
            self._shun(node)
        self._bury(actor)

    def _bury(self, actor: Actor) -> None:
        """Replace an actor that was never ready; tasks that it was to run have not begun."""
        for reference, (holder, ticket) in list(self._references.items()):
            if holder is actor:
                del self._references[reference]
                self._give_back(ticket)
        actor.tickets.clear()
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
            if not actor.ready:  # nothing is known of it: its first answer says whether it ever began
                self._greet(actor)
            if not actor.ready:
                self._give_back(ticket)
                return None
            self._replace(actor)
            return lost(task, f"the Ray actor that held this task died: {str(error).strip()[:600]}")
        finding = unfit(reply)
        if finding is None:
            return unpack_outcome(task, reply)
        self._judge(finding, actor.asked, f"Ray node {actor.node[:8]}")
        if actor.node and self.settings.address is not None:
            self._shun(actor.node)
        self._give_back(ticket)
        self._replace(actor)
        return None
