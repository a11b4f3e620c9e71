"""What `cryoscale.*` logs while a task runs: the last lines come back with the outcome.

With `CRYOSCALE_LOG=json` in a process's environment each line goes to its standard error as well, as one JSON
object, for those who collect the output of pods and jobs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime

from cryoscale.runtime.redaction import redacted

VARIABLE = "CRYOSCALE_LOG"
LINES, CHARACTERS = 20, 500  # of one task; what a mistake in a loop logs must not fill the driver's memory

_ROOT = logging.getLogger("cryoscale")


class _Collector(logging.Handler):
    """Keeps the last lines of one task, and tells them to standard error where that was asked for."""

    def __init__(self, task: str, *, to_stderr: bool) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=LINES)
        self._task, self._to_stderr = task, to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
        except Exception:  # a wrong number of arguments must not end the task
            text = str(record.msg)
        text = redacted(text)  # before it is cut: half a secret is not recognised
        self.lines.append(f"{utc(record.created)} {record.levelname} {record.name}: {text}"[:CHARACTERS])
        if self._to_stderr:
            line = {
                "time": utc(record.created), "level": record.levelname.lower(), "logger": record.name,
                "host": socket.gethostname(), "process": os.getpid(), "task": self._task,
                "message": text,
            }  # fmt: skip
            with contextlib.suppress(OSError, ValueError):  # a closed stream is no reason to stop
                print(json.dumps(line), file=sys.stderr, flush=True)


@contextlib.contextmanager
def worker_log(task: str) -> Iterator[deque[str]]:
    """Collect what `cryoscale.*` logs at INFO or above; yields the lines, which are complete at the end.

    Parameters
    ----------
    task : str
        Identifier of the task: stage, tomogram, block, attempt.
    """
    handler = _Collector(task, to_stderr=os.environ.get(VARIABLE) == "json")
    level = _ROOT.level
    if _ROOT.getEffectiveLevel() > logging.INFO:
        _ROOT.setLevel(logging.INFO)
    _ROOT.addHandler(handler)
    try:
        yield handler.lines
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(level)


def utc(seconds: float) -> str:
    """Write a moment (seconds since the epoch) as RFC 3339 in UTC, to milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
