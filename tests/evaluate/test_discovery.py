"""Looking for a class that was left out: what is read, trained and refused; kills; recovered densities."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.data.subtomograms import TABLE, Subtomograms
from cryoscale.data.truth import read_truth
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.evaluate import discovery_training
from cryoscale.evaluate.boxes import Boxes, read_boxes
from cryoscale.evaluate.discovery import BATCH, Discovery, Novelty, answers_of, check, discover
from cryoscale.evaluate.discovery_training import train_without
from cryoscale.evaluate.recovery import recovery_of
from cryoscale.evaluate.structure_scores import density_of_class
from tests.evaluate.boxed_run import COUNT, QUICK, SIDE, boxed_run
from tests.evaluate.scored_run import NAMES, VOXEL, read_density

LEFT_OUT = "$barrel"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return boxed_run(tmp_path_factory.mktemp("boxed") / "run")


@pytest.fixture(scope="module")
def boxes(run) -> Boxes:
    return read_boxes(run)


def model(place) -> ModelFolder:
    return ModelFolder(Folder.of(str(place)))


def search(run: Run, boxes: Boxes, place, supervised: SupervisedConfig = QUICK, k: int = 5) -> Discovery:
    return discover(
        run, boxes, Novelty(LEFT_OUT, k), supervised, model(place), device="cpu", read_density=read_density
    )


@pytest.fixture(scope="module")
def found(run, boxes, tmp_path_factory) -> Discovery:
    return search(run, boxes, tmp_path_factory.mktemp("found") / "model")


# -- boxes -------------------------------------------------------------------------------------------------


def test_boxes_are_those_of_all_tomograms(run, boxes) -> None:
    assert boxes.data_NZYX.shape == (2 * COUNT, SIDE, SIDE, SIDE)
    assert boxes.class_names == NAMES[1:4]
    assert boxes.tomogram_N.tolist() == ["one"] * COUNT + ["two"] * COUNT
    assert boxes.voxel_size_angstrom == VOXEL
    assert np.abs(boxes.offsets_N3).max() <= 0.5
    truth = read_truth(run.truth, "two")
    assert np.array_equal(boxes.quaternion_N4[COUNT:], truth.quaternion_N4[boxes.row_N[COUNT:]])
    only = read_boxes(run, ("two",))
    assert np.array_equal(only.data_NZYX, boxes.data_NZYX[COUNT:])
    assert boxes.digest() != only.digest()
    changed = dataclasses.replace(boxes, mask_NZYX=1 - boxes.mask_NZYX)
    assert boxes.digest() != changed.digest()


def test_offsets_say_where_the_particle_lies_in_its_box(boxes) -> None:
    rows = np.flatnonzero(boxes.names_N == "small")  # balls about their origin
    density = boxes.density_NZYX[rows].astype(float)
    grid = np.indices(density.shape[1:]).reshape(3, -1)
    centre_N3 = density.reshape(len(rows), -1) @ grid.T / density.sum(axis=(1, 2, 3))[:, None]
    assert np.abs(centre_N3 - SIDE // 2 - boxes.offsets_N3[rows]).max() < 0.15
    assert np.abs(boxes.offsets_N3[rows]).max() > 0.3, "so that a wrong sign would show"


def test_runs_without_boxes_are_refused(run, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"no tomogram 'three'.*one, two"):
        read_boxes(run, ("three",))
    bare = boxed_run(tmp_path / "bare", ("one",), count=8)
    folder = bare.subtomograms("one")
    table = Subtomograms(folder).table
    Subtomograms(folder).publish({**table, "class": np.ones(8, int), "class_name": np.full(8, "small")})
    with pytest.raises(ConfigurationError, match=r"all 8 subtomograms .* one class, 'small'"):
        read_boxes(bare)
    Subtomograms(folder).publish({name: column for name, column in table.items() if name != "qw"})
    with pytest.raises(ConfigurationError, match="no column 'qw'"):
        read_boxes(bare)
    folder.delete(TABLE)
    with pytest.raises(StateError, match=r"no subtomograms.*simulate"):
        read_boxes(bare)


# -- what is asked -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "changes", "words"),
    [
        (Novelty("barel"), {}, r"Did you mean '\$barrel'"),
        (Novelty("unheard"), {}, r"There are: ribo<some>, \$barrel, small"),
        (Novelty(LEFT_OUT, 2 * COUNT), {}, "--clusters"),
        (Novelty(LEFT_OUT, 1), {}, "--clusters"),
        (Novelty(LEFT_OUT), {"model": "unet2d"}, "not from unet2d"),
        (Novelty(LEFT_OUT), {"model": "dsm-net", "heads": ("seg",)}, "no 'cls'"),
    ],
)
def test_misuse_is_met_before_any_training(boxes, asked, changes, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check(boxes, asked, SupervisedConfig(**changes))


def test_something_must_be_left_to_validate_on(boxes) -> None:
    bare = dataclasses.replace(boxes, split_N=np.full(len(boxes), "train"))
    with pytest.raises(ConfigurationError, match="0 to validate on"):
        check(bare, Novelty(LEFT_OUT), SupervisedConfig())


# -- training ----------------------------------------------------------------------------------------------


def test_the_class_is_never_trained_on(boxes, tmp_path, monkeypatch) -> None:
    seen = {}
    real = __import__("cryoscale.learn.training", fromlist=["fit"]).fit

    def spy(module, inputs, targets, *rest, **options):
        seen.update(inputs=inputs, targets=targets, held=options["validation_rows"])
        return real(module, inputs, targets, *rest, **options)

    monkeypatch.setattr("cryoscale.learn.training.fit", spy)
    trained = train_without(boxes, LEFT_OUT, QUICK, model(tmp_path / "m"), device="cpu")
    unseen = boxes.names_N == LEFT_OUT
    expected = [np.flatnonzero(~unseen & (boxes.split_N == part)) for part in ("train", "validation")]
    rows = np.concatenate(expected)
    assert np.array_equal(seen["inputs"][:, 0], boxes.data_NZYX[rows])
    assert np.array_equal(seen["held"], np.arange(len(expected[0]), len(rows)))
    assert trained.class_names == ("ribo<some>", "small")
    assert np.array_equal(np.array(trained.class_names)[seen["targets"]["cls"]], boxes.names_N[rows])
    assert np.array_equal(seen["targets"]["seg"], boxes.mask_NZYX[rows])
    scale = trained.card["density_scale"]
    assert np.allclose(seen["targets"]["rec"][:, 0] * scale, boxes.density_NZYX[rows], atol=1e-6)
    assert trained.card["particles"]["names"] == ["ribo<some>", "small"]
    assert trained.card["architecture"]["n_classes"] == 2


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(boxes, tmp_path) -> None:
    whole = train_without(boxes, LEFT_OUT, QUICK, model(tmp_path / "whole"), device="cpu")

    def kill(record) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_without(boxes, LEFT_OUT, QUICK, model(tmp_path / "killed"), device="cpu", on_epoch=kill)
    told = []
    again = train_without(
        boxes,
        LEFT_OUT,
        QUICK,
        model(tmp_path / "killed"),
        device="cpu",
        on_epoch=lambda r: told.append(r.epoch),
    )
    assert told == [3]
    assert not again.again
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert model(tmp_path / "whole").card["weights_sha256"] == again.card["weights_sha256"]


def test_a_finished_training_is_not_done_again_unless_it_is_another(boxes, tmp_path) -> None:
    first = train_without(boxes, LEFT_OUT, QUICK, model(tmp_path / "m"), device="cpu")
    second = train_without(boxes, LEFT_OUT, QUICK, model(tmp_path / "m"), device="cpu")
    assert second.again
    assert not second.module.training
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.module.state_dict().values(), second.module.state_dict().values(), strict=True)
    )
    for other in ({"epochs": 1}, {"seed": 4}, {"loss_weights": (1, 1, 1)}, {"channels": 3}):
        changed = QUICK.model_copy(update={"epochs": 1} | other)
        assert not train_without(boxes, LEFT_OUT, changed, model(tmp_path / "m"), device="cpu").again, other
    assert not train_without(boxes, "small", changed, model(tmp_path / "m"), device="cpu").again


def test_what_the_paper_leaves_open_is_its_recipe(boxes) -> None:
    settings, loss = discovery_training.training_of(SupervisedConfig(), boxes.mask_NZYX, "cpu")
    assert (settings.epochs, settings.patience, settings.batch_size) == (100, 15, 64)
    assert settings.learning_rate == 1e-3
    assert loss.weights == {"cls": 1, "seg": 10, "rec": 1}
    asked = SupervisedConfig(
        model="dsm-net", heads=("cls", "rec"), loss_weights=(2, 3), class_weighting="inverse", epochs=7
    )
    settings, loss = discovery_training.training_of(asked, boxes.mask_NZYX, "cpu")
    assert settings.epochs == 7
    assert loss.weights == {"cls": 2, "rec": 3}


# -- answers and scores ------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_how_many_there_are(boxes, found) -> None:
    few = dataclasses.replace(boxes, data_NZYX=boxes.data_NZYX[: BATCH + 3])
    answers = answers_of(found.trained, few)
    assert np.array_equal(answers.features_NF, found.answers.features_NF[: BATCH + 3])
    assert np.array_equal(answers.density_NZYX, found.answers.density_NZYX[: BATCH + 3])


def test_answers_are_those_of_the_network(boxes, found) -> None:
    network, rows = found.trained.module, slice(0, BATCH)
    with torch.no_grad():
        patches = torch.from_numpy(boxes.data_NZYX[rows][:, None])
        outputs, features = network(patches), network.features(patches)
    assert features.shape == (BATCH, 1024)
    assert np.allclose(found.answers.features_NF[rows], features, atol=1e-5)
    known = np.array(found.trained.class_names)[outputs["cls"].argmax(dim=1)]
    assert np.array_equal(np.array(boxes.class_names)[found.answers.class_N[rows]], known)
    density = outputs["rec"][:, 0].numpy() * found.trained.card["density_scale"]
    assert np.allclose(found.answers.density_NZYX[rows], density, atol=1e-5)


def test_scores_are_plain_json_with_alternatives_beside(found, boxes) -> None:
    scores = found.scores
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert list(scores["features"]) == ["trained", "untrained", "components"]
    unseen = boxes.names_N == LEFT_OUT
    assert scores["unseen"] == unseen.sum()
    own = scores["features"]["trained"]
    assert own["hits"] == (unseen & (found.ids_N == own["richest"])).sum()
    assert sum(row["n"] for row in own["by_cluster"]) == len(boxes)
    assert len(own["by_cluster"]) == 5
    network = scores["network"]
    assert network["known"]["samples"] == (~unseen & (boxes.split_N == "test")).sum()
    assert network["unseen"]["object_accuracy"] is None
    assert sum(network["unseen"]["taken_for"].values()) == unseen.sum()
    assert LEFT_OUT not in network["unseen"]["taken_for"]


def test_a_network_without_recovery_has_no_density(run, boxes, tmp_path) -> None:
    supervised = QUICK.model_copy(update={"model": "dsm-net", "heads": ("cls",), "epochs": 1})
    found = search(run, boxes, tmp_path / "m", supervised)
    assert found.recovery is None
    assert found.scores["recovery"] is None
    assert "pixel_accuracy" not in found.scores["network"]["known"]


# -- recovered densities -----------------------------------------------------------------------------------


def truth_of(run: Run, name: str = LEFT_OUT):
    truths = [read_truth(run.truth, tomogram) for tomogram in ("one", "two")]
    return density_of_class(run, truths, name, read_density)


def test_a_perfect_recovery_reaches_the_truth(run, boxes) -> None:
    rows = np.flatnonzero(boxes.names_N == "ribo<some>")
    truth = truth_of(run, "ribo<some>")
    recovery = recovery_of(boxes, boxes.density_NZYX, rows, rows, truth, tilts_degrees=None, seed=0)
    scores = recovery.scores
    single, average = scores["single"], scores["average"]
    assert single["recovered"]["fsc_0.5_angstrom"] == [2 * VOXEL] * 3, "the same to Nyquist"
    assert single["recovered"]["fsc"]["correlation"] == pytest.approx([1.0] * (SIDE // 2))
    assert single["raw"]["fsc"]["correlation"][-1] < 0.5
    assert average["recovered"]["fsc_0.5_angstrom"] < 1.5 * 2 * VOXEL
    assert min(average["recovered"]["fsc"]["correlation"][:3]) > 0.95
    assert average["shuffled"]["fsc"]["correlation"][2] < average["recovered"]["fsc"]["correlation"][2] - 0.1
    assert scores["truth"] == "ribo_some"
    assert [volume.name for volume in recovery.volumes] == [
        "truth",
        "recovered",
        "members",
        "shuffled",
        "raw",
    ]
    for _, recovered, true in recovery.examples:
        assert np.array_equal(recovered.density_ZYX, true.density_ZYX)


def test_the_average_of_raw_boxes_is_bright(run, boxes) -> None:
    rows = np.flatnonzero(boxes.names_N == "ribo<some>")
    recovery = recovery_of(boxes, -boxes.density_NZYX, rows, rows, None, tilts_degrees=(-60, 60), seed=0)
    volumes = {volume.name: volume.density_ZYX for volume in recovery.volumes}
    middle = SIDE // 2
    assert volumes["raw"][middle, middle, middle] > 3 * np.abs(volumes["raw"][0]).mean()
    assert recovery.scores["average"]["raw"]["fsc"]["correlation"][1] > 0.5
    assert recovery.scores["average"]["recovered"]["fsc"]["correlation"][1] < -0.5, "the sign counts"
    assert "own densities" in recovery.scores["truth"]


def test_without_members_all_of_the_class_is_taken(boxes) -> None:
    rows = np.flatnonzero(boxes.names_N == LEFT_OUT)
    others = np.flatnonzero(boxes.names_N == "small")
    recovery = recovery_of(boxes, boxes.density_NZYX, others, rows, None, tilts_degrees=None, seed=0)
    assert not recovery.scores["from_cluster"]
    assert recovery.scores["particles"] == len(rows)
    assert "members" not in recovery.scores["average"]
    one = recovery_of(boxes, boxes.density_NZYX, others, rows[:1], None, tilts_degrees=None, seed=0)
    assert one.volumes == ()
    assert len(one.examples) == 1
