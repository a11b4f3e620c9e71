"""The controller over a cluster that computes nothing: what a block costs must not grow with the project."""

from __future__ import annotations

import gc
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data.ledger import unit_states
from cryoscale.geometry import Block
from cryoscale.pipeline.attempts import Attempt, Limits, spared_drains
from cryoscale.pipeline.order import Step
from cryoscale.pipeline.units import UnitGraph
from cryoscale.runtime.events import Event, EventBus, TaskEnded
from cryoscale.testing.counted_store import KINDS, CountedStore
from cryoscale.testing.fake_cluster import FakeCluster, FakeDrive, Weather, fake_steps, one_step

CALM = Weather()
ROUGH = Weather(failures=0.02, preemptions_per_hour=6.0)


class Stop(Exception):
    """The driver is stopped."""


def alive(kind: type) -> int:
    """Count the objects of a class that are there; tests before this one may have left some."""
    gc.collect()
    return sum(type(thing) is kind for thing in gc.get_objects())


class Project:
    """A project on a storage that counts, driven again and again."""

    def __init__(self, tomograms: int, steps: Sequence[Step]) -> None:
        self.place, self.tomograms, self.steps = f"counted://{uuid.uuid4().hex}", tomograms, steps
        self.ended: list[TaskEnded] = []
        self.graph: UnitGraph

    def drive(self, workers: int, weather: Weather, seed: int = 0, stop_after: int = 0) -> FakeCluster:
        cluster = FakeCluster(workers, weather, seed)
        fake = FakeDrive(self.place, self.tomograms, self.steps, Limits(), EventBus())
        fake.bus.listen(self._note)
        self.graph = fake.graph
        CountedStore.reset()
        with fake.over(cluster) as controller:
            if stop_after:
                turns, collect = iter(range(1, 10**9)), controller._collect

                def stop() -> None:
                    collect()
                    if next(turns) == stop_after:
                        raise Stop

                controller._collect = stop  # type: ignore[method-assign]
            controller.run()
        return cluster

    def _note(self, event: Event) -> None:
        if isinstance(event, TaskEnded):
            self.ended.append(event)

    @property
    def final(self) -> Counter[tuple[str, str, int]]:
        """How often each block, seal and fit was settled."""
        return Counter((e.stage, e.tomogram, e.block) for e in self.ended if e.final)

    @property
    def given_up(self) -> set[str]:
        return {f"{e.stage}/{e.tomogram}/{e.block}" for e in self.ended if e.status == "quarantined"}

    @property
    def records(self) -> list[tuple[object, ...]]:
        """What the ledger says in the end, without times."""
        states = unit_states(self.graph.run.ledger)
        return [(s.stage, s.unit, s.key, s.state, s.planned, s.done, s.quarantined, s.voxels) for s in states]


def test_every_block_ends_once_whatever_happens_to_workers() -> None:
    project = Project(20, one_step(1000))
    cluster = project.drive(64, ROUGH)
    assert cluster.counts["lost"] > 100, "nobody was lost: the test says nothing"
    assert cluster.counts["failed"] > 100
    assert set(project.final.values()) == {1}
    assert len(project.final) == 20 * 1001
    assert {unit.state for unit in project.graph.units.values()} == {"sealed"}
    assert [s.done for s in unit_states(project.graph.run.ledger)] == [1000] * 20


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.0, 2.0, 20.0]))
def test_the_end_does_not_depend_on_workers_or_what_befalls_them(
    seed: int, workers: int, preemptions: float
) -> None:
    plain = Project(5, fake_steps(7))
    plain.drive(3, CALM)
    rough = Project(5, fake_steps(7))
    rough.drive(workers, replace(ROUGH, preemptions_per_hour=preemptions), seed)
    assert rough.records == plain.records
    assert set(rough.final.values()) == {1}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_only_those_to_blame_are_given_up(seed: int) -> None:
    weather = Weather(block_s=300.0, poison=0.01, broken=0.01, preemptions_per_hour=1.0, failures=0.01)
    project = Project(4, one_step(100))
    cluster = project.drive(64, weather, seed)
    names = [f"first/t{n:06d}/{block}" for n in range(4) for block in range(100)]
    guilty = {name for name in names if cluster.is_poison(name) or cluster.is_broken(name)}
    assert len(guilty) > 3
    assert project.given_up == guilty


def test_workers_that_are_taken_away_do_not_make_the_cluster_wait() -> None:
    spot = Weather(block_s=600.0, preemptions_per_hour=1.0)
    project = Project(8, one_step(500))
    cluster = project.drive(512, spot)
    assert cluster.counts["lost"] > 1000
    assert cluster.counts["fresh"] > 10, "nothing was lost three times: the test says nothing"
    assert cluster.counts["alone"] == 0
    assert not project.given_up


def test_a_block_that_always_raises_does_not_make_the_cluster_wait() -> None:
    project = Project(2, one_step(500))
    cluster = project.drive(64, Weather(broken=0.02))
    assert len(project.given_up) > 10
    assert cluster.counts["alone"] == 0
    tries = Counter((e.tomogram, e.block) for e in project.ended if e.status != "done")
    assert set(tries.values()) == {4}  # three beside others, one on a worker of its own


