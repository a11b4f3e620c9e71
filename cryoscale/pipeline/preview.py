"""The dry run: blocks, memory and disk of what is due, from metadata and headers; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from cryoscale.config import RunConfig
from cryoscale.data.access import Access
from cryoscale.data.ledger import ALL, UnitLedger
from cryoscale.data.pyramid import pyramid_levels
from cryoscale.data.run import Run
from cryoscale.data.tomogram import TomogramFacts
from cryoscale.errors import CryoscaleError, FormatError
from cryoscale.formats.mrc_header import read_header
from cryoscale.geometry import Zyx
from cryoscale.pipeline.engines import EngineChoice, memory_budgets
from cryoscale.pipeline.supervised import assumed_card
from cryoscale.pipeline.survey import Standing, Survey, survey_run
from cryoscale.pipeline.telling import INTERPRETER_BYTES
from cryoscale.runtime.memory import format_bytes
from cryoscale.stages.base import BlockStage
from cryoscale.stages.networks import expected_invariants

ASSUMED_CLASSES = 8  # of a segmenter that is not trained yet; few runs have more
SIMULATED_FIRST = frozenset({"ingest", "subtomograms"})  # plans that need a file that is not made yet
SHOWN_TOMOGRAMS = 30  # beyond this, only what is odd is listed one by one


@dataclass
class Forecast:
    """What one stage of one tomogram would take.

    Parameters
    ----------
    step, tomogram : str
        Which; `tomogram` is empty for the whole data set.
    blocks, due : int or None
        Planned, and those without a mark; None where it depends on what is not made yet.
    bytes_per_worker : int or None
        What the plan promises; None for a stage without a plan.
    disk_bytes : int
        The most that the due blocks add to the run.
    estimated : bool
        Whether it comes from file headers, since the inputs are not made yet.
    problem : str
        Why it cannot be done or foreseen.
    engine : str
        What carries the stage, "cpu" or "model".
    """

    step: str
    tomogram: str
    blocks: int | None = None
    due: int | None = None
    bytes_per_worker: int | None = None
    disk_bytes: int = 0
    estimated: bool = False
    problem: str = ""
    engine: str = "cpu"

    @property
    def worker_bytes(self) -> int | None:
        """What a worker takes, its interpreter included: what the controller holds against the budget."""
        promised = self.bytes_per_worker
        return None if promised is None else promised + INTERPRETER_BYTES[self.engine]


def preview(place: str, until: str | None = None, choice: EngineChoice | None = None) -> str:
    """Say what `run` would do: blocks, bytes per worker against the budget, disk against what is free.

    Parameters
    ----------
    place : str
        The run.
    until : str, optional
        Last stage to look at.
    choice : EngineChoice, optional
        The engines that the run would have; "auto" by default. One on a running cluster is not judged,
        unless `execution.memory_budget` says what its workers have.

    Raises
    ------
    StateError
        There is no run at this place.
    ConfigurationError
        `run.toml` cannot be used, or has no such stage.
    """
    run = Run.open(place)
    survey = survey_run(run, until=until, look_at_sources=True)
    rows = forecasts(survey)
    budgets = memory_budgets(survey.graph.config, choice or EngineChoice())
    lines = [
        f"dry run of {run.folder.url}: {len(survey.graph.tomograms)} tomograms; nothing is written.",
        "",
        *_stage_lines(rows, budgets),
        "",
        *_tomogram_lines(rows, budgets),
        *_conclusions(rows, budgets, run.folder.free_bytes()),
    ]
    if survey.waiting_for_selection:
        lines.append("The run stops before the segmentation until clusters are chosen.")
    return "\n".join(lines)


def forecasts(survey: Survey) -> list[Forecast]:
    """Foresee every unit of a run, in order: by its stage's own plan, on real metadata or on headers."""
    facts: dict[str, TomogramFacts | FormatError] = {}
    return [_forecast(survey, standing, facts) for standing in survey.standings]


