"""The log of a drive: JSON lines with stage and tomogram in each, small however many blocks there are.

Blocks that ended well are summed up, one line per stage and tomogram at its end and one a minute while it
goes on. What did not end well is written in full, with its traceback, until there are very many of a kind.
Lines are written in segments, so that stores without appending can hold them::

    logs/events-<run id>.000000.jsonl
    logs/events-<run id>.000001.jsonl
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cryoscale
from cryoscale.runtime.events import (
    Event,
    Message,
    StageSealed,
    StageStarted,
    TaskEnded,
    UnitFailed,
)
from cryoscale.runtime.log_sinks import Sink
from cryoscale.runtime.redaction import Redactor
from cryoscale.runtime.worker_log import utc

LEVELS = ("info", "warning", "error")
LIMIT_BYTES = 256 * 2**20  # of one drive; then errors alone are written, up to twice as much
FULL = 100  # ends of one kind (stage and place in the code) that are written one by one
TRACEBACKS = 3  # of one kind that are written whole; the others name it
TRACEBACK_CHARACTERS, TEXT_CHARACTERS, LOOKED_AT = 16_000, 2_000, 400_000
SUM_S = 60.0  # between two sums of a tomogram whose stage goes on


@dataclass
class _Sum:
    """Blocks of one stage and tomogram that ended well since the last line about them."""

    began: float
    done: int = 0
    empty: int = 0
    voxels: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    unwritten: int = 0  # that did not end well and were one too many to be written
    workers: set[str] = field(default_factory=set)
    slowest: dict[str, Any] = field(default_factory=dict)

    def add(self, event: TaskEnded) -> None:
        self.done += event.status == "done"
        self.empty += event.status == "empty"
        self.voxels += event.voxels
        self.seconds += event.seconds
        self.peak_bytes = max(self.peak_bytes, event.peak_bytes)
        self.workers.add(event.worker)
        if event.seconds >= self.slowest.get("seconds", 0.0):
            self.slowest = {"block": event.block, "seconds": round(event.seconds, 3), "worker": event.worker}


class JobLog:
    """A listener that writes what happens as JSON lines; use it as a context manager.

    Every line has `time` (UTC), `level`, `run` (the id of this drive), `event`, and where it belongs to one,
    `stage` and `tomogram` (empty for the whole data set). Secrets are taken out.

    Parameters
    ----------
    sink : Sink
        Where lines go.
    run_id : str
        Of this drive.
    facts : dict
        What the first line says besides host, process and version.
    secrets : iterable of str
        Values that must not be written.
    """

    def __init__(
        self, sink: Sink, run_id: str, facts: dict[str, Any] | None = None, secrets: Iterable[str] = ()
    ) -> None:
        self._sink, self._run_id = sink, run_id
        self._redactor = Redactor(secrets)
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._kinds: dict[tuple[str, str], int] = {}
        self._written, self._unwritten = 0, 0
        self._began = time.time()
        self._line("info", "DriverStarted", self._began, host=socket.gethostname(), process=os.getpid(),
                   cryoscale=cryoscale.__version__, **(facts or {}))  # fmt: skip

    def __call__(self, event: Event) -> None:
        """Write an event, or add it to a sum."""
        if isinstance(event, TaskEnded):
            self._task(event)
        elif isinstance(event, StageStarted):
            self._line("info", "StageStarted", event.at, stage=event.stage, tomogram=event.tomogram,
                       blocks=event.blocks, already=event.already, voxels=event.voxels)  # fmt: skip
        elif isinstance(event, (StageSealed, UnitFailed)):
            self._sum_up(event.stage, event.tomogram, event.at)
            level, more = (
                ("error", {"reason": event.reason}) if isinstance(event, UnitFailed) else ("info", {})
            )
            name = type(event).__name__
            self._line(level, name, event.at, stage=event.stage, tomogram=event.tomogram, **more)
        elif isinstance(event, Message):
            self._line(event.level, "Message", event.at, text=event.text)

    def close(self, error: BaseException | None = None) -> None:
        """Write the open sums and how the drive ended, and store everything."""
        now = time.time()
        ended = {"error": f"{type(error).__name__}: {error}"} if error is not None else {}
        level = "error" if ended else "info"
        try:
            for stage, tomogram in list(self._sums):
                self._sum_up(stage, tomogram, now)
            self._line(level, "DriverEnded", now, seconds=round(now - self._began, 3),
                       unwritten=self._unwritten, **ended)  # fmt: skip
        finally:
            self._sink.close()

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk: what ended the run says more
            self.close(error)

    def _task(self, event: TaskEnded) -> None:
        key = (event.stage, event.tomogram)
        total = self._sums.get(key) or self._sums.setdefault(key, _Sum(event.at))
        if event.status in ("done", "empty"):
            total.add(event)
            if event.log:
                self._worker_lines(event)
        else:
            self._bad(event, total)
        if event.at - total.began > SUM_S:
            self._sum_up(*key, event.at)

    def _bad(self, event: TaskEnded, total: _Sum) -> None:
        """Write an attempt that failed, was lost, or gave its block up; of very many of a kind, count it."""
        place = _place(event.traceback) or event.message[:80]
        kind = hashlib.blake2b(f"{event.kind} {place}".encode(), digest_size=4).hexdigest()
        seen = self._kinds[event.stage, kind] = self._kinds.get((event.stage, kind), 0) + 1
        if seen > FULL:
            total.unwritten += 1
            return
        more: dict[str, Any] = (
            {"traceback": event.traceback} if event.traceback and seen <= TRACEBACKS else {}
        )
        if event.log:
            more["log"] = list(event.log)
        level = "error" if event.status == "quarantined" else "warning"
        self._line(
            level, "TaskEnded", event.at, **_where(event), status=event.status, kind=event.kind, same=kind,
            message=event.message, seconds=round(event.seconds, 3), attempt=event.attempt,
            peak_bytes=event.peak_bytes, promised_bytes=event.promised_bytes, **more,
        )  # fmt: skip

    def _worker_lines(self, event: TaskEnded) -> None:
        """Write what a worker logged in a task that ended well, unless its stage says very much."""
        seen = self._kinds[event.stage, "log"] = self._kinds.get((event.stage, "log"), 0) + 1
        if seen <= FULL:
            warned = any(" WARNING " in line or " ERROR " in line for line in event.log)
            level = "warning" if warned else "info"
            self._line(level, "WorkerLog", event.at, **_where(event), log=list(event.log))

    def _sum_up(self, stage: str, tomogram: str, at: float) -> None:
        total = self._sums.pop((stage, tomogram), None)
        if total is None or not (total.done + total.empty + total.unwritten):
            return
        unwritten = {"unwritten": total.unwritten} if total.unwritten else {}
        self._line(
            "warning" if unwritten else "info", "BlocksEnded", at, stage=stage, tomogram=tomogram,
            done=total.done, empty=total.empty, voxels=total.voxels, seconds=round(total.seconds, 3),
            workers=len(total.workers), peak_bytes=total.peak_bytes, slowest=total.slowest, **unwritten,
        )  # fmt: skip

    def _line(self, level: str, name: str, at: float, **fields: Any) -> None:
        limit = LIMIT_BYTES if level == "info" else 2 * LIMIT_BYTES
        if self._written > limit and name != "DriverEnded":
            self._unwritten += 1
            return
        head = {"time": utc(at), "level": level, "run": self._run_id, "event": name}
        line = json.dumps({**head, **{key: self._clean(value, key) for key, value in fields.items()}})
        self._sink.write(line.encode() + b"\n")
        self._written += len(line)

    def _clean(self, value: Any, key: str) -> Any:
        if isinstance(value, str):  # cut after the secrets are out: half of one is not recognised
            whole = self._redactor.text(value[-LOOKED_AT:])
            return whole[-TRACEBACK_CHARACTERS:] if key == "traceback" else whole[:TEXT_CHARACTERS]
        if isinstance(value, (list, dict)):
            return self._redactor.value(value)
        return value


def _where(event: TaskEnded) -> dict[str, Any]:
    """Say of which block an event is, and which host and process worked at it."""
    host, _, process = event.worker.rpartition(":")
    return {"stage": event.stage, "tomogram": event.tomogram, "block": event.block,
            "host": host, "process": process}  # fmt: skip


def _place(traceback: str) -> str:
    """Return file and line of the innermost frame of a traceback, and the exception's class."""
    frames = re.findall(r'^ +File "([^"]+)", line (\d+)', traceback, flags=re.M)
    last = traceback.rstrip().rpartition("\n")[2].partition(":")[0]
    return f"{frames[-1]} {last}" if frames else ""


def records(
    lines: Iterable[bytes], *, stage: str = "", tomogram: str | None = None, level: str = "info"
) -> Iterator[dict[str, Any]]:
    """Yield those lines of a log that are asked for; torn ones, of a driver that was killed, are left out.

    Parameters
    ----------
    lines : iterable of bytes
        Of one segment or several.
    stage, tomogram : str
        Only of these; lines that belong to none (how the driver began and ended, messages) are left out then.
    level : str
        The least: "info", "warning" or "error".
    """
    wanted = LEVELS[LEVELS.index(level) :]
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict) or record.get("level") not in wanted:
            continue
        if stage and record.get("stage") != stage:
            continue
        if tomogram is not None and record.get("tomogram") != tomogram:
            continue
        yield record
