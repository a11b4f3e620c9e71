"""Drivers that are killed: at an event, or in the middle of a write.

A child process made by a fork server (which has the libraries loaded, so that a start takes milliseconds)
drives a run under the serial executor and kills itself with SIGKILL at a moment that the test names.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoscale.data.folder import Folder
from cryoscale.data.run import Run

PRELOAD = ["cryoscale.pipeline.driver", "cryoscale.testing.crashes", "cryoscale.testing.warm"]
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Moment:
    """When a driver dies.

    Parameters
    ----------
    event : int or None
        After this many events of the run.
    write : int or None
        In the middle of the n-th object that is written to storage: half of its bytes lie in a temporary
        file; a shard's lie under its final name if `torn`.
    delete : int or None
        After the first file of the n-th folder or object to be deleted.
    torn : bool
        Whether storage leaves half a shard under its final name, as some do.
    """

    event: int | None = None
    write: int | None = None
    delete: int | None = None
    torn: bool = False


@dataclass(frozen=True)
class End:
    """How a driver ended: whether it was killed, and how much it had done by its own count."""

    killed: bool
    exit_code: int


def drive_and_die(place: str, moment: Moment, options: dict[str, Any] | None = None) -> End:
    """Drive a run in a process of its own that dies at a moment, or ends by itself before it.

    Raises
    ------
    TimeoutError
        The driver neither died nor ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=_driver, args=(place, moment, options or {}))
    process.start()
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"the driver of {place} did not end within {PATIENCE_S:g} s")
    code = process.exitcode or 0
    process.close()
    return End(killed=code == -signal.SIGKILL, exit_code=code)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _driver(place: str, moment: Moment, options: dict[str, Any]) -> None:
    from cryoscale.pipeline.driver import Options, run_pipeline

    # the fork server keeps the environment of its start; one thread is what the tests compare
    os.environ["OMP_NUM_THREADS"] = "1"
    events = Countdown(moment.event)
    _sabotage(moment)
    result = run_pipeline(
        Run.at(place), Options(executor="serial", **options), listeners=(lambda _: events.tick(_die),)
    )
    os._exit(result.exit_code)


class Countdown:
    """Calls something at the n-th tick, counted from 1; never for None."""

    def __init__(self, count: int | None) -> None:
        self.left = count

    def tick(self, action: Callable[[], None]) -> None:
        """Count once more."""
        if self.left is None:
            return
        self.left -= 1
        if self.left == 0:
            action()


def _sabotage(moment: Moment) -> None:
    """Put the death into the ways to storage: objects of our own, and zarr's."""
    from zarr.storage import LocalStore

    writes, deletes = Countdown(moment.write), Countdown(moment.delete)
    plain_write, plain_delete, plain_set = Folder.write_bytes, Folder.delete, LocalStore.set

    def die_writing(target: Path, data: bytes, *, torn: bool = False) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        name = target if torn else target.with_name(".tmp-killed.partial")
        name.write_bytes(data[: len(data) // 2])
        _die()

    def write_bytes(self: Folder, name: str, data: bytes) -> None:
        if not name.endswith("driver.json"):  # its thread writes at times of its own
            writes.tick(lambda: die_writing(Path(self.path(name)), data))
        plain_write(self, name, data)

    async def put(self: Any, key: str, value: Any) -> None:
        torn = moment.torn and not key.endswith("zarr.json")
        writes.tick(lambda: die_writing(self.root / key, value.to_bytes(), torn=torn))
        await plain_set(self, key, value)

    def delete(self: Folder, name: str = "") -> None:
        def half() -> None:
            target = Path(self.path(name))
            files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else []
            for file in files[:1]:
                file.unlink()
            _die()

        if Path(self.path(name)).exists():
            deletes.tick(half)
        plain_delete(self, name)

    Folder.write_bytes = write_bytes  # type: ignore[method-assign]
    Folder.delete = delete  # type: ignore[method-assign]
    LocalStore.set = put  # type: ignore[method-assign]
