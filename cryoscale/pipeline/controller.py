"""The controller: plans blocks, skips what is marked, keeps a window in flight, settles how each ends.

It knows neither engines nor stages by name. Retries, marks, quarantine and pauses are decided here and
nowhere else.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryoscale.data.ledger import ALL, Mark, UnitLedger
from cryoscale.errors import CryoscaleError, MemoryBudgetError, SurroundingsError
from cryoscale.pipeline.units import TERMINAL, Unit, UnitGraph
from cryoscale.runtime.events import (
    EventBus,
    Message,
    StageSealed,
    StageStarted,
    TaskEnded,
    TaskStatus,
    UnitFailed,
)
from cryoscale.runtime.executor import Executor
from cryoscale.runtime.memory import check_plan
from cryoscale.runtime.task import Outcome, Task
from cryoscale.stages.base import BlockStage, StageWork

INTERPRETER_BYTES = 900 * 2**20  # an idle worker with its libraries loaded
FLUSH_MARKS = 32
FLUSH_SECONDS = 1.0
LOST_ALONE_LIMIT = 2  # a task that kills its worker twice while nothing else runs is to blame


@dataclass
class Attempt:
    """A task on its way: how often it failed, how often its worker died under it."""

    unit: Unit
    block: int | None  # None: seal or compute
    task: Task
    failures: int = 0
    losses: int = 0
    losses_alone: int = 0


@dataclass(frozen=True)
class Limits:
    """How patient the controller is."""

    attempts: int = 3
    pauses: int = 6
    pause_seconds: float = 2.0
    memory_budget: int = 0  # bytes per worker; 0: not checked


@dataclass
class Pause:
    """Waiting for the surroundings to mend: space, permission, connection."""

    count: int = 0
    until: float = 0.0
    reason: str = field(default="")


class Controller:
    """Drives all units of a run to an end.

    Parameters
    ----------
    graph : UnitGraph
        What is to be done.
    engines : mapping of str to callable
        From "cpu" and "model" to a function that returns a started executor (started on first use).
    bus : EventBus
        Where events go.
    limits : Limits
        Attempts and pauses.
    on_gate : callable
        Called before a unit that needs a selection; may make one (accepted suggestions).
    heartbeat : callable
        Called often, to renew the driver's lock.
    """

    def __init__(
        self,
        graph: UnitGraph,
        engines: Mapping[str, Callable[[], Executor]],
        bus: EventBus,
        limits: Limits,
        *,
        on_gate: Callable[[], None] = lambda: None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.graph, self.engines, self.bus, self.limits = graph, engines, bus, limits
        self.on_gate, self.heartbeat = on_gate, heartbeat
        self._queues: dict[str, list[tuple[Any, Attempt]]] = {name: [] for name in engines}
        self._running: dict[str, Attempt] = {}
        self._tie = itertools.count()
        self._pause = Pause()
        self._to_check = deque(graph.units.values())
        self._flushed = time.monotonic()
        self._order = {name: i for i, name in enumerate([*graph.tomograms, ALL])}
        self._steps = {step.name: i for i, step in enumerate(graph.steps)}

    # -- the loop -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until every unit is sealed, failed, blocked, or waits for a person.

        Raises
        ------
        SurroundingsError
            The surroundings did not mend within the allowed pauses; all finished work is kept.
        ConfigurationError
            A plan promises more memory than the budget allows, or the selection cannot be used.
        """
        try:
            while True:
                self._open_ready_units()
                self._submit()
                if not self._running and not any(self._queues.values()):
                    break
                self._collect()
                self.heartbeat()
        finally:
            self._flush(force=True)

    def _open_ready_units(self) -> None:
        """Open the units whose inputs stand; only those are looked at whose inputs have changed."""
        while self._to_check:
            unit = self._to_check.popleft()
            if unit.state != "pending":
                continue
            verdict = self.graph.ready(unit)
            if verdict == "yes":
                self._open(unit)
            elif verdict == "blocked":
                waiting = any(u.state == "waiting" for u in self.graph.inputs_of(unit))
                unit.reason = "clusters must be selected first" if waiting else "an earlier stage failed"
                self._end(unit, "waiting" if waiting else "blocked")

    def _end(self, unit: Unit, state: str) -> None:
        """Give a unit its last state and have those looked at that wait for it."""
        unit.state = state
        self._to_check.extend(self.graph.dependents(unit))

    def _open(self, unit: Unit) -> None:
        """Find out what is due of a unit whose inputs stand, and queue it."""
        if unit.step.chosen:
            self.on_gate()
            if self.graph.selection() is None:
                unit.reason = "no clusters are selected"
                self._end(unit, "waiting")
                return
        unit.key = unit.identity = self.graph.key_of(unit)
        unit.ledger = UnitLedger(self.graph.run.ledger, *unit.name, unit.key)
        sealed = unit.ledger.sealed
        if sealed is not None:
            self._become_sealed(unit, sealed["value"], fresh=False)
            return
        unit.access = self.graph.access_for(unit)
        try:
            self._plan(unit)
        except MemoryBudgetError:
            raise
        except SurroundingsError:
            raise
        except CryoscaleError as error:
            self._fail(unit, str(error))

    def _plan(self, unit: Unit) -> None:
        assert unit.ledger is not None
        assert unit.access is not None
        stage = unit.step.stage
        unit.state = "active"
        if not isinstance(stage, BlockStage):
            unit.ledger.begin("whole", 1, 0)
            self._announce(unit, 1, 0)
            self._queue(unit, None, StageWork(stage, unit.access, "compute"))
            return
        unit.plan = stage.plan(unit.access)
        if self.limits.memory_budget:
            check_plan(stage.name, unit.tomogram, unit.plan.bytes_per_worker, 1, self.limits.memory_budget)
        unit.marks = unit.ledger.begin(unit.plan.identity, unit.plan.block_count, unit.plan.voxels)
        if not unit.ledger.created:
            stage.create(unit.access)
            unit.ledger.mark_created()
        self._announce(unit, unit.plan.block_count + 1, unit.plan.voxels)  # and the seal
        self._queue_phase(unit)

    def _announce(self, unit: Unit, blocks: int, voxels: int) -> None:
        done = (
            sum(block.core.voxels for p in unit.plan.phases for block in p if block.index in unit.marks)
            if unit.plan
            else 0
        )
        self.bus.emit(
            StageStarted(
                stage=unit.step.name, tomogram=_shown(unit), blocks=blocks, already=len(unit.marks),
                voxels=voxels - done,
            )
        )  # fmt: skip

    def _queue_phase(self, unit: Unit) -> None:
        """Queue the blocks of the current phase, go on to the next, or seal."""
        assert unit.plan is not None
        assert unit.access is not None
        while unit.phase < len(unit.plan.phases):
            due = unit.blocks_due()
            if due:
                work = StageWork(unit.step.stage, unit.access, "block")
                for block in due:
                    self._queue(unit, block, work)
                return
            if unit.quarantined:
                self._fail(unit, _quarantine_text(unit))
                return
            unit.phase += 1
        unit.state = "sealing"
        self._queue(unit, None, StageWork(unit.step.stage, unit.access, "seal"))

    def _queue(self, unit: Unit, block: Any, work: StageWork) -> None:
        index = None if block is None else block.index
        name = f"{unit.step.name}/{unit.tomogram}/{work.operation if index is None else index}"
        needs_client = unit.step.stage.needs_client and work.operation == "compute"
        task = Task(f"{name}#1", work, block, needs_client=needs_client)
        if index is not None:
            unit.outstanding.add(index)
        self._push(Attempt(unit, index, task))

    def _push(self, attempt: Attempt) -> None:
        unit = attempt.unit
        rank = (self._order[unit.tomogram], self._steps[unit.step.name], next(self._tie))
        heapq.heappush(self._queues[unit.step.stage.engine], (rank, attempt))

    def _submit(self) -> None:
        """Keep each engine's window full, tomogram by tomogram."""
        if time.monotonic() < self._pause.until:
            return
        for name, queue in self._queues.items():
            if not queue:
                continue
            executor = self.engines[name]()
            while queue and executor.in_flight < executor.window:
                _, attempt = heapq.heappop(queue)
                self._running[attempt.task.identifier] = attempt
                executor.submit(attempt.task)

    def _collect(self) -> None:
        """Take what ended; wait a moment when nothing did."""
        if not self._running:
            wait = max(0.0, self._pause.until - time.monotonic())
            threading.Event().wait(min(wait, 1.0))  # a pause of the run, not a way to synchronise
            return
        names = {attempt.unit.step.stage.engine for attempt in self._running.values()}
        executors = {id(e): e for e in (self.engines[name]() for name in names)}
        patience = 1.0 if len(executors) == 1 else 0.05
        for executor in executors.values():
            for outcome in executor.wait(patience):
                self._settle(outcome)
        self._flush()

    # -- how things end -------------------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> None:
        attempt = self._running.pop(outcome.task.identifier)
        report = outcome.value if outcome.status == "finished" else None
        voxels = getattr(report, "voxels", 0)
        empty = bool(getattr(report, "empty", False))
        self._tell(attempt, outcome, voxels, empty)
        if outcome.status == "finished":
            self._pause.count = 0
            self._finish(attempt, outcome, empty=empty, voxels=voxels)
        elif outcome.status == "lost":  # its failure says "surroundings", but the task may be to blame
            self._retry_or_give_up(attempt, outcome)
        elif outcome.failure is not None and outcome.failure.kind == "surroundings":
            self._wait_for_surroundings(attempt, outcome.failure.message)
        else:
            self._retry_or_give_up(attempt, outcome)

    def _tell(self, attempt: Attempt, outcome: Outcome, voxels: int, empty: bool) -> None:
        unit = attempt.unit
        status: TaskStatus = "done"
        if outcome.status != "finished":
            status = "lost" if outcome.status == "lost" else "failed"
        elif empty:
            status = "empty"
        self.bus.emit(
            TaskEnded(
                stage=unit.step.name, tomogram=_shown(unit),
                block=-1 if attempt.block is None else attempt.block, status=status,
                seconds=outcome.seconds, voxels=voxels, worker=outcome.worker, started=outcome.started,
                peak_bytes=outcome.peak_bytes, promised_bytes=_promise(unit),
                message=outcome.failure.message if outcome.failure else "", attempt=attempt.task.attempt,
            )
        )  # fmt: skip

    def _finish(self, attempt: Attempt, outcome: Outcome, *, empty: bool, voxels: int) -> None:
        unit = attempt.unit
        assert unit.ledger is not None
        if attempt.block is None:
            value = {**outcome.value, **({"outside": unit.outside} if unit.outside else {})}
            unit.ledger.seal(value, empty=bool(value.get("empty")))
            if unit.plan is not None and unit.access is not None:
                with contextlib.suppress(OSError):  # only now: a seal that runs again needs them
                    unit.access.parts().delete()
            self._become_sealed(unit, value, fresh=True)
            return
        status = "empty" if empty else "done"
        self._mark(unit, Mark(attempt.block, status, voxels, round(outcome.seconds, 4), time.time()))

    def _mark(self, unit: Unit, mark: Mark) -> None:
        assert unit.ledger is not None
        unit.marks[mark.block] = mark
        unit.outstanding.discard(mark.block)
        unit.ledger.add(mark)
        if unit.ledger.pending >= FLUSH_MARKS:
            unit.ledger.flush()
        if not unit.outstanding:
            unit.ledger.flush()
            self._queue_phase(unit)

    def _become_sealed(self, unit: Unit, value: dict[str, Any], *, fresh: bool) -> None:
        unit.value = value
        unit.identity = str(value.get("hash", unit.key))
        self._end(unit, "sealed")
        if fresh:
            self.bus.emit(StageSealed(stage=unit.step.name, tomogram=_shown(unit)))

    def _retry_or_give_up(self, attempt: Attempt, outcome: Outcome) -> None:
        """Try again, then alone on a fresh worker, then quarantine."""
        lost = outcome.status == "lost"
        alone = attempt.task.alone
        attempt.losses += lost
        attempt.losses_alone += lost and alone
        attempt.failures += not lost
        given_up = (alone and not lost) or attempt.losses_alone >= LOST_ALONE_LIMIT
        reason = "its worker died (killed, or out of memory)"
        if outcome.failure is not None:
            reason = outcome.failure.message
        if given_up:
            self._give_up(attempt, reason)
            return
        isolate = alone or max(attempt.failures, attempt.losses) >= self.limits.attempts
        self._again(attempt, alone=isolate)

    def _again(self, attempt: Attempt, *, alone: bool) -> None:
        number = attempt.task.attempt + 1
        stem = attempt.task.identifier.rsplit("#", 1)[0]
        old = attempt.task
        attempt.task = Task(
            f"{stem}#{number}", old.work, old.argument, number, alone=alone, needs_client=old.needs_client
        )
        self._push(attempt)

    def _give_up(self, attempt: Attempt, reason: str) -> None:
        unit = attempt.unit
        if attempt.block is None:
            self._fail(unit, reason)
            return
        self._mark(unit, Mark(attempt.block, "quarantined", finished=time.time(), reason=reason))

    def _fail(self, unit: Unit, reason: str) -> None:
        unit.reason = reason
        self._end(unit, "failed")
        if unit.ledger is not None:
            unit.ledger.fail(reason)
        self.bus.emit(UnitFailed(stage=unit.step.name, tomogram=_shown(unit), reason=reason))

    def _wait_for_surroundings(self, attempt: Attempt, reason: str) -> None:
        """Quarantine nothing; pause, say so, try again with a limit."""
        pause = self._pause
        if time.monotonic() >= pause.until:
            pause.count += 1
            if pause.count > self.limits.pauses:
                raise SurroundingsError(
                    f"{attempt.unit.step.name} of {attempt.unit.tomogram}: {reason}",
                    remedy="The run stopped with its work kept; mend this, then give the same command again.",
                )
            seconds = self.limits.pause_seconds * 2 ** (pause.count - 1)
            pause.until = time.monotonic() + seconds
            self.bus.emit(Message(text=f"paused for {seconds:g} s: {reason}", level="warning"))
        self._again(attempt, alone=attempt.task.alone)

    def _flush(self, *, force: bool = False) -> None:
        if not force and time.monotonic() - self._flushed < FLUSH_SECONDS:
            return
        self._flushed = time.monotonic()
        for unit in self.graph.units.values():
            if unit.ledger is not None and unit.ledger.pending:
                unit.ledger.flush()


def unfinished(graph: UnitGraph) -> list[Unit]:
    """List the units that did not end sealed, in order."""
    return [unit for unit in graph.units.values() if unit.state in TERMINAL - {"sealed"}]


def _shown(unit: Unit) -> str:
    """Return the tomogram's name for people; empty for the whole data set."""
    return "" if unit.tomogram == ALL else unit.tomogram


def _promise(unit: Unit) -> int:
    return unit.plan.bytes_per_worker + INTERPRETER_BYTES if unit.plan else 0


def _quarantine_text(unit: Unit) -> str:
    marks = unit.quarantined
    assert unit.plan is not None
    return f"{len(marks)} of {unit.plan.block_count} blocks quarantined; the first: {marks[0].reason}"
