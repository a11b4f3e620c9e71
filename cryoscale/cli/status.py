"""`cryoscale status`: what is done, running, failed; speed, time left, disk; from any machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN_FAILURES = 10
SHOWN_HOSTS = 8


@click.command("status")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object, stable keys.")
@click.option("--tomograms", is_flag=True, help="One line per tomogram besides the one per stage.")
@click.option("--no-disk", is_flag=True, help="Do not add up the size of the run's files.")
def status_command(run: str, as_json: bool, tomograms: bool, no_disk: bool) -> int:
    """Say how far RUN is, also while it is going on. Exit 1 if something failed."""
    from cryoscale.data.run import Run
    from cryoscale.pipeline.status import status_of

    status = status_of(Run.open(run), with_disk=not no_disk)
    if as_json:
        click.echo(json.dumps(status, indent=1))
    else:
        _show(status, tomograms=tomograms)
    return 1 if status["failed"] else 0


def _show(status: dict[str, Any], *, tomograms: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)  # a pipe has no width; do not cut words for it
    console.print(f"{status['run']}: {status['tomograms']} tomograms", markup=False, soft_wrap=True)
    console.print(_stage_table(status["stages"]))
    if tomograms:
        console.print(_tomogram_table(status["stages"]))
    for line in _sentences(status):
        console.print(line, markup=False, soft_wrap=True)
    _show_failures(console, status["failures"])


def _stage_table(stages: list[dict[str, Any]]) -> Table:
    """One line per stage; columns that would be empty are left out."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for state in ("done", "empty", "running", "interrupted", "planned", "waiting", "blocked", "failed"):
        if state in ("done", "planned") or any(stage["tomograms"][state] for stage in stages):
            table.add_column(state, justify="right", style="red" if state == "failed" else None)
    for title in ("blocks", "voxels/s", "time left"):
        table.add_column(title, justify="right")
    for stage in stages:
        states = [str(stage["tomograms"][str(c.header)] or "-") for c in table.columns[1:-3]]
        table.add_row(stage["stage"], *states, *_progress(stage))
    return table


def _progress(stage: dict[str, Any]) -> tuple[str, str, str]:
    """Return blocks, speed and time left of a stage, or of one unit of it, for people."""
    from cryoscale.runtime.progress import clock_time, with_prefix

    blocks = stage["blocks"]
    through = blocks["done"] + blocks["empty"] + blocks["quarantined"]
    rate, left = stage.get("voxels_per_second"), stage.get("seconds_left")
    return (
        f"{through}/{blocks['planned']}" if blocks["planned"] else "-",
        with_prefix(rate).strip() if rate else "-",
        clock_time(left) if left else "-",
    )


def _tomogram_table(stages: list[dict[str, Any]]) -> Table:
    """One line per tomogram: the last stage that is done, the next one, and why it stopped."""
    from rich.table import Table
    from rich.text import Text

    table = Table("tomogram", "done", "next", "state", "blocks", "reason", box=None, pad_edge=False)
    per_tomogram: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for stage in stages:
        for unit in stage["units"] if stage["scope"] == "tomogram" else ():
            per_tomogram.setdefault(unit["tomogram"], []).append((stage["stage"], unit))
    for name, units in per_tomogram.items():
        done = [stage for stage, unit in units if unit["state"] in ("done", "empty")]
        cells = ["", "done", "", ""]
        rest = [pair for pair in units if pair[1]["state"] not in ("done", "empty")]
        if rest:
            due, unit = rest[0]
            cells = [due, unit["state"], _progress(unit)[0], unit["reason"]]
        table.add_row(*map(Text, [name, done[-1] if done else "", *cells]))
    return table


def _workers(rows: list[dict[str, Any]]) -> str:
    """Say how many workers there are of each engine, and on which hosts."""
    said = []
    for engine in sorted({row["engine"] for row in rows}):
        hosts = [row for row in rows if row["engine"] == engine]
        names = [f"{row['host']} ({row['workers']})" for row in hosts[:SHOWN_HOSTS]]
        more = f", and {len(hosts) - SHOWN_HOSTS} more hosts" if len(hosts) > SHOWN_HOSTS else ""
        total = sum(row["workers"] for row in hosts)
        said.append(f"{total} of {engine} on {', '.join(names)}{more}")
    return "; ".join(said)


def _sentences(status: dict[str, Any]) -> list[str]:
    """Say in words what the table does not."""
    from cryoscale.runtime.memory import format_bytes
    from cryoscale.runtime.progress import clock_time

    lines = []
    driver = status["driver"]
    if driver and driver["alive"]:
        lines.append(f"running: process {driver['pid']} on {driver['host']}")
    elif driver:
        lines.append(
            f"not running: process {driver['pid']} on {driver['host']} ended without notice; "
            "give the run command again, finished work is kept"
        )
    if status["workers"]:
        lines.append(f"workers seen lately: {_workers(status['workers'])}")
    if status["paused"]:
        at = status["paused"]
        lines.append(f"paused for {clock_time(at['since_seconds'])}: {at['reason']}")
    for name, at in status["trainings"].items():
        lines.append(
            f"training the {name}: epoch {at['epoch']} of at most {at['epochs']}, "
            f"validation loss {at['validation_loss']:.4g}, {at['seconds']:.3g} s for the last"
        )
    if status["seconds_left"]:
        more = status["stages_without_estimate"]
        unknown = f", and {', '.join(more)} not known yet" if more else ""
        lines.append(f"time left: about {clock_time(status['seconds_left'])}{unknown}")
    disk = status["disk"]
    sizes = [
        f"{format_bytes(disk[f'{word}_bytes'])} {word}"
        for word in ("used", "free")
        if disk[f"{word}_bytes"] is not None
    ]
    if sizes:
        lines.append(f"disk: {', '.join(sizes)}")
    outdated = sum(unit["outdated"] for stage in status["stages"] for unit in stage["units"])
    if outdated:
        lines.append(f"{outdated} results belong to other parameters or inputs and are due again")
    if status["waiting"]:
        lines.append(f"waiting for you: {status['waiting']}")
    if status["complete"] and not status["waiting"] and not status["failed"]:
        lines.append("all done")
    return lines


def _show_failures(console: Console, failures: list[dict[str, Any]]) -> None:
    for failure in failures[:SHOWN_FAILURES]:
        block = "" if failure["block"] is None else f" block {failure['block']}"
        where = f"{failure['stage']} {failure['tomogram'] or '(all tomograms)'}{block}"
        console.print(f"failed: {where}: {failure['reason']}", style="red", markup=False, soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"… and {len(failures) - SHOWN_FAILURES} more failures; all of them with --json")
