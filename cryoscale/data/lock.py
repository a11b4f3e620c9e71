"""One driver at a time: `ledger/driver.json`, and who is alive, without trusting another machine's clock.

Two drivers would write the same shards and the same marks. The one at work renews its lock every ten seconds
by a thread of its own, so that a task of hours is no silence. Whoever finds the lock of another decides by

1. the process table, where it may: same boot of the same kernel, same process namespace. Elsewhere a process
   id says nothing, though the host's name may be the same (containers, hosts that are all "localhost");
2. the clock, if it says that the lock is fresh: then somebody is alive;
3. otherwise watching. A clock may be wrong; a lock that changes while one looks at it is being renewed.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cryoscale.data.folder import Folder
from cryoscale.data.holder import Holder, as_holder, seen_here, this_process
from cryoscale.errors import ConfigurationError, CryoscaleError, OvertakenError, SurroundingsError

LOCK = "driver.json"
STALE_LOCK_SECONDS = 120.0
SETTLE_SECONDS = 0.5  # how long another driver may take to write its name over ours, or to finish writing it
POLL_SECONDS = 2.0
DOUBTED_SECONDS = 24 * 3600.0  # of silence that may be two clocks that disagree: more is nobody's clock
_WORST = (OSError, CryoscaleError)  # what storage may say; the run itself meets it, and tells

Verdict = Literal["alive", "dead", "unsure"]


class Clock:
    """The three clocks that a lock needs; tests put their own in place."""

    def wall(self) -> float:
        """Seconds since the epoch: what other machines can read, and may have wrong."""
        return time.time()

    def steady(self) -> float:
        """Seconds that only go forward, those of a suspended machine included."""
        return (
            time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
        )

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        threading.Event().wait(seconds)


def beat_seconds() -> float:
    """Return the time between two renewals."""
    return STALE_LOCK_SECONDS / 12


def watch_seconds() -> float:
    """Return how long a lock that looks stale is watched: three renewals, of which one has to be seen."""
    return STALE_LOCK_SECONDS / 4


class DriverLock:
    """The lock of one run.

    Parameters
    ----------
    folder : Folder
        `RUN/ledger`.
    """

    def __init__(self, folder: Folder, clock: Clock | None = None) -> None:
        self.folder = folder
        self.clock = clock or Clock()
        self._identity = {**this_process(), "token": secrets.token_hex(8)}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._taken_by: Holder | None = None
        self._looking = threading.Lock()
        self._renewed = self._looked = 0.0
        self._took_over = False
        self._beside: list[Callable[[], None]] = []

    def acquire(self, wait_s: float = 0.0, tell: Callable[[str], None] = lambda _: None) -> None:
        """Take the lock, from a dead driver too.

        Of several drivers that start at one moment, one gets it. Object stores may let several write, and
        who takes a dead driver's lock may be met by another who is late with the same: there the last one
        has it, and each looks again after a moment who that is.

        Parameters
        ----------
        wait_s : float
            How long to wait for a living driver to end.
        tell : callable
            Takes a sentence on whom this waits for.

        Raises
        ------
        ConfigurationError
            Another driver is alive, and nobody asked to wait.
        SurroundingsError
            It was still alive after `wait_s`.
        """
        deadline = self.clock.steady() + wait_s
        watch = _Watch(self.clock)
        told = ""
        while True:
            self._create(watch)
            if self._settled():
                break
            holder, verdict = watch.holder, watch.verdict
            if verdict == "alive" and self.clock.steady() >= deadline:
                raise _refusal(holder, wait_s)
            if holder and verdict != told:
                told = verdict
                tell(_whom(holder, verdict, wait_s))
            self.clock.wait(min(POLL_SECONDS, beat_seconds() / 2))
        self._renewed = self.clock.steady()
        self._thread = threading.Thread(target=self._keep, name="cryoscale-lock", daemon=True)
        self._thread.start()

    def _create(self, watch: _Watch) -> None:
        """Write our name where there is none, or a dead driver's; else remember what is there."""
        found = self._read()
        if found is None:
            self.folder.create_bytes(LOCK, self._record())
            return
        if watch.look(found) == "dead":
            self._took_over = True
            self.folder.take(LOCK, found)
            self.folder.create_bytes(LOCK, self._record())

    def _settled(self) -> bool:
        """Say whether the lock is ours, also a moment later where somebody may have put his in its place."""
        if not self._is_ours():
            return False
        if self.folder.is_local and not self._took_over:
            return True
        self.clock.wait(SETTLE_SECONDS)
        return self._is_ours()

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and self._mine(as_holder(found))

    def beside(self, action: Callable[[], None]) -> None:
        """Have something done after each renewal, by the same thread; what it raises is dropped."""
        self._beside.append(action)

    def heartbeat(self) -> None:
        """Look whether the run is still ours; cheap to call often.

        After a long silence (a suspended machine, storage that hung) it reads the lock first: others may have
        begun with other parameters meanwhile.

        Raises
        ------
        OvertakenError
            Another driver took the run over.
        SurroundingsError
            After a long silence the lock cannot be read, so that nobody knows: nothing may be written.
        """
        now = self.clock.steady()
        silent = now - self._renewed
        lately = silent <= STALE_LOCK_SECONDS and now - self._looked <= beat_seconds()
        if self._taken_by is None and silent > STALE_LOCK_SECONDS / 2 and not lately:
            self._look()
        if self._taken_by is not None:
            raise OvertakenError(
                f"process {self._taken_by['pid']} on {self._taken_by['host']} took this run over, because "
                f"this driver was silent for more than {STALE_LOCK_SECONDS:g} s.",
                remedy="Leave the run to it; finished work is kept.",
            )

    def _look(self) -> None:
        """Renew, and raise if not even reading succeeds; a lock that is only not written is still ours."""
        before = self._looked
        try:
            self._renew()
        except _WORST as error:
            if self._looked == before:
                raise SurroundingsError(
                    f"{self.folder.path(LOCK)} cannot be read ({str(error).rstrip('.')}), after this driver "
                    f"was silent for more than {STALE_LOCK_SECONDS / 2:g} s: another one may be at work.",
                    remedy="Mend the storage; finished work is kept.",
                ) from error

    def release(self) -> None:
        """Give the lock back, unless it is somebody else's by now; where storage fails, it goes stale.

        So it does where a renewal hangs: that one would write the lock again after it was deleted.
        """
        self._ended.set()
        if self._thread is not None:
            self._thread.join(beat_seconds())
        if not self._looking.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(*_WORST):
                if self._is_ours():
                    self.folder.delete(LOCK)
        finally:
            self._looking.release()

    def _keep(self) -> None:
        while not self._ended.wait(beat_seconds()):
            with contextlib.suppress(*_WORST):
                if not self._renew():
                    return
            for action in self._beside:
                with contextlib.suppress(Exception):
                    action()

    def _renew(self) -> bool:
        """Write our name again; False when another one stands there."""
        with self._looking:
            if self._ended.is_set():
                return False
            found = self._read()
            self._looked = self.clock.steady()
            holder = None if found is None else as_holder(found)
            if holder and not self._mine(holder):
                self._taken_by = holder
                return False
            self.folder.write_bytes(LOCK, self._record())
            self._renewed = self.clock.steady()
            return True

    def _record(self) -> bytes:
        return json.dumps({**self._identity, "heartbeat": self.clock.wall()}, sort_keys=True).encode()

    def _read(self) -> bytes | None:
        try:
            return self.folder.read_bytes(LOCK)
        except FileNotFoundError:
            return None

    def _mine(self, holder: Holder | None) -> bool:
        return bool(holder) and holder.get("token") == self._identity["token"]  # type: ignore[union-attr]


