"""What travels to a worker, what comes back, and the one function that runs it there.

A task is packed by the driver and unpacked by the worker (`runtime/packing.py`) with the standard library's
pickle, under every executor alike. So a work that cannot travel is met under `serial` too, and neither
engine's own rules about serialisation (read-only arrays, rebuilt dataclasses) reach a stage.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cryoscale.errors import CryoscaleError, LayoutError, SurroundingsError, UndeclaredAccessError
from cryoscale.runtime.memory import peak_bytes, reset_peak
from cryoscale.runtime.redaction import redacted
from cryoscale.runtime.worker_log import worker_log

FailureKind = Literal["data", "surroundings", "bug"]
Status = Literal["finished", "failed", "lost"]
OUT_OF_MEMORY = "out of memory"  # how such a failure's message begins

_SURROUNDINGS_ERRNO = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.ESTALE,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOTCONN,  # a FUSE mount whose server went
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EREMOTEIO,
    )
)

# Errors of clients for object stores and of the engines that do not derive from OSError. They are known by
# name because importing their packages here would cost every worker that never meets them.
_SURROUNDINGS_NAMES = frozenset(
    (
        "ClientConnectionError",
        "ConnectTimeoutError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "KilledWorker",
        "ReadTimeoutError",
        "ServerDisconnectedError",
    )
)


class Work(Protocol):
    """A small picklable description of what a worker opens once and then applies to many arguments.

    Attributes
    ----------
    key : str
        Equal keys mean the same work: a worker opens each key once and keeps the last few open.
    """

    @property
    def key(self) -> str:
        """Name of what `open` opens."""
        ...

    def open(self) -> AbstractContextManager[Callable[[Any], Any]]:
        """Open stores, load models; yield the function that does one argument."""
        ...


@dataclass(frozen=True)
class Task:
    """One unit of work for one worker.

    Parameters
    ----------
    identifier : str
        Name in events and messages; unique within a run and attempt.
    work : Work
        What to open; see `Work`.
    argument : object
        What the opened function is called with: a descriptor, never an array.
    attempt : int
        1 for the first try. Executors do not count; the controller does.
    alone : bool
        Run with nothing else in flight, with everything opened afresh.
    needs_client : bool
        The function itself computes with dask collections (k-means).
    patient : bool
        May take for ever (a training): while it runs, the executor's no-progress deadline does not count.
    fresh : bool
        Run on a worker with everything opened afresh, and alone there if the engine can choose the worker;
        others go on elsewhere.
    """

    identifier: str
    work: Work
    argument: Any
    attempt: int = 1
    alone: bool = False
    needs_client: bool = False
    patient: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a task failed.

    Parameters
    ----------
    kind : {"data", "surroundings", "bug"}
        Who is to blame: this input, the machine around it, or the code.
    type, message, traceback : str
        The exception's class, its text, and where it was raised, as text.
    """

    kind: FailureKind
    type: str
    message: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception; never raises, even when the exception cannot be printed."""
        try:
            text = str(error)
        except Exception:
            text = "(the exception has no printable text)"
        if _out_of_memory(error):
            text = (
                f"{OUT_OF_MEMORY}: {text or 'no more could be allocated'}. "
                "Make the block or the batch smaller, or run fewer workers on this machine."
            )
        return cls(
            kind=classify(error),
            type=type(error).__name__,
            message=redacted(text) or type(error).__name__,
            traceback=redacted("".join(traceback.format_exception(error))),
        )


@dataclass(frozen=True)
class Outcome:
    """How one task ended.

    Parameters
    ----------
    task : Task
        The task as it was submitted.
    status : {"finished", "failed", "lost"}
        `lost` means that the worker died; nobody knows whether the task was to blame.
    value : object
        What the function returned; None unless finished.
    failure : Failure or None
        Set when failed, and when lost (kind "surroundings", with what is known about the death).
    seconds : float
        Wall time on the worker, opening included.
    worker : str
        Host and process that ran it; empty if unknown.
    peak_bytes : int
        Largest resident memory of the worker's process during the task, 0 if unknown.
    started : float
        When the worker began, seconds since the epoch by the worker's clock.
    log : tuple of str
        Last lines that `cryoscale.*` logged during the task.
    """

    task: Task
    status: Status
    value: Any = None
    failure: Failure | None = None
    seconds: float = 0.0
    worker: str = ""
    peak_bytes: int = 0
    started: float = 0.0
    log: tuple[str, ...] = ()


def classify(error: BaseException) -> FailureKind:
    """Say who is to blame for an exception.

    Full disks, permissions, broken connections and missing workers are the surroundings': they condemn
    nothing. An exception of cryoscale's own, or a lack of memory, condemns this input. The rest are bugs.
    An exception raised `from` another is judged by the first in the chain that says anything.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            kinds = {classify(inner) for inner in seen.exceptions}
            return next((k for k in ("bug", "data", "surroundings") if k in kinds), "bug")
        if _of_surroundings(seen):
            return "surroundings"
        if isinstance(seen, (LayoutError, UndeclaredAccessError)):
            return "bug"
        if isinstance(seen, CryoscaleError) or _out_of_memory(seen):
            return "data"
        seen = seen.__cause__
    return "bug"


