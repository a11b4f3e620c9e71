"""The controller: plans blocks, skips what is marked, keeps a window in flight, settles how each ends.

It knows neither engines nor stages by name. Retries, marks, quarantine and pauses are decided here and
nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cryoscale.data.ledger import ALL, Mark, UnitLedger
from cryoscale.errors import ConfigurationError, CryoscaleError, OvertakenError, SurroundingsError
from cryoscale.pipeline.attempts import Attempt, Limits, first_attempt
from cryoscale.pipeline.marking import MarkWriter
from cryoscale.pipeline.pausing import STOPPED, Pausing
from cryoscale.pipeline.queues import DueUnits, TaskQueue
from cryoscale.pipeline.telling import check_memory, stage_started, task_ended
from cryoscale.pipeline.unit import Unit, quarantine_text, shown
from cryoscale.pipeline.units import UnitGraph
from cryoscale.runtime.events import EventBus, Message, StageSealed, TaskStatus, UnitFailed
from cryoscale.runtime.executor import Executor
from cryoscale.runtime.task import Outcome
from cryoscale.stages.base import BlockStage, StageWork, WholeStage

OPEN_TASKS = 512  # wait per engine, or as many as are in flight; further units wait to be opened
NO_SELECTION = "no clusters are selected"
AFTER_SELECTION = "clusters must be selected first"


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
    prepare : callable
        Called with the name of an engine before that is used; pauses the run where storage refuses.
    clock : callable
        Seconds that go on; of pauses and of the writing of marks.
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
        prepare: Callable[[str], None] = lambda engine: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.graph, self.engines, self.bus, self.limits = graph, engines, bus, limits
        self.on_gate, self.heartbeat, self.clock = on_gate, heartbeat, clock
        self.prepare, self._prepared = prepare, set[str]()
        self._queues = {name: TaskQueue(self._rank) for name in engines}
        self._due = {name: DueUnits(self._place) for name in engines}
        self._running: dict[str, Attempt] = {}
        self._busy: Counter[str] = Counter()  # tasks in flight by engine
        place = graph.run.folder.url
        self._pause = Pausing(limits=limits, bus=bus, clock=clock, place=place, heartbeat=heartbeat)
        self._finished = 0
        self._marks = MarkWriter(self._pause, clock)
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
        self.graph.records.list()
        self._look_at(self.graph.units.values())
        try:
            while True:
                if self._pause.pay():
                    self._open_ready_units()
                    self._submit()
                if not self._has_work() and self._marks.flush(force=True):
                    break
                self._collect()
                for name in self._busy:  # every engine used so far, also one that has no work now
                    self.engines[name]().tend()
                self._pause.beat()
        except OvertakenError:  # the ledger is another driver's
            raise
        except BaseException:
            with contextlib.suppress(OSError, SurroundingsError):  # what ended the run is to be told
                self.heartbeat()
                self._marks.write()
            raise

    def _has_work(self) -> bool:
        waiting = any(self._queues.values()) or any(self._due.values())
        return bool(self._running or self._pause.owes or waiting)

    def _rank(self, unit: Unit) -> tuple[int, ...]:
        # Tasks that the surroundings failed go behind the rest, so that one bad folder stops nobody else.
        return unit.pauses, self._order[unit.tomogram], self._steps[unit.step.name]

    def _place(self, unit: Unit) -> tuple[int, ...]:
        # Fits are looked at first: many wait for one, and one that stands already sets them free.
        return unit.tomogram != ALL, self._order[unit.tomogram], self._steps[unit.step.name]

    def _look_at(self, units: Iterable[Unit]) -> None:
        """Have units looked at whose inputs have changed."""
        for unit in units:
            self._due[unit.step.stage.engine].push(unit)

    def _open_ready_units(self) -> None:
        """Open the units whose inputs stand, as long as few tasks wait and storage lets us."""
        if self._pause.stuck and self._pause.going_on:
            return
        looked = True
        while looked:
            looked = False
            for name, due in self._due.items():
                while due and len(self._queues[name]) < max(OPEN_TASKS, self._busy[name]):
                    looked = True
                    if not self._look_safely(due.pop()):
                        return

    def _look_safely(self, unit: Unit) -> bool:
        """Look at a unit; False when storage refuses: then it is looked at again, after a pause."""
        if self._pause.attempt(functools.partial(self._look, unit)):
            return True
        unit.state, unit.phase, unit.outstanding = "pending", 0, 0
        unit.ledger = unit.access = unit.plan = unit.marks = None
        self.graph.records.doubt(*unit.name)
        self._look_at([unit])
        return False

    def _look(self, unit: Unit) -> None:
        if unit.state != "pending":
            return
        verdict = self.graph.ready(unit)
        if verdict == "yes":
            self._open(unit)
        elif verdict == "blocked":
            waiting = any(u.state == "waiting" for u in self.graph.inputs_of(unit))
            unit.reason = AFTER_SELECTION if waiting else "an earlier stage failed"
            self._end(unit, "waiting" if waiting else "blocked")

    def _end(self, unit: Unit, state: str) -> None:
        """Give a unit its last state and have those looked at that wait for it."""
        unit.state = state
        unit.access = unit.plan = None
        self._marks.drop(unit)
        self.graph.records.drop(*unit.name)
        self._look_at(self.graph.dependents(unit))

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
            if f"{error.filename}/".startswith(f"{self.graph.run.folder.url}/"):
                raise  # the run's own storage: every unit would meet it
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
        sealed = self.graph.records.sealed(*unit.name, unit.key)
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
            check_memory(unit, stage.bytes_needed(unit.access), self.limits)
            unit.ledger.begin("whole", 1, 0, present=self.graph.records.names(*unit.name))
            self.graph.records.drop(*unit.name)
            self.bus.emit(stage_started(unit, 1, 0))
            self._push(first_attempt(unit, StageWork(stage, unit.access, "compute")))
            return
        unit.plan = plan = stage.plan(unit.access)
        check_memory(unit, plan.bytes_per_worker, self.limits)
        unit.access, present = unit.access.of_plan(plan.identity), self.graph.records.names(*unit.name)
        unit.marks = unit.ledger.begin(unit.access.plan, plan.block_count, plan.voxels, present=present)
        self.graph.records.drop(*unit.name)
        if not unit.ledger.created:
            stage.create(unit.access)
            unit.ledger.mark_created()
        self.bus.emit(stage_started(unit, plan.block_count + 1, plan.voxels))  # and the seal
        self._queue_phase(unit)

    def _queue_phase(self, unit: Unit) -> None:
        """Queue the blocks of the current phase, go on to the next, or seal."""
        assert unit.plan is not None
        assert unit.access is not None
        while unit.phase < len(unit.plan.phases):
            due = unit.blocks_due()
            if due:
                work = StageWork(unit.step.stage, unit.access, "block")
                unit.outstanding = len(due)
                queue = self._queues[unit.step.stage.engine]
                queue.push_blocks(unit, due, functools.partial(first_attempt, unit, work))
                return
            if unit.quarantined:
                self._fail(unit, quarantine_text(unit))
                return
            unit.phase += 1
        unit.state = "sealing"
        self._push(first_attempt(unit, StageWork(unit.step.stage, unit.access, "seal")))

    def _push(self, attempt: Attempt) -> None:
        self._queues[attempt.unit.step.stage.engine].push(attempt)

    def _submit(self) -> None:
        """Keep each engine's window full, tomogram by tomogram."""
        if self.clock() < self._pause.until:
            return
        for name, queue in self._queues.items():
            if not queue:
                continue
            if name not in self._prepared and not self._pause.attempt(functools.partial(self.prepare, name)):
                return
            self._prepared.add(name)
            executor = self.engines[name]()
            while executor.in_flight < executor.window and (attempt := queue.pop()) is not None:
                self._running[attempt.task.identifier] = attempt
                self._busy[name] += 1
                executor.submit(attempt.task)

    def _collect(self) -> None:
        """Take what ended; wait a moment when nothing did."""
        if not self._running:
            wait = max(0.0, self._pause.until - self.clock())
            threading.Event().wait(min(wait, 1.0))  # a pause of the run, not a way to synchronise
            return
        executors = {id(e): e for e in (self.engines[name]() for name, n in self._busy.items() if n)}
        patience = 1.0 if len(executors) == 1 else 0.05
        for executor in executors.values():
            for outcome in executor.wait(patience):
                self._settle(outcome)
        self._marks.flush()

    # -- how things end -------------------------------------------------------------------------------------

    def _settle(self, outcome: Outcome) -> None:
        attempt = self._running.pop(outcome.task.identifier)
        engine = attempt.unit.step.stage.engine
        self._busy[engine] -= 1
        report = outcome.value if outcome.status == "finished" else None
        voxels = getattr(report, "voxels", 0)
        empty = bool(getattr(report, "empty", False))
        if outcome.status == "finished":
            self.bus.emit(task_ended(attempt, outcome, voxels, "empty" if empty else "done"))
            if not self._pause.stuck:  # a task that ends well says nothing of the ledger
                self._pause.count = 0
            self._finished += 1
            self._finish(attempt, outcome, empty=empty, voxels=voxels)
            return
        verdict = attempt.judge(outcome, self.limits, self.engines[engine]().window)
        ended: TaskStatus = "lost" if outcome.status == "lost" else "failed"
        self.bus.emit(task_ended(attempt, outcome, 0, "quarantined" if verdict == "give up" else ended))
        if attempt.unit.state == "failed":
            return
        reason = outcome.failure.message if outcome.failure else "its worker died (killed, or out of memory)"
        if verdict == "pause":
            self._wait_for_surroundings(attempt, reason)
        elif verdict == "give up":
            self._give_up(attempt, reason)
        else:
            attempt.again(alone=verdict == "alone", fresh=verdict == "fresh")
            self._push(attempt)

    def _finish(self, attempt: Attempt, outcome: Outcome, *, empty: bool, voxels: int) -> None:
        unit = attempt.unit
        assert unit.ledger is not None
        if attempt.block is None:
            value = {**outcome.value, **({"outside": unit.outside} if unit.outside else {})}
            self._pause.keep(functools.partial(self._seal, unit, value))
            return
        status = "empty" if empty else "done"
        self._mark(unit, Mark(attempt.block, status, voxels, round(outcome.seconds, 4), time.time()))

    def _seal(self, unit: Unit, value: dict[str, Any]) -> None:
        assert unit.ledger is not None
        unit.ledger.seal(value, empty=bool(value.get("empty")))
        if unit.plan is not None and unit.access is not None:
            with contextlib.suppress(OSError, SurroundingsError):
                unit.access.parts().delete()  # only now: a seal that runs again needs them
        self._become_sealed(unit, value, fresh=True)

    def _mark(self, unit: Unit, mark: Mark) -> None:
        self._marks.add(unit, mark)
        unit.outstanding -= 1
        if not unit.outstanding and unit.state == "active":
            self._queue_phase(unit)

    def _become_sealed(self, unit: Unit, value: dict[str, Any], *, fresh: bool) -> None:
        unit.value = value
        unit.identity = str(value.get("hash", unit.key))
        unit.marks = unit.ledger = None  # ten million blocks are not kept in memory
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
        self._pause.keep(functools.partial(self._record_failure, unit, reason))

    def _record_failure(self, unit: Unit, reason: str) -> None:
        if unit.state == "failed":  # owed twice: two of its tasks ended while storage took no record
            return
        unit.reason = reason
        if unit.ledger is not None:
            unit.ledger.fail(reason)
        self._end(unit, "failed")
        self.bus.emit(UnitFailed(stage=unit.step.name, tomogram=shown(unit), reason=reason))

    def _wait_for_surroundings(self, attempt: Attempt, reason: str) -> None:
        """Quarantine nothing; pause, say so, try again with a limit."""
        pause, unit = self._pause, attempt.unit
        unit.pauses += 1
        if unit.finished_before < 0:
            unit.finished_before = self._finished
        if self.clock() >= pause.until:
            pause.count += 1
            if pause.count > self.limits.pauses:
                if self._finished == unit.finished_before:
                    raise SurroundingsError(f"{unit.step.name} of {unit.tomogram}: {reason}", remedy=STOPPED)
                pause.count = 0  # others went on well meanwhile: it is this unit's file or folder
                self._fail(unit, reason)
                return
            pause.begin(reason)
        attempt.again(alone=attempt.task.alone, fresh=attempt.task.fresh)
        self._push(attempt)
        self._queues[unit.step.stage.engine].rank_again()
