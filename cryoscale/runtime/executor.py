"""The contract of an executor, and what all executors share: the window, tasks that run alone, deadlines.

::

    submit -> backlog -> [window: at most `window` tasks handed to the engine] -> wait -> outcomes

An executor never retries. Every submitted task comes back exactly once, as an outcome. The caller's retry,
mark and quarantine decisions need no knowledge of the engine. What never began (its worker proved unfit, or
left in order) is handed to another worker, and does not count as a try.
"""

from __future__ import annotations

import importlib
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from cryoscale.errors import ConfigurationError, StateError, SurroundingsError
from cryoscale.runtime.packing import pack
from cryoscale.runtime.probe import Finding, Guard, clock_problem
from cryoscale.runtime.settings import ExecutorSettings
from cryoscale.runtime.task import Outcome, Task, failed

__all__ = ["Executor", "ExecutorSettings", "Tell", "open_executor"]

if TYPE_CHECKING:
    from types import TracebackType

# How long one look at the engine may take before deadlines are checked again; while nobody works; seconds.
_POLL_S, _EAGER_S = 1.0, 0.1
# While there is no worker: when that is told first, and how often again.
_FIRST_WORD_S, _WORD_S = 1.0, 15.0


Tell = Callable[[str, Literal["info", "warning"]], None]


