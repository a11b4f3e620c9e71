"""Results as JSON lines: appended case by case, so a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """Read all records of a file; none if there is none. A torn last line is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def append(path: Path, record: Record) -> None:
    """Add one record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    with path.open("a") as stream:
        stream.write(("\n" if text and not text.endswith("\n") else "") + json.dumps(record) + "\n")


def latest(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    """Return the last record of each case and size, in the order in which they first came."""
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        found[record["case"], record["size"]] = record
    return found


def is_done(records: Sequence[Record], case: str, size: str, machine: Record) -> bool:
    """Tell whether a case was measured on this machine with this code and these packages.

    Never for files that differ from their commit, nor outside of a checkout.
    """
    if not machine["commit"] or machine["commit"].endswith("+"):
        return False
    same = ("machine", "commit", "python", "versions")
    return any(
        (r["case"], r["size"]) == (case, size)
        and all(r["machine"][key] == machine[key] for key in same)
        and not r.get("failed")
        for r in records
    )
