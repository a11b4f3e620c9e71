"""The logs of a run's drives, read from any machine, while they grow."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cryoscale.data.run import Run
from cryoscale.runtime.joblog import records
from cryoscale.runtime.log_sinks import NAME

POLL_S = 2.0
_SHOWN = frozenset((
    "time", "level", "run", "event", "stage", "tomogram", "block", "text", "message", "reason", "error",
    "traceback", "log", "same",
))  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Which lines of the log are wanted; see `runtime.joblog.records`."""

    stage: str = ""
    tomogram: str | None = None
    level: str = "info"

    def of(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the lines that are wanted out of whole ones."""
        return records(data.splitlines(), stage=self.stage, tomogram=self.tomogram, level=self.level)


def drives(run: Run, last: int) -> dict[str, list[str]]:
    """Return the segments of the last drives, oldest first, by the id of the drive."""
    found: dict[str, list[str]] = {}
    for name in sorted(run.folder.names("logs")):
        if match := NAME.fullmatch(name):
            found.setdefault(match["run"], []).append(name)
    return dict(itertools.islice(sorted(found.items()), max(0, len(found) - last), None))


def log_lines(run: Run, question: Question, *, last: int = 5) -> Iterator[dict[str, Any]]:
    """Yield what the last drives logged, oldest first."""
    for names in drives(run, last).values():
        for name in names:
            yield from question.of(run.folder.read_bytes(f"logs/{name}"))


def follow(
    run: Run, question: Question, *, last: int = 1, pause: Callable[[float], None] = time.sleep
) -> Iterator[dict[str, Any]]:
    """Yield what the last drives logged and then, for ever, what comes: of this drive and of later ones.

    Parameters
    ----------
    run, question, last
        As in `log_lines`.
    pause : callable
        Waits some seconds; tests end the loop here.
    """
    read: dict[str, int] = {}
    old = set(itertools.chain(*drives(run, 10**9).values())) - set(
        itertools.chain(*drives(run, last).values())
    )
    known: set[str] = set()
    newest = ""  # the drive that was seen last: clocks of hosts differ, so a later one may sort before it
    while True:
        found = drives(run, 10**9)
        newest = next((drive for drive in reversed(found) if drive not in known), newest)
        known.update(found)
        for drive, names in found.items():
            for name in names:
                if name in old:
                    continue
                if drive != newest or name != names[-1]:
                    old.add(name)  # it was complete when it was listed: this look is the last
                data = run.folder.read_bytes(f"logs/{name}")
                whole = data.rfind(b"\n") + 1  # a line that is just being written is for the next look
                yield from question.of(data[read.get(name, 0) : whole])
                read[name] = whole
        pause(POLL_S)


def in_words(record: dict[str, Any]) -> str:
    """Write one line of the log for people; a traceback follows it."""
    where = [str(record[key]) for key in ("stage", "tomogram") if record.get(key)]
    if record.get("block", -1) >= 0:
        where.append(f"block {record['block']}")
    said = next((str(record[key]) for key in ("text", "message", "reason", "error") if record.get(key)), "")
    facts = ", ".join(
        f"{k} {_plain(v)}" for k, v in record.items() if k not in _SHOWN and v not in ("", None)
    )
    parts = [record["time"], f"{record['level']:7}", record["event"], *where]
    text = " ".join(parts) + (f": {said}" if said else "") + (f" ({facts})" if facts else "")
    more = [*record.get("log", ()), *str(record.get("traceback", "")).rstrip().splitlines()]
    return "\n".join([text, *(f"    {line}" for line in more)])


def _plain(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
