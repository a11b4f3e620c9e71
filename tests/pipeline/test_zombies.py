"""Workers that were given up and wake again: when the unit is sealed, when the parameters changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cryoscale.config import apply_settings
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.data.weights import ModelFolder
from cryoscale.pipeline import engines
from cryoscale.pipeline.order import steps_for
from cryoscale.pipeline.simulation import set_up_simulation
from cryoscale.runtime.packing import run_packed, unpack_outcome
from cryoscale.runtime.serial import SerialExecutor
from cryoscale.runtime.task import Outcome, Task, WorkCache
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.phantoms import small_run, write_phantom
from tests.pipeline.driving import drive, settle


class Recorder(SerialExecutor):
    """Keeps what was handed to workers, so that it can be worked on a second time, by one that is late."""

    handed: ClassVar[dict[str, tuple[Task, bytes]]] = {}

    def _launch(self, ticket: str, task: Task, payload: bytes) -> None:
        self.handed[task.identifier.rsplit("#", 1)[0]] = task, payload
        super()._launch(ticket, task, payload)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Task, bytes]]:
    Recorder.handed = {}
    monkeypatch.setattr(engines, "open_executor", lambda _, settings: Recorder(settings))
    return Recorder.handed


class Zombie:
    """A worker in a thread of its own that falls asleep right before its first write."""

    def __init__(self, handed: tuple[Task, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        self.task, self.payload = handed
        self.asleep, self.wake = threading.Event(), threading.Event()
        self.written: list[str] = []
        self.outcome: Outcome | None = None
        self.thread = threading.Thread(target=self._work)
        guard = Folder.guard

        def sleep(folder: Folder, *, anew: bool = False) -> None:
            if threading.current_thread() is self.thread:
                if not self.asleep.is_set():
                    self.asleep.set()
                    assert self.wake.wait(100)
                self.written.append(folder.url)
            guard(folder, anew=anew)

        monkeypatch.setattr(Folder, "guard", sleep)

    def _work(self) -> None:
        self.outcome = unpack_outcome(self.task, run_packed(self.payload, WorkCache()))
        self.asleep.set()

    def fall_asleep(self) -> None:
        self.thread.start()
        assert self.asleep.wait(100)
        assert self.outcome is None, self.outcome

    def awake(self) -> Outcome:
        self.wake.set()
        self.thread.join(100)
        assert self.outcome is not None
        assert self.written, "it never tried to write"
        return self.outcome


WRITES = ["ingest/alpha/0", "ingest/alpha/seal", "pick/alpha/0"]


@pytest.mark.parametrize("name", WRITES)
def test_a_worker_that_wakes_after_its_unit_was_sealed_changes_nothing(
    make_run: Callable[..., Run], handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = make_run()
    assert drive(run, until="pick").exit_code == 0
    before = artifact_digest(run)
    removed: list[str] = []
    plain = Folder.delete

    def delete(folder: Folder, key: str = "") -> None:
        removed.append(folder.path(key))
        plain(folder, key)

    monkeypatch.setattr(Folder, "delete", delete)
    zombie = Zombie(handed[name], monkeypatch)
    zombie.fall_asleep()
    zombie.awake()
    assert not differences(before, artifact_digest(run))
    assert not removed, "a reader would have found nothing there for a moment"


MODEL = ["history.parquet", "model.toml", "weights.safetensors"]
CHANGES = {"ingest": "ingest.contrast=bright", "pick": "pick.threshold=2"}


@pytest.mark.parametrize("name", WRITES)
def test_a_worker_that_wakes_when_the_parameters_changed_is_refused(
    make_run: Callable[..., Run], handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = make_run()
    assert drive(run, until="pick").exit_code == 0
    zombie = Zombie(handed[name], monkeypatch)
    zombie.fall_asleep()
    settle(run, CHANGES[name.split("/")[0]])
    assert drive(run, until="pick").exit_code == 0
    new = artifact_digest(run)
    parts = run.folder.names("parts/picks")
    outcome = zombie.awake()
    assert outcome.failure is not None
    assert (outcome.failure.type, outcome.failure.kind) == ("OvertakenError", "surroundings")
    assert not differences(new, artifact_digest(run))
    assert run.folder.names("parts/picks") == parts
    settle(run, "ingest.contrast=dark", "pick.threshold=0")  # and back: nothing of then is taken for now
    assert drive(run, until="pick").exit_code == 0


@pytest.mark.parametrize("step", ["ingest", "pick"])
def test_a_worker_that_wakes_when_the_same_was_cut_otherwise_is_refused(
    tmp_path: Path, handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Parts are named by blocks, and block 0 of one cut is not that of another."""
    source = write_phantom(tmp_path / "wide.mrc", (16, 24, 272), seed=3)
    run, name = small_run(tmp_path / "run", [source], "execution.block_voxels=32"), f"{step}/wide/0"
    assert drive(run, until=step).exit_code == 0
    old = handed[name][0].work
    zombie = Zombie(handed[name], monkeypatch)
    zombie.fall_asleep()
    run.ledger.delete(f"{step}/wide/{old.access.key}/sealed.json")  # as if the first driver had been killed
    settle(run, "execution.block_voxels=256")
    assert drive(run, until=step).exit_code == 0
    now, new, parts = handed[name][0].work, artifact_digest(run), run.folder.names("parts/picks")
    assert (now.access.key, now.access.tomogram) == (old.access.key, old.access.tomogram)
    assert now.key != old.key, "a worker of both would go on with what it opened for the old one"
    outcome = zombie.awake()
    assert outcome.failure is not None
    assert outcome.failure.type == "OvertakenError"
    assert not differences(new, artifact_digest(run))
    assert run.folder.names("parts/picks") == parts


