"""Marks: what stands, what is forgotten, and that nobody's bytes are taken for another key's."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data.folder import Folder
from cryoscale.data.ledger import Mark, UnitLedger, unit_states


@pytest.fixture(params=["local", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder.of(tmp_path / "ledger")
    return Folder.of(f"memory://ledger-{uuid.uuid4().hex}")


def unit(ledger: Folder, key: str = "k1") -> UnitLedger:
    return UnitLedger(ledger, "pick", "alpha", key)


def started(ledger: Folder, key: str = "k1", plan: str = "p") -> UnitLedger:
    made = unit(ledger, key)
    made.begin(plan, 10, 100)
    made.mark_created()
    return made


def test_marks_stand_after_a_flush_and_not_before(ledger: Folder) -> None:
    first = started(ledger)
    first.add(Mark(1, "done", voxels=5))
    assert unit(ledger).begin("p", 10, 100) == set()
    first.flush()
    first.add(Mark(2, "empty"))
    first.add(Mark(3, "quarantined", reason="why"))
    first.flush()
    assert set(unit(ledger).begin("p", 10, 100)) == {1, 2, 3}
    state = unit(ledger).state()
    assert (state.done, state.empty, state.quarantined, state.planned, state.voxels) == (1, 1, 1, 10, 5)


def test_a_second_driver_does_not_overwrite_the_segments_of_the_first(ledger: Folder) -> None:
    for block in range(3):
        again = started(ledger)
        again.add(Mark(block, "done"))
        again.flush()
    assert set(unit(ledger).begin("p", 10, 100)) == {0, 1, 2}


@pytest.mark.parametrize(("key", "plan"), [("k2", "p"), ("k1", "other")])
def test_marks_of_another_key_or_plan_are_gone(ledger: Folder, key: str, plan: str) -> None:
    first = started(ledger)
    first.add(Mark(1, "done"))
    first.flush()
    other = unit(ledger, key)
    assert other.begin(plan, 10, 100) == set()
    assert not other.created
    assert unit(ledger).begin("p", 10, 100) == set(), "there and back must not find the old marks"


def test_sealed_of_another_key_is_gone_as_soon_as_one_begins(ledger: Folder) -> None:
    started(ledger).seal({"hash": "a"})
    assert unit(ledger).sealed is not None
    unit(ledger, "k2").begin("p", 10, 100)
    assert unit(ledger).sealed is None


def test_marks_without_a_created_artifact_are_not_believed(ledger: Folder) -> None:
    """A driver died while it deleted the records of this key for another one: `created` went first."""
    first = started(ledger)
    first.add(Mark(1, "done"))
    first.flush()
    first.folder.delete("created")
    again = unit(ledger)
    assert again.begin("p", 10, 100) == set()
    again.mark_created()
    assert unit(ledger).begin("p", 10, 100) == set()


def test_marks_that_a_listing_missed_are_not_lost_and_not_believed_later(ledger: Folder) -> None:
    """A folder that could not be listed is not an empty one: what stands there is looked for once more."""
    first = started(ledger)
    for block in (1, 2):
        first.add(Mark(block, "done"))
        first.flush()
    assert set(unit(ledger).begin("p", 10, 100, present=[])) == {1, 2}
    again = unit(ledger)
    assert not again.begin("p", 10, 100, present=["k0/created"]), "what a partial listing does not know"
    assert not again.created
    again.mark_created()
    assert unit(ledger).begin("p", 10, 100) == set(), "blocks of an artifact that was made anew"


def test_created_says_of_which_cut_it_is(ledger: Folder) -> None:
    for plan in ("p", "other"):
        assert started(ledger, plan=plan).folder.read_bytes("created") == plan.encode()


def test_half_written_marks_do_not_stop_the_next_driver(tmp_path: Path) -> None:
    ledger = Folder.of(tmp_path)
    first = started(ledger)
    first.add(Mark(4, "done"))
    first.flush()
    marks = Path(first.folder.path("marks"))
    (marks / ".tmp-xyz.partial").write_bytes(b'{"block": 5, "sta')
    assert set(unit(ledger).begin("p", 10, 100)) == {4}


def test_seal_keeps_the_counts_and_drops_the_marks(ledger: Folder) -> None:
    first = started(ledger)
    for block in range(10):
        first.add(Mark(block, "done" if block % 2 else "empty", voxels=10, seconds=0.5))
    first.seal({"picks": 3})
    assert first.folder.names("marks") == []
    state = unit(ledger).state()
    assert (state.state, state.done, state.empty, state.voxels) == ("done", 5, 5, 100)
    assert state.value == {"picks": 3}
    started(ledger, "k1").seal({}, empty=True)
    assert unit(ledger).state().state == "empty"


def test_forget_quarantined_keeps_the_good_marks(ledger: Folder) -> None:
    first = started(ledger)
    for block in range(4):
        first.add(Mark(block, "quarantined" if block == 2 else "done"))
    first.fail("1 of 4 blocks quarantined")
    assert unit(ledger).state().state == "failed"
    assert unit(ledger).forget_quarantined() == 1
    assert unit(ledger).state().state == "running"
    assert set(unit(ledger).begin("p", 10, 100)) == {0, 1, 3}
    assert unit(ledger).forget_quarantined() == 0


def test_states_are_sorted_by_stage_and_unit(ledger: Folder) -> None:
    for stage, name in (("pick", "beta"), ("ingest", "beta"), ("pick", "alpha")):
        UnitLedger(ledger, stage, name, "k").begin("p", 1, 1)
    states = unit_states(ledger)
    assert [(s.stage, s.unit) for s in states] == [("ingest", "beta"), ("pick", "alpha"), ("pick", "beta")]
    assert {s.state for s in states} == {"running"}


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "flush", "forget", "restart"]), st.integers(0, 6)), max_size=25
)


@settings(max_examples=60)
@given(STEPS)
def test_any_history_keeps_exactly_what_was_flushed(steps: list[tuple[str, int]]) -> None:
    ledger = Folder.of(f"memory://history-{uuid.uuid4().hex}")
    now = started(ledger)
    written: set[int] = set()
    pending: set[int] = set()
    for action, block in steps:
        if action == "add":
            now.add(Mark(block, "done"))
            pending.add(block)
        elif action == "flush":
            now.flush()
            written |= pending
            pending = set()
        elif action == "forget" and not pending:
            now.forget([block])
            written.discard(block)
        elif action == "restart":
            now, pending = unit(ledger), set()
            assert set(now.begin("p", 10, 100)) == written
    assert set(unit(ledger).begin("p", 10, 100)) == written