def test_spared_drains_grow_with_the_logarithm_of_the_window() -> None:
    assert [spared_drains(window) for window in (0, 1, 4, 5, 8, 128, 1024)] == [0, 0, 0, 1, 1, 5, 8]
    assert spared_drains(4, patient=True) == 16


@pytest.mark.parametrize("tomograms", [20, 200])
def test_requests_do_not_grow_with_the_project(tomograms: int) -> None:
    """A unit asks for a plan, `created`, `sealed.json`, and lists itself and its parts; rarely a segment."""
    project = Project(tomograms, one_step(10))
    project.drive(8, CALM)
    asked = {kind: CountedStore.total(kind) for kind in KINDS}
    segments = asked["write"] - 3 * tomograms
    assert 0 <= segments <= tomograms * 10
    assert asked["read"] == asked["look"] == 0
    assert asked["list"] <= 1 + 3 * tomograms  # the ledger; what stands, parts and marks of each unit
    assert asked["delete"] <= tomograms


def test_marks_are_written_by_the_dozen_where_blocks_end_fast() -> None:
    project = Project(2, one_step(10_000))
    project.drive(256, CALM)
    assert CountedStore.total("write") < 2 * 10_000 / 40


def test_what_is_sealed_is_found_by_one_listing_and_one_read_each() -> None:
    project = Project(50, fake_steps(4))
    project.drive(16, CALM)
    before, project.ended = len(project.ended), []
    assert before
    project.drive(16, CALM)
    assert not project.ended
    asked = {kind: CountedStore.total(kind) for kind in KINDS}
    assert asked == {"read": 151, "write": 0, "list": 1, "look": 0, "delete": 0}


@pytest.mark.parametrize("after", [1, 30, 200, 700])
def test_a_driver_that_was_stopped_does_nothing_twice(after: int) -> None:
    project = Project(6, fake_steps(40))
    with pytest.raises(Stop):
        project.drive(16, ROUGH, stop_after=after)
    project.drive(5, ROUGH, seed=1)
    assert set(project.final.values()) == {1}
    assert len(project.final) == 6 * 3 * 41 + 1
    whole = Project(6, fake_steps(40))
    whole.drive(3, CALM)
    assert project.records == whole.records


@pytest.mark.parametrize("blocks", [2_000, 20_000])
def test_blocks_that_wait_are_not_tasks_yet(blocks: int) -> None:
    """A unit of many blocks costs its plan; attempts and tasks are there for what is in flight alone."""
    project, seen = Project(1, one_step(blocks)), list[int]()
    others = alive(Attempt)

    def count(event: Event) -> None:
        if isinstance(event, TaskEnded) and event.block >= 0 and len(project.ended) == blocks // 4:
            seen.append(alive(Attempt) - others)

    cluster = FakeCluster(32, CALM)
    fake = FakeDrive(project.place, 1, project.steps, Limits(), EventBus())
    fake.bus.listen(project._note)
    fake.bus.listen(count)
    with fake.over(cluster) as controller:
        controller.run()
    assert seen
    assert max(seen) <= 2 * 32 + 1


@pytest.mark.parametrize("tomograms", [100, 300])
def test_plans_are_there_for_open_units_alone(tomograms: int) -> None:
    project, seen = Project(tomograms, one_step(100)), list[int]()
    others = alive(Block)

    def count(event: Event) -> None:
        if isinstance(event, TaskEnded) and len(project.ended) % (tomograms * 25) == 0:
            seen.append(alive(Block) - others)

    fake = FakeDrive(project.place, tomograms, project.steps, Limits(), EventBus())
    fake.bus.listen(project._note)
    fake.bus.listen(count)
    with fake.over(FakeCluster(32, CALM)) as controller:
        controller.run()
    assert len(seen) == 4
    assert max(seen) <= 512 + 300  # OPEN_TASKS, and the units at either end of them
    ended = [unit for unit in fake.graph.units.values() if unit.state == "sealed"]
    assert len(ended) == tomograms
    assert all(unit.plan is unit.access is unit.ledger is unit.marks is None for unit in ended)


@pytest.mark.parametrize("tomograms", [50, 200])
def test_each_unit_is_looked_at_a_few_times(tomograms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Counter[str]()
    ready, inputs_of = UnitGraph.ready, UnitGraph.inputs_of

    def counted_ready(graph: UnitGraph, unit: object) -> str:
        looked["ready"] += 1
        return ready(graph, unit)  # type: ignore[arg-type]

    def counted_inputs(graph: UnitGraph, unit: object) -> object:
        found = inputs_of(graph, unit)  # type: ignore[arg-type]
        looked["inputs"] += len(found)
        return found

    monkeypatch.setattr(UnitGraph, "ready", counted_ready)
    monkeypatch.setattr(UnitGraph, "inputs_of", counted_inputs)
    Project(tomograms, fake_steps(2)).drive(16, CALM)
    units = 3 * tomograms + 1
    assert looked["ready"] <= 3 * units
    assert looked["inputs"] <= 8 * units
