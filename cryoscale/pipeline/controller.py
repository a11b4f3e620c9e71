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
from typing import Any

from cryoscale.data.ledger import ALL, Mark, UnitLedger
from cryoscale.errors import ConfigurationError, CryoscaleError, SurroundingsError
from cryoscale.pipeline.attempts import Attempt, Limits, Pause
from cryoscale.pipeline.unit import Unit, quarantine_text, shown
from cryoscale.pipeline.units import UnitGraph
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
from cryoscale.stages.base import BlockStage, StageWork, WholeStage

INTERPRETER_BYTES = {"cpu": 400 * 2**20, "model": 900 * 2**20}  # an idle worker with its libraries loaded
OPEN_TASKS = 512  # per engine; further units wait to be opened
STOPPED = "The run stopped with its work kept; mend this, then give the same command again."
NO_SELECTION = "no clusters are selected"
AFTER_SELECTION = "clusters must be selected first"
FLUSH_MARKS, FLUSH_SECONDS = 32, 1.0


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
        Attempts, pauses, memory.
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
        self._finished = 0
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
        later = []
        while self._to_check:
            unit = self._to_check.popleft()
            if unit.state != "pending":
                continue
            if len(self._queues[unit.step.stage.engine]) >= OPEN_TASKS:
                later.append(unit)
                continue
            verdict = self.graph.ready(unit)
            if verdict == "yes":
                self._open(unit)
            elif verdict == "blocked":
                waiting = any(u.state == "waiting" for u in self.graph.inputs_of(unit))
                unit.reason = AFTER_SELECTION if waiting else "an earlier stage failed"
                self._end(unit, "waiting" if waiting else "blocked")
        later.sort(key=lambda unit: (self._order[unit.tomogram], self._steps[unit.step.name]))
        self._to_check.extend(later)

    def _end(self, unit: Unit, state: str) -> None:
        """Give a unit its last state and have those looked at that wait for it."""
        unit.state = state
        self._to_check.extend(self.graph.dependents(unit))

    def _open(self, unit: Unit) -> None:
        """Find out what is due of a unit whose inputs stand, and queue it."""
        if unit.step.chosen and (reason := self._nothing_chosen()):
            unit.reason = reason
            self._end(unit, "waiting")
            return
        try:
            self._open_chosen(unit)
        except SurroundingsError:
            raise
        except PermissionError as error:
            self._fail(unit, f"{error.filename}: {error.strerror}.")
        except OSError:
            raise
        except CryoscaleError as error:
            self._fail(unit, str(error))
        except Exception as error:  # a bug that one tomogram meets must not end the others
            self._fail(unit, f"{type(error).__name__}: {error}")

    def _nothing_chosen(self) -> str:
        """Say why there is no selection; empty when there is one."""
        try:
            if self.graph.selection() is None:
                self.on_gate()
            return "" if self.graph.selection() is not None else NO_SELECTION
        except ConfigurationError as error:  # a half-edited file must not end a long run
            self.bus.emit(Message(text=str(error), level="warning"))
            return str(error)

    def _open_chosen(self, unit: Unit) -> None:
        """Find the unit sealed already, or plan it."""
        unit.key = unit.identity = self.graph.key_of(unit)
        unit.ledger = UnitLedger(self.graph.run.ledger, *unit.name, unit.key)
        sealed = unit.ledger.sealed
        if sealed is not None and self.graph.stands(unit):
            self._become_sealed(unit, sealed["value"], fresh=False)
            return
        if sealed is not None:  # what it made was deleted: make it again
            self.graph.forget(unit.name)
            unit.ledger = UnitLedger(self.graph.run.ledger, *unit.name, unit.key)
        for rival in unit.step.rivals:
            self.graph.forget((rival, unit.tomogram))
        unit.access = self.graph.access_for(unit)
        self._plan(unit)

    def _plan(self, unit: Unit) -> None:
        assert unit.ledger is not None
        assert unit.access is not None
        stage = unit.step.stage
        unit.state = "active"
        if not isinstance(stage, BlockStage):
            assert isinstance(stage, WholeStage)
            self._check_memory(unit, stage.bytes_needed(unit.access))
            unit.ledger.begin("whole", 1, 0)
            self._announce(unit, 1, 0)
            self._queue(unit, None, StageWork(stage, unit.access, "compute"))
            return
        unit.plan = stage.plan(unit.access)
        self._check_memory(unit, unit.plan.bytes_per_worker)
        unit.marks = unit.ledger.begin(unit.plan.identity, unit.plan.block_count, unit.plan.voxels)
        if not unit.ledger.created:
            stage.create(unit.access)
            unit.ledger.mark_created()
        self._announce(unit, unit.plan.block_count + 1, unit.plan.voxels)  # and the seal
        self._queue_phase(unit)

    def _check_memory(self, unit: Unit, promised: int) -> None:
        """Refuse a unit whose promise does not fit a worker; raises `MemoryBudgetError`."""
        engine = unit.step.stage.engine
        budget = self.limits.memory_budget.get(engine)
        if budget and unit.step.stage.needs_client:
            budget *= self.limits.workers.get(engine, 1)
        if budget:
            check_plan(unit.step.name, shown(unit), promised + INTERPRETER_BYTES[engine], 1, budget)

    @staticmethod
    def _promise(unit: Unit) -> int:
        return unit.plan.bytes_per_worker + INTERPRETER_BYTES[unit.step.stage.engine] if unit.plan else 0

    def _announce(self, unit: Unit, blocks: int, voxels: int) -> None:
        done = (
            sum(block.core.voxels for p in unit.plan.phases for block in p if block.index in unit.marks)
            if unit.plan
            else 0
        )
        self.bus.emit(
            StageStarted(
                stage=unit.step.name, tomogram=shown(unit), blocks=blocks, already=len(unit.marks),
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
                self._fail(unit, quarantine_text(unit))
                return
            unit.phase += 1
        unit.state = "sealing"
        self._queue(unit, None, StageWork(unit.step.stage, unit.access, "seal"))

    def _queue(self, unit: Unit, block: Any, work: StageWork) -> None:
        index = None if block is None else block.index
        name = f"{unit.step.name}/{unit.tomogram}/{work.operation if index is None else index}"
        needs_client = unit.step.stage.needs_client and work.operation == "compute"
        patient = work.operation == "compute"  # a training may take days
        task = Task(f"{name}#1", work, block, needs_client=needs_client, patient=patient)
        if index is not None:
            unit.outstanding.add(index)
        self._push(Attempt(unit, index, task))

    def _push(self, attempt: Attempt) -> None:
        unit = attempt.unit
        # Tasks that the surroundings failed go behind the rest, so that one bad folder stops nobody else.
        rank = (unit.pauses, self._order[unit.tomogram], self._steps[unit.step.name], next(self._tie))
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
                if attempt.unit.state == "failed":
                    continue
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
        if outcome.status == "finished":
            self._tell(attempt, outcome, voxels, "empty" if empty else "done")
            self._pause.count = 0
            self._finished += 1
            self._finish(attempt, outcome, empty=empty, voxels=voxels)
            return
        verdict = attempt.judge(outcome, self.limits)
        ended: TaskStatus = "lost" if outcome.status == "lost" else "failed"
        self._tell(attempt, outcome, 0, "quarantined" if verdict == "give up" else ended)
        if attempt.unit.state == "failed":
            return
        reason = outcome.failure.message if outcome.failure else "its worker died (killed, or out of memory)"
        if verdict == "pause":
            self._wait_for_surroundings(attempt, reason)
        elif verdict == "give up":
            self._give_up(attempt, reason)
        else:
            attempt.again(alone=verdict == "alone")
            self._push(attempt)

    def _tell(self, attempt: Attempt, outcome: Outcome, voxels: int, status: TaskStatus) -> None:
        unit = attempt.unit
        self.bus.emit(
            TaskEnded(
                stage=unit.step.name, tomogram=shown(unit),
                block=-1 if attempt.block is None else attempt.block, status=status,
                seconds=outcome.seconds, voxels=voxels, worker=outcome.worker, started=outcome.started,
                peak_bytes=outcome.peak_bytes, promised_bytes=self._promise(unit),
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
        unit.plan, unit.marks = None, {}  # ten million blocks are not kept in memory
        self._end(unit, "sealed")
        if fresh:
            self.bus.emit(StageSealed(stage=unit.step.name, tomogram=shown(unit)))

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
        self.bus.emit(UnitFailed(stage=unit.step.name, tomogram=shown(unit), reason=reason))

    def _wait_for_surroundings(self, attempt: Attempt, reason: str) -> None:
        """Quarantine nothing; pause, say so, try again with a limit."""
        pause, unit = self._pause, attempt.unit
        unit.pauses += 1
        if unit.finished_before < 0:
            unit.finished_before = self._finished
        if time.monotonic() >= pause.until:
            pause.count += 1
            if pause.count > self.limits.pauses:
                if self._finished == unit.finished_before:
                    raise SurroundingsError(f"{unit.step.name} of {unit.tomogram}: {reason}", remedy=STOPPED)
                pause.count = 0  # others went on well meanwhile: it is this unit's file or folder
                self._fail(unit, reason)
                return
            seconds = self.limits.pause_seconds * 2 ** (pause.count - 1)
            pause.until = time.monotonic() + seconds
            self.bus.emit(Message(text=f"paused for {seconds:g} s: {reason}", level="warning"))
        attempt.again(alone=attempt.task.alone)
        self._push(attempt)
        self._rank_again(unit.step.stage.engine)

    def _rank_again(self, engine: str) -> None:
        """Put the queued tasks of units that the surroundings fail behind those of the others."""
        queue = self._queues[engine]
        queue[:] = [((attempt.unit.pauses, *rank[1:]), attempt) for rank, attempt in queue]
        heapq.heapify(queue)

    def _flush(self, *, force: bool = False) -> None:
        if not force and time.monotonic() - self._flushed < FLUSH_SECONDS:
            return
        self._flushed = time.monotonic()
        for unit in self.graph.units.values():
            if unit.ledger is not None and unit.ledger.pending:
                unit.ledger.flush()
