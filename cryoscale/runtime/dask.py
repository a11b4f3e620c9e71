"""Tasks on Dask's `distributed`: an embedded cluster of processes, or one that runs already.

::

    worker joins -> asked (examination, pinned to it) -> fit: tasks are pinned to it, two per thread
                                                      -> unfit: left alone, asked again after a while
    worker leaves -> in order: its tasks go to others | died: its tasks are lost

Which worker takes a task is decided here, not by the scheduler: so no task reaches a worker that has not
proved itself, and a running cluster's own `allowed-failures` cannot run a lost task again unseen.
"""

from __future__ import annotations

import queue
import threading
import time
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from cryoscale.errors import RefusedError
from cryoscale.runtime.dask_members import Member, Members, start_cluster
from cryoscale.runtime.dask_reach import speaks_tls, try_scheduler
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.packing import unpack_outcome
from cryoscale.runtime.probe import Finding, examine, run_guarded, unfit
from cryoscale.runtime.task import Outcome, Task, WorkCache, failed, lost

if TYPE_CHECKING:
    from collections.abc import Iterator

# One per worker process. Dask calls a plain function, so what a worker keeps open has to live in its module.
_CACHE = WorkCache()

# How long the last steps may take: fetching a finished outcome (a few hundred bytes), asking workers to close
# what they hold, ending the embedded cluster.
_GATHER_S = 15.0
_RELEASE_S = 5.0
_CLOSE_S = 30.0
# How often the scheduler is asked who is there (and while nobody is), how long that may take, how long one
# try to reach a scheduler may, how long until the next, and when an unfit worker is asked again.
_LOOK_S, _EAGER_S, _ASK_S, _TRY_S, _AGAIN_S, _RECONSIDER_S = 1.0, 0.1, 5.0, 10.0, 2.0, 60.0


def _run_on_worker(guard: bytes, payload: bytes, fit: list[str] | None) -> bytes:
    return run_guarded(guard, payload, _CACHE, lambda task: _client_for(task, fit))


def _client_for(task: Task, fit: list[str] | None) -> AbstractContextManager[Any]:
    """For a task that computes with dask: a client of its own cluster, as the default, on workers in `fit`.

    The worker gives its slot back while the task waits (it secedes): a cluster of one worker does not block.
    """
    return _restricted_client(fit) if task.needs_client else nullcontext()


@contextmanager
def _restricted_client(fit: list[str] | None) -> Iterator[Any]:
    from dask import annotate
    from distributed import worker_client

    with worker_client() as client, annotate(**({"workers": fit} if fit else {})):
        yield client


def _release() -> None:
    _CACHE.close()


