"""Who works on a run, and whether it is paused: one small object, for `status` on other machines.

Only the driver knows its workers. It writes what it saw beside its lock, and whoever asks from another
machine reads that; ages are differences of the driver's own times, so no clock has to agree with another.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cryoscale.data.folder import Folder
from cryoscale.errors import CryoscaleError
from cryoscale.runtime.events import Event, Paused, TaskEnded

WORKERS = "workers.json"
LATELY_SECONDS = 900.0  # blocks take minutes at most; who trains says nothing for hours, and is not missed
MOST_WORKERS = 100_000  # names kept; of more the oldest are forgotten


class Presence:
    """A listener that remembers which workers ended tasks lately, and why the run is paused.

    Parameters
    ----------
    folder : Folder
        `RUN/ledger`.
    engines : mapping of str to str
        From the name of a stage to the kind of executor that carries it.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self, folder: Folder, engines: Mapping[str, str], clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.engines, self.clock = folder, engines, clock
        self._seen: dict[tuple[str, str], float] = {}  # (worker, engine), in order of their last task
        self._paused: dict[str, Any] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Look at one event."""
        if isinstance(event, Paused):
            since = self._paused["since"] if self._paused else event.at
            self._paused = {"reason": event.reason, "since": since}
        elif isinstance(event, TaskEnded):
            if event.status in ("done", "empty"):
                self._paused = None
            if event.worker and event.status != "lost":
                self._note(event)

    def _note(self, event: TaskEnded) -> None:
        name = event.worker, self.engines.get(event.stage, "")
        with self._lock:  # the lock's thread writes meanwhile
            self._seen.pop(name, None)
            self._seen[name] = event.at
            if len(self._seen) > MOST_WORKERS:
                del self._seen[next(iter(self._seen))]

    def record(self) -> dict[str, Any]:
        """Return what `write` writes: `at`, `paused`, and `workers` by host and engine."""
        now = self.clock()
        with self._lock:
            self._seen = {name: at for name, at in self._seen.items() if now - at <= LATELY_SECONDS}
            seen = dict(self._seen)
        counts: dict[tuple[str, str], list[float]] = {}
        for (worker, engine), at in seen.items():
            counts.setdefault((worker.rpartition(":")[0], engine), []).append(at)
        workers = [
            {"host": host, "engine": engine, "workers": len(times), "seen": max(times)}
            for (host, engine), times in sorted(counts.items())
        ]
        return {"at": now, "paused": self._paused, "workers": workers}

    @contextlib.contextmanager
    def shown(self, renew: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """Keep the object written as long as this is open; `renew` takes what is to be done repeatedly."""
        renew(self.write)
        try:
            yield
        finally:
            self._ended = True
            self.end()

    def write(self) -> None:
        """Write the object; the lock's thread calls this."""
        if not self._ended:
            self.folder.write_bytes(WORKERS, json.dumps(self.record(), sort_keys=True).encode())

    def end(self) -> None:
        """Remove the object; storage that fails leaves it, and it counts for nothing without a driver."""
        with contextlib.suppress(OSError, CryoscaleError):
            self.folder.delete(WORKERS)


def read_presence(folder: Folder) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return workers and pause as the driver wrote them last, with ages in place of times.

    Returns
    -------
    workers : list of dict
        `host`, `engine`, `workers` (how many), `seen_seconds` (since the last of them ended a task, when
        the driver wrote this).
    paused : dict or None
        `reason` and `since_seconds`.
    """
    try:
        said = json.loads(folder.read_bytes(WORKERS))
        workers = [
            {
                **{key: row[key] for key in ("host", "engine", "workers")},
                "seen_seconds": said["at"] - row["seen"],
            }
            for row in said["workers"]
        ]
        pause = said["paused"]
        paused = pause and {"reason": pause["reason"], "since_seconds": said["at"] - pause["since"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return [], None
    return workers, paused or None