def test_a_training_that_wakes_after_its_unit_was_sealed_is_refused(
    make_run: Callable[..., Run], handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings on GPUs do not end with the same weights, and the ledger names those of one."""
    run = make_run("encoder.epochs=1")
    assert drive(run, until="train_encoder").exit_code == 0
    before = artifact_digest(run)
    monkeypatch.setattr(ModelFolder, "finished", lambda *_: None)  # it looked before the other was through
    zombie = Zombie(handed["train_encoder/_all/compute"], monkeypatch)
    zombie.fall_asleep()
    outcome = zombie.awake()
    assert outcome.failure is not None
    assert outcome.failure.type == "OvertakenError"
    assert not differences(before, artifact_digest(run))
    assert sorted(run.model("encoder").folder.names()) == sorted(MODEL)


def test_a_training_that_wakes_when_the_parameters_changed_is_refused(
    make_run: Callable[..., Run], handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("encoder.epochs=1")
    assert drive(run, until="train_encoder").exit_code == 0
    run.model("encoder").folder.delete()  # so that the late one has something to do
    zombie = Zombie(handed["train_encoder/_all/compute"], monkeypatch)
    zombie.fall_asleep()
    settle(run, "encoder.seed=5")
    assert drive(run, until="train_encoder").exit_code == 0
    new = artifact_digest(run)
    outcome = zombie.awake()
    assert outcome.failure is not None
    assert outcome.failure.type == "OvertakenError"
    assert not differences(new, artifact_digest(run))


def test_the_ledger_knows_a_unit_by_the_name_of_its_stage(finished_run: Run, tmp_path: Path) -> None:
    """The fence looks there."""
    config = finished_run.config
    supervised = apply_settings(config, ["supervised.model=unet3d", "supervised.labels=x{tomogram}"])
    set_up_simulation(str(tmp_path / "cells"), "cell-demo")
    for some in (config, supervised, Run.open(tmp_path / "cells").config):
        assert [step.name for step in steps_for(some) if step.name != step.stage.name] == []
