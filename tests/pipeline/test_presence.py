"""Who works on a run, told to other machines: counts, ages, pauses; `status` with clocks that disagree."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from cryoscale.cli.status import _sentences
from cryoscale.data.folder import Folder
from cryoscale.data.lock import STALE_LOCK_SECONDS
from cryoscale.data.run import Run
from cryoscale.pipeline import presence as presence_module
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.presence import LATELY_SECONDS, WORKERS, Presence, read_presence
from cryoscale.pipeline.status import status_of
from cryoscale.runtime.events import Event, Paused, TaskEnded
from cryoscale.testing.faults import FullDisk
from tests.pipeline.test_status import begin_again, stage_of

ENGINES = {"pick": "dask", "encode": "ray"}


def ended(worker: str, at: float, *, stage: str = "pick", status: Any = "done") -> TaskEnded:
    return TaskEnded(stage=stage, worker=worker, at=at, status=status)


@pytest.fixture
def folder() -> Folder:
    return Folder.of(f"memory://{uuid.uuid4().hex}")


def test_workers_are_counted_by_host_and_engine(folder: Folder) -> None:
    presence = Presence(folder, ENGINES, clock=lambda: 1000.0)
    for worker, at in (("a:1", 950.0), ("a:2", 960.0), ("a:2", 970.0), ("b:1", 990.0), ("::1:7", 995.0)):
        presence(ended(worker, at))
    presence(ended("a:1", 999.0, stage="encode", status="failed"))
    presence(ended("c:1", 1000.0 - LATELY_SECONDS - 1))  # has not been heard of
    presence(ended("d:1", 999.0, status="lost"))
    presence(ended("", 999.0))
    presence.write()
    workers, paused = read_presence(folder)
    assert workers == [
        {"host": "::1", "engine": "dask", "workers": 1, "seen_seconds": 5.0},
        {"host": "a", "engine": "dask", "workers": 2, "seen_seconds": 30.0},
        {"host": "a", "engine": "ray", "workers": 1, "seen_seconds": 1.0},
        {"host": "b", "engine": "dask", "workers": 1, "seen_seconds": 10.0},
    ]
    assert paused is None


def test_a_pause_is_told_until_a_task_ends_well(folder: Folder) -> None:
    now = [100.0]
    presence = Presence(folder, ENGINES, clock=lambda: now[0])
    presence(Paused(text="paused", reason="full", at=90.0))
    presence(Paused(text="paused", reason="still full", at=95.0))
    presence(ended("a:1", 99.0, status="failed"))
    presence.write()
    assert read_presence(folder)[1] == {"reason": "still full", "since_seconds": 10.0}
    presence(ended("a:1", 99.0))
    presence.write()
    assert read_presence(folder)[1] is None


def test_names_of_workers_that_come_and_go_do_not_pile_up(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_module, "MOST_WORKERS", 3)
    presence = Presence(folder, ENGINES, clock=lambda: 10.0)
    for n in range(10):
        presence(ended(f"host{n}:1", 10.0))
    assert [row["host"] for row in presence.record()["workers"]] == ["host7", "host8", "host9"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"at": 1, "workers": [{}], "paused": null}', b"\xff"])
def test_what_cannot_be_read_is_nobody(folder: Folder, data: bytes) -> None:
    assert read_presence(folder) == ([], None)
    folder.write_bytes(WORKERS, data)
    assert read_presence(folder) == ([], None)


def test_nothing_is_left_when_the_driver_ends_or_writes_late(folder: Folder) -> None:
    presence, renewed = Presence(folder, ENGINES), list[Callable[[], None]]()
    with presence.shown(renewed.append):
        renewed[0]()
        assert folder.exists(WORKERS)
    renewed[0]()
    assert not folder.exists(WORKERS)


@pytest.fixture(params=["local", "memory"])
def asked_run(request: pytest.FixtureRequest, make_run: Callable[..., Run]) -> Run:
    """A run on a shared folder, and on an object store."""
    run = make_run()
    if request.param == "local":
        return run
    other = Run.at(f"memory://{uuid.uuid4().hex}")
    other.folder.write_bytes("run.toml", run.folder.read_bytes("run.toml"))
    return other


def test_status_sees_driver_workers_and_pauses_at_any_moment(asked_run: Run) -> None:
    seen: list[dict[str, Any]] = []
    disk = FullDisk(lambda path: "plan.json" in path and disk.refused < 1)
    ledger = asked_run.folder.child("ledger")

    def look(event: Event) -> None:
        renewed()  # as the lock's thread does every ten seconds
        seen.append(json.loads(json.dumps(status_of(asked_run, with_disk=False))))

    def renewed() -> None:
        presence = next(one for one in made)
        presence.write()

    made: list[Presence] = []
    plain = Presence.__init__

    def note(self: Presence, *words: Any, **more: Any) -> None:
        plain(self, *words, **more)
        made.append(self)

    with pytest.MonkeyPatch.context() as patch, disk.mounted():
        patch.setattr(Presence, "__init__", note)
        result = run_pipeline(asked_run, Options(executor="serial", until="ingest"), listeners=(look,))
    assert result.exit_code == 0
    assert all(status["driver"]["alive"] and status["driver"]["pid"] == os.getpid() for status in seen)
    (row,) = seen[-1]["workers"]
    assert (row["engine"], row["workers"]) == ("serial", 1)
    assert row["seen_seconds"] >= 0
    assert any(status["paused"] and "No space" in status["paused"]["reason"] for status in seen) == (
        disk.refused > 0
    )
    assert seen[-1]["paused"] is None
    assert not ledger.exists(WORKERS)
    after = status_of(asked_run, with_disk=False)
    assert (after["driver"], after["workers"], after["paused"]) == (None, [], None)


@pytest.mark.parametrize("skew", [-7200.0, 7200.0])
def test_clocks_that_disagree_give_no_nonsense(
    copied_run: Run, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's clock is two hours wrong; who asks goes by the time of the storage."""
    begin_again(copied_run, "instances", "beta", [])
    holder = {"host": "elsewhere", "pid": 7, "boot": "x", "namespace": "y", "heartbeat": time.time() + skew}
    copied_run.folder.write_json("ledger/driver.json", holder)
    status = status_of(copied_run, with_disk=False)
    assert status["driver"]["alive"]
    assert 0 <= status["driver"]["silent_seconds"] < 60
    place = copied_run.folder.path("ledger/driver.json")
    old = time.time() - STALE_LOCK_SECONDS - 10
    os.utime(place, (old, old))
    waits: list[float] = []
    monkeypatch.setattr("cryoscale.data.lock.Clock.wait", lambda self, seconds: waits.append(seconds))
    assert not status_of(copied_run, with_disk=False)["driver"]["alive"]
    assert 10 < sum(waits) < 20, "whose clock is wrong, nobody knows: it is watched"
    ahead = time.time() + 5000
    os.utime(place, (ahead, ahead))
    assert status_of(copied_run, with_disk=False)["driver"]["silent_seconds"] == 0


