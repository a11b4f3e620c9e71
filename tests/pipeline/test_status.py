"""What `status` says of runs that are fresh, going on, finished, broken, changed, or waiting."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryoscale.cli.status import _sentences
from cryoscale.data.ledger import Mark, UnitLedger, UnitState
from cryoscale.data.run import Run
from cryoscale.data.weights import ModelFolder
from cryoscale.pipeline import status as status_module
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.status import STATES, status_of
from cryoscale.pipeline.survey import Standing, survey_run
from cryoscale.pipeline.unit import Unit
from cryoscale.runtime.events import Event
from tests.pipeline.driving import drive, settle

KEYS = {
    "schema", "run", "at", "driver", "workers", "paused", "tomograms", "complete", "failed", "waiting",
    "seconds_left", "stages_without_estimate", "disk", "stages", "trainings", "failures",
}  # fmt: skip
STAGE_KEYS = {
    "stage", "scope", "tomograms", "blocks", "voxels", "voxels_per_second", "seconds_left", "units",
}  # fmt: skip
UNIT_KEYS = {
    "tomogram", "state", "outdated", "blocks", "voxels", "seconds", "started", "finished", "reason", "facts",
}  # fmt: skip


def tree(run: Run) -> dict[str, tuple[int, int]]:
    """Every file of a run with its size and time."""
    files = (path for path in Path(run.folder.url).rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def stage_of(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in status["stages"] if stage["stage"] == name)


def unit_of(status: dict[str, Any], stage: str, tomogram: str) -> dict[str, Any]:
    return next(u for u in stage_of(status, stage)["units"] if u["tomogram"] == tomogram)


def begin_again(run: Run, stage: str, tomogram: str, marks: list[Mark], blocks: int = 4) -> None:
    """Leave a unit as a driver leaves it in the middle of its work."""
    key = next(s.unit.key for s in survey_run(run).standings if s.unit.name == (stage, tomogram))
    ledger = UnitLedger(run.ledger, stage, tomogram, key)
    ledger.begin("a plan", blocks, 4000)
    for mark in marks:
        ledger.add(mark)
    ledger.flush()


def test_the_keys_are_stable(finished_run: Run) -> None:
    status = json.loads(json.dumps(status_of(finished_run)))
    assert status["schema"] == 1
    assert set(status) == KEYS
    for stage in status["stages"]:
        assert set(stage) == STAGE_KEYS
        assert tuple(stage["tomograms"]) == STATES
        assert set(stage["blocks"]) == {"planned", "done", "empty", "quarantined"}
        assert all(set(unit) == UNIT_KEYS for unit in stage["units"])


def test_a_training_that_began_tells_its_epoch(finished_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    at = {"epoch": 3, "epochs": 9, "train_loss": 0.5, "validation_loss": 0.25, "seconds": 1.5}
    shown = {name: at if name == "segmenter" else None for name in ("encoder", "segmenter")}
    monkeypatch.setattr(
        ModelFolder, "progress", property(lambda self: shown[self.folder.url.rpartition("/")[2]])
    )
    status = status_of(finished_run)
    assert status["trainings"] == {"segmenter": at}
    assert any("training the segmenter: epoch 3 of at most 9" in line for line in _sentences(status))


def test_a_finished_run_is_complete_and_left_alone(finished_run: Run) -> None:
    before = tree(finished_run)
    status = status_of(finished_run)
    assert tree(finished_run) == before
    assert status["complete"]
    assert not status["failed"]
    assert status["waiting"] is None
    assert status["driver"] is None
    assert status["failures"] == []
    assert status["disk"]["used_bytes"] == finished_run.folder.size_bytes()
    for stage in status["stages"]:
        units = 2 if stage["scope"] == "tomogram" else 1
        assert stage["tomograms"]["done"] + stage["tomograms"]["empty"] == units
        assert stage["blocks"]["done"] + stage["blocks"]["empty"] == stage["blocks"]["planned"] > 0
        assert stage["seconds_left"] == 0
    assert stage_of(status, "pick")["voxels"] == 40 * 64 * 64 + 48 * 56 * 64
    assert stage_of(status, "pick")["voxels_per_second"] > 0


def test_a_fresh_run_is_planned_throughout(make_run: Callable[..., Run]) -> None:
    status = status_of(make_run(), with_disk=False)
    assert not status["complete"]
    assert status["seconds_left"] is None
    assert "ingest" in status["stages_without_estimate"]
    assert status["disk"]["used_bytes"] is None
    assert all(u["state"] == "planned" for stage in status["stages"] for u in stage["units"])


def test_it_needs_no_source_files(copied_run: Run) -> None:
    """The machine that asks may not see the folder of the microscope."""
    text = copied_run.folder.read_bytes("run.toml").decode()
    elsewhere = [line.replace('path = "', 'path = "/nowhere') for line in text.splitlines()]
    copied_run.folder.write_bytes("run.toml", "\n".join(elsewhere).encode())
    assert status_of(copied_run)["complete"]


def test_changed_parameters_make_results_outdated_and_going_back_does_not(copied_run: Run) -> None:
    settle(copied_run, "segment.overlap_voxels=2")
    status = status_of(copied_run)
    assert not status["complete"]
    assert stage_of(status, "train_segmenter")["tomograms"]["done"] == 1
    assert unit_of(status, "segment", "alpha")["outdated"]
    assert unit_of(status, "segment", "alpha")["state"] == "planned"
    assert stage_of(status, "instances")["tomograms"]["planned"] == 2
    settle(copied_run, "segment.overlap_voxels=0")
    assert status_of(copied_run)["complete"]


def test_it_says_what_waits_for_a_person(copied_run: Run) -> None:
    copied_run.clusters.folder.delete("selection.toml")
    status = status_of(copied_run)
    assert "selection.toml" in status["waiting"]
    assert stage_of(status, "train_segmenter")["tomograms"]["waiting"] == 1
    assert stage_of(status, "instances")["tomograms"]["waiting"] == 2
    assert status["complete"]  # nothing that a driver could do
    copied_run.clusters.folder.write_bytes("selection.toml", b"[clases.a]\nclusters = [1]\n")
    assert "did you mean 'classes'" in status_of(copied_run)["waiting"]


def test_a_broken_file_is_named_and_blocks_only_itself(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "gamma.mrc"
    broken.write_bytes(small_sources[0].read_bytes()[:5000])
    run = make_run(sources=[small_sources[0], broken])
    assert drive(run, until="pick").exit_code == 1
    status = status_of(run)
    assert status["failed"]
    (failure,) = status["failures"]
    assert (failure["stage"], failure["tomogram"], failure["block"]) == ("identify", "gamma", None)
    assert "gamma.mrc" in failure["reason"]
    assert (
        stage_of(status, "identify")["tomograms"] | {"done": 1, "failed": 1}
        == stage_of(status, "identify")["tomograms"]
    )
    assert unit_of(status, "pick", "gamma")["state"] == "blocked"
    assert unit_of(status, "pick", "alpha")["state"] == "done"


def test_quarantined_blocks_are_named_before_the_run_ends(copied_run: Run) -> None:
    marks = [Mark(0, "done", 1000, 1.0, 5.0), Mark(1, "empty", 1000), Mark(2, "quarantined", reason="torn")]
    begin_again(copied_run, "instances", "beta", marks)
    status = status_of(copied_run)
    unit = unit_of(status, "instances", "beta")
    assert unit["blocks"] == {"planned": 4, "done": 1, "empty": 1, "quarantined": 1}
    assert unit["voxels"] == 2000
    assert status["failures"] == [{"stage": "instances", "tomogram": "beta", "block": 2, "reason": "torn"}]


def test_running_needs_a_living_driver(copied_run: Run) -> None:
    begin_again(copied_run, "instances", "beta", [])
    assert unit_of(status_of(copied_run), "instances", "beta")["state"] == "interrupted"
    with copied_run.locked():
        status = status_of(copied_run)
    assert status["driver"]["alive"]
    assert status["driver"]["pid"] == os.getpid()
    assert unit_of(status, "instances", "beta")["state"] == "running"
    dead = {"host": "a machine long gone", "pid": 1, "heartbeat": 0.0}
    copied_run.folder.child("ledger").write_json("driver.json", dead)
    os.utime(copied_run.folder.path("ledger/driver.json"), (0, 0))  # its clock says nothing
    status = status_of(copied_run)
    assert not status["driver"]["alive"]
    assert unit_of(status, "instances", "beta")["state"] == "interrupted"


def test_it_can_be_asked_at_any_moment_of_a_run(make_run: Callable[..., Run]) -> None:
    run = make_run()
    done: list[int] = []
    alive: list[bool] = []

    def look(event: Event) -> None:
        status = status_of(run, with_disk=False)
        done.append(sum(stage["tomograms"]["done"] for stage in status["stages"]))
        alive.append(status["driver"]["alive"])

    run_pipeline(run, Options(executor="serial", until="pick"), listeners=(look,))
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] >= 5  # the last event comes when the last stage is sealed
    assert all(alive)


def standing(started: float, finished: float, state: str = "done") -> Standing:
    record = UnitState("pick", "a", "key", state, started=started, finished=finished)
    return Standing(Unit(step=None, tomogram="a"), record)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [([(1, 3), (2, 5)], 4.0), ([(1, 2), (10, 12)], 3.0), ([(1, 9), (2, 3)], 8.0), ([(0.0, 0.0)], 0.0)],
)
def test_overlapping_times_count_once(spans: list[tuple[float, float]], expected: float) -> None:
    standings = [standing(*span) for span in spans]
    assert status_module._busy_seconds(standings, 100.0, at_work=True) == expected


def test_a_running_stage_is_timed_up_to_now() -> None:
    going_on = [standing(90.0, 92.0, "running")]
    assert status_module._busy_seconds(going_on, 100.0, at_work=True) == 10.0
    assert status_module._busy_seconds(going_on, 100.0, at_work=False) == 2.0


def blocks(state: str, planned: int, done: int) -> dict[str, Any]:
    counts = {"planned": planned, "done": done, "empty": 0, "quarantined": 0}
    return {"state": state, "blocks": counts}


def test_time_left_follows_the_share_of_blocks() -> None:
    units = [
        blocks("done", 10, 10),
        blocks("running", 10, 5),
        blocks("planned", 0, 0),
        blocks("blocked", 0, 0),
    ]
    # 15 blocks in 30 s; 5 are left, and one tomogram is not planned yet: 10 more, by the mean of the others
    assert status_module._seconds_left(units, 30.0) == pytest.approx(30.0)
    assert status_module._seconds_left([blocks("done", 3, 3)], 30.0) == 0.0
    assert status_module._seconds_left([blocks("running", 3, 0)], 30.0) is None