def _of_surroundings(error: BaseException) -> bool:
    if isinstance(error, (SurroundingsError, ConnectionError, TimeoutError, PermissionError)):
        return True
    if isinstance(error, OSError):
        return error.errno in _SURROUNDINGS_ERRNO
    return any(base.__name__ in _SURROUNDINGS_NAMES for base in type(error).__mro__)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def worker_name() -> str:
    """Name this process: host, colon, process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


class WorkCache:
    """The works that one worker process holds open, the last few used.

    A function is lent to one task at a time: two tasks that run at once in one process (Dask may do that
    while a task waits for its client) open the same key twice and do not share a model.

    Parameters
    ----------
    limit : int
        How many idle ones stay open.
    """

    def __init__(self, limit: int = 2) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[tuple[str, AbstractContextManager[Any], Callable[[Any], Any]]] = []

    @contextmanager
    def borrow(self, work: Work, *, fresh: bool = False) -> Iterator[Callable[[Any], Any]]:
        """Yield the function of `work`, opened before if possible; `fresh` opens anew and closes after.

        After an exception that is not about the data the work is closed: a stale file handle or a broken
        device must not meet the next attempt.
        """
        if fresh:
            self.close()
            with work.open() as function:
                yield function
            return
        entry = self._take(work.key)
        if entry is None:
            manager = work.open()
            entry = (work.key, manager, manager.__enter__())
        try:
            yield entry[2]
        except BaseException as error:
            if classify(error) == "data" and not _out_of_memory(error):
                self._put_back(entry)
            else:
                _close(entry[1])
            raise
        self._put_back(entry)

    def close(self) -> None:
        """Close everything idle; safe to call again."""
        with self._lock:
            entries, self._idle = self._idle, []
        for _, manager, _ in entries:
            _close(manager)

    def _take(self, key: str) -> tuple[str, AbstractContextManager[Any], Callable[[Any], Any]] | None:
        with self._lock:
            for number, entry in enumerate(self._idle):
                if entry[0] == key:
                    return self._idle.pop(number)
        return None

    def _put_back(self, entry: tuple[str, AbstractContextManager[Any], Callable[[Any], Any]]) -> None:
        with self._lock:
            self._idle.append(entry)
            surplus = self._idle[: -self._limit] if self._limit else self._idle[:]
            self._idle = self._idle[-self._limit :] if self._limit else []
        for _, manager, _ in surplus:
            _close(manager)


def _close(manager: AbstractContextManager[Any]) -> None:
    # What was computed is safe; a failing close (a store that went away) must not condemn the next task.
    with suppress(Exception):
        manager.__exit__(None, None, None)


def run_task(task: Task, cache: WorkCache) -> Outcome:
    """Run one task in this process. Never raises, except for KeyboardInterrupt."""
    started, clock = time.time(), time.perf_counter()
    reset_peak()
    value, failure = None, None
    said: Sequence[str] = ()
    try:
        fresh = task.alone or task.fresh
        with worker_log(task.identifier) as said, cache.borrow(task.work, fresh=fresh) as function:
            value = function(task.argument)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = Failure.of(error)
    return Outcome(
        task=task,
        status="failed" if failure else "finished",
        value=value,
        failure=failure,
        seconds=time.perf_counter() - clock,
        worker=worker_name(),
        peak_bytes=peak_bytes(),
        started=started,
        log=tuple(said),
    )


def failed(task: Task, error: BaseException) -> Outcome:
    """Make the outcome of a task that failed before it reached a worker, or after it left one."""
    return Outcome(task, "failed", failure=Failure.of(error), started=time.time())


def lost(task: Task, why: str, worker: str = "") -> Outcome:
    """Make the outcome of a task whose worker died."""
    failure = Failure("surroundings", "WorkerLost", why)
    return Outcome(task, "lost", failure=failure, worker=worker, started=time.time())
