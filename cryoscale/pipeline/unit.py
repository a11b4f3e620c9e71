"""A unit of work: a step of one tomogram, or of the whole data set, on its way through the controller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cryoscale.data.access import Access
from cryoscale.data.ledger import ALL, Mark, Marks, UnitLedger
from cryoscale.geometry import Block
from cryoscale.pipeline.order import Step
from cryoscale.stages.base import Plan

TERMINAL = frozenset({"sealed", "failed", "blocked", "waiting"})


@dataclass(slots=True, eq=False)
class Unit:
    """A step of one tomogram on its way through the controller.

    There are 150,000 of them in a run of 10,000 tomograms, so what only a unit at work needs goes when it has
    ended. `state` is `pending` until its inputs stand, then `active` and `sealing`, and ends `sealed`,
    `failed`, `blocked` (an input failed) or `waiting` (for a person).
    """

    step: Step
    tomogram: str  # `ALL` for the whole data set
    state: str = "pending"
    key: str = ""
    identity: str = ""
    reason: str = ""
    ledger: UnitLedger | None = None
    access: Access | None = None
    plan: Plan | None = None
    marks: Marks | None = None
    phase: int = 0
    outstanding: int = 0  # blocks of the phase that have not ended
    value: dict[str, Any] = field(default_factory=dict)
    pauses: int = 0  # how often the surroundings failed one of its tasks
    finished_before: int = -1  # how many tasks of the run had finished when that first happened
    outside: dict[str, Any] = field(default_factory=dict)  # what it reads beside the run's artifacts

    @property
    def name(self) -> tuple[str, str]:
        """Step name and tomogram."""
        return self.step.name, self.tomogram

    @property
    def quarantined(self) -> list[Mark]:
        """Blocks that were given up."""
        return self.marks.quarantined if self.marks is not None else []

    def blocks_due(self) -> list[Block]:
        """Blocks of the current phase without a mark."""
        assert self.plan is not None
        assert self.marks is not None
        marks = self.marks
        return [block for block in self.plan.phases[self.phase] if block.index not in marks]


def shown(unit: Unit) -> str:
    """Return the tomogram's name for people; empty for the whole data set."""
    return "" if unit.tomogram == ALL else unit.tomogram


def quarantine_text(unit: Unit) -> str:
    """Say how many blocks of a unit were given up, and why the first one was."""
    marks = unit.quarantined
    assert unit.plan is not None
    return f"{len(marks)} of {unit.plan.block_count} blocks quarantined; the first: {marks[0].reason}"
