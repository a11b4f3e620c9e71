"""A trace of a run that chrome://tracing and ui.perfetto.dev open: which worker did which block when.

The JSON array of Chrome's trace viewer may lack its closing bracket: the trace of a killed run opens too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from cryoscale.runtime.events import Event, StageSealed, TaskEnded, UnitFailed


class TraceWriter:
    """A listener that writes one line of Chrome trace per ended task.

    A worker is a row, a task a bar on it. The viewer's processes are hosts, its threads worker processes.
    Times are microseconds since the first event, by the workers' clocks: where those disagree, bars shift.

    Parameters
    ----------
    write : callable
        Takes bytes and appends them somewhere.
    """

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._zero: float | None = None
        self._hosts: dict[str, int] = {}
        self._workers: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Write what the viewer can show of an event."""
        if isinstance(event, TaskEnded):
            self._task(event)
        elif isinstance(event, (StageSealed, UnitFailed)):
            what = "sealed" if isinstance(event, StageSealed) else "stopped"
            self._line(f"{event.stage} {event.tomogram} {what}", "i", event.at, s="g", pid=0, tid=0)

    def _task(self, event: TaskEnded) -> None:
        host, _, process = event.worker.rpartition(":")
        host, process = host or "unknown", process or "unknown"
        if host not in self._hosts:
            self._hosts[host] = len(self._hosts) + 1
            self._line("process_name", "M", event.started, pid=self._hosts[host], tid=0, args={"name": host})
        if event.worker not in self._workers:
            self._workers[event.worker] = int(process) if process.isdigit() else 0
        self._line(
            f"{event.stage} {event.tomogram} {event.block}".strip(),
            "X",
            event.started,
            dur=round(event.seconds * 1e6),
            cat=event.stage,
            pid=self._hosts[host],
            tid=self._workers[event.worker],
            args={
                "status": event.status,
                "attempt": event.attempt,
                "voxels": event.voxels,
                "peak_bytes": event.peak_bytes,
                "message": event.message,
            },
        )

    def _line(self, name: str, phase: str, at: float, **fields: Any) -> None:
        with self._lock:
            if self._zero is None:
                self._zero = at
                self._write(b"[\n")
            record = {"name": name, "ph": phase, "ts": round((at - self._zero) * 1e6), **fields}
            self._write(json.dumps(record, separators=(",", ":")).encode() + b",\n")
