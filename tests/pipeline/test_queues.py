"""Queues against a plain sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryoscale.geometry import Block
from cryoscale.pipeline.attempts import Attempt
from cryoscale.pipeline.queues import DueUnits, TaskQueue
from cryoscale.pipeline.unit import Unit
from cryoscale.runtime.task import Task
from cryoscale.stages.base import chunked_rows
from cryoscale.testing.fake_cluster import one_step
from cryoscale.testing.works import Behaviour

STEP = one_step(1)[0]


def attempt(unit: Unit, block: Block) -> Attempt:
    return Attempt(unit, block.index, Task(f"{unit.tomogram}/{block.index}", Behaviour(), block))


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["one", "many", "pop", "fail", "pause"]), st.integers(0, 4)), max_size=40
)


@given(ACTIONS)
def test_tasks_come_by_rank_then_by_age(actions: list[tuple[str, int]]) -> None:
    units = [Unit(STEP, f"t{n}") for n in range(5)]
    queue = TaskQueue(lambda unit: (unit.pauses, int(unit.tomogram[1:])))
    plain: list[tuple[Unit, int, int]] = []  # unit, age of its entry, block
    age = number = 0
    for action, n in actions:
        unit = units[n]
        if action in ("one", "many"):
            age += 1
            count = 1 if action == "one" else 3
            blocks = [Block(number + k, *[chunked_rows(1, 1)[0].core] * 2) for k in range(count)]
            number += count
            plain += [(unit, age, block.index) for block in blocks]
            if action == "one":
                queue.push(attempt(unit, blocks[0]))
            else:
                queue.push_blocks(unit, blocks, lambda block, unit=unit: attempt(unit, block))  # type: ignore[misc]
        elif action == "fail":
            unit.state = "failed"
        elif action == "pause":
            unit.pauses += 1
            queue.rank_again()
        else:
            alive = sorted((u.pauses, u.tomogram, a, b) for u, a, b in plain if u.state != "failed")
            got = queue.pop()
            assert (got.block if got else None) == (alive[0][3] if alive else None)
            plain = [entry for entry in plain if got is None or entry[2] != got.block]
        assert len(queue) >= sum(u.state != "failed" for u, _, _ in plain)
    while queue.pop() is not None:
        pass
    assert len(queue) == 0


@given(st.lists(st.integers(0, 9), max_size=30))
def test_a_unit_is_due_once(numbers: list[int]) -> None:
    units = [Unit(STEP, f"t{n}") for n in range(10)]
    due = DueUnits(lambda unit: (int(unit.tomogram[1:]),))
    for number in numbers:
        due.push(units[number])
    got = [due.pop().tomogram for _ in range(len(due))]
    assert got == [f"t{n}" for n in sorted(set(numbers))]
    due.push(units[0])
    assert len(due) == 1
