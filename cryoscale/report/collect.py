"""What a run says of itself: settings, states, timings, failures, disk, and what to do next.

Everything is read from storage, so a report can be made of a run on any machine, at any moment.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.config.sections import Section
from cryoscale.data.clusters import SELECTION, SUGGESTION, Selection
from cryoscale.data.ledger import ALL, UnitState, unit_states
from cryoscale.data.run import Run
from cryoscale.errors import CryoscaleError

PACKAGES = (
    "cryoscale",
    "numpy",
    "scipy",
    "torch",
    "openvino",
    "zarr",
    "dask",
    "dask-ml",
    "ray",
    "matplotlib",
)
STATES = ("done", "empty", "failed", "running", "planned")


@dataclass(frozen=True)
class StageName:
    """A stage of the pipeline: its name, and whether it works on the whole data set."""

    name: str
    whole: bool


@dataclass(frozen=True)
class Setting:
    """One key of `run.toml`."""

    key: str
    value: str
    default: str
    changed: bool


@dataclass(frozen=True)
class StageSummary:
    """How far a stage is over all tomograms, and what it took."""

    name: str
    whole: bool
    counts: dict[str, int]
    wall_seconds: float
    work_seconds: float
    voxels: int

    @property
    def voxels_per_second(self) -> float | None:
        """Voxels over seconds of work, or None for stages that count none."""
        return self.voxels / self.work_seconds if self.voxels and self.work_seconds > 0 else None


@dataclass(frozen=True)
class Failure:
    """A row of `failures.csv`."""

    stage: str
    tomogram: str
    block: str
    reason: str


@dataclass(frozen=True)
class NextStep:
    """What to do next: a sentence and, where there is one, the command."""

    text: str
    command: str = ""
    link: str = ""


@dataclass(frozen=True)
class Choice:
    """What stands in the way of, or results from, choosing clusters.

    Parameters
    ----------
    clustered, reviewed : bool
        Whether there is a clustering, and contact sheets of it.
    n_clusters : int
        How many clusters; 0 without a clustering.
    selection : Selection or None
        The person's choice, if it can be read.
    valid : bool
        Whether the choice was made for this clustering.
    problem : str
        Why `selection.toml` cannot be read.
    suggestion : dict
        `suggestion.toml` of this clustering; empty when there is none.
    """

    clustered: bool = False
    reviewed: bool = False
    n_clusters: int = 0
    selection: Selection | None = None
    valid: bool = False
    problem: str = ""
    suggestion: dict[str, Any] | None = None

    @property
    def chosen(self) -> Selection | None:
        """The selection, if it holds for this clustering."""
        return self.selection if self.valid else None


@dataclass(frozen=True)
class Summary:
    """The run as a whole, for the first page.

    `supervised` names the network that was trained on what is known, empty for runs by way of clusters;
    `knows_truth` says that the run is simulated.
    """

    place: str
    stages: list[StageSummary]
    units: dict[tuple[str, str], UnitState]
    tomograms: list[str]
    settings: dict[str, list[Setting]]
    versions: list[tuple[str, str]]
    failures: list[Failure]
    disk: list[tuple[str, int]]
    choice: Choice
    next_steps: list[NextStep]
    supervised: str = ""
    knows_truth: bool = False

    def state(self, stage: str, tomogram: str) -> str:
        """State of a stage of a tomogram, "planned" when nothing was begun."""
        unit = self.units.get((stage, tomogram))
        return state_of(unit) if unit else "planned"


def state_of(unit: UnitState) -> str:
    """Return the state that people are shown: a quarantined block makes the unit a failed one."""
    return "failed" if unit.quarantined and unit.state != "done" else unit.state


def summarise(run: Run, config: RunConfig, stages: Sequence[StageName]) -> Summary:
    """Collect what the first page shows.

    Parameters
    ----------
    stages : sequence of StageName
        In the order of the pipeline; empty: those that the ledger knows, by when they began.
    """
    states = unit_states(run.ledger)
    units: dict[tuple[str, str], UnitState] = {}
    for state in sorted(states, key=lambda s: s.started):
        units[state.stage, state.unit] = state
    known = list(stages) or _stages_of(states)
    tomograms = sorted(source.name for source in config.inputs)
    rows = [_stage_summary(stage, units, tomograms) for stage in known]
    choice = read_choice(run)
    failures = read_failures(run, units)
    summary = Summary(
        run.folder.url,
        rows,
        units,
        tomograms,
        settings_of(config),
        versions(),
        failures,
        disk_used(run),
        choice,
        [],
        config.supervised.model or "",
        config.simulate is not None,
    )
    return replace(summary, next_steps=next_steps(summary))


def _stages_of(states: Sequence[UnitState]) -> list[StageName]:
    first: dict[str, float] = {}
    whole = {state.stage for state in states if state.unit == ALL}
    for state in states:
        first[state.stage] = min(first.get(state.stage, state.started), state.started)
    return [StageName(name, name in whole) for name in sorted(first, key=lambda n: (first[n], n))]


def _stage_summary(
    stage: StageName, units: dict[tuple[str, str], UnitState], tomograms: Sequence[str]
) -> StageSummary:
    names = [ALL] if stage.whole else tomograms
    found = [units[stage.name, name] for name in names if (stage.name, name) in units]
    counts = dict.fromkeys(STATES, 0)
    for unit in found:
        counts[state_of(unit)] += 1
    counts["planned"] += len(names) - len(found)
    ends = [unit.finished for unit in found if unit.finished]
    starts = [unit.started for unit in found if unit.started]
    wall = max(0.0, max(ends) - min(starts)) if ends and starts else 0.0
    work = sum(unit.seconds or max(0.0, unit.finished - unit.started) for unit in found if unit.finished)
    return StageSummary(stage.name, stage.whole, counts, wall, work, sum(unit.voxels for unit in found))


def settings_of(config: RunConfig) -> dict[str, list[Setting]]:
    """Return every parameter by table, and whether it differs from the default."""
    tables = {}
    for name in RunConfig.model_fields:
        section = getattr(config, name)
        if not isinstance(section, Section):
            continue
        values, defaults = _rows_of(section), _rows_of(type(section)())
        tables[name] = [
            Setting(key, _plain(value), _plain(defaults.get(key)), value != defaults.get(key))
            for key, value in values.items()
        ]
    return tables


def _rows_of(section: Section) -> dict[str, Any]:
    """Return the values of a table; those of tables within it under dotted keys."""
    rows: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows[prefix] = [_in_a_word(entry) for entry in value]
        else:
            rows[prefix] = value

    add("", section.model_dump(mode="json"))
    return rows


def _in_a_word(entry: dict[str, Any]) -> str:
    """Name one of a list of tables: a density and its copies, a variant."""
    name = str(entry.get("name") or entry.get("density") or "unnamed")
    copies = entry.get("copies")
    return f"{name} ({copies})" if copies else name


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def versions() -> list[tuple[str, str]]:
    """Return the versions of Python and of the packages that matter to results, without importing them."""
    found = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return found


def read_failures(run: Run, units: dict[tuple[str, str], UnitState]) -> list[Failure]:
    """Read `failures.csv`, and add units that failed in a run whose driver died before it wrote the file."""
    failures = []
    if run.folder.exists("failures.csv"):
        text = run.folder.read_bytes("failures.csv").decode(errors="replace")
        failures = [
            Failure(*(row.get(key) or "" for key in ("stage", "tomogram", "block", "reason")))
            for row in csv.DictReader(io.StringIO(text))
        ]
    known = {(failure.stage, failure.tomogram) for failure in failures}
    for (stage, unit), state in sorted(units.items()):
        tomogram = "" if unit == ALL else unit
        if state_of(state) == "failed" and (stage, tomogram) not in known:
            reason = state.reason or f"{state.quarantined} blocks were given up"
            failures.append(Failure(stage, tomogram, "", reason))
    return failures


def disk_used(run: Run) -> list[tuple[str, int]]:
    """Return the bytes of each folder of the run, largest first; the reports themselves are left out."""
    names = [name for name in run.folder.names() if name != "reports" and "." not in name]
    sizes = [(name, run.folder.child(name).size_bytes()) for name in names]
    return sorted(((name, size) for name, size in sizes if size), key=lambda entry: (-entry[1], entry[0]))


def read_choice(run: Run) -> Choice:
    """Say how far the choice of clusters is; an unreadable selection is a finding, not an error."""
    clusters = run.clusters
    if not clusters.exists:
        return Choice()
    card = clusters.card
    n_clusters = int(card["n_clusters"])
    suggestion: dict[str, Any] = {}
    if clusters.folder.exists(SUGGESTION):
        suggestion = clusters.folder.read_toml(SUGGESTION)
        if suggestion.get("clustering") != card["centers_sha256"]:
            suggestion = {}
    reviewed = run.folder.exists("clusters/review/review.safetensors") and bool(suggestion)
    known = Choice(clustered=True, reviewed=reviewed, n_clusters=n_clusters, suggestion=suggestion)
    try:
        selection = clusters.selection(n_clusters)
    except CryoscaleError as error:
        return replace(known, problem=str(error))
    if selection is None:
        return known
    return replace(known, selection=selection, valid=clusters.accepts(selection))


def _segmented(summary: Summary) -> bool:
    """Tell whether all label volumes are made: without a selection, by a segmenter of another run."""
    counts = next((s.counts for s in summary.stages if s.name == "segment"), {})
    made = counts.get("done", 0) + counts.get("empty", 0)
    return 0 < made == sum(counts.values())


def next_steps(summary: Summary) -> list[NextStep]:
    """Say what a person does now, the most urgent first."""
    place, choice = shlex.quote(summary.place), summary.choice
    steps = []
    if summary.failures:
        steps.append(
            NextStep(
                f"{len(summary.failures)} failed: read the reasons, mend what they name, and try again.",
                f"cryoscale run {place} --retry-quarantined", "#failures",
            )
        )  # fmt: skip
    if choice.problem:
        steps.append(NextStep(f"The selection cannot be read: {choice.problem}", "", "clusters.html"))
    elif choice.selection is not None and not choice.valid:
        text = f"clusters/{SELECTION} was made for another clustering: look at the clusters and choose again."
        steps.append(NextStep(text, f"cryoscale review {place}", "clusters.html"))
    elif choice.reviewed and choice.selection is None and not _segmented(summary):
        steps += [
            NextStep("Choose clusters: look at the contact sheets.", "", "clusters.html"),
            NextStep(f"Then write their ids into clusters/{SELECTION} and go on.", f"cryoscale run {place}"),
            NextStep("Or take the suggestion as it is.", f"cryoscale run {place} --accept-suggestions"),
        ]
    open_units = sum(s.counts["planned"] + s.counts["running"] for s in summary.stages)
    if not steps and (open_units or not summary.stages):
        begun = "Some work is not done yet: go on." if summary.units else "Nothing was done yet: begin."
        steps.append(NextStep(begun, f"cryoscale run {place}"))
    if not steps:
        steps.append(NextStep("All stages are done: look at the tomograms below.", "", "#tomograms"))
        if summary.knows_truth:
            steps.append(
                NextStep("Score it against what the simulation knows.", f"cryoscale evaluate {place}")
            )
        else:
            words = "Score picks against known positions."
            steps.append(NextStep(words, f"cryoscale evaluate {place} --truth positions.csv"))
    return steps
