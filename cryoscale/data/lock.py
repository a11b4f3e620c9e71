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
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryoscale.data.folder import Folder
from cryoscale.errors import ConfigurationError, CryoscaleError, OvertakenError, SurroundingsError

LOCK = "driver.json"
STALE_LOCK_SECONDS = 120.0
SETTLE_SECONDS = 0.5  # how long another driver may take to write its name over ours, or to finish writing it
POLL_SECONDS = 2.0
_WORST = (OSError, CryoscaleError)  # what storage may say; the run itself meets it, and tells

Holder = dict[str, Any]
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
        self._beside: list[Callable[[], None]] = []

    def acquire(self, wait_s: float = 0.0, tell: Callable[[str], None] = lambda _: None) -> None:
        """Take the lock, from a dead driver too.

        Of several drivers that start at one moment, one gets it. Object stores may let several write: there
        the last one has it, and each looks again after a moment who that is.

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
            self.folder.take(LOCK, found)
            self.folder.create_bytes(LOCK, self._record())

    def _settled(self) -> bool:
        """Say whether the lock is ours, also a moment later where the last to write has it."""
        if not self._is_ours():
            return False
        if not self.folder.is_local:
            self.clock.wait(SETTLE_SECONDS)
        return self.folder.is_local or self._is_ours()

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and self._mine(as_holder(found))

    def beside(self, action: Callable[[], None]) -> None:
        """Have something done after each renewal, by the same thread; what it raises is dropped."""
        self._beside.append(action)

    def heartbeat(self) -> None:
        """Raise `OvertakenError` when another driver took the run over; cheap to call often.

        After a long silence (a suspended machine, storage that hung) it looks first: others may have begun
        with other parameters meanwhile.
        """
        now = self.clock.steady()
        if (
            self._taken_by is None
            and now - self._renewed > STALE_LOCK_SECONDS / 2
            and now - self._looked > beat_seconds()
        ):
            with contextlib.suppress(*_WORST):
                self._renew()
        if self._taken_by is not None:
            raise OvertakenError(
                f"process {self._taken_by['pid']} on {self._taken_by['host']} took this run over, because "
                f"this driver was silent for more than {STALE_LOCK_SECONDS:g} s.",
                remedy="Leave the run to it; finished work is kept.",
            )

    def release(self) -> None:
        """Give the lock back, unless it is somebody else's by now; where storage fails, it goes stale."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(beat_seconds())
        with contextlib.suppress(*_WORST):
            if self._is_ours():
                self.folder.delete(LOCK)

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
            self._looked = self.clock.steady()
            found = self._read()
            holder = None if found is None else as_holder(found)
            if holder and not self._mine(holder):
                self._taken_by = holder
                return False
            if not self._ended.is_set():
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


# -- who is who -------------------------------------------------------------------------------------------


def as_holder(data: bytes) -> Holder | None:
    """Parse a lock; None when it is torn."""
    try:
        holder = json.loads(data)
    except ValueError:
        return None
    whole = isinstance(holder, dict) and {"host", "pid", "heartbeat"} <= holder.keys()
    return holder if whole else None


def this_process() -> dict[str, Any]:
    """Say who this process is, on this machine and among others: host, pid, begun, boot, namespace."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "begun": process_begun(pid), **this_kernel()}


def this_kernel() -> dict[str, str]:
    """Name this boot of this machine, and the namespace that its process ids are of; empty where unknown."""
    return {"boot": _boot(), "namespace": _namespace()}


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def seen_here(holder: Holder) -> bool | None:
    """Look for a driver in the process table; None where that says nothing about it.

    A process id of another container, another machine, or of this machine before it was started again, is
    somebody else's here. And some machines hide the processes of other people.
    """
    kernel = this_kernel()
    if "" in kernel.values() or any(holder.get(key) != value for key, value in kernel.items()):
        return None
    pid = int(holder["pid"])
    try:
        return bool(_begun(Path(f"/proc/{pid}/stat").read_text()) == holder.get("begun"))
    except FileNotFoundError:
        pass
    except OSError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return None


def process_begun(pid: int) -> str:
    """Return when a process of this machine began, in the kernel's ticks; empty when there is none.

    A process id alone says little: it is given out again.
    """
    try:
        return _begun(Path(f"/proc/{pid}/stat").read_text())
    except OSError:
        return ""


def _begun(stat: str) -> str:
    fields = stat.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    return "" if fields[0] == "Z" else fields[19]  # Z: it has ended, and nobody has taken note yet


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
        Since its last sign, by the clock of the storage where that tells times; never negative.
    """

    holder: Holder
    alive: bool
    silent_seconds: float

    @property
    def clock(self) -> float:
        """What the clock of a living driver shows about now, seconds since the epoch."""
        return float(self.holder["heartbeat"]) + self.silent_seconds


def sight(folder: Folder, now: float) -> Sight | None:
    """Look at the lock in `RUN/ledger` once, from any machine, without writing; None when there is none.

    Parameters
    ----------
    folder : Folder
        `RUN/ledger`.
    now : float
        Seconds since the epoch by the clock of who asks.
    """
    try:
        data = folder.read_bytes(LOCK)
        written = folder.modified(LOCK)
    except FileNotFoundError:
        return None
    holder = as_holder(data)
    if holder is None:
        return None
    silent = max(0.0, now - (float(holder["heartbeat"]) if written is None else written))
    here = seen_here(holder)
    return Sight(holder, silent < STALE_LOCK_SECONDS if here is None else here, silent)
