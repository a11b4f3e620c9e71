"""Attempts at tasks, and the one rule that says what follows when one does not finish."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cryoscale.geometry import Block
from cryoscale.pipeline.unit import Unit
from cryoscale.runtime.task import OUT_OF_MEMORY, Outcome, Task
from cryoscale.stages.base import StageWork

LOST_ALONE_LIMIT = 2  # a task that kills its worker twice while nothing else runs is to blame
SMALL_WINDOW = 4  # tasks in flight on one small machine
PATIENT_TRIES = 16  # of a training, after the first ones, before nothing else may run beside it

Verdict = Literal["again", "fresh", "alone", "give up", "pause"]


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


@dataclass(slots=True, eq=False)
class Attempt:
    """A task on its way: how often it failed, how often its worker died under it."""

    unit: Unit
    block: int | None  # None: seal or compute
    task: Task
    failures: int = 0
    losses: int = 0
    losses_alone: int = 0

    def again(self, *, alone: bool, fresh: bool = False) -> None:
        """Make the next try; its identifier says which one it is."""
        old = self.task
        stem = old.identifier.rsplit("#", 1)[0]
        self.task = replace(
            old, identifier=f"{stem}#{old.attempt + 1}", attempt=old.attempt + 1, alone=alone, fresh=fresh
        )

    def judge(self, outcome: Outcome, limits: Limits, window: int) -> Verdict:
        """Count how the task ended and say what follows.

        A task is tried beside others, then on a fresh worker that it has to itself, then given up. What an
        exception says, it says of the task. The death of a worker says little: the node may have been taken
        away, or a neighbour may have eaten its memory. So a task that was lost, or had no memory, is tried
        on fresh workers some more times, and at last with nothing else in flight at all; only deaths then
        count against it. That last step makes the whole cluster wait, so the larger the cluster, the more
        tries come before it. A fault of the surroundings counts for nothing.

        Parameters
        ----------
        outcome : Outcome
            How it ended.
        limits : Limits
            How patient we are.
        window : int
            Tasks that the engine has in flight when it is full.
        """
        if outcome.status == "lost":
            self.losses += 1
            self.losses_alone += self.task.alone
            if self.losses_alone >= LOST_ALONE_LIMIT:
                return "give up"
            return self._crowded(self.losses, limits, window)
        if outcome.failure is not None and outcome.failure.kind == "surroundings":
            return "pause"
        self.failures += 1
        if self.task.alone and self.failures >= limits.attempts:
            return "give up"
        if outcome.failure is not None and outcome.failure.message.startswith(OUT_OF_MEMORY):
            return self._crowded(self.failures, limits, window)
        if self.task.fresh and self.failures >= limits.attempts:
            return "give up"
        return "fresh" if self.failures >= limits.attempts else "again"

    def _crowded(self, count: int, limits: Limits, window: int) -> Verdict:
        """Say what follows when others may have been to blame."""
        if self.task.alone or count >= limits.attempts + spared_drains(window, patient=self.task.patient):
            return "alone"
        return "fresh" if count >= limits.attempts else "again"


def first_attempt(unit: Unit, work: StageWork, block: Block | None = None) -> Attempt:
    """Make the first try at a block, a seal or a whole unit."""
    index = None if block is None else block.index
    name = f"{unit.step.name}/{unit.tomogram}/{work.operation if index is None else index}"
    compute = work.operation == "compute"  # a training may take days
    needs_client = unit.step.stage.needs_client and compute
    return Attempt(unit, index, Task(f"{name}#1", work, block, needs_client=needs_client, patient=compute))


def spared_drains(window: int, *, patient: bool = False) -> int:
    """Return how many tries on a fresh worker come before the whole engine waits for one task.

    With tasks lost by chance with probability p, the share that comes so far falls as p to this power, and
    what one of them costs grows with the window: so it grows with the logarithm of the window. None on one
    small machine, where a wait is cheap and neighbours are suspect. A training goes on from its
    checkpoint, and on machines that are taken away it is lost again and again through no fault of its own.
    """
    return max(PATIENT_TRIES if patient else 0, math.ceil(math.log2(max(1, window) / SMALL_WINDOW)))


@dataclass
class Pause:
    """Waiting for the surroundings to mend: space, permission, connection."""

    count: int = 0
    until: float = 0.0
