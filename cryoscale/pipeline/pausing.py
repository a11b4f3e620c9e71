"""The run waits for its surroundings; what the ledger did not take meanwhile is written first afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from cryoscale.errors import OvertakenError, SurroundingsError
from cryoscale.pipeline.attempts import Limits, Pause
from cryoscale.runtime.events import EventBus, Paused

STOPPED = "The run stopped with its work kept; mend this, then give the same command again."


@dataclass
class Pausing(Pause):
    """Pauses of a run, each twice as long as the one before, until a task ends well.

    Parameters
    ----------
    limits : Limits
        How many, and how long.
    bus : EventBus
        Hears of each.
    clock : callable
        Seconds that go on.
    place : str
        The run, for messages that name no file.
    heartbeat : callable
        Raises `OvertakenError` when the run is another driver's, and what storage says when that cannot be
        found out; asked before anything is written.
    """

    limits: Limits = field(default_factory=Limits)
    bus: EventBus = field(default_factory=EventBus)
    clock: Callable[[], float] = lambda: 0.0
    place: str = ""
    heartbeat: Callable[[], None] = lambda: None
    stuck: bool = False  # whether storage refused the driver itself last time
    _owed: deque[Callable[[], None]] = field(default_factory=deque)

    @property
    def going_on(self) -> bool:
        """Whether the run is paused now."""
        return self.clock() < self.until

    @property
    def owes(self) -> bool:
        """Whether something is still to be written."""
        return bool(self._owed)

    def begin(self, reason: str) -> None:
        """Pause now, and say so; `count`, from 1, is the number of this pause and sets its length."""
        seconds = self.limits.pause_seconds * 2 ** (self.count - 1)
        self.until = self.clock() + seconds
        text = f"paused for {seconds:g} s: {reason}"
        self.bus.emit(Paused(text=text, level="warning", reason=reason, seconds=seconds))

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do what touches storage in the driver; False when it refused: then the run is paused.

        Raises
        ------
        OvertakenError
            The run is another driver's.
        SurroundingsError
            It refused once too often.
        """
        if not self.beat(action):
            return False
        self.stuck = False
        return True

    def beat(self, action: Callable[[], object] = lambda: None) -> bool:
        """Look whether the run is still ours, then act; as `attempt`, but it does not end being `stuck`."""
        try:
            self.heartbeat()
            action()
        except OvertakenError:
            raise
        except (OSError, SurroundingsError) as error:
            self._refused(error)
            return False
        return True

    def keep(self, action: Callable[[], None]) -> None:
        """Write a record; one that storage refuses is owed, and so are all that come after it."""
        self._owed.append(action)
        if len(self._owed) == 1 and self.attempt(action):
            self._owed.popleft()

    def pay(self) -> bool:
        """Write what is owed, unless the run is paused; True when nothing is owed any more."""
        while self._owed and not self.going_on and self.attempt(self._owed[0]):
            self._owed.popleft()
        return not self._owed

    def _refused(self, error: OSError | SurroundingsError) -> None:
        self.stuck = True
        if self.going_on:
            return
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"{error.filename or self.place}: {error.strerror or error}"
        self.count += 1
        if self.count > self.limits.pauses:
            raise SurroundingsError(f"{reason.rstrip('.')}.", remedy=STOPPED) from error
        self.begin(reason)
