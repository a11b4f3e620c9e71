"""What the controller does when storage refuses the driver itself, over a cluster that nobody computes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryoscale.errors import OvertakenError, SurroundingsError
from cryoscale.pipeline.attempts import Limits
from cryoscale.pipeline.controller import Controller
from cryoscale.pipeline.pausing import Pausing
from cryoscale.runtime.events import Event, EventBus, Paused, UnitFailed
from cryoscale.testing.fake_cluster import FakeCluster, FakeDrive, Weather, one_step

DENIED = "Permission denied"


class Refusing:
    """Refuses some times, with the errors given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.asked = list(errors), 0

    def __call__(self, *_: object) -> None:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(tmp_path: Path, events: list[Event]) -> Iterator[Callable[..., Controller]]:
    """Make a controller of two tomograms of three blocks whose pauses take no time."""
    bus = EventBus()
    bus.listen(events.append)
    drive = FakeDrive(str(tmp_path / "run"), 2, one_step(3), Limits(pauses=3, pause_seconds=0.0), bus)
    with FakeCluster(2, Weather()) as cluster:

        def controller(**words: Any) -> Controller:
            engines = {"cpu": lambda: cluster, "model": lambda: cluster}
            return Controller(drive.graph, engines, bus, drive.limits, clock=cluster.clock, **words)

        yield controller


def pauses(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, Paused)]


def states(controller: Controller) -> set[str]:
    return {unit.state for unit in controller.graph.units.values()}


def full() -> OSError:
    return OSError(28, "No space left on device", "ledger/probe/x")


@pytest.mark.parametrize("error", [full(), SurroundingsError("the store refuses.")])
def test_what_workers_look_for_is_written_within_the_pauses(
    make: Callable[..., Controller], events: list[Event], error: Exception
) -> None:
    prepare = Refusing(error, error)
    controller = make(prepare=prepare)
    controller.run()
    assert states(controller) == {"sealed"}
    assert len(pauses(events)) == 2
    assert prepare.asked == 3


def test_a_run_into_which_nothing_can_be_written_for_workers_stops(make: Callable[..., Controller]) -> None:
    controller = make(prepare=Refusing(*[full()] * 9))
    with pytest.raises(SurroundingsError, match=r"No space left.*work kept"):
        controller.run()
    assert "failed" not in states(controller)


def test_a_lock_that_cannot_be_looked_at_pauses_the_run(
    make: Callable[..., Controller], events: list[Event]
) -> None:
    look = Refusing(
        SurroundingsError("the lock cannot be read."), SurroundingsError("the lock cannot be read.")
    )
    controller = make(heartbeat=look)
    controller.run()
    assert states(controller) == {"sealed"}
    assert pauses(events) == ["the lock cannot be read."] * 2


def test_nothing_is_done_while_nobody_knows_whose_the_run_is(events: list[Event]) -> None:
    bus, action = EventBus(), Refusing()
    bus.listen(events.append)
    heartbeat = Refusing(SurroundingsError("the lock cannot be read."), OvertakenError("taken over."))
    pause = Pausing(limits=Limits(), bus=bus, heartbeat=heartbeat)
    assert not pause.attempt(action)
    assert pause.stuck
    assert len(pauses(events)) == 1
    with pytest.raises(OvertakenError):
        pause.attempt(action)
    assert not action.asked
    assert not pause.beat(full_action)
    assert pause.beat()
    assert pause.stuck, "to have looked at the lock says nothing of the ledger"
    assert pause.attempt(action)
    assert not pause.stuck


def full_action() -> None:
    raise full()


def test_a_failure_that_is_owed_twice_is_recorded_once(
    make: Callable[..., Controller], events: list[Event]
) -> None:
    controller = make()
    unit = next(iter(controller.graph.units.values()))
    controller._pause.heartbeat = Refusing(full(), full())
    controller._fail(unit, "the first reason")
    controller._fail(unit, "the second reason")
    assert controller._pause.owes
    while not controller._pause.pay():
        pass
    assert [event.reason for event in events if isinstance(event, UnitFailed)] == ["the first reason"]
    assert unit.reason == "the first reason"


@pytest.mark.parametrize(("where", "own"), [("{}", True), ("{}/ledger/x", True), ("{}2/x", False)])
def test_permission_is_the_runs_own_only_below_its_folder(
    make: Callable[..., Controller], where: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = make()
    unit = next(iter(controller.graph.units.values()))
    place = where.format(controller.graph.run.folder.url)
    refuse = Refusing(PermissionError(13, DENIED, place))
    monkeypatch.setattr(controller.graph, "key_of", refuse)
    if own:
        with pytest.raises(PermissionError):
            controller._open(unit)
        return
    controller._open(unit)
    assert (unit.state, unit.reason) == ("failed", f"{place}: {DENIED}.")