class DaskExecutor(Executor):
    """Runs tasks on worker processes of Dask.

    Embedded workers are started by spawn (a fork after Zarr's threads began deadlocks), listen on loopback
    alone, and end with this process even when it is killed: each watches a pipe to its parent.
    """

    name = "dask"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self._cluster: Any = None
        self._client: Any = None
        self._security: Any = None
        self._futures: dict[str, Any] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._members = Members(settings.per_worker_in_flight)
        self._look_at = self._reach_at = 0.0
        self._problem = ""

    @property
    def window(self) -> int:
        """Threads of the workers that proved themselves, times tasks per thread; at least for one."""
        slots = self._members.slots
        return max(1, min(slots, self.settings.workers or slots)) * self.settings.per_worker_in_flight

    # -- start and end ---------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.settings.secrets is not None and (self.settings.address or "").startswith("tls:"):
            from cryoscale.runtime.secrets import Secrets

            self._security = Secrets.open(self.settings.secrets).dask_security()
        if self.settings.address is not None:
            self._reach()
            return
        try:
            with _quiet():
                self._cluster = start_cluster(self.settings)
                self._client = self._connect(self._cluster)
        except Exception as error:
            raise self._nobody("no worker answered", f"({type(error).__name__}: {error})") from error
        self._look()

    def _connect(self, where: Any) -> Any:
        from distributed import Client

        limit = min(self.settings.start_timeout_s, _TRY_S)
        return Client(where, timeout=limit, set_as_default=False, security=self._security)

    def _reach(self) -> None:
        """Try once to reach the scheduler; raise only what waiting does not mend."""
        address = self.settings.address
        assert address is not None
        self._reach_at = time.monotonic() + _AGAIN_S
        self._problem = try_scheduler(address, self._security)
        if self._problem:
            return
        try:
            with _quiet():
                self._client = self._connect(address)
        except Exception as error:
            if speaks_tls(address):
                raise RefusedError(
                    f"the Dask scheduler at {address} speaks TLS.",
                    remedy=f"Give --dask {address.replace('tcp://', 'tls://')} and --secrets FOLDER.",
                ) from error
            self._problem = f"It does not answer as a Dask scheduler ({type(error).__name__}: {error})."
            return
        self._look()

    def _close(self) -> None:
        client, cluster, self._client, self._cluster = self._client, self._cluster, None, None
        self._members.clear()
        self._futures.clear()
        self._ended = queue.SimpleQueue()
        with _quiet(), suppress(Exception):
            if client is not None:
                # A running cluster outlives us: it must not go on holding our models and stores.
                with suppress(Exception):
                    client.sync(client._run, _release, callback_timeout=_RELEASE_S)
                with suppress(Exception):
                    client.close(timeout=_RELEASE_S)
            if cluster is not None:
                cluster.close(timeout=_CLOSE_S)

    # -- workers ---------------------------------------------------------------------------------------------

    def _live_workers(self) -> int:
        return len(self._members.fit)

    def _waiting_for(self) -> str:
        if self._problem:
            return self._problem
        unanswered = [m.address for m in self._members.all.values() if m.examination is not None]
        if unanswered:
            return f"{len(unanswered)} have not answered yet ({', '.join(unanswered[:3])})."
        return "The scheduler is there, without workers." if not self._members.all else ""

    def _look(self) -> list[tuple[str, Outcome]]:
        """Find out who joined and who left; return the tasks that were lost with workers."""
        client, now = self._client, time.monotonic()
        if client is None or client.status != "running":
            return self._lose_connection(now)
        if now < self._look_at:
            return []
        self._look_at = now + (_LOOK_S if self._members.slots else _EAGER_S)
        try:
            there = client.sync(client.scheduler.ncores_running, callback_timeout=_ASK_S)
        except Exception:  # any failure to ask means the same: ask again
            return []
        outcomes = []
        for member in [m for address, m in self._members.all.items() if address not in there]:
            outcomes += self._left(member)
        for address, threads in there.items():
            member = self._members.all.setdefault(address, Member(address, threads))
            if not member.fit and member.examination is None and now >= member.again:
                self._ask(member)
        return outcomes

    def _lose_connection(self, now: float) -> list[tuple[str, Outcome]]:
        """Give up a connection that broke, and the tasks that were under way; try to reach a scheduler again.

        Dask's own client reconnects too, but not always, and its futures are gone either way.
        """
        broken, self._client = self._client, None
        futures, self._futures = self._futures, {}
        self._members.clear()
        if broken is not None:
            self.tell(f"the connection to {self._place()} is lost; its tasks are tried again.", "warning")
            threading.Thread(target=_discard, args=(broken,), daemon=True).start()
        if self.settings.address is not None and now >= self._reach_at:
            self._reach()
        why = "the connection to the Dask scheduler was lost while a worker held this task"
        return [(ticket, lost(self._running[ticket], why)) for ticket in futures]

    def _ask(self, member: Member) -> None:
        member.asked = time.time()
        member.examination = self._client.submit(
            examine, self._guard, pure=False, retries=0, workers=[member.address], allow_other_workers=False
        )
        # `_ended` wakes the collector; what is not a ticket is an answer.
        member.examination.add_done_callback(lambda _: self._ended.put(""))

    def _hear(self) -> None:
        """Take the answers of workers that were asked."""
        for member in list(self._members.all.values()):
            if member.examination is not None and member.examination.done():
                examination, member.examination = member.examination, None
                try:
                    finding = Finding(*examination.result(timeout=_GATHER_S))
                except Exception as error:
                    self._puzzle(member, error)
                    continue
                if self._judge(finding, member.asked, member.address):
                    self._members.approve(member)
                else:
                    member.again = time.monotonic() + _RECONSIDER_S

    def _puzzle(self, member: Member, error: Exception) -> None:
        from distributed import CancelledError, KilledWorker

        member.again = time.monotonic() + _AGAIN_S
        if not isinstance(error, (KilledWorker, CancelledError, OSError, TimeoutError)):
            # Most often the worker's image lacks the package.
            member.again += _RECONSIDER_S
            host = member.address.partition("://")[2].rpartition(":")[0]
            self._refuse(host, member.address, f"it cannot be examined ({type(error).__name__}: {error}).")

    def _left(self, member: Member) -> list[tuple[str, Outcome]]:
        """Drop a worker that takes no more tasks; wait for what it still does, unless it is gone."""
        self._members.disuse(member)
        if member.tickets and self._works_on(member.address):
            return []
        self._members.drop(member)
        if not member.tickets:
            return []
        begun = self._died_with(member.address)
        outcomes = []
        for ticket in sorted(member.tickets):
            future = self._futures[ticket]
            if future.done():
                continue  # its end is in the queue
            del self._futures[ticket]
            future.cancel()
            if begun is not None and future.key not in begun:
                self._give_back(ticket)
            else:
                why = f"the Dask worker at {member.address} died while it held this task"
                outcomes.append((ticket, lost(self._running[ticket], why, member.address)))
        return outcomes

    def _works_on(self, address: str) -> bool:
        try:
            return address in self._client.sync(self._client.scheduler.ncores, callback_timeout=_ASK_S)
        except Exception:  # asked again with the next look
            return True

    def _died_with(self, address: str) -> set[str] | None:
        """Return the keys that a worker held when it died: none if it left in order, None if nobody knows."""
        events = None
        with suppress(Exception):
            events = self._client.sync(self._client.scheduler.events, topic=address, callback_timeout=_ASK_S)
        removals = [event for _, event in events or () if event.get("action") == "remove-worker"]
        if not removals:
            return None
        return set() if removals[-1]["expected"] else set(removals[-1]["processing-tasks"])

    # -- tasks -----------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        running = self._client is not None and self._client.status == "running"
        return running and super()._has_room() and self._members.free() is not None

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        member = self._members.free()
        assert member is not None
        member.tickets.add(ticket)
        member.alone = task.fresh and len(member.tickets) == 1
        self._members.file(member)
        fit = [m.address for m in self._members.fit] if task.needs_client else None
        future = self._client.submit(
            _run_on_worker,
            self._guard,
            payload,
            fit,
            key=f"cryoscale-{id(self):x}-{ticket}",
            pure=False,
            retries=0,
            workers=[member.address],
            allow_other_workers=False,
        )
        future.cryoscale_member, future.cryoscale_asked = member, time.time()
        self._futures[ticket] = future
        future.add_done_callback(lambda _, ended=ticket: self._ended.put(ended))

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        outcomes = self._look()
        tickets = []
        with suppress(queue.Empty):
            wait = timeout and not outcomes
            tickets.append(self._ended.get(timeout=timeout) if wait else self._ended.get_nowait())
            while True:
                tickets.append(self._ended.get_nowait())
        if "" in tickets:
            self._hear()
        ended = ((ticket, self._outcome(ticket)) for ticket in tickets if ticket in self._futures)
        return outcomes + [(ticket, outcome) for ticket, outcome in ended if outcome is not None]

    def _outcome(self, ticket: str) -> Outcome | None:
        """Fetch how a task ended; None if it never began and goes to another worker."""
        from distributed import CancelledError, KilledWorker

        task, future = self._running[ticket], self._futures.pop(ticket)
        member = future.cryoscale_member
        member.tickets.discard(ticket)
        member.alone = False
        self._members.file(member)
        try:
            reply = future.result(timeout=_GATHER_S)
        except KilledWorker as error:
            self._members.drop(member)
            self._look_at = 0.0
            address = error.last_worker.address
            return lost(task, f"the Dask worker at {address} died while it held this task", address)
        except (CancelledError, OSError, TimeoutError) as error:
            # The scheduler went, or the worker did after it had finished: nobody knows what is written.
            future.cancel()
            return lost(task, f"the outcome was lost on its way ({type(error).__name__}: {error})")
        except Exception as error:
            return failed(task, error)
        finding = unfit(reply)
        if finding is None:
            return unpack_outcome(task, reply)
        self._judge(finding, future.cryoscale_asked, member.address)
        self._members.disuse(member)
        member.again = time.monotonic() + _RECONSIDER_S
        self._give_back(ticket)
        return None


def _discard(client: Any) -> None:
    with suppress(Exception):
        client.close(timeout=_RELEASE_S)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings: a taken default port (ours are arbitrary), other versions (the guard tells)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
