"""What the controller tells of a unit and its tasks, as events; and whether its memory is there."""

from __future__ import annotations

from cryoscale.pipeline.attempts import Attempt, Limits
from cryoscale.pipeline.unit import Unit, shown
from cryoscale.runtime.events import StageStarted, TaskEnded, TaskStatus
from cryoscale.runtime.memory import check_plan
from cryoscale.runtime.task import Outcome

INTERPRETER_BYTES = {"cpu": 400 * 2**20, "model": 900 * 2**20}  # an idle worker with its libraries loaded


def promise(unit: Unit) -> int:
    """Return the bytes that a worker takes for a unit's blocks, its interpreter included; 0 if unknown."""
    return unit.plan.bytes_per_worker + INTERPRETER_BYTES[unit.step.stage.engine] if unit.plan else 0


def check_memory(unit: Unit, promised: int, limits: Limits) -> None:
    """Refuse a unit whose promise, in bytes, does not fit a worker; raises `MemoryBudgetError`."""
    engine = unit.step.stage.engine
    budget = limits.memory_budget.get(engine)
    if budget and unit.step.stage.needs_client:
        budget *= limits.workers.get(engine, 1)
    if budget:
        check_plan(unit.step.name, shown(unit), promised + INTERPRETER_BYTES[engine], 1, budget)


def stage_started(unit: Unit, blocks: int, voxels: int) -> StageStarted:
    """Say what is planned of a unit, and how much of it stands already."""
    done, marks = 0, unit.marks
    if unit.plan and marks:
        done = sum(block.core.voxels for p in unit.plan.phases for block in p if block.index in marks)
    return StageStarted(
        stage=unit.step.name, tomogram=shown(unit), blocks=blocks, already=len(marks or ()),
        voxels=voxels - done,
    )  # fmt: skip


def task_ended(attempt: Attempt, outcome: Outcome, voxels: int, status: TaskStatus) -> TaskEnded:
    """Say how a try ended."""
    unit, failure = attempt.unit, outcome.failure
    return TaskEnded(
        stage=unit.step.name, tomogram=shown(unit), block=-1 if attempt.block is None else attempt.block,
        status=status, seconds=outcome.seconds, voxels=voxels, worker=outcome.worker,
        started=outcome.started, peak_bytes=outcome.peak_bytes, promised_bytes=promise(unit),
        message=failure.message if failure else "", attempt=attempt.task.attempt,
        kind=failure.kind if failure else "", traceback=failure.traceback if failure else "",
        log=outcome.log,
    )  # fmt: skip
