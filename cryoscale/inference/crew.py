"""A few threads that work through a list of jobs, each with its own tools."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Tool = TypeVar("Tool")
Job = TypeVar("Job")


class Crew(Generic[Tool]):
    """Threads that take the next job as soon as they are free, for jobs that let go of Python's lock.

    Parameters
    ----------
    tools : sequence
        One per thread, for example a request to a compiled network. With one, the caller's thread does all.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = list(tools)
        self._pool = ThreadPoolExecutor(len(self._tools)) if len(self._tools) > 1 else None

    def work(self, jobs: Iterable[Job], function: Callable[[Tool, Job], None]) -> None:
        """Run every job; they begin in their order.

        Raises
        ------
        Exception
            The first that a job raised; what had not begun by then is left out.
        """
        queue, lock, stop = iter(jobs), threading.Lock(), threading.Event()

        def loop(tool: Tool) -> None:
            while not stop.is_set():
                with lock:
                    job = next(queue, None)
                if job is None:
                    return
                try:
                    function(tool, job)
                except BaseException:
                    stop.set()
                    raise

        if self._pool is None:
            loop(self._tools[0])
            return
        running = [self._pool.submit(loop, tool) for tool in self._tools]
        try:
            failures = [failure for future in running if (failure := future.exception()) is not None]
        except BaseException:  # the caller is interrupted: nobody may go on with its arrays and tools
            stop.set()
            concurrent.futures.wait(running)
            raise
        if failures:
            raise failures[0]

    def close(self) -> None:
        """End the threads and let go of the tools."""
        if self._pool is not None:
            self._pool.shutdown()
        self._tools = []
