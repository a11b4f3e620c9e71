"""Everything in this process, one task per `wait`, in order of submission: for debugging and small runs."""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.packing import run_packed, unpack_outcome
from cryoscale.runtime.task import Outcome, Task, WorkCache


class SerialExecutor(Executor):
    """Runs each task inside `wait`; a task that kills its process kills the run, so none is ever `lost`."""

    name = "serial"

    def __init__(self, settings: ExecutorSettings) -> None:
        super().__init__(settings)
        self._cache = WorkCache()
        self._handed: deque[tuple[str, Task, bytes]] = deque()

    @property
    def window(self) -> int:
        """One: there is nothing to overlap with."""
        return 1

    def _start(self) -> None:
        pass

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        self._handed.append((ticket, task, payload))

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        if not self._handed:
            return []
        ticket, task, payload = self._handed.popleft()
        return [(ticket, unpack_outcome(task, run_packed(payload, self._cache, dask_in_process)))]

    def _live_workers(self) -> int:
        return 1

    def _close(self) -> None:
        self._handed.clear()
        self._cache.close()


def dask_in_process(task: Task) -> AbstractContextManager[Any]:
    """For a task that computes with dask where no cluster is: dask computes in this thread."""
    if not task.needs_client:
        return nullcontext()
    import dask

    context: AbstractContextManager[Any] = dask.config.set(scheduler="synchronous")
    return context
