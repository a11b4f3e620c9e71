"""Training on several workers of Ray: the same result, plain words when one dies, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryoscale.errors import ConfigurationError, DataError, SurroundingsError
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.learn.distributed import group_of
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.supervised import set_up_training
from cryoscale.runtime import ray_train
from cryoscale.runtime.executor import ExecutorSettings
from cryoscale.runtime.ray_start import import_ray, quietly
from cryoscale.runtime.ray_train import TrainingWorker, train_on_workers
from cryoscale.runtime.scratch import claim_folder
from cryoscale.testing.phantoms import VOXEL_SIZE_ANGSTROM, small_run
from tests.learn import test_distributed as small
from tests.pipeline.test_supervised import TINY, labels_of

WORKERS = 2


@dataclass(frozen=True)
class Plan:
    """What a worker is told."""

    folder: str
    deadly: bool = False


def train_one(plan: Plan, worker: TrainingWorker) -> dict[str, Any]:
    """Train the small problem with the others."""
    checkpoint = small.Disk(Path(plan.folder) / "checkpoint")
    with group_of(worker) as group:
        loss = small.DiesInEpoch(worker.rank, step=11) if plan.deadly else None
        told = small.trained(group, checkpoint, loss)
    return told | {"worker": worker, "process": os.getpid(), "cwd": os.getcwd()}


def describe(plan: Plan, worker: TrainingWorker) -> tuple[Plan, TrainingWorker, str]:
    return plan, worker, worker.from_first(lambda: "text of the first")


def fail_on_the_second(plan: Plan, worker: TrainingWorker) -> None:
    """Raise on one worker, while the other waits for it."""
    with group_of(worker) as group:
        if worker.rank == 1:
            raise DataError("patch 17 of tomogram alpha is broken")
        group.barrier()


class Nested:
    """An actor of the model engine, in which a stage runs."""

    def describe(self) -> Any:
        return train_on_workers(describe, Plan("here"), workers=WORKERS)


def switches() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ray_train._RAY_TRAIN}


def test_one_worker_needs_no_ray():
    plan = Plan("anywhere")
    assert train_on_workers(describe, plan, workers=1) == (plan, TrainingWorker(), "text of the first")


@pytest.mark.parametrize(("workers", "threads", "gpus"), [(0, 1, 0), (2, 0, 0), (2, 1, -1), (2, 1, 0.5)])
def test_impossible_numbers_are_refused(workers, threads, gpus):
    with pytest.raises(ConfigurationError, match="Cannot train on"):
        train_on_workers(describe, Plan(""), workers=workers, threads=threads, gpus_per_worker=gpus)


def test_ray_train_can_be_imported_with_warnings_as_errors():
    code = (
        "import cryoscale.runtime.ray_train, sys; assert 'ray' not in sys.modules\n"
        "import ray.train.torch, ray.train.collective, dataclasses\n"
        "assert 'return_value' in {f.name for f in dataclasses.fields(ray.train.Result)}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_an_old_ray_is_refused(monkeypatch, tmp_path):
    import_ray(embedded=True)
    with quietly():
        import ray.train

    @dataclass
    class OldResult:
        metrics: dict[str, Any]

    monkeypatch.setattr(ray.train, "Result", OldResult)
    with pytest.raises(ConfigurationError, match="too old to train on several workers"):
        ray_train._trainer({}, 2, {"CPU": 1.0}, {}, tmp_path)


class RayWorkerDied(Exception):
    """Stands for Ray's own exceptions, which say that a worker is gone."""

    __module__ = "ray.exceptions"


