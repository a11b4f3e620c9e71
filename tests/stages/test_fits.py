"""Trainings and clusterings that were killed, that are told of, and that take no more than they say."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest

from cryoscale.config import apply_settings
from cryoscale.data.run import Run
from cryoscale.data.weights import CHECKPOINT, PROGRESS, ModelFolder, identity_of
from cryoscale.errors import ConfigurationError
from cryoscale.stages.training import check_voxel_size, checkpoint_key
from tests.stages.granting import grant

TRAININGS = ("train_encoder", "train_segmenter")


class Killed(Exception):
    """Stands for the end of the process."""


def kill_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    write = ModelFolder.write_progress

    def die(folder: ModelFolder, progress: Any) -> None:
        write(folder, progress)
        if progress["epoch"] == epoch:
            raise Killed

    monkeypatch.setattr(ModelFolder, "write_progress", die)


def count_epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr(ModelFolder, "write_progress", lambda _, progress: seen.append(progress["epoch"]))
    return seen


@pytest.mark.parametrize("step", TRAININGS)
def test_a_model_that_stands_is_not_trained_again(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stage, access = grant(copied_run, step)
    folder = copied_run.model(step.removeprefix("train_"))
    folder.folder.write_bytes(CHECKPOINT, b"left by a kill before it was removed")
    epochs = count_epochs(monkeypatch)
    facts = stage.compute(access)
    assert epochs == []
    assert facts["hash"] == identity_of(folder.card)
    assert not folder.folder.exists(CHECKPOINT)
    folder.folder.write_bytes("weights.safetensors", b"damaged")
    again = stage.compute(access)
    assert epochs
    assert again == facts, "trained again: the same weights, and the same facts"


@pytest.mark.parametrize("change", [{"upstream": {"pick/alpha": "other"}}, {"key": "other"}])
def test_a_model_of_other_inputs_is_trained_again(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    stage, access = grant(copied_run, "train_encoder", **change)
    epochs = count_epochs(monkeypatch)
    stage.compute(access)
    assert epochs[0] == 1


def test_a_clustering_that_stands_is_not_fitted_again(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoscale.learn import kmeans

    stage, access = grant(copied_run, "cluster")
    first = copied_run.clusters.card["centers_sha256"]
    fits: list[int] = []
    fit = kmeans.fit_kmeans
    monkeypatch.setattr(kmeans, "fit_kmeans", lambda *a, **k: fits.append(1) or fit(*a, **k))
    facts = stage.compute(access)
    assert (facts["hash"], fits) == (first, [])
    copied_run.clusters.folder.write_bytes("centers.safetensors", b"damaged")
    assert stage.compute(access) == facts
    assert fits == [1]


def test_killed_training_goes_on_and_tells_how_far_it_is(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, access = grant(copied_run, "train_encoder")
    folder = copied_run.model("encoder")
    digest = identity_of(folder.card)
    folder.folder.delete("model.toml")
    with monkeypatch.context() as patch:
        kill_in_epoch(patch, 2)
        with pytest.raises(Killed):
            stage.compute(access)
    told = folder.progress
    assert told is not None
    assert (told["epoch"], told["epochs"]) == (2, 4)
    assert told["validation_loss"] > 0
    with monkeypatch.context() as patch:
        epochs = count_epochs(patch)
        assert stage.compute(access)["hash"] == digest
        assert epochs == [3, 4]
    assert folder.progress is None
    assert not folder.folder.exists(PROGRESS)


def test_checkpoint_of_other_patches_is_dropped_and_said(
    copied_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same key, other bits (other hardware): training begins anew instead of failing for ever."""
    import cryoscale.stages.train_encoder as module

    stage, access = grant(copied_run, "train_encoder")
    folder = copied_run.model("encoder")
    digest = identity_of(folder.card)
    folder.folder.delete("model.toml")
    sample = module._sample
    with monkeypatch.context() as patch:
        kill_in_epoch(patch, 2)
        patch.setattr(module, "_sample", lambda access: sample(access) * np.float32(1.0001))
        with pytest.raises(Killed):
            stage.compute(access)
    epochs = count_epochs(monkeypatch)
    facts = stage.compute(access)
    assert epochs[0] == 1
    assert "inputs" in facts["checkpoint"]
    assert facts["hash"] == digest


def test_checkpoints_belong_to_their_tomograms(finished_run: Run) -> None:
    _, access = grant(finished_run, "train_encoder")
    _, other = grant(finished_run, "train_encoder", upstream={"pick/alpha": "x"})
    assert checkpoint_key(access) != checkpoint_key(other)


