"""Two commits side by side: each in a checkout of its own, in turns, so that the machine's drift cancels."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case
from benchmarks.harness.children import run_case
from benchmarks.harness.measure import rate


def compare_commits(root: Path, old: str, new: str, cases: Sequence[Case], size: str, rounds: int) -> str:
    """Run each case at both commits, old new, old new, …, and return a table of ratios.

    Parameters
    ----------
    root : Path
        A checkout of the project.
    old, new : str
        Anything that git takes for a commit.
    cases : sequence of Case
        As this checkout knows them; a commit that has no such case says so in the table.
    size : str
        Of the cases.
    rounds : int
        Turns.

    Returns
    -------
    table : str
        Markdown; a ratio above 1 says that `new` is faster.
    """
    lines = [
        f"| case | contestant | {old} | {new} | {new} / {old} (lowest to highest) |",
        "|---|---|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / side for side in ("old", "new")]
        try:
            for place, name in zip(places, (old, new), strict=True):
                _checkout(root, name, place)
            for case in cases:
                pairs = []
                for _ in range(rounds):
                    pair = [run_case(case.name, size, case.threads, place) for place in places]
                    pairs.append(pair)
                    if any(record.get("failed") for record in pair):
                        break
                lines += _rows(case, pairs)
        finally:
            for place in places:
                words = ["git", "-C", str(root), "worktree", "remove", "--force", str(place)]
                subprocess.run(words, check=False, capture_output=True)
    return "\n".join(lines)


def _checkout(root: Path, commit: str, place: Path) -> None:
    subprocess.run(
        ["git", "-C", str(root), "worktree", "add", "--detach", "--force", str(place), commit],
        check=True, capture_output=True,
    )  # fmt: skip


def _rows(case: Case, pairs: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    for side, record in zip(("old", "new"), pairs[-1], strict=True):
        if record.get("failed"):
            return [f"| {case.name} | | | | {side} failed: {record['failed'].replace('|', '/')} |"]
    lines = []
    for name in [row["name"] for row in pairs[0][0]["rows"]]:
        rates = [[_rate(record, name) for record in pair] for pair in pairs]
        known = [(a, b) for a, b in rates if a is not None and b is not None]
        if known:
            ratios = sorted(b / a for a, b in known)
            before, after = (statistics.median(values) for values in zip(*known, strict=True))
            lines.append(
                f"| {case.name} | {name} | {before:.4g} {case.unit}/s | {after:.4g} {case.unit}/s |"
                f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            )
    return lines


def _rate(record: dict[str, Any], name: str) -> float | None:
    for row in record["rows"]:
        if row["name"] == name:
            return rate(row)
    return None
