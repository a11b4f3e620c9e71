"""From results to a dated report: a table for each case, targets with what was reached, pictures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import results
from benchmarks.harness.case import Case, Target, all_cases
from benchmarks.harness.measure import rate, ratios
from benchmarks.harness.slopes import slope

Record = dict[str, Any]
STEEPEST = 1.05


def write_report(path: Path, folder: Path, title: str) -> Path:
    """Write `<folder>.md`, and pictures and the raw numbers into `folder`.

    Parameters
    ----------
    path : Path
        `results.jsonl`; of each case the last record counts.
    folder : Path
        `notes.md` in it, if there is one, stands before the tables: what the numbers mean.
    title : str
        The first line.

    Returns
    -------
    report : Path
    """
    from benchmarks.harness.plots import draw_all

    records = list(results.latest(results.read(path)).values())
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "results.jsonl"
    if path.resolve() != raw.resolve():
        raw.write_text("")
        for record in records:
            results.append(raw, record)
    pictures = draw_all(records, folder)
    notes = folder / "notes.md"
    words = [f"# {title}", ""]
    if notes.exists():
        words += [notes.read_text().strip(), ""]
    words += [tables(records), *(f"![{p.stem}]({folder.name}/{p.name})\n" for p in pictures)]
    report = folder.with_suffix(".md")
    report.write_text("\n".join(words).rstrip() + "\n")
    return report


def tables(records: Sequence[Record]) -> str:
    """Return all that the numbers alone say, as Markdown."""
    cases = {case.name: case for case in all_cases()}
    words = [_machines(records), _targets(records, cases)]
    grown = [r for r in records if r["case"].startswith("growth.") and not r.get("failed")]
    words.append(_slopes(grown))
    words += ["## Case by case", ""]
    for record in records:
        if not record["case"].startswith("growth."):
            words.append(_case(record, cases.get(record["case"])))
    return "\n".join(words)


def _machines(records: Sequence[Record]) -> str:
    lines = ["## Measured on", ""]
    seen: dict[str, Record] = {}
    for record in records:
        seen.setdefault(json.dumps(record["machine"], sort_keys=True), record)
    for record in seen.values():
        m = record["machine"]
        gpu = f", {m['gpu']}" if m["gpu"] else ""
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        hardware = f"{m['processor']}, {m['cores']} cores, {m['memory_gb']:g} GB{gpu}"
        lines.append(
            f"- {record['date'][:10]}, commit {m['commit'] or 'unknown'}: {hardware}; {m['system']}, "
            f"Python {m['python']}; {versions}."
        )
    return "\n".join([*lines, ""])


def reached(target: Target, record: Record) -> tuple[str, str, bool | None]:
    """Return what a target asks for, what was measured, and whether that reaches it (None: not measured)."""
    rows = {row["name"]: row for row in record["rows"]}
    of = (target.of,) if isinstance(target.of, str) else target.of
    aim = f", aim {target.aim:.3g}" if target.aim else ""
    if of is None:
        asked = target.words or f"{target.ours}: at least {target.at_least:.4g} {record['unit']}/s{aim}"
        if target.ours not in rows or not rows[target.ours]["seconds"]:
            return asked, "not measured", None
        row = rows[target.ours]
        rates = sorted(row["work"] / s for s in row["seconds"])
        return asked, _spread(rates), statistics.median(rates) >= target.at_least
    there = [rows[name] for name in of if name in rows and rows[name]["seconds"]]
    asked = target.words or f"{target.ours}: at least {target.at_least:.3g} times {' or '.join(of)}{aim}"
    if target.ours not in rows or not there:
        return asked, "not measured", None
    best = max(there, key=rate)
    values = sorted(ratios(rows[target.ours], best))
    beside = f" of {best['name']}" if len(of) > 1 else ""
    return asked, _spread(values) + beside, statistics.median(values) >= target.at_least


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({values[0]:.3g} to {values[-1]:.3g})"


def _targets(records: Sequence[Record], cases: dict[str, Case]) -> str:
    lines = [
        "## Targets",
        "",
        "| case | asked for | measured: median (lowest to highest) | |",
        "|---|---|---|---|",
    ]
    for record in records:
        case = cases.get(record["case"])
        if case is None or record.get("failed"):
            continue
        for target in case.targets:
            if record["size"] in target.sizes:
                asked, found, good = reached(target, record)
                verdict = {True: "reached", False: "**not reached**", None: ""}[good]
                lines.append(f"| {record['case']} | {asked} | {found} | {verdict} |")
    return "\n".join([*lines, ""])


def _slopes(records: Sequence[Record]) -> str:
    lines = [
        "## How cost grows", "",
        f"Slope of log time over log work at 1, 2, 4, 8 times the work; asked for: at most {STEEPEST}.", "",
        "| kernel or stage | against | slope (95 %) | seconds at 1 and 8 | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for record in records:
        middle, low, high = slope(record)
        ends = [statistics.median(record["rows"][i]["seconds"]) for i in (0, -1)]
        good = (
            "reached" if middle <= STEEPEST else "within its interval" if low <= STEEPEST else "**steeper**"
        )
        lines.append(
            f"| {record['case'].removeprefix('growth.')} | {record['unit']} | {middle:.3f} ({low:.3f} to "
            f"{high:.3f}) | {ends[0]:.3g}, {ends[1]:.3g} | {good} |"
        )
    return "\n".join([*lines, ""])


def _case(record: Record, case: Case | None) -> str:
    lines = [f"### {record['case']}", ""]
    if case is not None:
        lines += [case.question, ""]
    if record.get("failed"):
        return "\n".join([*lines, f"Failed: {record['failed']}", ""])
    peers = [row for row in record["rows"] if row["role"] == "peer" and row["seconds"]]
    best = max(peers, key=rate) if peers else None
    unit = record["unit"]
    lines += [
        f"Size {record['size']}, {record['threads']} core{'s' * (record['threads'] > 1)}"
        f"{', GPU' if record['device'] == 'cuda' else ''}; peak of the process {record['peak_mb']} MB; "
        f"load before it {record['load_before']}.",
        "",
        f"| contestant | | settings | {unit}/s | seconds: median (lowest to highest) |"
        + (" of the best peer |" if best else ""),
        "|---|---|---|---:|---:|" + ("---:|" if best else ""),
    ]
    for row in record["rows"]:
        if not row["seconds"]:
            continue
        line = f"| {row['name']} | {row['role']} | {row['settings']} | {rate(row):.4g} | "
        line += f"{_spread(sorted(row['seconds']))} |"
        if best is not None:
            line += f" {statistics.median(ratios(row, best)):.2f} |"
        lines.append(line)
    lines += ["", *(f"- {key}: {_fact(value)}" for key, value in record["facts"].items())]
    if record["missing"]:
        lines.append(f"- not installed here: {', '.join(record['missing'])}")
    return "\n".join([*lines, ""])


def _fact(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
