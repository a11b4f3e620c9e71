"""Run one case in this process: everything ready and warm, then the contestants in turns."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case, Contestant, Setup, Size

BUDGET_S = {"tiny": 0.0, "small": 45.0, "full": 900.0}
"""What the timed rounds of a case may take; two rounds are run whatever they take."""


def measure(case: Case, size: Size, scratch: Path) -> dict[str, Any]:
    """Open a case, time its contestants in turns, and check what they returned.

    Parameters
    ----------
    case : Case
    size : Size
        For "tiny" each contestant is called once: that shows that the case works, and no more.
    scratch : Path
        An empty folder.

    Returns
    -------
    record : dict
        One row of `results.jsonl`.

    Raises
    ------
    AssertionError
        Contestants that should agree do not.
    """
    load = os.getloadavg()[0]
    with case.open(size, scratch) as setup:
        seconds, cpu, results = _rounds(case, setup, size)
        facts = dict(setup.facts)
        if setup.check is not None:
            facts.update(setup.check(results))
    return {
        "case": case.name,
        "size": size,
        "unit": case.unit,
        "threads": case.threads,
        "device": case.device,
        "load_before": round(load, 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "missing": setup.missing,
        "facts": facts,
        "rows": [
            {
                "name": c.name, "role": c.role, "settings": c.settings, "work": c.work,
                "seconds": [round(s, 6) for s in seconds[c.name]], "cpu": [round(s, 6) for s in cpu[c.name]],
            }
            for c in setup.contestants
        ],
    }  # fmt: skip


def _rounds(
    case: Case, setup: Setup, size: Size
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, Any]]:
    names = [c.name for c in setup.contestants]
    assert len(set(names)) == len(names), f"{case.name}: names must differ: {names}"
    seconds: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    rounds = 1 if size == "tiny" else case.rounds
    if size != "tiny":
        for contestant in setup.contestants:
            if contestant.warm:
                _call(contestant)
    started = time.perf_counter()
    for number in range(rounds):
        for contestant in setup.contestants:
            if contestant.rounds is not None and number >= contestant.rounds:
                continue
            results.pop(contestant.name, None)  # never two results of one contestant in memory
            took, worked, results[contestant.name] = _call(contestant)
            seconds[contestant.name].append(took)
            cpu[contestant.name].append(worked)
        passed = time.perf_counter() - started
        if number >= 1 and passed * (number + 2) / (number + 1) > BUDGET_S[size]:
            break
    return seconds, cpu, results


def _call(contestant: Contestant) -> tuple[float, float, Any]:
    if contestant.before is not None:
        contestant.before()
    cpu, started = time.process_time(), time.perf_counter()
    result = contestant.run()
    return time.perf_counter() - started, time.process_time() - cpu, result


def rate(row: Mapping[str, Any]) -> float:
    """Return the median rate of a contestant, units per second; nan if it was not timed."""
    return row["work"] / statistics.median(row["seconds"]) if row["seconds"] else float("nan")


def ratios(ours: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """Return the rate of one over that of another, round by round: a drift of the machine cancels out."""
    pairs = zip(ours["seconds"], other["seconds"], strict=False)
    return [(ours["work"] / mine) / (other["work"] / theirs) for mine, theirs in pairs]