class Executor(ABC):
    """Runs tasks and yields their outcomes as they end; see the module's drawing.

    Use it as a context manager, or call `start` and `close`. Not thread-safe: one controller drives it.

    Attributes
    ----------
    name : str
        "serial", "dask" or "ray".
    tell : callable
        Takes a sentence for the person who watches (who is waited for, who is not used), and "info" or
        "warning".
    """

    name: ClassVar[str]

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self.tell: Tell = lambda text, level: None
        self._guard = (settings.guard or Guard.of(self.name)).packed()
        self._tickets = itertools.count()
        self._backlog: deque[tuple[str, Task, bytes]] = deque()
        self._running: dict[str, Task] = {}
        self._payloads: dict[str, bytes] = {}
        self._arrived: list[Outcome] = []
        self._started = False
        self._progress_at = self._workers_at = time.monotonic()
        self._word_at: float | None = None  # when it was last told that there is no worker
        # From workers that are not used (host, and which of its processes) to why; what was told, by host.
        self._refused: dict[tuple[str, str], str] = {}
        self._refusals_told: set[tuple[str, str]] = set()
        self._clocks: set[str] = set()

    @property
    @abstractmethod
    def window(self) -> int:
        """How many tasks to keep submitted so that no worker idles."""

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose outcome `wait` has not returned."""
        return len(self._backlog) + len(self._running) + len(self._arrived)

    def begin(self) -> None:
        """Start or join the engine without waiting for workers: tasks wait until one is there.

        Raises
        ------
        SurroundingsError
            If the engine refused. One that only does not answer yet is waited for by `start` or `wait`.
        """
        if self._started:
            return
        self._progress_at = self._workers_at = time.monotonic()
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        self._started = True
        self._progress_at = self._workers_at = time.monotonic()

    def start(self) -> None:
        """Start or join the engine and wait until one worker has proved itself.

        Raises
        ------
        SurroundingsError
            If no fit worker answered within `start_timeout_s`, or the engine could not be reached.
        """
        self.begin()
        try:
            while not self._live_workers():
                self._take(_EAGER_S)
                self._check_workers(time.monotonic())
        except BaseException:
            self.close()
            raise

    def submit(self, task: Task) -> None:
        """Take a task; more than `window` wait their turn inside, in order.

        A task that cannot be pickled comes back from `wait` as failed, not as an exception from here.
        """
        if not self._started:
            raise StateError(
                f"the {self.name} executor is not started.", remedy="Call start() before submit()."
            )
        if self.in_flight == 0:
            self._progress_at = self._workers_at = time.monotonic()
        try:
            payload = pack(task)
        except Exception as error:
            self._arrived.append(failed(task, error))
            return
        self._backlog.append((str(next(self._tickets)), task, payload))
        self._pump()

    def wait(self, timeout: float) -> list[Outcome]:
        """Return the outcomes that are there, waiting up to `timeout` seconds for the first one.

        An empty list means that the time is up, or that nothing is in flight.

        Raises
        ------
        SurroundingsError
            If no worker has been there for `start_timeout_s`, or no task has ended for
            `no_progress_timeout_s`. The tasks stay in flight; waiting again starts the clocks afresh.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._pump()
            if self._running or self._backlog:
                poll = _POLL_S if self._live_workers() else _EAGER_S
                self._take(0.0 if self._arrived else max(0.0, min(poll, deadline - time.monotonic())))
            if self._arrived:
                arrived, self._arrived = self._arrived, []
                self._progress_at = self._workers_at = time.monotonic()
                self._pump()
                return arrived
            if not self.in_flight:
                return []
            self._check_deadlines()
            if time.monotonic() >= deadline:
                return []

    def tend(self) -> None:  # noqa: B027 - most engines need no care between tasks
        """Look after the engine while it has nothing to do; cheap, without deadlines: call it often."""

    def close(self) -> None:
        """End what `start` started; tasks in flight are given up. Safe to call again."""
        self._backlog.clear()
        self._running.clear()
        self._payloads.clear()
        self._arrived.clear()
        self._started = False
        self._close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pump(self) -> None:
        """Hand tasks to the engine: in order, within the window, an `alone` task with nothing beside it."""
        while self._backlog:
            ticket, task, payload = self._backlog[0]
            # A task that is alone has nobody beside it: looking at one is looking at all of them.
            beside_alone = len(self._running) == 1 and next(iter(self._running.values())).alone
            if beside_alone or (task.alone and self._running) or not self._has_room():
                return
            self._backlog.popleft()
            self._running[ticket] = task
            self._payloads[ticket] = payload
            self._launch(ticket, task, payload)

    def _take(self, timeout: float) -> None:
        """Collect what has ended."""
        for ticket, outcome in self._collect(timeout):
            del self._running[ticket], self._payloads[ticket]
            self._arrived.append(outcome)

    def _give_back(self, ticket: str) -> None:
        """Put a task that never began in front of the others; it is not a try."""
        task, payload = self._running.pop(ticket), self._payloads.pop(ticket)
        self._backlog.appendleft((str(next(self._tickets)), task, payload))

    def _judge(self, finding: Finding, asked: float, where: str) -> bool:
        """Say whether a worker may be used; tell, once per host and reason, if not, and if its clock is off.

        Parameters
        ----------
        finding : Finding
            What it says about itself.
        asked : float
            When it was asked, seconds since the epoch; it is answered now.
        where : str
            Its address, for the message.
        """
        if finding.host not in self._clocks and (clock := clock_problem(finding, asked, time.time())):
            self._clocks.add(finding.host)
            self.tell(clock, "warning")
        if finding.problem:
            self._refuse(finding.host, where, finding.problem)
        else:
            self._refused.pop((finding.host, where), None)
        return not finding.problem

    def _refuse(self, host: str, where: str, problem: str) -> None:
        self._refused[host, where] = problem
        if (host, problem) not in self._refusals_told:
            self._refusals_told.add((host, problem))
            self.tell(f"a worker on {host} ({where}) is not used: {problem}", "warning")

    def _check_workers(self, now: float) -> None:
        """Say who is waited for while there is no worker; raise when that takes too long."""
        if self._live_workers() > 0:
            self._workers_at, self._word_at = now, None
            return
        waited = now - self._workers_at
        if waited > self.settings.start_timeout_s:
            self._workers_at, self._word_at = now, None
            raise self._nobody("no worker answered", self._waiting_for())
        first = _FIRST_WORD_S if self.settings.address else _WORD_S
        if waited >= first and (self._word_at is None or now - self._word_at >= _WORD_S):
            self._word_at = now
            self.tell(
                f"waiting for a worker of {self._place()}, {self.settings.start_timeout_s - waited:.0f} s "
                f"left. {self._waiting_for()}".strip(),
                "info",
            )

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        self._check_workers(now)
        patient = any(task.patient for task in self._running.values())
        if now - self._progress_at > self.settings.no_progress_timeout_s and not patient:
            self._progress_at = now
            names = ", ".join(task.identifier for task in list(self._running.values())[:5])
            raise SurroundingsError(
                f"no task has ended for {self.settings.no_progress_timeout_s:g} s under {self.name}: "
                f"{self._live_workers()} workers, {len(self._running)} tasks in flight ({names}).",
                remedy="Check whether the workers hang on storage that does not answer, or lack memory.",
            )

    def _place(self) -> str:
        return f"{self.name} at {self.settings.address or 'the engine that this process started'}"

    def _nobody(self, what: str, detail: str = "") -> SurroundingsError:
        unfit = " ".join(dict.fromkeys(f"On {host}: {why}" for (host, _), why in self._refused.items()))
        limit = f"waited up to {self.settings.start_timeout_s:g} s"
        return SurroundingsError(
            " ".join(filter(None, [f"{what} under {self._place()} ({limit}).", detail, unfit])),
            remedy="Check that workers run there, can reach the scheduler and have the same versions of "
            "Python and cryoscale, and read their logs; `cryoscale doctor` shows this side.",
        )

    def _waiting_for(self) -> str:
        """Say what is missing while there is no worker; for messages."""
        return ""

    def _has_room(self) -> bool:
        return len(self._running) < self.window

    @abstractmethod
    def _start(self) -> None:
        """Start the engine, or begin to join it; `_collect` is called until there is a worker."""

    @abstractmethod
    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        """Hand one packed task to the engine; must not wait for it."""

    @abstractmethod
    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        """Return what has ended, waiting at most `timeout` seconds for the first."""

    @abstractmethod
    def _live_workers(self) -> int:
        """Count the workers that could take a task now."""

    @abstractmethod
    def _close(self) -> None:
        """End the engine; called more than once, and after a start that failed half way."""


_EXECUTORS: dict[str, tuple[str, str]] = {
    "serial": ("cryoscale.runtime.serial", "SerialExecutor"),
    "dask": ("cryoscale.runtime.dask", "DaskExecutor"),
    "ray": ("cryoscale.runtime.ray", "RayExecutor"),
}


def open_executor(kind: str, settings: ExecutorSettings | None = None) -> Executor:
    """Make an executor by name; it is not started yet.

    Raises
    ------
    ConfigurationError
        If the name is unknown.
    """
    if kind not in _EXECUTORS:
        raise ConfigurationError(
            f"there is no executor {kind!r}.", remedy=f"Choose one of {', '.join(_EXECUTORS)}."
        )
    module, name = _EXECUTORS[kind]
    made: Executor = getattr(importlib.import_module(module), name)(settings or ExecutorSettings())
    return made