def _forecast(survey: Survey, standing: Standing, facts: dict[str, Any]) -> Forecast:
    unit = standing.unit
    tomogram = "" if unit.tomogram == ALL else unit.tomogram
    row = Forecast(unit.step.name, tomogram, engine=unit.step.stage.engine)
    if standing.state in ("done", "empty"):
        assert standing.record is not None
        return replace(row, blocks=standing.record.planned, due=0)
    if standing.state == "blocked":
        return replace(row, problem=unit.reason)
    ready = bool(unit.key)  # only units whose inputs stand have a key
    row = replace(row, estimated=not ready)
    if not isinstance(unit.step.stage, BlockStage):
        return replace(row, blocks=1, due=1, estimated=False)
    if not ready and survey.graph.config.simulate and unit.step.name in SIMULATED_FIRST:
        return row
    try:
        access = survey.graph.access_for(unit)
        if not ready:
            access = _HeaderAccess.like(access, _facts(survey, unit.tomogram, facts))
        plan = unit.step.stage.plan(access)
    except CryoscaleError as error:
        return replace(row, problem=str(error))
    row = replace(row, bytes_per_worker=plan.bytes_per_worker, disk_bytes=plan.disk_bytes)
    if isinstance(access, _HeaderAccess) and access.counted_picks and plan.block_count == 0:
        return row  # how many blocks depends on how many picks there will be
    through = _through(survey, standing, plan.identity)
    due = plan.block_count - through
    disk = plan.disk_bytes * due // plan.block_count if plan.block_count else 0
    return replace(row, blocks=plan.block_count, due=due, disk_bytes=disk)


def _through(survey: Survey, standing: Standing, plan: str) -> int:
    """Count the marks that stand for this plan of blocks."""
    record = standing.record
    if record is None or not standing.unit.key:
        return 0
    folder = UnitLedger(survey.graph.run.ledger, *standing.unit.name, standing.unit.key).folder
    if not folder.exists("plan.json") or folder.read_json("plan.json").get("plan") != plan:
        return 0
    return record.done + record.empty + record.quarantined


def _facts(survey: Survey, tomogram: str, known: dict[str, Any]) -> TomogramFacts:
    """Return what ingest recorded, or what the header of the source foretells."""
    if tomogram not in known:
        try:
            if survey.graph.units["ingest", tomogram].state == "sealed":
                grant = survey.graph.access_for(survey.graph.units["pick", tomogram])
                known[tomogram] = grant.open_tomogram().facts
            else:
                known[tomogram] = _facts_from_header(survey.graph.run, survey.graph.config, tomogram)
        except CryoscaleError as error:
            known[tomogram] = error
    found = known[tomogram]
    if isinstance(found, CryoscaleError):
        raise found
    assert isinstance(found, TomogramFacts)
    return found


def _facts_from_header(run: Run, config: RunConfig, tomogram: str) -> TomogramFacts:
    source = next(s for s in config.inputs if s.name == tomogram)
    asked = source.voxel_size_angstrom or config.ingest.voxel_size_angstrom
    if config.simulate is not None:  # the file may not be made yet
        scene = config.simulate.scene
        shape, found = Zyx.of(scene.shape), scene.voxel_size_angstrom
    else:
        place = run.source_path(source.path)
        header = read_header(place, ignore_voxel_size=asked is not None)
        if asked is None and header.voxel_size_angstrom is None:
            raise FormatError(f"{place}: the voxel size is not set in the header.")
        shape, found = header.shape, header.voxel_size_angstrom or 0.0
    size = asked or found
    levels = pyramid_levels(shape, size, count=config.ingest.levels)
    return TomogramFacts(tomogram, tuple(levels), (), "dark", "not looked at yet", "", {})


@dataclass(frozen=True)
class _HeaderAccess(Access):
    """An access that stands on a header where the tomogram is not there yet; good for `plan` alone."""

    facts: TomogramFacts | None = None

    @classmethod
    def like(cls, access: Access, facts: TomogramFacts) -> _HeaderAccess:
        """Return the same grant, standing on these facts."""
        return cls(**{f.name: getattr(access, f.name) for f in fields(access)}, facts=facts)

    @property
    def counted_picks(self) -> bool:
        """Whether the plan asks for the number of picks, which nobody knows yet."""
        return "picks" in self.reads and self.config.pick.max_picks is None

    def open_tomogram(self, tomogram: str | None = None) -> Any:
        self._may("tomogram")
        return _Foretold(facts=self.facts)

    def pick_count(self, tomogram: str | None = None) -> int:
        self._may("picks")
        return self.config.pick.max_picks or 0

    def pick_notes(self, tomogram: str | None = None) -> dict[str, str]:
        self._may("picks")
        return {}

    def model(self, name: str) -> Any:
        real = super().model(name)
        if real.exists:
            return real
        if name == "segmenter" and self.config.supervised.model is not None:
            return _Foretold(card=assumed_card(self.config, ASSUMED_CLASSES))
        wanted = self.config.encoder if name == "encoder" else self.config.segmenter
        architecture = {"channels": wanted.channels, "dimension": self.config.encoder.dimension}
        card = {**_ASSUMED_CARD, "architecture": architecture}
        if name == "encoder" and self.config.encoder.invariant_weight:
            card["invariants"] = expected_invariants(self.config.patch.box)
        return _Foretold(card=card)

    def selection(self) -> Any:
        self._may("selection")
        return self.chosen or _Foretold(**_ASSUMED_NAMES)