class _Watch:
    """Looks at one lock again and again, and says whether its holder is alive."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.holder: Holder | None = None
        self.verdict: Verdict = "unsure"
        self._data: bytes | None = None
        self._since = 0.0
        self._changed = False

    def look(self, data: bytes) -> Verdict:
        """Judge by what was seen so far and what stands there now."""
        now = self.clock.steady()
        holder = as_holder(data)
        if data != self._data:
            same = bool(holder and self.holder) and holder.get("token") == self.holder.get("token")  # type: ignore[union-attr]
            self._changed = self._data is not None and same
            self._data, self._since, self.holder = data, now, holder
        self.verdict = self._judge(now - self._since)
        return self.verdict

    def _judge(self, unchanged: float) -> Verdict:
        if self.holder is None:  # torn, or just being written
            return "dead" if unchanged >= SETTLE_SECONDS else "unsure"
        here = seen_here(self.holder)
        if here is not None:
            return "alive" if here else "dead"
        if unchanged >= STALE_LOCK_SECONDS:
            return "dead"
        age = self.clock.wall() - float(self.holder["heartbeat"])
        if self._changed or -beat_seconds() <= age < STALE_LOCK_SECONDS:
            return "alive"
        return "dead" if age > 0 and unchanged >= watch_seconds() else "unsure"


def _refusal(holder: Holder | None, wait_s: float) -> CryoscaleError:
    assert holder is not None  # a torn lock is never alive
    who = f"another driver works on this run: process {holder['pid']} on {holder['host']}"
    if wait_s > 0:
        return SurroundingsError(
            f"{who}, still after {wait_s:g} s.", remedy="Wait for it longer (--wait-for-driver), or stop it."
        )
    return ConfigurationError(
        f"{who}.",
        remedy=f"Wait for it (--wait-for-driver), or stop it; a lock that is not renewed for "
        f"{STALE_LOCK_SECONDS:g} s is taken over.",
    )


def _whom(holder: Holder, verdict: Verdict, wait_s: float) -> str:
    who = f"process {holder['pid']} on {holder['host']}"
    if verdict == "alive":
        return f"waiting up to {wait_s:g} s for another driver of this run: {who}"
    return f"looking whether the driver of this run is alive: {who}, whose last sign looks old or misdated"


@dataclass(frozen=True)
class Sight:
    """A driver as seen from outside, by one look.

    Parameters
    ----------
    holder : dict
        What its lock says: host, pid, …
    alive : bool
        Whether it seems to be.
    silent_seconds : float
        Since its last sign: the clock of who asks less the storage's, or less the driver's where the storage
        tells no times; never negative. As wrong as these clocks are.
    """

    holder: Holder
    alive: bool
    silent_seconds: float

    @property
    def clock(self) -> float:
        """What the clock of a living driver shows about now, seconds since the epoch."""
        return float(self.holder["heartbeat"]) + self.silent_seconds


def sight(folder: Folder, now: float, wait: Callable[[float], None] | None = None) -> Sight | None:
    """Look at the lock in `RUN/ledger`, from any machine, without writing; None when there is none.

    How long it is silent is the difference of two clocks, of who asks and of the storage. So a lock that
    looks dead by it is looked at again, as long as the difference may be an error of a clock.

    Parameters
    ----------
    folder : Folder
        `RUN/ledger`.
    now : float
        Seconds since the epoch by the clock of who asks.
    wait : callable, optional
        Lets seconds pass; without it there is one look alone.
    """
    data, seen = _glance(folder, now)
    doubted = seen is not None and not seen.alive and seen_here(seen.holder) is None
    if wait is None or seen is None or not doubted or seen.silent_seconds > DOUBTED_SECONDS:
        return seen
    waited = 0.0
    while waited < 1.5 * beat_seconds():
        wait(pause := min(POLL_SECONDS, beat_seconds() / 2))
        waited += pause
        again, later = _glance(folder, now + waited)
        if later is None or again != data:  # given back; or renewed a moment ago, whatever the clocks say
            return later and replace(later, alive=True, silent_seconds=min(later.silent_seconds, pause))
    return seen


def _glance(folder: Folder, now: float) -> tuple[bytes, Sight | None]:
    try:
        data = folder.read_bytes(LOCK)
        written = folder.modified(LOCK)
    except FileNotFoundError:
        return b"", None
    holder = as_holder(data)
    if holder is None:
        return data, None
    silent = max(0.0, now - (float(holder["heartbeat"]) if written is None else written))
    here = seen_here(holder)
    return data, Sight(holder, silent < STALE_LOCK_SECONDS if here is None else here, silent)
