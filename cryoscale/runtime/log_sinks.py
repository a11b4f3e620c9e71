"""Where the lines of a log go, and what its files are called."""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from cryoscale.runtime.worker_log import utc

SEGMENT_BYTES = 8 * 2**20
NAME = re.compile(r"events-(?P<run>\d{8}-\d{6}-[0-9a-f]{6})\.(?P<segment>\d{6})\.jsonl")
OWN = re.compile(r"(?:events|trace)-(?P<run>\d{8}-\d{6}-[0-9a-f]{6})\.")


def new_run_id(now: float | None = None) -> str:
    """Make the id of one drive: when it began (UTC), and six random digits. It sorts by time."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now)) + f"-{secrets.token_hex(3)}"


def segment_name(run_id: str, segment: int) -> str:
    """Return the file name of one segment of a drive's log."""
    return f"events-{run_id}.{segment:06d}.jsonl"


def surplus(names: Iterable[str], keep: int) -> list[str]:
    """Return the files of all drives but the newest `keep`; other files are nobody's business."""
    own = [(found["run"], name) for name in names if (found := OWN.match(name))]
    newest = sorted({run for run, _ in own})[-keep:] if keep else []
    return [name for run, name in own if run not in newest]


class Sink(Protocol):
    """Where lines go."""

    def write(self, line: bytes) -> None:
        """Take one line; whether it is stored at once is the sink's matter."""
        ...

    def close(self) -> None:
        """Store what is left."""
        ...


class LocalSink:
    """Appends to a file, line by line, and goes on to the next one at 8 MiB."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder, self._run_id = folder, run_id
        self._segment, self._size = -1, SEGMENT_BYTES
        self._stream: Any = None

    def write(self, line: bytes) -> None:
        """Append one line; it is with the system at once, so it outlives this process."""
        if self._size + len(line) > SEGMENT_BYTES:
            self.close()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._segment, self._size = self._segment + 1, 0
            self._stream = (self._folder / segment_name(self._run_id, self._segment)).open("ab", buffering=0)
        self._stream.write(line)
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


class SegmentSink:
    """For stores without appending: an object every few seconds, written by a thread of its own.

    A slow store never holds up the driver. One that does not answer costs lines, not memory: what waits is
    bounded, and how many lines were dropped is written when it answers again.

    Parameters
    ----------
    write : callable
        Takes a name and bytes.
    run_id : str
        Of this drive.
    every_s : float
        Between two objects; errors go at once.
    limit_bytes : int
        What may wait.
    """

    def __init__(
        self, write: Callable[[str, bytes], None], run_id: str, *, every_s: float = 15.0,
        limit_bytes: int = 4 * 2**20,
    ) -> None:  # fmt: skip
        self._write, self._run_id, self._every, self._limit = write, run_id, every_s, limit_bytes
        self._lines: list[bytes] = []
        self._waiting = self._dropped = self._segment = 0
        self._lock, self._due, self._ended = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="cryoscale-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Take one line; returns at once."""
        with self._lock:
            if self._waiting + len(line) > self._limit:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._waiting += len(line)
            if self._waiting > self._limit // 2 or b'"level": "error"' in line[:120]:
                self._due.set()

    def close(self) -> None:
        """Write what is left; waits for the store a while."""
        self._ended = True
        self._due.set()
        self._thread.join(timeout=30.0)

    def _keep(self) -> None:
        while not self._ended:
            self._due.wait(self._every)
            self._due.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            lines, dropped = self._lines, self._dropped
            self._lines, self._waiting, self._dropped = [], 0, 0
        if dropped:
            lost = {"time": utc(time.time()), "level": "warning", "run": self._run_id, "event": "Dropped"}
            lines.append(json.dumps({**lost, "lines": dropped}).encode() + b"\n")
        if not lines:
            return
        try:
            self._write(segment_name(self._run_id, self._segment), b"".join(lines))
            self._segment += 1
        except Exception:  # the run meets the same store and says so; a log must not stop it
            with self._lock:
                kept = lines[:-1] if dropped else lines
                room = self._limit - self._waiting
                while kept and sum(map(len, kept)) > room:
                    kept.pop(0)
                    self._dropped += 1
                self._lines = kept + self._lines
                self._waiting += sum(map(len, kept))
                self._dropped += dropped


class LimitedWriter:
    """Takes bytes up to a limit and passes over the rest: a trace of ten million tasks opens nowhere."""

    def __init__(self, write: Callable[[bytes], Any], limit_bytes: int) -> None:
        self._write, self._left = write, limit_bytes

    def __call__(self, data: bytes) -> None:
        """Write, if there is room."""
        if len(data) <= self._left:
            self._left -= len(data)
            self._write(data)
        else:
            self._left = 0
