"""What happens during a run, as small events that progress, history and memory warnings all listen to.

The controller emits; listeners look. A listener that fails is logged once and never breaks the run.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

_LOG = logging.getLogger("cryoscale.runtime.events")

TaskStatus = Literal["done", "empty", "failed", "lost", "quarantined"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened.

    Parameters
    ----------
    at : float
        When, seconds since the epoch by the driver's clock.
    """

    at: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage of one tomogram (or of the data set, `tomogram` empty) is planned and begins.

    Parameters
    ----------
    stage, tomogram : str
        Which.
    blocks : int
        Planned blocks.
    already : int
        Blocks whose marks were found: nothing to do for them.
    voxels : int
        Voxels (or rows, for blocks of picks) in the blocks that are left to do.
    unit : str
        What `voxels` counts, for people.
    """

    stage: str
    tomogram: str = ""
    blocks: int = 0
    already: int = 0
    voxels: int = 0
    unit: str = "voxels"


@dataclass(frozen=True, kw_only=True)
class TaskEnded(Event):
    """One attempt at one block ended; the only event of its kind, whatever the executor.

    Parameters
    ----------
    stage, tomogram : str
        Which stage of which tomogram.
    block : int
        Index in the plan, -1 for a task over the whole data set.
    status : {"done", "empty", "failed", "lost", "quarantined"}
        How it ended; a block that is tried again after "failed" or "lost" gives further events.
    seconds : float
        Wall time on the worker.
    voxels : int
        Voxels (or rows) written.
    worker : str
        Host and process, empty if unknown.
    started : float
        When the worker began, seconds since the epoch by the worker's clock.
    peak_bytes : int
        Largest resident memory of the worker during the task, 0 if unknown.
    promised_bytes : int
        What the plan promised per worker, 0 if nothing.
    attempt : int
        1 for the first.
    message : str
        Why it failed.
    kind, traceback : str
        Of a failure: who is to blame ("data", "surroundings", "bug"), and where it was raised.
    log : tuple of str
        Last lines that the worker logged during the task.
    """

    stage: str
    tomogram: str = ""
    block: int = -1
    status: TaskStatus = "done"
    seconds: float = 0.0
    voxels: int = 0
    worker: str = ""
    started: float = 0.0
    peak_bytes: int = 0
    promised_bytes: int = 0
    attempt: int = 1
    message: str = ""
    kind: str = ""
    traceback: str = ""
    log: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Whether the block is through: not to be tried again."""
        return self.status in ("done", "empty", "quarantined")


@dataclass(frozen=True, kw_only=True)
class StageSealed(Event):
    """A stage of one tomogram is complete and its artifact published."""

    stage: str
    tomogram: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class UnitFailed(Event):
    """A tomogram stops at a stage; the others go on."""

    stage: str
    tomogram: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Message(Event):
    """A sentence for the person who watches."""

    text: str
    level: Literal["info", "warning", "error"] = "info"


@dataclass(frozen=True, kw_only=True)
class Paused(Message):
    """The run waits for its surroundings to mend.

    Parameters
    ----------
    reason : str
        What storage, network or workers said.
    seconds : float
        How long it waits before it tries again.
    """

    reason: str = ""
    seconds: float = 0.0


Listener = Callable[[Event], None]


class EventBus:
    """Hands each event to every listener, in the order in which they joined."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._faulty: set[int] = set()

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Add a listener; call what is returned to remove it."""
        self._listeners.append(listener)

        def leave() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return leave

    def emit(self, event: Event) -> None:
        """Tell all listeners; never raises because of one."""
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception as error:
                if id(listener) in self._faulty:
                    continue
                self._faulty.add(id(listener))
                if isinstance(error, OSError):  # a full disk: a sentence says it all
                    _LOG.error("%s cannot write, so lines may be missing: %s", type(listener).__name__, error)
                else:
                    _LOG.exception("a listener failed on %s; later failures of it are not shown", event)


class MemoryWarning:
    """A listener that says so, once per stage, when a worker needed more than the plan promised.

    Parameters
    ----------
    emit : callable
        Takes the `Message`; usually the bus's own `emit`.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._told: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Look at one event."""
        if not isinstance(event, TaskEnded) or event.stage in self._told:
            return
        if event.promised_bytes and event.peak_bytes > event.promised_bytes:
            self._told.add(event.stage)
            self._emit(
                Message(
                    text=f"{event.stage}: a worker used {event.peak_bytes / 1e9:.2f} GB, the plan promised "
                    f"{event.promised_bytes / 1e9:.2f} GB ({event.tomogram}, block {event.block}).",
                    level="warning",
                )
            )


def as_record(event: Event) -> dict[str, Any]:
    """Turn an event into plain values for a log line; `event` holds the name of its class."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}
