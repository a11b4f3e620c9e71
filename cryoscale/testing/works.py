"""Tiny works that misbehave on purpose, for tests of executors, controllers and retries.

They live in the package because workers import them by name.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryoscale.errors import DataError
from cryoscale.runtime.task import Task


@dataclass(frozen=True)
class Behaviour:
    """A work whose arguments say what happens: see the functions in `ACTIONS`.

    Parameters
    ----------
    key : str
        Key of the work.
    journal : str or None
        Folder in which opening, running and closing leave one small file each.
    """

    key: str = "behaviour"
    journal: str | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[Any], Any]]:
        """Yield a function of `(action, value)`."""
        note(self.journal, "open", self.key)
        try:
            yield self._act
        finally:
            note(self.journal, "close", self.key)

    def _act(self, argument: tuple[str, Any]) -> Any:
        action, value = argument
        return ACTIONS[action](value)


@dataclass(frozen=True)
class Look:
    """A look of a guard that finds what an environment variable of the worker says, and notes that it looked.

    Parameters
    ----------
    journal : str
        Folder in which each look leaves one small file.
    variable : str
        Its value is what is wrong; unset, nothing is.
    """

    journal: str
    variable: str = "CRYOSCALE_TEST_UNFIT"

    def __call__(self, worker: str) -> str:
        """Look once."""
        note(self.journal, "look")
        return os.environ.get(self.variable, "")


@dataclass(frozen=True)
class BrokenOpen:
    """A work that cannot be opened: the model file is damaged."""

    key: str = "broken-open"

    @contextmanager
    def open(self) -> Iterator[Callable[[Any], Any]]:
        """Raise before anything is yielded."""
        if self.key:
            raise DataError("weights.safetensors is damaged.", remedy="Train again.")
        yield _square


class LocalWork:
    """A work of a class that workers cannot find: `make` defines it inside a function."""

    @staticmethod
    def make() -> Any:
        """Return the unpicklable work."""

        class Hidden(Behaviour):
            pass

        return Hidden(key="hidden")


class Untransportable:
    """Pickles in the driver, fails to unpickle anywhere: like a class that only the driver's code has."""

    key = "untransportable"

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _not_here, ()


def _not_here() -> None:
    raise ModuleNotFoundError("No module named 'only_on_the_driver'")


def note(journal: str | None, *words: object) -> None:
    """Leave a file whose name holds the time, this process and the words; names sort by time."""
    if journal:
        name = "_".join([f"{time.monotonic_ns():020d}", str(os.getpid()), *map(str, words)])
        (Path(journal) / name).touch()


def notes(journal: str | Path) -> list[tuple[int, str, list[str]]]:
    """Read a journal: time in ns, process id, words."""
    parts = (path.name.split("_") for path in sorted(Path(journal).iterdir()))
    return [(int(part[0]), part[1], part[2:]) for part in parts]


def _square(value: float) -> float:
    return value * value


def _raise_data_error(value: str) -> None:
    raise DataError(f"{value} holds no finite voxel.", remedy="Check the reconstruction.")


def _raise_no_space(value: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), value)


def _divide_by_zero(value: int) -> float:
    return value / 0


def _raise_system_exit(value: int) -> None:
    raise SystemExit(value)


def _kill_process(value: int) -> None:
    os._exit(value)


def _kill_if_first(flag: str) -> str:
    # The second attempt finds the flag: a machine that was short of memory once.
    path = Path(flag)
    if path.exists():
        return "survived"
    path.touch()
    os._exit(9)


def _pause(argument: tuple[float, str, str]) -> str:
    seconds, journal, name = argument
    note(journal, "begin", name)
    threading.Event().wait(seconds)
    note(journal, "end", name)
    return name


def _return_unpicklable(value: int) -> Any:
    return lambda: value


def _sum_with_dask(count: int) -> int:
    import dask

    total = dask.delayed(sum)([dask.delayed(_square)(n) for n in range(count)])
    result, key_there = dask.compute(total, dask.delayed(_dask_key)(count, pure=False))
    key_here = _dask_key(count)
    if key_here and key_there == key_here:
        raise RuntimeError("dask computed inside the task's own thread, not on the cluster")
    return int(result)


def _dask_key(_: int) -> str:
    """Name the Dask task that this thread works on; empty outside a Dask worker."""
    from distributed import get_worker

    try:
        return str(get_worker().get_current_task())
    except ValueError:
        return ""


def _processes_with_dask(count: int) -> list[int]:
    import dask

    found = dask.compute(*[dask.delayed(_process_id, pure=False)(n) for n in range(count)])
    return list(found)


def _environment(name: str) -> str | None:
    return os.environ.get(name)


def _allocate(count: int) -> int:
    # Grows step by step and stays, so that whoever watches memory has time to see it.
    held = []
    for _ in range(count // 10_000_000):
        held.append(b"x" * 10_000_000)
        threading.Event().wait(0.02)
    return len(held)


def _process_id(value: int) -> int:
    return os.getpid()


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "square": _square,
    "data-error": _raise_data_error,
    "no-space": _raise_no_space,
    "bug": _divide_by_zero,
    "system-exit": _raise_system_exit,
    "kill": _kill_process,
    "kill-if-first": _kill_if_first,
    "pause": _pause,
    "unpicklable": _return_unpicklable,
    "dask": _sum_with_dask,
    "process-id": _process_id,
    "processes-with-dask": _processes_with_dask,
    "environment": _environment,
    "allocate": _allocate,
}


def task(action: str, value: Any, *, work: Any = None, **options: Any) -> Task:
    """Make a task of `Behaviour` (or of `work`); options go to `Task`."""
    name = f"{action}-{value}"
    return Task(options.pop("identifier", name), work or Behaviour(), (action, value), **options)
