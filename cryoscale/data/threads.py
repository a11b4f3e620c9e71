"""The few threads of a process that encode and decode chunks, and their buffers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

_buffers = threading.local()


def scratch(name: str, length: int) -> npt.NDArray[np.uint8]:
    """Return a buffer of this thread, the same one at each call as long as it is large enough."""
    buffer: npt.NDArray[np.uint8] | None = getattr(_buffers, name, None)
    if buffer is None or len(buffer) < length:
        buffer = np.empty(length, np.uint8)
        setattr(_buffers, name, buffer)
    return buffer[:length]


def threads() -> int:
    """Return how many threads encode and decode: what a worker was given for blosc, else up to two."""
    given = os.environ.get("BLOSC_NTHREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, cores)


_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def _pool(count: int) -> ThreadPoolExecutor:
    key = (os.getpid(), count)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(count, thread_name_prefix="cryoscale-shards")
    return _pools[key]


def run_all(one: Callable[[Any], None], items: Sequence[Any]) -> None:
    """Call a function for each item, on several threads if there are."""
    count = min(threads(), len(items))
    if count < 2:
        for item in items:
            one(item)
        return

    def some(part: Sequence[Any]) -> None:
        for item in part:
            one(item)

    # strides, not halves: pieces at one end of a box can be smaller than at the other
    futures = [_pool(count).submit(some, items[n::count]) for n in range(count)]
    errors = [future.exception() for future in futures]  # all of them end before files are closed
    for error in errors:
        if error is not None:
            raise error


def in_order(makers: Sequence[Callable[[], bytes | None]]) -> Iterator[bytes | None]:
    """Yield what the makers make, in their order, made ahead on several threads if there are."""
    count = min(threads(), len(makers))
    if count < 2:
        yield from (make() for make in makers)
        return
    futures = [_pool(count).submit(make) for make in makers]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
