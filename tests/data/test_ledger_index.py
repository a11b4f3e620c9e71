"""One listing of the ledger says the same as asking for each unit."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data.folder import Folder
from cryoscale.data.ledger import Mark, Marks, UnitLedger, unit_states
from cryoscale.data.ledger_index import LedgerIndex, read_many
from cryoscale.data.run import Run
from cryoscale.errors import StateError
from cryoscale.pipeline.unit import Unit
from cryoscale.pipeline.units import UnitGraph
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.counted_store import CountedStore
from tests.pipeline.driving import drive


@pytest.fixture(params=["local", "memory", "counted"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return Folder.of(tmp_path / "ledger")
    return Folder.of(f"{request.param}://ledger-{uuid.uuid4().hex}/units")


def fill(ledger: Folder) -> None:
    for stage, name, end in (("a", "x", "sealed"), ("a", "y", "failed"), ("b", "x", "running")):
        unit = UnitLedger(ledger, stage, name, "k")
        unit.begin("p", 2, 2)
        unit.mark_created()
        unit.add(Mark(0, "done"))
        if end == "sealed":
            unit.seal({"hash": "h"})
        elif end == "failed":
            unit.fail("why")
        else:
            unit.flush()


def test_an_index_says_what_the_storage_says(ledger: Folder) -> None:
    fill(ledger)
    index, asking = LedgerIndex(ledger).list(), LedgerIndex(ledger)
    assert list(index.units()) == [("a", "x"), ("a", "y"), ("b", "x")]
    for stage, unit, key in (("a", "x", "k"), ("a", "x", "other"), ("a", "y", "k"), ("c", "x", "k")):
        assert index.sealed(stage, unit, key) == asking.sealed(stage, unit, key)
        assert index.sealed(stage, unit, key) == UnitLedger(ledger, stage, unit, key).sealed
    assert index.sealed("a", "x", "k") is not None
    assert index.names("b", "x") == ["k/created", "k/marks/00000000.jsonl", "k/plan.json"]
    assert index.names("c", "x") == []
    assert asking.names("b", "x") is None
    assert [(s.stage, s.unit, s.state) for s in unit_states(ledger)] == [
        ("a", "x", "done"), ("a", "y", "failed"), ("b", "x", "running"),
    ]  # fmt: skip


def test_what_is_dropped_is_gone_and_what_is_doubted_unknown(ledger: Folder) -> None:
    fill(ledger)
    index = LedgerIndex(ledger).list()
    index.drop("a", "x")
    assert index.names("a", "x") == []
    assert index.sealed("a", "x", "k") is None
    index.doubt("b", "x")
    assert index.names("b", "x") is None
    begun = UnitLedger(ledger, "b", "x", "k").begin("p", 2, 2, present=index.names("b", "x"))
    assert begun == {0}, "the marks of a unit that is doubted were not looked for"


def test_a_doubted_unit_that_is_sealed_is_found_sealed(ledger: Folder) -> None:
    fill(ledger)
    index = LedgerIndex(ledger).list()
    index.doubt("a", "x")
    assert index.sealed("a", "x", "k") == UnitLedger(ledger, "a", "x", "k").sealed is not None
    assert index.sealed("a", "x", "other") is None
    index.drop("a", "x")
    assert index.sealed("a", "x", "k") is None, "the driver deleted it"


def test_one_hiccup_of_the_storage_does_nothing_again(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = artifact_digest(copied_run)
    plain, refused = UnitGraph.stands, set[tuple[str, str]]()

    def stands(graph: UnitGraph, unit: Unit) -> bool:
        if unit.step.name == "ingest" and unit.name not in refused:
            refused.add(unit.name)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "zarr.json")
        return plain(graph, unit)

    monkeypatch.setattr(UnitGraph, "stands", stands)
    ended = drive(copied_run)
    assert len(refused) == 2
    assert ended.exit_code == 0
    assert not ended.tasks
    assert not differences(before, artifact_digest(copied_run))


@pytest.mark.parametrize("stray", [".DS_Store", "a/.DS_Store", "a/x/.DS_Store"])
def test_a_stray_file_is_no_unit(ledger: Folder, stray: str) -> None:
    fill(ledger)
    before = unit_states(ledger)
    ledger.write_bytes(stray, b"x")
    assert unit_states(ledger) == before
    assert list(LedgerIndex(ledger).list().units()) == [("a", "x"), ("a", "y"), ("b", "x")]


def test_only_what_stands_is_asked_for_where_nothing_is_known_to() -> None:
    ledger = Folder.of(f"counted://ledger-{uuid.uuid4().hex}")
    CountedStore.reset()
    unit = UnitLedger(ledger, "a", "x", "k")
    unit.begin("p", 1, 1, present=[])
    unit.mark_created()
    unit.add(Mark(0, "done", voxels=7, seconds=2.0, finished=3.0))
    unit.seal({"hash": "h"})
    assert dict(CountedStore.counts) == {("write", ""): 3, ("list", ""): 1}
    state = UnitLedger(ledger, "a", "x", "k").state()
    assert (state.done, state.planned, state.voxels, state.seconds) == (1, 1, 7, 2.0)


def test_a_damaged_record_is_named(ledger: Folder) -> None:
    ledger.write_bytes("a/x/k/sealed.json", b"{")
    with pytest.raises(StateError, match=r"sealed\.json"):
        LedgerIndex(ledger).list().sealed("a", "x", "k")


def test_objects_that_went_meanwhile_read_as_none(ledger: Folder) -> None:
    for n in range(5):
        ledger.write_bytes(f"{n}", str(n).encode())
    ledger.delete("3")
    expected = [("0", b"0"), ("1", b"1"), ("3", None), ("4", b"4")]
    assert list(read_many(ledger, ["0", "1", "3", "4"])) == expected
    assert list(read_many(ledger, ["3"])) == [("3", None)]
    assert list(read_many(ledger, [])) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["done", "empty", "quarantined"]))))
def test_marks_are_a_set_with_reasons(history: list[tuple[int, str]]) -> None:
    plain = dict(history)
    marks = Marks(Mark(*pair) for pair in history)
    assert marks == set(plain)
    assert len(marks) == len(plain)
    assert list(marks) == sorted(plain)
    assert all((block in marks) == (block in plain) for block in range(-2, 60))
    given_up = {mark.block for mark in marks.quarantined}
    assert given_up == {block for block, status in plain.items() if status == "quarantined"}


NAMES = st.sampled_from(["a", "b/c", "b/d/e", "b/d/f"])
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "delete", "files", "names", "exists"]), NAMES), max_size=20
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_counting_storage_is_a_storage(steps: list[tuple[str, str]]) -> None:
    """A folder on it behaves as one on fsspec's own storage in memory, but that empty folders do not stay."""
    name = uuid.uuid4().hex
    one, other = Folder.of(f"counted://{name}"), Folder.of(f"memory://{name}")
    for step, path in steps:
        if step == "write":
            one.write_bytes(path, path.encode())
            other.write_bytes(path, path.encode())
        elif step == "delete":
            one.delete(path)
            other.delete(path)
        assert one.files() == other.files()
        for below in ("", "b", "b/d"):
            known = {n for f in other.files() if f.startswith(below) for n in [f]}
            if known:
                assert set(one.names(below)) <= set(other.names(below))
        assert one.exists(path) == (
            path in other.files() or any(f.startswith(f"{path}/") for f in other.files())
        )
    assert all(one.read_bytes(f) == other.read_bytes(f) for f in other.files())
