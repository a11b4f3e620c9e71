"""Things that go wrong, on purpose: damaged files, full disks, blocks that fail, workers that die."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryoscale.data.folder import Folder
from cryoscale.geometry import Block
from cryoscale.runtime.executor import Executor, ExecutorSettings
from cryoscale.runtime.packing import run_packed, unpack_outcome
from cryoscale.runtime.task import Outcome, Task, WorkCache, lost
from cryoscale.stages.base import BlockReport, BlockStage


def truncate(path: Path, share: float = 0.6) -> Path:
    """Cut a file short, as a copy that was interrupted."""
    os.truncate(path, int(path.stat().st_size * share))
    return path


@dataclass
class FullDisk:
    """A disk that takes no byte of some objects while `full`.

    Parameters
    ----------
    refuse : callable
        Told the path of each object that is written; True for those that do not fit.
    """

    refuse: Callable[[str], bool]
    full: bool = True
    refused: int = 0

    @contextlib.contextmanager
    def mounted(self) -> Iterator[FullDisk]:
        """Put the disk below every folder and zarr store of this process."""
        from zarr.storage import LocalStore

        import cryoscale.data.shards

        shards: Any = cryoscale.data.shards
        write, put, write_parts = Folder.write_bytes, LocalStore.set, shards.write_parts

        def write_bytes(folder: Folder, name: str, data: bytes) -> None:
            self._check(folder.path(name))
            write(folder, name, data)

        async def set_item(store: Any, key: str, value: Any) -> None:
            self._check(f"{store.root}/{key}")
            await put(store, key, value)

        def write_shard(folder: Folder, name: str, parts: Iterable[bytes]) -> None:
            self._check(folder.path(name))
            write_parts(folder, name, parts)

        Folder.write_bytes = write_bytes  # type: ignore[method-assign,assignment]
        shards.write_parts = write_shard
        LocalStore.set = set_item  # type: ignore[method-assign,assignment]
        try:
            yield self
        finally:
            Folder.write_bytes = write  # type: ignore[method-assign]
            shards.write_parts = write_parts
            LocalStore.set = put  # type: ignore[method-assign]

    def _check(self, path: str) -> None:
        if self.full and self.refuse(path):
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@contextlib.contextmanager
def failing_block(
    stage: type[BlockStage], fails: Callable[[Block], bool], error: Callable[[], Exception]
) -> Iterator[list[int]]:
    """Let the function of some blocks of a stage raise, in this process; yields the indices that did."""
    plain, raised = stage.open_worker, list[int]()

    @contextlib.contextmanager
    def open_worker(self: BlockStage, access: Any) -> Iterator[Callable[[Block], BlockReport]]:
        with plain(self, access) as function:

            def work(block: Block) -> BlockReport:
                if fails(block):
                    raised.append(block.index)
                    raise error()
                return function(block)

            yield work

    stage.open_worker = open_worker  # type: ignore[method-assign]
    try:
        yield raised
    finally:
        stage.open_worker = plain  # type: ignore[method-assign]


@dataclass(frozen=True)
class Deadly:
    """Which tasks kill their worker: those whose identifier (without the attempt) is named here."""

    tasks: frozenset[str] = field(default_factory=frozenset)

    def __contains__(self, task: Task) -> bool:
        return task.identifier.rsplit("#", 1)[0] in self.tasks


class MortalExecutor(Executor):
    """Workers that die: when a deadly task runs, every task in flight beside it is lost too.

    Tasks run in this process, in batches of a full window, as if the workers of one machine were killed
    together when it runs out of memory.
    """

    name = "mortal"

    def __init__(self, deadly: Deadly, window: int = 4) -> None:
        super().__init__(ExecutorSettings())
        self._deadly, self._window = deadly, window
        self._cache = WorkCache()
        self._handed: list[tuple[str, Task, bytes]] = []
        self.lost: list[Task] = []

    @property
    def window(self) -> int:
        """As given."""
        return self._window

    def _start(self) -> None:
        pass

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        self._handed.append((ticket, task, payload))

    def _collect(self, timeout: float) -> list[tuple[str, Outcome]]:
        from cryoscale.runtime.serial import dask_in_process

        batch, self._handed = self._handed, []
        if any(task in self._deadly for _, task, _ in batch):
            self.lost += [task for _, task, _ in batch]
            return [(ticket, lost(task, "the worker was killed (signal 9)")) for ticket, task, _ in batch]
        return [
            (ticket, unpack_outcome(task, run_packed(payload, self._cache, dask_in_process)))
            for ticket, task, payload in batch
        ]

    def _live_workers(self) -> int:
        return self._window

    def _close(self) -> None:
        self._handed.clear()
        self._cache.close()
