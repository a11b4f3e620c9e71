"""How a task travels to a worker, and its outcome back: packed, run, unpacked.

The work of a task is most of its bytes. They travel with every block, but the driver pickles a work once for
all blocks of its unit, and a worker unpickles it once.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cryoscale.runtime.task import Failure, Outcome, Task, Work, WorkCache, failed, run_task, worker_name


class _WorkShelf:
    """Works beside their bytes, the last few: all blocks of a unit share one, and it is most of a task.

    A work never changes, so one of equal bytes is the same work.
    """

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._known: list[tuple[Work, bytes]] = []

    def pack(self, work: Work) -> bytes:
        """Return the bytes of a work; raises whatever pickle raises."""
        for known, packed in self._known:
            if known is work:
                return packed
        packed = pickle.dumps(work, protocol=pickle.HIGHEST_PROTOCOL)
        self._keep(work, packed)
        return packed

    def unpack(self, packed: bytes) -> Work:
        """Return the work of some bytes; raises whatever pickle raises."""
        for work, known in self._known:
            if known == packed:
                return work
        made: Work = pickle.loads(packed)  # it comes from our own driver
        self._keep(made, packed)
        return made

    def _keep(self, work: Work, packed: bytes) -> None:
        # A new list each time: another thread that goes through the old one is not disturbed.
        self._known = [(work, packed), *self._known[: self._limit - 1]]


_SENT, _RECEIVED = _WorkShelf(), _WorkShelf()


def pack(task: Task) -> bytes:
    """Turn a task into bytes for the way to a worker; raises whatever pickle raises."""
    fields = (
        task.identifier,
        task.argument,
        task.attempt,
        task.alone,
        task.needs_client,
        task.patient,
        task.fresh,
    )
    return pickle.dumps((_SENT.pack(task.work), fields), protocol=pickle.HIGHEST_PROTOCOL)


def _unpack(payload: bytes) -> Task:
    work, (identifier, *rest) = pickle.loads(payload)  # the payload comes from our own driver
    return Task(identifier, _RECEIVED.unpack(work), *rest)


def run_packed(
    payload: bytes,
    cache: WorkCache,
    around: Callable[[Task], AbstractContextManager[Any]] = lambda task: nullcontext(),
) -> bytes:
    """Unpack a task, run it inside `around(task)`, and pack its outcome (without the task).

    Everything that goes wrong comes back as a failed outcome, also a task that cannot be unpacked here or a
    value that cannot be packed.
    """
    started = time.time()
    try:
        task = _unpack(payload)
        with around(task):
            outcome = run_task(task, cache)
        return _pack_outcome(outcome)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = Failure.of(error)
        message = f"the task could not be received, or its result sent, by {worker_name()}: {failure.message}"
        failure = Failure(failure.kind, failure.type, message, failure.traceback)
        return _pack_outcome(Outcome(None, "failed", None, failure, 0.0, worker_name(), 0, started))  # type: ignore[arg-type]


def _pack_outcome(outcome: Outcome) -> bytes:
    fields = (
        outcome.status,
        outcome.value,
        outcome.failure,
        outcome.seconds,
        outcome.worker,
        outcome.peak_bytes,
        outcome.started,
        outcome.log,
    )
    return pickle.dumps(fields, protocol=pickle.HIGHEST_PROTOCOL)


def unpack_outcome(task: Task, payload: bytes) -> Outcome:
    """Join a packed outcome with the task it belongs to."""
    try:
        return Outcome(task, *pickle.loads(payload))  # the payload comes from our own worker
    except Exception as error:
        return failed(task, error)
