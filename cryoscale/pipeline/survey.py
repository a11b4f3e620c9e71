"""Where every unit of a run stands by the ledger, without a driver: what `status` and `--dry-run` look at.

Only states under the present parameters count. A unit whose ledger holds another key alone is due again, and
is called outdated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryoscale.data.ledger import ALL, UnitState, unit_states
from cryoscale.data.run import Run
from cryoscale.errors import CryoscaleError
from cryoscale.pipeline.driver import REFITS
from cryoscale.pipeline.order import steps_for, upto
from cryoscale.pipeline.unit import Unit
from cryoscale.pipeline.units import UnitGraph

NO_SELECTION = "no clusters are selected"


@dataclass
class Standing:
    """Where one unit stands.

    Parameters
    ----------
    unit : Unit
        Step and tomogram; `state` and `key` are set, and `reason` where there is one.
    record : UnitState or None
        What the ledger says under the unit's present key; None when nothing was begun.
    outdated : bool
        Whether the ledger holds it under other parameters only.
    """

    unit: Unit
    record: UnitState | None = None
    outdated: bool = False

    @property
    def state(self) -> str:
        """Return "done", "empty", "failed", "running", "planned", "blocked" or "waiting".

        "planned" is due and not begun; "blocked" stands behind a failure, "waiting" behind a person.
        """
        if self.unit.state in ("blocked", "waiting"):
            return self.unit.state
        return self.record.state if self.record is not None else "planned"


@dataclass
class Survey:
    """All units of a run with their standing, in the order of steps and tomograms."""

    graph: UnitGraph
    standings: list[Standing] = field(default_factory=list)

    def of_step(self, name: str) -> list[Standing]:
        """Return the standings of one step."""
        return [s for s in self.standings if s.unit.step.name == name]

    @property
    def waiting_for_selection(self) -> bool:
        """Whether a step waits for a person to choose clusters."""
        return any(s.state == "waiting" for s in self.standings)


def survey_run(run: Run, *, until: str | None = None, look_at_sources: bool = False) -> Survey:
    """Say where every unit stands, reading only the ledger, `run.toml` and the selection.

    Parameters
    ----------
    run : Run
        The run; it may be going on.
    until : str, optional
        Last step to look at.
    look_at_sources : bool
        Whether to recognise source files by size and time, as a driver does. Without it the sources need
        not be reachable from this machine, and one that changed since is not noticed.

    Raises
    ------
    ConfigurationError
        `run.toml` cannot be used.
    """
    config = run.config
    folder = run.folder.child("ledger")
    generations = folder.read_json(REFITS) if folder.exists(REFITS) else {}
    survey = Survey(UnitGraph(run, config, upto(steps_for(config), until), generations))
    known: dict[tuple[str, str], dict[str, UnitState]] = {}
    for state in unit_states(run.ledger):
        known.setdefault((state.stage, state.unit), {})[state.key] = state
    for unit in survey.graph.units.values():  # in order: each one's inputs come before it
        survey.standings.append(
            _stand(survey.graph, unit, known.get(unit.name, {}), look_at_sources=look_at_sources)
        )
    return survey


def _stand(graph: UnitGraph, unit: Unit, known: dict[str, UnitState], *, look_at_sources: bool) -> Standing:
    """Find the record of a unit under its present key, and set the unit's state for those behind it."""
    if unit.step.chosen and (reason := _unusable_selection(graph)):
        unit.state, unit.reason = "waiting", reason
        return Standing(unit, outdated=bool(known))
    verdict = graph.ready(unit)
    if verdict == "blocked":
        waits = any(u.state == "waiting" for u in _before(graph, unit))
        unit.state, unit.reason = ("waiting", "") if waits else ("blocked", "an earlier stage failed")
        return Standing(unit)
    if verdict == "no":
        return Standing(unit, outdated=bool(known))
    if unit.step.chosen and graph.selection() is None:
        unit.state, unit.reason = "waiting", NO_SELECTION
        return Standing(unit, outdated=bool(known))
    if unit.step.name == "identify" and not look_at_sources:
        unit.key = max(known, key=lambda key: known[key].started, default="")
    else:
        unit.key = graph.key_of(unit)
    unit.identity = unit.key
    record = known.get(unit.key)
    if record is None:
        return Standing(unit, outdated=bool(known))
    if record.state in ("done", "empty"):
        unit.state, unit.value = "sealed", record.value
        unit.identity = str(record.value.get("hash", unit.key))
    elif record.state == "failed":
        unit.state, unit.reason = "failed", record.reason
    return Standing(unit, record)


def _before(graph: UnitGraph, unit: Unit) -> list[Unit]:
    return [*graph.inputs_of(unit), *(graph.units[name, ALL] for name in unit.step.behind)]


def _unusable_selection(graph: UnitGraph) -> str:
    """Say what is wrong with the selection, instead of stopping: a person is at it. Empty when nothing is."""
    try:
        graph.selection()
    except CryoscaleError as error:
        return str(error)
    return ""
