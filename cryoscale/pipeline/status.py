"""What a run looks like from outside, while it is going on or afterwards, from any machine.

Everything comes from the ledger, `run.toml` and `clusters/selection.toml`; nothing is written.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from cryoscale.data.ledger import ALL, Mark, UnitLedger
from cryoscale.data.lock import Clock, Sight, sight
from cryoscale.data.run import Run
from cryoscale.pipeline.order import Step
from cryoscale.pipeline.presence import read_presence
from cryoscale.pipeline.survey import NO_SELECTION, Standing, Survey, survey_run
from cryoscale.stages.base import BlockStage

SCHEMA = 1  # of the dictionary below; raised when a key changes its meaning or goes
STATES = ("done", "empty", "failed", "running", "interrupted", "planned", "blocked", "waiting")
DUE = ("running", "interrupted", "planned")


def status_of(run: Run, *, with_disk: bool = True) -> dict[str, Any]:
    """Describe how far a run is, with plain values ready for JSON.

    Parameters
    ----------
    run : Run
        The run.
    with_disk : bool
        Whether to add up the size of all files, which takes long on slow storage.

    Returns
    -------
    status : dict
        `schema` (1), `run` (where it is), `at` (seconds since the epoch), and:

        - `driver`: None, or `host`, `pid`, `alive`, `silent_seconds` (since its last sign, which the storage
          dates; never negative). Where `alive` hangs on clocks that may disagree, the lock is watched for
          15 s at most;
        - `workers`: those that ended a task in the last quarter of an hour, by `host` and `engine` ("dask",
          "ray", "serial"): how many `workers`, and `seen_seconds` since the last of them did;
        - `paused`: None, or `reason` and `since_seconds`: the driver waits for storage, network or workers;
        - `tomograms`: how many inputs the run has;
        - `complete`: whether nothing is due any more; `failed`: whether something failed;
        - `waiting`: None, or what a person has to do before the rest can go on;
        - `seconds_left`: the sum over the stages whose speed is known, None when there is none;
          `stages_without_estimate`: the names of the others that are due;
        - `disk`: `used_bytes` and `free_bytes`, each None where unknown;
        - `stages`: in order, each with `stage`, `scope` ("tomogram" or "all"), `tomograms` (a count for
          each state below), `blocks` (planned, done, empty, quarantined; of the tomograms begun so far),
          `voxels` (gone through), `voxels_per_second` and `seconds_left` (None where unknown), and `units`:
          one for each tomogram with `tomogram` (empty for the whole data set), `state`, `outdated` (made
          with other parameters: due again), `blocks`, `voxels`, `seconds` (of work, over all workers),
          `started`, `finished`, `reason`, and `facts` (what the stage said at its end);
        - `trainings`: by model ("encoder", "segmenter"), those that began and are not finished, each with
          `epoch`, `epochs` (at most), `train_loss`, `validation_loss`, `seconds` (of the last epoch);
        - `failures`: `stage`, `tomogram`, `block` (None: the whole unit), `reason`.

        A stage of scope "all" counts as one tomogram. States: done; empty (done, and nothing was found);
        failed; running; interrupted (begun, and no driver is alive); planned (due, not begun); blocked (an
        earlier stage failed); waiting (for a person).
    """
    survey = survey_run(run)
    now = time.time()
    seen = sight(run.folder.child("ledger"), now, Clock().wait)
    driver = _told(seen)
    at_work = seen is not None and seen.alive
    workers, paused = read_presence(run.folder.child("ledger")) if at_work else ([], None)
    clock = seen.clock if seen is not None and seen.alive else now  # the ledger's times are the driver's
    stages = [_stage(step, survey.of_step(step.name), clock, at_work=at_work) for step in survey.graph.steps]
    failures = failures_in(survey)
    due = [stage for stage in stages if any(stage["tomograms"][state] for state in DUE)]
    known = [s["seconds_left"] for s in due if s["seconds_left"] is not None]
    return {
        "schema": SCHEMA,
        "run": run.folder.url,
        "at": now,
        "driver": driver,
        "workers": workers,
        "paused": paused,
        "tomograms": len(survey.graph.tomograms),
        "complete": not due,
        "failed": bool(failures),
        "waiting": _what_waits(survey, run),
        "seconds_left": sum(known) if known else None,
        "stages_without_estimate": [s["stage"] for s in due if s["seconds_left"] is None],
        "disk": {
            "used_bytes": run.folder.size_bytes() if with_disk else None,
            "free_bytes": run.folder.free_bytes(),
        },
        "stages": stages,
        "trainings": trainings_of(run),
        "failures": failures,
    }


def trainings_of(run: Run) -> dict[str, Any]:
    """Return how far each training is that began and is not finished: epoch, epochs, losses; by model."""
    found = {name: run.model(name).progress for name in ("encoder", "segmenter")}
    return {name: progress for name, progress in found.items() if progress}


def _told(seen: Sight | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    return {
        "host": seen.holder["host"],
        "pid": seen.holder["pid"],
        "alive": seen.alive,
        "silent_seconds": seen.silent_seconds,
    }


def failures_in(survey: Survey) -> list[dict[str, Any]]:
    """List what failed: each quarantined block, and each unit that failed for another reason."""
    rows: list[dict[str, Any]] = []
    for standing in survey.standings:
        record = standing.record
        if record is None or standing.state not in ("failed", "running"):
            continue
        where = {"stage": record.stage, "tomogram": _shown(standing)}
        marks = _quarantined(survey, standing) if record.quarantined else []
        rows += [{**where, "block": mark.block, "reason": mark.reason} for mark in marks]
        if record.state == "failed" and not marks:
            rows.append({**where, "block": None, "reason": record.reason})
    return rows


def _quarantined(survey: Survey, standing: Standing) -> list[Mark]:
    ledger = UnitLedger(survey.graph.run.ledger, *standing.unit.name, standing.unit.key)
    return [mark for mark in ledger._read_marks() if mark.status == "quarantined"]


def _what_waits(survey: Survey, run: Run) -> str | None:
    """Say what a person has to do before the rest can go on."""
    if not survey.waiting_for_selection:
        return None
    reason = next((s.unit.reason for s in survey.standings if s.state == "waiting" and s.unit.reason), "")
    if reason and reason != NO_SELECTION:
        return reason
    clusters = run.clusters.folder
    return (
        f"choose clusters: write {clusters.path('selection.toml')} "
        f"({clusters.path('suggestion.toml')} shows the form)"
    )


def _stage(step: Step, standings: list[Standing], now: float, *, at_work: bool) -> dict[str, Any]:
    """Count one stage over its tomograms."""
    units = [_unit(standing, at_work=at_work) for standing in standings]
    counts = Counter(unit["state"] for unit in units)
    wall = _busy_seconds(standings, now, at_work=at_work)
    voxels = sum(unit["voxels"] for unit in units)
    return {
        "stage": step.name,
        "scope": step.scope,
        "tomograms": {state: counts[state] for state in STATES},
        "blocks": {key: sum(unit["blocks"][key] for unit in units) for key in _BLOCK_KEYS},
        "voxels": voxels,
        "voxels_per_second": voxels / wall if wall and voxels else None,
        "seconds_left": _seconds_left(units, wall),
        "units": units,
    }


_BLOCK_KEYS = ("planned", "done", "empty", "quarantined")


def _unit(standing: Standing, *, at_work: bool) -> dict[str, Any]:
    """Describe one stage of one tomogram; what runs without a living driver was interrupted."""
    record, state = standing.record, standing.state
    blocks = {key: getattr(record, key) if record else 0 for key in _BLOCK_KEYS}
    whole = not isinstance(standing.unit.step.stage, BlockStage)
    if record and whole and standing.unit.state == "sealed":
        blocks["done"] = blocks["planned"]  # a stage without blocks has no marks, only its seal
    return {
        "tomogram": _shown(standing),
        "state": "interrupted" if state == "running" and not at_work else state,
        "outdated": standing.outdated,
        "blocks": blocks,
        "voxels": record.voxels if record else 0,
        "seconds": record.seconds if record else 0.0,
        "started": record.started if record else None,
        "finished": (record.finished or None) if record else None,
        "reason": standing.unit.reason,
        "facts": standing.unit.value,
    }


def _busy_seconds(standings: Iterable[Standing], now: float, *, at_work: bool) -> float:
    """Add up the time during which the stage had a tomogram in work; overlapping times count once."""
    spans = []
    for standing in standings:
        record = standing.record
        if record is None or not record.started:
            continue
        going_on = at_work and record.state == "running"
        spans.append((record.started, now if going_on else max(record.started, record.finished)))
    total, reached = 0.0, 0.0
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _seconds_left(units: list[dict[str, Any]], wall: float) -> float | None:
    """Estimate from the share of blocks that are through; None without any, 0 when none is due.

    Tomograms not yet planned count with the mean number of blocks of the others.
    """
    begun = [unit["blocks"] for unit in units if unit["blocks"]["planned"]]
    through = sum(b["done"] + b["empty"] + b["quarantined"] for b in begun)
    due = [u for u in units if u["state"] in DUE]
    if not due:
        return 0.0
    if not through or wall <= 0:
        return None
    mean = sum(b["planned"] for b in begun) / len(begun)
    left: float = 0.0
    for unit in due:
        blocks = unit["blocks"]
        done = blocks["done"] + blocks["empty"] + blocks["quarantined"]
        left += max(0.0, float(blocks["planned"] - done)) if blocks["planned"] else mean
    return float(wall / through * left)


def _shown(standing: Standing) -> str:
    return "" if standing.unit.tomogram == ALL else standing.unit.tomogram