def test_progress_is_told_to_the_log(copied_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    stage, access = grant(copied_run, "train_encoder", key="fresh")
    with caplog.at_level("INFO", logger="cryoscale.training"):
        stage.compute(access)
    assert "encoder: epoch 1 of at most 4" in caplog.text


def test_bytes_needed_follow_the_sample(finished_run: Run) -> None:
    for step, tomogram in (("train_encoder", ""), ("train_segmenter", ""), ("cluster", ""), ("review", ""),
                           ("assign", "alpha")):  # fmt: skip
        stage, access = grant(finished_run, step, tomogram)
        assert 64 * 2**20 < stage.bytes_needed(access) < 2**31, step
    stage, access = grant(finished_run, "train_encoder")
    small = stage.bytes_needed(access)
    config = apply_settings(access.config, ["encoder.batch_size=4000"])
    stage, access = grant(finished_run, "train_encoder", config=config)
    assert stage.bytes_needed(access) > small + 10_000_000


def grow(place: str, step: str) -> tuple[int, int]:
    """Compute a whole stage in this fresh process; report its promise and how much memory it took."""
    import torch  # libraries are the interpreter's

    from cryoscale.inference.openvino_cpu import import_openvino
    from cryoscale.models.registry import build
    from cryoscale.runtime.memory import peak_bytes, reset_peak

    import_openvino()
    build({"name": "edss3d", "n_classes": 2})(torch.zeros(1, 1, 8, 8, 8)).sum().backward()
    stage, access = grant(Run.at(place), step, key="fresh")
    promised = stage.bytes_needed(access)
    reset_peak()
    before = peak_bytes()
    stage.compute(access)
    return promised, peak_bytes() - before


@pytest.mark.slow
@pytest.mark.parametrize("step", ["train_encoder", "train_segmenter", "review"])
def test_whole_stages_keep_their_promise(copied_run: Run, step: str) -> None:
    words = [
        "patch.size_voxels=16",
        "encoder.channels=16",
        "segmenter.channels=16",
        "segmenter.epochs=1",
        "encoder.epochs=1",
        "encoder.batch_size=32",
        "segmenter.batch_size=32",
        "review.members_shown=8",
    ]
    from tests.pipeline.driving import drive, settle

    settle(copied_run, *words)
    ended = drive(copied_run)
    assert "review" in ended.stages
    if not copied_run.clusters.chosen():
        pytest.fail("the selection did not survive")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        promised, grown = pool.apply(grow, (copied_run.folder.url, step))
    assert grown <= promised, f"{step}: {grown / 1e6:.0f} MB taken, {promised / 1e6:.0f} MB promised"


def test_models_of_another_voxel_size_are_refused(copied_run: Run) -> None:
    folder = copied_run.model("encoder")
    assert folder.card["voxel_size_angstrom"] == 10.0
    check_voxel_size(folder.card, 10.4, "m", "w")
    check_voxel_size({}, 99.0, "m", "w")
    with pytest.raises(ConfigurationError, match="10 Å per voxel; w is 20 Å"):
        check_voxel_size(folder.card, 20.0, "m", "w")
    for step, name in (("encode", "encoder"), ("segment", "segmenter")):
        stage, access = grant(copied_run, step, "alpha")
        planned = stage.plan(access)
        model = copied_run.model(name)
        card = model.card
        # What the weights are counts, not what the configuration would train.
        config = apply_settings(access.config, [f"{name}.channels=64", "encoder.dimension=99"])
        assert stage.plan(grant(copied_run, step, "alpha", config=config)[1]) == planned
        model.folder.write_toml("model.toml", {**card, "voxel_size_angstrom": 13.0})
        with pytest.raises(ConfigurationError, match=f"the {name} was trained at 13 Å"):
            stage.plan(access)
        model.folder.write_toml("model.toml", card)


def test_import_compares_the_working_voxel_size(copied_run: Run) -> None:
    words = [
        f"encoder.weights={copied_run.model('encoder').folder.url}",
        "run.working_voxel_size_angstrom=20",
    ]
    stage, access = grant(copied_run, "train_encoder", config=apply_settings(copied_run.config, words))
    with pytest.raises(ConfigurationError, match=r"10 Å per voxel.*working_voxel_size_angstrom is 20 Å"):
        stage.compute(access)