_ASSUMED_NAMES = {
    "class_names": tuple(f"class {n}" for n in range(ASSUMED_CLASSES)),
    "colors": ((0, 0, 0),) * ASSUMED_CLASSES,
}
_ASSUMED_CARD = {"classes": {"names": _ASSUMED_NAMES["class_names"], "colors": _ASSUMED_NAMES["colors"]}}


class _Foretold:
    """Stands for an object that is not there yet, with the few attributes that plans look at."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


# -- words --------------------------------------------------------------------------------------------------


def _stage_lines(rows: list[Forecast], budgets: Mapping[str, int]) -> list[str]:
    """One line per stage: tomograms and blocks due, the largest promise, disk."""
    head = f"{'stage':<16}{'due':>12}{'blocks due':>20}{'per worker':>14}{'disk':>12}"
    lines = [head]
    for step in dict.fromkeys(row.step for row in rows):
        mine = [row for row in rows if row.step == step]
        due = [row for row in mine if row.due != 0 and not row.problem]
        lines.append(
            f"{step:<16}{f'{len(due)} of {len(mine)}':>12}{_blocks(mine):>20}{_memory(mine, budgets):>14}"
            f"{_disk(mine):>12}"
        )
    return lines


def _tomogram_lines(rows: list[Forecast], budgets: Mapping[str, int]) -> list[str]:
    """One line per tomogram and stage that is due; of a large data set only what is odd."""
    many = len({row.tomogram for row in rows}) > SHOWN_TOMOGRAMS
    lines = []
    for row in rows:
        odd = bool(row.problem) or _too_much(row, budgets)
        if not row.tomogram or row.due == 0 or (many and not odd):
            continue
        what = row.problem or f"{_blocks([row])} blocks, {_memory([row], budgets)} per worker, {_disk([row])}"
        lines.append(f"  {row.step} of {row.tomogram}: {what}")
    return [*lines, ""] if lines else []


def _conclusions(rows: list[Forecast], budgets: Mapping[str, int], free: int | None) -> list[str]:
    needed = sum(row.disk_bytes for row in rows)
    lines = [
        f"memory budget: {_budget_words(budgets)}"
        + (": not enough where marked with !" if any(_too_much(row, budgets) for row in rows) else ""),
        f"disk: at most {format_bytes(needed)} more"
        + ("" if free is None else f", {format_bytes(free)} free")
        + (": not enough" if free is not None and needed > free else ""),
    ]
    if any(row.estimated and not row.problem for row in rows):
        lines.append("~ is an estimate from file headers: the inputs of that stage are not made yet.")
    if any(row.due is None and not row.problem for row in rows):
        lines.append("? depends on the number of picks.")
    return lines


def _too_much(row: Forecast, budgets: Mapping[str, int]) -> bool:
    budget = budgets.get(row.engine)
    return bool(budget) and (row.worker_bytes or 0) > (budget or 0)


def _budget_words(budgets: Mapping[str, int]) -> str:
    if not budgets:
        return "unknown, the workers are on running clusters"
    if len(budgets) == len(INTERPRETER_BYTES) and len(set(budgets.values())) == 1:
        return f"{format_bytes(next(iter(budgets.values())))} per worker"
    carried = {"cpu": "stages without a network", "model": "stages with one"}
    return ", ".join(f"{format_bytes(size)} per worker for {carried[name]}" for name, size in budgets.items())


def _sign(rows: Iterable[Forecast]) -> str:
    return "~" if any(row.estimated and not row.problem for row in rows) else ""


def _blocks(rows: list[Forecast]) -> str:
    known = [row for row in rows if row.blocks is not None and row.due is not None]
    if not known:
        return "?" if any(not row.problem for row in rows) else "-"
    more = "+?" if any(row.blocks is None and not row.problem for row in rows) else ""
    due, planned = sum(row.due or 0 for row in known), sum(row.blocks or 0 for row in known)
    return f"{_sign(rows)}{due}{more} of {planned}{more}"


def _memory(rows: list[Forecast], budgets: Mapping[str, int]) -> str:
    promises = [row.worker_bytes for row in rows if row.worker_bytes is not None and row.due != 0]
    if not promises:
        return "-"
    mark = " !" if any(_too_much(row, budgets) for row in rows) else ""
    return f"{_sign(rows)}{format_bytes(max(promises))}{mark}"


def _disk(rows: list[Forecast]) -> str:
    total = sum(row.disk_bytes for row in rows)
    return f"{_sign(rows)}{format_bytes(total)}" if total else "-"