class Failed(Exception):
    """Stands for what Ray Train raises."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = failures


LOST = SurroundingsError("Process 0 of 2 lost the others")


def test_what_a_worker_raised_counts_before_what_the_others_say_of_it():
    bad = DataError("patch 17")
    assert ray_train._explained(Failed({0: LOST, 1: bad}), 2) is bad
    assert ray_train._explained(Failed({0: bad, 1: ValueError("later")}), 2) is bad
    assert ray_train._explained(Failed({0: LOST}), 2) is LOST


def test_a_worker_that_died_is_named():
    told = ray_train._explained(Failed({0: LOST, 1: RayWorkerDied("out of memory")}), 2)
    assert isinstance(told, SurroundingsError)
    assert "worker 1 of 2 died (out of memory)" in str(told)
    assert "last checkpoint" in str(told)


def test_workers_that_never_came_are_a_fault_of_the_surroundings():
    told = ray_train._explained(RuntimeError("The worker group startup timed out"), 4)
    assert isinstance(told, SurroundingsError)
    assert "startup timed out" in str(told)


@pytest.mark.slow
def test_workers_of_ray_train_what_one_process_trains(tmp_path, monkeypatch):
    folders: list[Path] = []

    def claim(base: Path | None, prefix: str) -> Path:
        folders.append(claim_folder(base, prefix))
        return folders[-1]

    monkeypatch.setattr(ray_train, "claim_folder", claim)
    before = signal.getsignal(signal.SIGINT), switches()
    told = train_on_workers(train_one, Plan(str(tmp_path)), workers=WORKERS)
    one = small.trained(None)
    assert small.far_apart(told["weights"], one["weights"]) < small.TOLERANCE
    assert told["told"] == [1, 2, 3, 4]
    assert told["worker"] == TrainingWorker(0, 2, "cpu", "127.0.0.1")
    assert told["process"] != os.getpid()
    assert told["cwd"] == os.getcwd()  # relative paths of a run mean the same there
    assert [folder.exists() for folder in folders] == [False]
    assert (signal.getsignal(signal.SIGINT), switches()) == before


@pytest.mark.slow
def test_the_next_attempt_goes_on_after_a_worker_died(tmp_path):
    ray = import_ray(embedded=True)
    folder = str(tmp_path)
    settings = ExecutorSettings(workers=WORKERS)
    with ray_train._some_ray(settings):  # one Ray for both attempts, to save time
        with pytest.raises(SurroundingsError, match="worker 1 of 2 died"):
            train_on_workers(train_one, Plan(folder, deadly=True), workers=WORKERS)
        assert small.Disk(tmp_path / "checkpoint").load()["progress"]["epoch"] == 2
        told = train_on_workers(train_one, Plan(folder), workers=WORKERS)
    assert told["told"] == [3, 4]
    assert small.far_apart(told["weights"], small.trained(None)["weights"]) < small.TOLERANCE
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_stage_inside_an_actor_that_holds_all_cores_finds_workers():
    ray = import_ray(embedded=True)
    with ray_train._some_ray(ExecutorSettings(workers=WORKERS)):
        actor = ray.remote(Nested).options(num_cpus=WORKERS).remote()
        plan, worker, text = ray.get(actor.describe.remote())
        assert (plan, worker.size, text) == (Plan("here"), 2, "text of the first")
        with pytest.raises(DataError, match="patch 17 of tomogram alpha is broken"):
            train_on_workers(fail_on_the_second, plan, workers=WORKERS)


@pytest.mark.slow
def test_a_supervised_run_trains_the_same_with_two_workers(tmp_path):
    volume, labels = labels_of(0)
    write_mrc(tmp_path / "one.mrc", volume, VOXEL_SIZE_ANGSTROM)
    (tmp_path / "labels").mkdir()
    write_mrc(tmp_path / "labels" / "one.mrc", labels.astype(np.int8), VOXEL_SIZE_ANGSTROM)
    weights, histories = [], []
    for executor, workers in (("serial", 1), ("ray", WORKERS)):
        run = small_run(tmp_path / executor, [tmp_path / "one.mrc"], *TINY)
        pattern, number = str(tmp_path / "labels" / "{tomogram}.mrc"), f"supervised.workers={workers}"
        set_up_training(run.folder.url, model="ssn3d-ed", labels=pattern, settings=(number,))
        result = run_pipeline(run, Options(executor=executor, until="train_supervised"))
        assert not result.failures, result.failures
        model = run.model("segmenter")
        assert model.card["training"]["workers"] == workers
        weights.append({name: torch.as_tensor(value) for name, value in model.load().items()})
        histories.append(model.history["validation_loss"])
    assert small.far_apart(*weights) < small.TOLERANCE
    np.testing.assert_allclose(*histories, rtol=1e-4)