@pytest.mark.parametrize("skew", [-7200.0, 7200.0])
def test_speeds_go_by_the_clock_of_the_driver(
    copied_run: Run, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoscale.data.ledger import Mark

    begun = time.time() + skew - 100  # a hundred seconds ago, by the driver's clock
    monkeypatch.setattr("cryoscale.data.ledger.time.time", lambda: begun)
    begin_again(copied_run, "instances", "beta", [Mark(0, "done", 1000, 1.0, begun + 1)])
    monkeypatch.undo()
    (key,) = copied_run.ledger.names("instances/alpha")
    copied_run.ledger.delete(f"instances/alpha/{key}/sealed.json")
    copied_run.ledger.delete(f"instances/alpha/{key}/plan.json")
    holder = {"host": "elsewhere", "pid": 7, "boot": "x", "namespace": "y", "heartbeat": time.time() + skew}
    copied_run.folder.write_json("ledger/driver.json", holder)
    stage = stage_of(status_of(copied_run, with_disk=False), "instances")
    assert stage["voxels_per_second"] == pytest.approx(10.0, rel=0.3)


def test_status_says_it_in_words(copied_run: Run) -> None:
    status = status_of(copied_run, with_disk=False)
    status["driver"] = {"host": "n1", "pid": 7, "alive": True, "silent_seconds": 3.0}
    status["workers"] = [
        {"host": "n1", "engine": "dask", "workers": 4, "seen_seconds": 2.0},
        {"host": "n2", "engine": "dask", "workers": 8, "seen_seconds": 2.0},
        {"host": "n2", "engine": "ray", "workers": 1, "seen_seconds": 2.0},
    ]
    status["paused"] = {"reason": "/run: No space left on device", "since_seconds": 65.0}
    said = "\n".join(_sentences(status))
    assert "running: process 7 on n1" in said
    assert "workers seen lately: 12 of dask on n1 (4), n2 (8); 1 of ray on n2 (1)" in said
    assert "paused for 1 min 5 s: /run: No space left on device" in said
