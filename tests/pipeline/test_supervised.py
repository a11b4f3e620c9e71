"""Supervised runs: from drawn labels, truth or boxes to weights; what is kept, renewed, refused."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cryoscale.cli import run_command
from cryoscale.config import RunConfig
from cryoscale.data.folder import Folder
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box
from cryoscale.pipeline.preview import preview
from cryoscale.pipeline.simulation import set_up_simulation
from cryoscale.pipeline.supervised import set_up_training
from cryoscale.stages.supervised_weights import check_weights
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.crashes import Moment, drive_and_die
from cryoscale.testing.phantoms import VOXEL_SIZE_ANGSTROM, blobs, small_run
from tests.pipeline.driving import Drive, drive

SHAPE = (32, 48, 48)
TINY = (
    "supervised.epochs=2", "supervised.channels=4", "supervised.max_patches=24", "supervised.threads=1",
    "supervised.precision=float32", "supervised.batch_size=8",
)  # fmt: skip
LAST = "train_supervised"


def train(run: Run, **options: Any) -> Drive:
    return drive(run, until=LAST, **options)


def labels_of(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a phantom and what a person would draw in it: narrow blobs are 1, wide ones 2."""
    volume, centres = blobs(SHAPE, seed=seed, count=24)
    labels = np.zeros(SHAPE, np.uint8)
    grid = np.indices(SHAPE)
    for number, centre in enumerate(centres):
        wide = number % 2
        distance = ((grid - centre[:, None, None, None]) ** 2).sum(axis=0)
        labels[distance <= (5 if wide else 3) ** 2] = 1 + wide
    return volume, labels


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two tomograms, picked; a label volume lies beside one of them. Not to be changed."""
    place = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate(("one", "two")):
        volume, labels = labels_of(seed)
        write_mrc(place / f"{name}.mrc", volume, VOXEL_SIZE_ANGSTROM)
        if name == "one":
            (place / "labels").mkdir()
            write_mrc(place / "labels" / f"{name}.mrc", labels.astype(np.int8), VOXEL_SIZE_ANGSTROM)
    run = small_run(place / "run", [place / "one.mrc", place / "two.mrc"], *TINY)
    assert not drive(run, until="pick").failures
    return run


@pytest.fixture
def mine(drawn: Run, tmp_path: Path) -> Run:
    """A copy of it, with the files beside, free to change."""
    shutil.copytree(Path(drawn.folder.url).parent, tmp_path / "work")
    run = Run.open(tmp_path / "work" / "run")
    config = run.config
    moved = [
        source.model_copy(update={"path": str(tmp_path / "work" / f"{source.name}.mrc")})
        for source in config.inputs
    ]
    run.save_config(config.model_copy(update={"inputs": tuple(moved)}))
    return run


def beside(run: Run, name: str = "") -> Path:
    return Path(run.folder.url).parent / name


def set_up(
    run: Run, model: str = "ssn3d-ed", *settings: str, pattern: str = "labels/{tomogram}.mrc"
) -> list[str]:
    return set_up_training(run.folder.url, model=model, labels=str(beside(run, pattern)), settings=settings)[
        1
    ]


# -- from drawn labels ---------------------------------------------------------------------------------------


def test_drawn_labels_train_a_network(mine: Run) -> None:
    said = set_up(mine)
    assert "labels of one" in said
    assert mine.config.supervised.tomograms == ("one",)
    result = train(mine)
    assert not result.failures, result.failures
    card = mine.model("segmenter").card
    assert card["architecture"]["name"] == "ssn3d-ed"
    assert card["architecture"]["n_classes"] == 3
    assert card["classes"]["names"] == ["1", "2"]
    assert card["training"]["tomograms"] == ["one"]
    assert card["voxel_size_angstrom"] == VOXEL_SIZE_ANGSTROM
    history = mine.model("segmenter").history
    assert history["epoch"].tolist() == [1, 2]
    assert np.isfinite(history["validation_seg_iou"]).all()
    volume = LabelVolume(mine.tomogram("one"), "annotation")
    assert set(volume.facts.notes["voxels"]) == {"1", "2"}
    assert not LabelVolume(mine.tomogram("two"), "annotation").published
    assert not train(mine).tasks


def test_more_tomograms_renew_nothing_and_corrected_labels_do(
    mine: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(mine)
    train(mine)
    first = mine.model("segmenter").card["weights_sha256"]
    volume, _ = labels_of(7)
    write_mrc(beside(mine, "three.mrc"), volume, VOXEL_SIZE_ANGSTROM)
    assert run_command(["init", mine.folder.url, str(beside(mine, "three.mrc"))]) == 0
    assert LAST not in train(mine).stages
    _, labels = labels_of(0)
    labels[:8] = 0
    write_mrc(beside(mine, "labels/one.mrc"), labels.astype(np.float32), VOXEL_SIZE_ANGSTROM)
    again = train(mine)
    assert {"annotate", LAST} <= again.stages
    assert mine.model("segmenter").card["weights_sha256"] != first
    assert run_command(["status", mine.folder.url]) == 0
    assert LAST in capsys.readouterr().out


def test_a_killed_training_goes_on_to_the_same_bytes(mine: Run, tmp_path: Path) -> None:
    set_up(mine)
    shutil.copytree(mine.folder.url, tmp_path / "other")
    other = Run.open(tmp_path / "other")
    train(mine)
    for moment in (Moment(event=12), Moment(write=12, torn=True), Moment(write=26), Moment(write=30)):
        drive_and_die(other.folder.url, moment, {"until": LAST})
    end = drive_and_die(other.folder.url, Moment(), {"until": LAST})
    assert end.exit_code == 0
    assert not differences(artifact_digest(mine), artifact_digest(other))


def test_labels_do_not_depend_on_how_they_were_cut(mine: Run, tmp_path: Path) -> None:
    set_up(mine)
    shutil.copytree(mine.folder.url, tmp_path / "other")
    other = Run.open(tmp_path / "other")
    set_up_training(other.folder.url, settings=["execution.block_voxels=64"])
    assert not train(mine).failures
    assert not train(other).failures
    assert not differences(artifact_digest(mine), artifact_digest(other))


@pytest.mark.parametrize(
    "model", ["edss3d", "ssn3d-fcn", "unet3d", "dsm-net", "dsrf3d-v2", "unet2d", "cnn2d-chen"]
)
def test_every_network_learns_from_labels(mine: Run, model: str) -> None:
    set_up(mine, model, "supervised.tile_voxels=32", "supervised.augment=['flips']", "supervised.epochs=1")
    result = train(mine)
    assert not result.failures, result.failures
    card = mine.model("segmenter").card
    assert card["architecture"]["name"] == model
    asked = mine.config.supervised
    assert ("particles" in card) == asked.classifies
    assert ("classes" in card) == asked.segments
    assert ("slices" in card) == (model in ("unet2d", "cnn2d-chen"))


def zarr_labels(place: Path, labels: np.ndarray, size: float) -> None:
    """Write an OME-Zarr 0.5 label image with names, as annotation tools do."""
    group = zarr.open_group(place, mode="w")
    group.create_array("0", data=labels, chunks=(16, 16, 16))
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [size / 10] * 3}]
    names = [{"label-value": 1, "name": "ribosome"}, {"label-value": 2, "name": "vault"}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
        "image-label": {"properties": names, "colors": [{"label-value": 2, "rgba": [1, 2, 3, 255]}]},
    }


def test_a_coarse_ome_zarr_is_brought_up_with_its_names(mine: Run) -> None:
    _, labels = labels_of(0)
    labels[:2] = 255
    zarr_labels(beside(mine, "labels/one.zarr"), labels[::2, ::2, ::2], 2 * VOXEL_SIZE_ANGSTROM)
    set_up(mine, pattern="labels/{tomogram}.zarr")
    result = train(mine)
    assert not result.failures, result.failures
    volume = LabelVolume(mine.tomogram("one"), "annotation")
    assert volume.facts.class_names == ("ribosome", "vault")
    assert volume.facts.colors[1] == (1, 2, 3)
    fine = volume.read(0, Box.whole(SHAPE))
    assert np.array_equal(fine, labels[::2, ::2, ::2].repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert np.array_equal(volume.read(1, Box.whole((16, 24, 24))), labels[::2, ::2, ::2])
    first = mine.model("segmenter").card
    assert first["classes"]["names"] == ["ribosome", "vault"]
    again = zarr.open_array(beside(mine, "labels/one.zarr") / "0", mode="r+")
    again[4:8] = 0
    assert {"annotate", LAST} <= train(mine).stages


def test_two_workers_do_what_one_does(mine: Run, tmp_path: Path) -> None:
    set_up(mine)
    shutil.copytree(mine.folder.url, tmp_path / "other")
    other = Run.open(tmp_path / "other")
    set_up_training(other.folder.url, settings=["supervised.workers=2"])
    for run in (mine, other):
        result = train(run)
        assert not result.failures, result.failures
    alone, together = mine.model("segmenter").history, other.model("segmenter").history
    for name in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-4)


def test_the_dry_run_knows_what_is_due(mine: Run) -> None:
    set_up(mine)
    text = preview(mine.folder.url)
    assert LAST in text
    assert "annotate of one" in text
    assert "segment of two" in text
    assert "KeyError" not in text


# -- refused before any work ---------------------------------------------------------------------------------


def refused(run: Run, *settings: str, pattern: str = "labels/{tomogram}.mrc", model: str = "ssn3d-ed") -> str:
    before = run.config
    with pytest.raises(ConfigurationError) as caught:
        set_up(run, model, *settings, pattern=pattern)
    assert run.config == before
    return str(caught.value)


def test_no_file_anywhere_names_the_pattern(mine: Run) -> None:
    said = refused(mine, pattern="nowhere/{tomogram}_x.mrc")
    assert "nowhere/{tomogram}_x.mrc" in said
    assert "one_x.mrc" in said


@pytest.mark.parametrize(
    ("shape", "size", "said"),
    [((32, 48, 40), 10.0, "(32, 48, 40)"), (SHAPE, 12.0, "12 Å"), ((16, 24, 24), 10.0, "10 Å")],
)
def test_another_grid_is_refused(mine: Run, shape: Sequence[int], size: float, said: str) -> None:
    write_mrc(beside(mine, "labels/one.mrc"), np.ones(shape, np.int8), size)
    assert said in refused(mine)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["patch.size_voxels=4"], "8 or more"),
        (["supervised.tomograms=['nobody']"], "nobody"),
        (["supervised.weights=/nowhere"], "/nowhere"),
        (["supervised.heads=['seg']"], "heads are of dsm-net"),
    ],
)
def test_what_cannot_be_is_refused(mine: Run, settings: list[str], said: str) -> None:
    assert said in refused(mine, *settings)


def labelled_with(run: Run, change: Callable[[np.ndarray], np.ndarray]) -> None:
    _, labels = labels_of(0)
    write_mrc(beside(run, "labels/one.mrc"), change(labels), VOXEL_SIZE_ANGSTROM)


@pytest.mark.parametrize(
    ("change", "settings", "stage", "said"),
    [
        (lambda a: a.astype(np.float32) / 2, [], "annotate", "0.5"),
        (lambda a: -a.astype(np.int8), [], "annotate", "-"),
        (lambda a: a.astype(np.int16) * 300, [], "annotate", "labels go from 0 to 254"),
        (lambda a: a, ["supervised.classes=['ribosome']"], "annotate", "supervised.classes names 1"),
        (lambda a: a, ["supervised.classes=['a', 'b', 'vault']"], LAST, "'vault'"),
        (lambda a: a * 0, [], LAST, "have no class"),
    ],
)
def test_bad_labels_fail_before_any_training(
    mine: Run, change: Callable[[np.ndarray], np.ndarray], settings: list[str], stage: str, said: str
) -> None:
    labelled_with(mine, change)
    set_up(mine, "ssn3d-ed", *settings)
    failures = train(mine).failures
    reasons = [failure["reason"] for failure in failures if failure["stage"] == stage]
    assert any(said in reason for reason in reasons), failures
    assert not mine.model("segmenter").exists
    assert mine.model("segmenter").progress is None


# -- given weights -------------------------------------------------------------------------------------------


def test_weights_of_another_run_are_taken_or_refused(mine: Run, tmp_path: Path) -> None:
    set_up(mine)
    train(mine)
    weights = tmp_path / "weights"
    shutil.copytree(mine.folder.path("models/segmenter"), weights)
    given = f"supervised.weights={weights}"
    set_up_training(mine.folder.url, settings=[given])
    result = train(mine)
    assert not result.failures, result.failures
    assert mine.model("segmenter").card["imported_from"] == str(weights)
    for settings, said in (
        ([given, "supervised.model=edss3d"], "is ssn3d-ed, supervised.model is edss3d"),
        ([given, "supervised.channels=8"], "channels = 4"),
        ([given, "patch.size_voxels=16"], "trained on patches"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            set_up_training(mine.folder.url, settings=settings)
    assert mine.config.supervised.weights == str(weights)
    card = (weights / "model.toml").read_text()
    other = tmp_path / "other"
    shutil.copytree(weights, other)
    data = bytearray((other / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "weights.safetensors").write_bytes(bytes(data))
    assert "SHA-256" in failure_with(mine, other)
    (other / "weights.safetensors").unlink()
    said = failure_with(mine, other)
    assert "choose another in supervised.weights" in said
    assert "delete" not in said
    other = tmp_path / "foreign"
    shutil.copytree(weights, other)
    more = card.replace("n_classes = 3", "n_classes = 4")
    (other / "model.toml").write_text(more)
    with pytest.raises(ConfigurationError, match="names 2 classes and the background, its network has n_cl"):
        set_up_training(mine.folder.url, settings=[f"supervised.weights={other}"])
    (other / "model.toml").write_text(more.replace('    "2",', '    "2",\n    "3",'))
    assert "not those of its architecture" in failure_with(mine, other)
    (other / "model.toml").write_text(card.replace("channels = 4", 'channels = 4\ncolour = "red"'))
    assert "colour" in failure_with(mine, other)
    (other / "model.toml").write_text(
        "\n".join(line for line in card.splitlines() if not line.startswith("weights_sha256"))
    )
    with pytest.raises(ConfigurationError, match="no weights_sha256"):
        set_up_training(mine.folder.url, settings=[f"supervised.weights={other}"])
    (other / "model.toml").write_text(
        card.replace("voxel_size_angstrom = 10.0", "voxel_size_angstrom = 13.0")
    )
    with pytest.raises(ConfigurationError, match="voxels of 13 Å; tomogram 'one' has 10 Å"):
        set_up_training(mine.folder.url, settings=[f"supervised.weights={other}"])
    (other / "model.toml").write_text("[training]\nepochs = 1\n")
    with pytest.raises(ConfigurationError, match="names no architecture"):
        set_up_training(mine.folder.url, settings=[f"supervised.weights={other}"])


def test_weights_that_are_not_finite_are_refused(mine: Run, tmp_path: Path) -> None:
    set_up(mine)
    train(mine)
    given, card = mine.model("segmenter").load(), mine.model("segmenter").card
    name = next(iter(given))
    given[name] = given[name] * float("nan")
    foreign = ModelFolder(Folder.of(tmp_path / "diverged"))
    foreign.save(given, {k: v for k, v in card.items() if k != "weights_sha256"}, {"epoch": np.arange(1)})
    said = failure_with(mine, tmp_path / "diverged")
    assert "not finite" in said
    assert name in said


def card_of(config: RunConfig, **architecture: Any) -> dict[str, Any]:
    return {
        "architecture": {"name": "dsm-net", "n_classes": 2, "n_labels": 2, **architecture},
        "classes": {"names": ["particle"]}, "particles": {"names": ["a", "b"]},
        "patch": config.patch.model_dump(mode="json"), "weights_sha256": "0",
    }  # fmt: skip


def test_heads_of_given_weights_plan_the_stages(mine: Run, tmp_path: Path) -> None:
    place = tmp_path / "given"
    Folder.of(place).write_toml("model.toml", card_of(mine.config, heads=["cls"]))
    words = ["supervised.channels=none", f"supervised.weights={place}"]
    config, said = set_up_training(mine.folder.url, model="dsm-net", settings=words)
    assert config.supervised.heads == ("cls",)
    assert any(line.startswith("supervised.heads = ['cls']") for line in said)
    unset = config.model_copy(update={"supervised": config.supervised.model_copy(update={"heads": ()})})
    with pytest.raises(ConfigurationError, match=r'Set supervised.heads = \["cls"\]'):
        check_weights(unset, str(place))
    Folder.of(place).write_toml("model.toml", card_of(mine.config, heads=["seg", "cls"]))
    assert check_weights(unset, str(place))["architecture"]["heads"] == ["seg", "cls"]
    with pytest.raises(ConfigurationError, match=r'Set supervised.heads = \["cls", "seg"\]'):
        check_weights(config, str(place))
    Folder.of(place).write_toml("model.toml", card_of(mine.config, n_classes=3))
    with pytest.raises(ConfigurationError, match="names 2 particles, its network has n_classes = 3"):
        check_weights(unset, str(place))
    Folder.of(place).write_bytes("model.toml", b"[what")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        check_weights(unset, str(place))


def failure_with(run: Run, weights: Path) -> str:
    set_up_training(run.folder.url, settings=[f"supervised.weights={weights}"])
    (failure,) = train(run).failures
    assert failure["stage"] == LAST
    return str(failure["reason"])


# -- from boxes ----------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Boxes of 12 voxels in two classes, bright, with masks and a split."""
    rng = np.random.default_rng(3)
    grid = np.indices((12, 12, 12)) - 5.5
    rows = []
    for number in range(16):
        radius = 2 + 2 * (number % 2)
        mask = (grid**2).sum(axis=0) <= radius**2
        box = mask * 3.0 + rng.normal(0, 0.5, mask.shape) + 50
        for name, values in (("box", box), ("mask", mask)):
            write_mrc(tmp_path / f"{name}_{number}.mrc", values.astype(np.float32), VOXEL_SIZE_ANGSTROM)
        rows.append([f"box_{number}.mrc", f"mask_{number}.mrc", ["small", "large"][number % 2],
                     ["train", "train", "validation", "test"][number // 4]])  # fmt: skip
    place = tmp_path / "boxes.csv"
    with place.open("w", newline="") as stream:
        csv.writer(stream).writerows([["file", "mask", "class", "split"], *rows])
    return place


@pytest.mark.parametrize("model", ["dsm-net", "ssn3d-ed", "dsrf3d-v2"])
def test_a_table_of_boxes_trains_a_network(mine: Run, table: Path, model: str) -> None:
    _, said = set_up_training(
        mine.folder.url, model=model, subtomograms=str(table), settings=["ingest.contrast=auto"]
    )
    assert "patch.size_voxels = 12, as the boxes are" in said
    assert mine.config.patch.smooth_sigma_voxels == 0
    result = train(mine)
    assert not result.failures, result.failures
    card = mine.model("segmenter").card
    assert card["preprocessing"]["contrast"] == "bright"
    assert card["training"]["patches"] == 12
    assert card["metrics"]["test_boxes"] == 4
    assert card["voxel_size_angstrom"] == VOXEL_SIZE_ANGSTROM
    if model == "dsm-net":
        assert card["architecture"]["heads"] == ["cls", "seg"]
        assert card["particles"]["names"] == ["large", "small"]
        assert 0 <= card["metrics"]["test_object_accuracy"] <= 1
    if model != "dsrf3d-v2":
        assert 0 < card["metrics"]["test_miou"] <= 1


def test_boxes_without_what_a_network_needs_are_refused(mine: Run, table: Path) -> None:
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join(",".join([line[0], line[2]]) for line in lines))
    with pytest.raises(ConfigurationError, match=r"ssn3d-ed is to learn seg, but .* has classes"):
        set_up_training(mine.folder.url, model="ssn3d-ed", subtomograms=str(table))
    with pytest.raises(ConfigurationError, match="slices"):
        set_up_training(mine.folder.url, model="unet2d", subtomograms=str(table))


# -- from a simulation ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("truth") / "run"
    settings = [
        "simulate.scene.shape=[48, 96, 96]", "simulate.scene.voxel_size_angstrom=20",
        "simulate.scene.margin_angstrom=100", "simulate.scene.membranes={vesicles=0}",
        'simulate.scene.particles=[{density="ring", copies=12}, {density="ball", copies=10}]',
        "simulate.imaging.snr=2", "simulate.subtomograms={count=10, size_voxels=16}",
        "pick.radius_angstrom=100", *TINY,
    ]  # fmt: skip
    set_up_simulation(str(place), "cell-demo", seed=5, tomograms=1, settings=settings)
    run = Run.open(place)
    assert not drive(run, until="pick").failures
    return run


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ({"labels": "truth", "settings": ["patch.size_voxels=16"]}, ["ring", "ball"]),
        ({"subtomograms": "run"}, ["particle"]),
    ],
)
def test_the_truth_of_a_simulation_is_enough(
    simulated: Run, tmp_path: Path, words: dict[str, Any], names: list[str]
) -> None:
    shutil.copytree(simulated.folder.url, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    set_up_training(run.folder.url, model="dsm-net", **words)
    result = train(run)
    assert not result.failures, result.failures
    card = run.model("segmenter").card
    assert card["classes"]["names"] == names
    assert card["particles"]["names"] == ["ring", "ball"]
    assert ("rec" in card["architecture"]["heads"]) == ("subtomograms" in words)
