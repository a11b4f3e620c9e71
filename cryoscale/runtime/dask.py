"""Tasks on Dask's `distributed`: an embedded cluster of processes, or one that runs already."""

from __future__ import annotations

import logging
import queue
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from cryoscale.runtime.environment import environment
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.probe import describe_worker, require_agreement
from cryoscale.runtime.task import Outcome, Task, WorkCache, failed, lost, run_packed, unpack_outcome

# One per worker process. Dask calls a plain function, so what a worker keeps open has to live in its module.
_CACHE = WorkCache()

# How long the last steps may take: fetching a finished outcome (a few hundred bytes), asking workers to close
# what they hold, ending the embedded cluster.
_GATHER_S = 15.0
_RELEASE_S = 5.0
_CLOSE_S = 30.0


def _run_on_worker(payload: bytes) -> bytes:
    return run_packed(payload, _CACHE, _client_for)


def _client_for(task: Task) -> AbstractContextManager[Any]:
    """For a task that computes with dask: a client of its own cluster, as the default.

    The worker gives its slot back while the task waits (it secedes): a cluster of one worker does not block.
    """
    if not task.needs_client:
        return nullcontext()
    from distributed import worker_client

    context: AbstractContextManager[Any] = worker_client()
    return context


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
        self._futures: dict[str, Any] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._slots = settings.local_workers

    @property
    def window(self) -> int:
        """Workers times tasks per worker; follows a running cluster as it grows and shrinks."""
        return max(1, self._slots) * self.settings.per_worker_in_flight

    def _start(self) -> None:
        from distributed import Client

        limit = self.settings.start_timeout_s
        with warnings.catch_warnings():
            # A taken default port and the like: our ports are arbitrary, and people cannot act on it.
            warnings.simplefilter("ignore")
            try:
                if self.settings.address is None:
                    self._cluster = self._start_cluster()
                self._client = Client(
                    self._cluster or self.settings.address, timeout=limit, set_as_default=False
                )
                self._client.wait_for_workers(1, timeout=limit)
                said = self._client.submit(describe_worker, pure=False).result(timeout=limit)
            except Exception as error:
                raise self._nobody("no worker answered", f"({type(error).__name__}: {error})") from error
        require_agreement(said, self.settings.address or "the embedded cluster")
        self._live_workers()

    def _start_cluster(self) -> Any:
        import dask
        from distributed import LocalCluster

        settings = self.settings
        configuration = {
            # Dask would run a dead worker's tasks again by itself, unseen. With 0 each loss is reported to us
            # once and retries are counted in one place. (A running cluster keeps its own setting.)
            "distributed.scheduler.allowed-failures": 0,
            "distributed.scheduler.worker-saturation": float(settings.per_worker_in_flight),
            "distributed.worker.multiprocessing-method": "spawn",
            # Blocks hold nothing that Dask could spill, and a paused worker looks like a hung one.
            "distributed.worker.memory.pause": False,
            # Before the spawn: libraries read these when they are loaded.
            "distributed.nanny.pre-spawn-environ": settings.thread_environment,
            "distributed.nanny.environ": settings.thread_environment,
        }
        # Dask sets the variables in this process too, for good; here they would slow down whoever computes.
        with environment(settings.thread_environment), dask.config.set(configuration):
            return LocalCluster(
                n_workers=settings.local_workers,
                threads_per_worker=1,
                host="127.0.0.1",
                scheduler_port=0,
                dashboard_address=None,
                memory_limit=settings.memory_per_worker_bytes or 0,
                local_directory=str(settings.scratch) if settings.scratch else None,
                silence_logs=logging.CRITICAL,
                death_timeout=settings.start_timeout_s,
            )

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        future = self._client.submit(
            _run_on_worker, payload, key=f"cryoscale-{id(self):x}-{ticket}", pure=False, retries=0
        )
        self._futures[ticket] = future
        future.add_done_callback(lambda _, ended=ticket: self._ended.put(ended))

    def _has_room(self) -> bool:
        return self._client.status == "running" and super()._has_room()

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        tickets = []
        with suppress(queue.Empty):
            tickets.append(self._ended.get(timeout=timeout) if timeout else self._ended.get_nowait())
            while True:
                tickets.append(self._ended.get_nowait())
        return [(ticket, self._outcome(ticket)) for ticket in tickets if ticket in self._futures]

    def _outcome(self, ticket: str) -> Outcome:
        from distributed import CancelledError, KilledWorker

        task, future = self._running[ticket], self._futures.pop(ticket)
        try:
            return unpack_outcome(task, future.result(timeout=_GATHER_S))
        except KilledWorker as error:
            address = error.last_worker.address
            return lost(task, f"the Dask worker at {address} died while it held this task", address)
        except (CancelledError, OSError, TimeoutError) as error:
            # The scheduler went, or the worker did after it had finished: nobody knows what is written.
            future.cancel()
            return lost(task, f"the outcome was lost on its way ({type(error).__name__}: {error})")
        except Exception as error:
            return failed(task, error)

    def _live_workers(self) -> int:
        try:
            threads = self._client.nthreads()
        except Exception:  # any failure to ask means the same: nobody there
            return 0
        if self._cluster is None and threads:
            slots = sum(threads.values())
            self._slots = min(slots, self.settings.workers) if self.settings.workers else slots
        return len(threads)

    def _close(self) -> None:
        client, cluster, self._client, self._cluster = self._client, self._cluster, None, None
        self._futures.clear()
        self._ended = queue.SimpleQueue()
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            if client is not None:
                # A running cluster outlives us: it must not go on holding our models and stores.
                with suppress(Exception):
                    client.sync(client._run, _release, callback_timeout=_RELEASE_S)
                with suppress(Exception):
                    client.close(timeout=_RELEASE_S)
            if cluster is not None:
                cluster.close(timeout=_CLOSE_S)
