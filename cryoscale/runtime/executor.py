"""The contract of an executor, and what all executors share: the window, tasks that run alone, deadlines.

::

    submit -> backlog -> [window: at most `window` tasks handed to the engine] -> wait -> outcomes

An executor never retries. Every submitted task comes back exactly once, as an outcome. The caller's retry,
mark and quarantine decisions need no knowledge of the engine.
"""

from __future__ import annotations

import importlib
import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from cryoscale.errors import ConfigurationError, StateError, SurroundingsError
from cryoscale.runtime.memory import cpu_count
from cryoscale.runtime.task import Outcome, Task, failed, pack

if TYPE_CHECKING:
    from types import TracebackType

# How long one look at the engine may take before deadlines are checked again, seconds.
_POLL_S = 1.0


# By default OpenMP's threads spin while they wait. On cores that are shared (two engines, other users) a
# training step then took 2 to 30 times as long as on one thread.
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class ExecutorSettings:
    """Where and how work runs; nothing here changes a result.

    Parameters
    ----------
    workers : int
        Processes; 0 means one per core (embedded) or as many as the cluster offers.
    threads_per_worker : int
        Threads that numerical libraries may use inside a worker. A worker runs one task at a time.
    memory_per_worker_bytes : int or None
        An embedded Dask worker above this is ended and its task lost; None sets no limit.
    gpus : int or None
        CUDA devices to share out among Ray workers; None means those of the cluster at `address`.
    address : str or None
        A running cluster; None starts an embedded one that ends with this process.
    secrets : Path or None
        Folder with the certificates (Dask) and the token (Ray) that a running cluster asks for.
    start_timeout_s : float
        How long to wait for a first worker, at the start and whenever all have gone.
    no_progress_timeout_s : float
        How long to wait while tasks are in flight and none ends. Training counts as one task: leave hours.
    per_worker_in_flight : int
        Tasks handed to one worker at a time: one runs, the rest hide the latency.
    scratch : Path or None
        Folder for the engines' temporary files; None means the system's.
    """

    workers: int = 0
    threads_per_worker: int = 1
    memory_per_worker_bytes: int | None = None
    gpus: int | None = 0
    address: str | None = None
    secrets: Path | None = None
    start_timeout_s: float = 120.0
    no_progress_timeout_s: float = 6 * 3600.0
    per_worker_in_flight: int = 2
    scratch: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 0),
            ("threads_per_worker", 1),
            ("gpus", 0),
            ("per_worker_in_flight", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name} must be at least {least}, got {getattr(self, name)}.")

    @property
    def local_workers(self) -> int:
        """Workers of an embedded engine: as asked, or as many as fit the cores."""
        return self.workers or max(1, cpu_count() // self.threads_per_worker)

    @property
    def thread_environment(self) -> dict[str, str]:
        """Environment that keeps the libraries in a worker from starting a thread per core each."""
        threads = str(self.threads_per_worker)
        names = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "BLOSC", "VECLIB_MAXIMUM")
        return {
            **{f"{name}_NUM_THREADS": threads for name in names if name != "BLOSC"},
            "BLOSC_NTHREADS": threads,
            **PATIENT_THREADS,
            "ZARR_ASYNC__CONCURRENCY": "4",
            "ZARR_THREADING__MAX_WORKERS": threads,
        }


class Executor(ABC):
    """Runs tasks and yields their outcomes as they end; see the module's drawing.

    Use it as a context manager, or call `start` and `close`. Not thread-safe: one controller drives it.

    Attributes
    ----------
    name : str
        "serial", "dask" or "ray".
    """

    name: ClassVar[str]

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self._tickets = itertools.count()
        self._backlog: deque[tuple[str, Task, bytes]] = deque()
        self._running: dict[str, Task] = {}
        self._arrived: list[Outcome] = []
        self._started = False
        self._progress_at = self._workers_at = time.monotonic()

    @property
    @abstractmethod
    def window(self) -> int:
        """How many tasks to keep submitted so that no worker idles."""

    @property
    def in_flight(self) -> int:
        """Tasks submitted whose outcome `wait` has not returned."""
        return len(self._backlog) + len(self._running) + len(self._arrived)

    def start(self) -> None:
        """Start or join the engine and wait until one worker answers.

        Raises
        ------
        SurroundingsError
            If no worker answered within `start_timeout_s`, or the engine could not be reached.
        """
        if self._started:
            return
        try:
            self._start()
        except BaseException:
            self._close()
            raise
        self._started = True
        self._progress_at = self._workers_at = time.monotonic()

    def submit(self, task: Task) -> None:
        """Take a task; more than `window` wait their turn inside, in order.

        A task that cannot be pickled comes back from `wait` as failed, not as an exception from here.
        """
        if not self._started:
            raise StateError(
                f"the {self.name} executor is not started.", remedy="Call start() before submit()."
            )
        if self.in_flight == 0:
            self._progress_at = time.monotonic()
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
                left = 0.0 if self._arrived else max(0.0, min(_POLL_S, deadline - time.monotonic()))
                for ticket, outcome in self._collect(left):
                    del self._running[ticket]
                    self._arrived.append(outcome)
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

    def close(self) -> None:
        """End what `start` started; tasks in flight are given up. Safe to call again."""
        self._backlog.clear()
        self._running.clear()
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
            beside_alone = any(other.alone for other in self._running.values())
            if beside_alone or (task.alone and self._running) or not self._has_room():
                return
            self._backlog.popleft()
            self._running[ticket] = task
            self._launch(ticket, task, payload)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._live_workers() > 0:
            self._workers_at = now
        elif now - self._workers_at > self.settings.start_timeout_s:
            self._workers_at = self._progress_at = now
            raise self._nobody("there has been no worker")
        patient = any(task.patient for task in self._running.values())
        if now - self._progress_at > self.settings.no_progress_timeout_s and not patient:
            self._progress_at = now
            names = ", ".join(task.identifier for task in list(self._running.values())[:5])
            raise SurroundingsError(
                f"no task has ended for {self.settings.no_progress_timeout_s:g} s under {self.name}: "
                f"{self._live_workers()} workers, {len(self._running)} tasks in flight ({names}).",
                remedy="Check whether the workers hang on storage that does not answer, or lack memory.",
            )

    def _nobody(self, what: str, detail: str = "") -> SurroundingsError:
        where = self.settings.address or "the engine that this process started"
        limit = f"waited up to {self.settings.start_timeout_s:g} s"
        return SurroundingsError(
            f"{what} under {self.name} at {where} ({limit}). {detail}".strip(),
            remedy="Check that workers run there, can reach the scheduler and have the same versions of "
            "Python and cryoscale, and read their logs; `cryoscale doctor` shows this side.",
        )

    def _has_room(self) -> bool:
        return len(self._running) < self.window

    @abstractmethod
    def _start(self) -> None:
        """Start the engine and wait for a worker."""

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
