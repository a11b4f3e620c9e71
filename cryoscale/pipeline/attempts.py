"""Attempts at tasks, and the one rule that says what follows when one does not finish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cryoscale.pipeline.unit import Unit
from cryoscale.runtime.task import Outcome, Task

LOST_ALONE_LIMIT = 2  # a task that kills its worker twice while nothing else runs is to blame

Verdict = Literal["again", "alone", "give up", "pause"]


@dataclass(frozen=True)
class Limits:
    """How patient the controller is, and what a worker may take.

    Parameters
    ----------
    attempts : int
        Tries beside others, before a task runs alone.
    pauses, pause_seconds : int, float
        How often to wait for the surroundings, and how long at first; each further wait is twice as long.
    memory_budget : mapping of str to int
        Bytes per worker of each engine; an engine that is missing is not checked.
    workers : mapping of str to int
        Workers of each engine; a fit that is spread over them may take the budgets of all.
    """

    attempts: int = 3
    pauses: int = 6
    pause_seconds: float = 2.0
    memory_budget: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Attempt:
    """A task on its way: how often it failed, how often its worker died under it."""

    unit: Unit
    block: int | None  # None: seal or compute
    task: Task
    failures: int = 0
    losses: int = 0
    losses_alone: int = 0

    def again(self, *, alone: bool) -> None:
        """Make the next try; its identifier says which one it is."""
        old = self.task
        stem = old.identifier.rsplit("#", 1)[0]
        self.task = Task(
            f"{stem}#{old.attempt + 1}", old.work, old.argument, old.attempt + 1,
            alone=alone, needs_client=old.needs_client, patient=old.patient,
        )  # fmt: skip

    def judge(self, outcome: Outcome, limits: Limits) -> Verdict:
        """Count how the task ended and say what follows.

        A task is tried beside others, then alone on a fresh worker, then given up. A worker's death says
        little about the task that it took along, so only deaths while the task was alone count against it. A
        fault of the surroundings counts for nothing.
        """
        alone = self.task.alone
        if outcome.status == "lost":
            self.losses += 1
            self.losses_alone += alone
            if self.losses_alone >= LOST_ALONE_LIMIT:
                return "give up"
            return "alone" if alone or self.losses >= limits.attempts else "again"
        if outcome.failure is not None and outcome.failure.kind == "surroundings":
            return "pause"
        self.failures += 1
        if alone and self.failures >= limits.attempts:
            return "give up"
        return "alone" if alone or self.failures >= limits.attempts else "again"


@dataclass
class Pause:
    """Waiting for the surroundings to mend: space, permission, connection."""

    count: int = 0
    until: float = 0.0
