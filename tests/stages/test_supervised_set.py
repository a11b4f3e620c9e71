"""What a supervised training is made of: where boxes are drawn, what they hold, how boxes are scaled."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoscale.config import apply_settings
from cryoscale.data.access import Access
from cryoscale.data.pyramid import Level
from cryoscale.data.run import Run
from cryoscale.data.subtomograms import Subtomograms
from cryoscale.data.tomogram import LabelFacts, LabelVolume, Tomogram
from cryoscale.errors import ConfigurationError, DataError, NothingToDoError
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box, Zyx
from cryoscale.pipeline.simulation import set_up_simulation
from cryoscale.stages import particle_boxes, supervised_sizes
from cryoscale.stages.label_drawing import wanted_boxes
from cryoscale.stages.particle_boxes import normalise_boxes
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.supervised_set import IGNORED, SupervisedSet, supervised_set, wanted_heads
from cryoscale.stages.train_supervised import TrainSupervisedStage
from cryoscale.testing.phantoms import VOXEL_SIZE_ANGSTROM, blobs, small_run
from tests.pipeline.driving import drive, settle

SHAPE = (32, 40, 72)
BOX = 8


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two tomograms, picked, without labels."""
    place = tmp_path_factory.mktemp("picked")
    for seed, name in enumerate(("one", "two")):
        write_mrc(place / f"{name}.mrc", blobs(SHAPE, seed=seed)[0], VOXEL_SIZE_ANGSTROM)
    run = small_run(
        place / "run", sorted(place.glob("*.mrc")), "supervised.model=edss3d",
        "supervised.labels=/x/{tomogram}",
        "ingest.levels=3", "supervised.max_patches=60",
    )  # fmt: skip
    settle(run, "supervised.model=none")
    assert not drive(run, until="pick").failures
    settle(run, "supervised.model=edss3d")
    return run


def label(run: Run, name: str, labels: np.ndarray, names: Sequence[str]) -> None:
    """Put labels into a run as `annotate` does, at level 0 alone."""
    volume = LabelVolume(run.tomogram(name), "annotation", writable=True)
    levels: tuple[Level, ...] = Tomogram(run.tomogram(name)).facts.levels
    volume.pyramid.create(levels, np.uint8, chunk=64, shard=256, image=False)
    volume.pyramid.write(0, Box.whole(labels.shape), labels)
    counts = {name: int((labels == value).sum()) for value, name in enumerate(names, start=1)}
    colors = tuple((value, 0, 0) for value in range(len(names)))
    volume.publish(LabelFacts("annotation", levels, tuple(names), colors, "k", 0, {"voxels": counts}))


@pytest.fixture
def labelled(picked: Run) -> Any:
    """Give what labels tomograms of the run; they are taken away afterwards."""

    def put(**volumes: tuple[np.ndarray, Sequence[str]]) -> None:
        for name, (labels, names) in volumes.items():
            label(picked, name, labels, names)

    yield put
    for name in ("one", "two"):
        picked.tomogram(name).child("labels").delete()


def made_of(run: Run, *settings: str) -> tuple[SupervisedSet, Access]:
    config = run.config
    if settings:
        config = apply_settings(config, list(settings))
    stage = TrainSupervisedStage()
    access = Access(
        run=run, config=config, tomogram="", tomograms=("one", "two"), reads=stage.reads, writes=stage.writes,
        key="k",
    )  # fmt: skip
    return supervised_set(access), access


def spots() -> np.ndarray:
    """Two classes: a ball of 1 in one half, a rod of 2 across, unknown along a face."""
    labels = np.zeros(SHAPE, np.uint8)
    grid = np.indices(SHAPE)
    for centre in ((10, 12, 14), (16, 20, 60)):
        labels[((grid - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0) <= 9] = 1
    labels[20:23, 10:13, 8:68] = 2
    labels[:, :, :2] = IGNORED
    return labels


def places_of(access: Access, made: SupervisedSet, tomogram: str) -> list[tuple[int, ...]]:
    """Find every box again in the density that networks see."""
    reader = PatchReader.for_access(access, tomogram)
    volume = reader.read(Box.whole(SHAPE))
    windows = np.lib.stride_tricks.sliding_window_view(volume, (BOX,) * 3)
    corner = windows[..., 0, 0, 0]
    found = []
    for box in made.inputs[:, 0]:
        near = np.argwhere(np.abs(corner - box[0, 0, 0]) < 1e-4)
        hits = [tuple(int(v) for v in p) for p in near if np.allclose(windows[tuple(p)], box, atol=1e-4)]
        assert len(hits) == 1
        found.append(hits[0])
    return found


# -- boxes of labels -----------------------------------------------------------------------------------------


def test_boxes_show_the_density_and_labels_of_one_place(picked: Run, labelled: Any) -> None:
    labels = spots()
    labelled(one=(labels, ("ball", "rod")))
    made, access = made_of(picked)
    assert made.class_names == ("ball", "rod")
    assert made.colors == ((0, 0, 0), (1, 0, 0))
    assert made.inputs.shape == (60, 1, BOX, BOX, BOX)
    starts = places_of(access, made, "one")
    for start, target in zip(starts, made.targets["seg"], strict=True):
        box = tuple(slice(a, a + BOX) for a in start)
        assert np.array_equal(target, labels[box])
    # No box to validate on shares a voxel with one to train on: the longest side is cut.
    assert made.validation_rows is not None
    along = np.array([start[2] for start in starts])
    held = np.zeros(len(starts), bool)
    held[made.validation_rows] = True
    assert along[~held].max() + BOX <= along[held].min()
    assert held.sum() == 6


def test_classes_are_shown_equally_often(picked: Run, labelled: Any) -> None:
    labelled(one=(spots(), ("ball", "rod")))
    made, _ = made_of(picked, "supervised.object_share=1", "supervised.max_patches=200")
    shows = [(made.targets["seg"] == value).any(axis=(1, 2, 3)).mean() for value in (1, 2)]
    assert min(shows) >= 0.5  # though the rod has five times the voxels
    anywhere, _ = made_of(picked, "supervised.object_share=0", "supervised.max_patches=200")
    assert (anywhere.targets["seg"] == 1).any(axis=(1, 2, 3)).mean() < 0.3


def test_the_seed_decides(picked: Run, labelled: Any) -> None:
    labelled(one=(spots(), ("ball", "rod")), two=(spots()[::-1].copy(), ("ball", "rod")))
    first, again = (made_of(picked)[0] for _ in range(2))
    assert np.array_equal(first.inputs, again.inputs)
    other, _ = made_of(picked, "supervised.seed=1")
    assert not np.array_equal(first.inputs, other.inputs)


def test_classes_of_one_name_are_one(picked: Run, labelled: Any) -> None:
    turned = spots()
    turned[turned == 1], turned[turned == 2] = 9, 1
    turned[turned == 9] = 2
    labelled(one=(spots(), ("ball", "rod")), two=(turned, ("rod", "ball")))
    made, _ = made_of(picked)
    assert made.class_names == ("ball", "rod")
    assert made.notes["voxels"]["rod"] > 2 * made.notes["voxels"]["ball"]


def test_a_class_behind_the_cut_is_learned_all_the_same(picked: Run, labelled: Any) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[10:20, 10:20, 4:60] = 1
    labels[12:16, 12:16, 66:70] = 2
    labelled(one=(labels, ("a", "b")))
    made, _ = made_of(picked)
    assert made.validation_rows is None
    assert made.notes["validation"] == "a random share: boxes may overlap"
    assert (made.targets["seg"] == 2).any()


def test_objects_are_centred_for_a_class(picked: Run, labelled: Any) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    balls = [(10, 12, 14), (16, 20, 40), (20, 30, 60)]
    grid = np.indices(SHAPE)
    for number, centre in enumerate(balls):
        ball = ((grid - np.array(centre)[:, None, None, None]) ** 2).sum(axis=0) <= 6
        labels[ball] = 1 + number % 2
    labelled(one=(labels, ("a", "b")))
    made, access = made_of(picked, "supervised.model=dsm-net", "supervised.object_share=0.5")
    assert made.particle_names == ("a", "b")
    known = made.targets["cls"] != IGNORED
    assert 20 <= known.sum() <= 40
    for start, value in zip(np.array(places_of(access, made, "one")), made.targets["cls"], strict=True):
        if value != IGNORED:
            centre = tuple(start + BOX // 2)
            assert centre in balls
            assert labels[centre] == value + 1
    alone, _ = made_of(picked, "supervised.model=dsrf3d-v2")
    assert set(alone.targets) == {"cls"}
    assert set(np.unique(alone.targets["cls"])) == {0, 1}


def test_a_gap_between_numbers_is_no_class(picked: Run, labelled: Any) -> None:
    labels = spots()
    labels[labels == 2] = 3
    labelled(one=(labels, ("1", "2", "3")))
    made, _ = made_of(picked)
    assert made.class_names == ("1", "3")
    assert set(np.unique(made.targets["seg"])) <= {0, 1, 2, IGNORED}


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (("ball", "rod", "vault"), (), "'vault'"),
        (("ball", "rod"), ("supervised.tomograms=['one', 'two']",), "labels of two"),
        (("ball", "rod"), ("patch.size_voxels=36",), "smaller than a box"),
        (("ball", "rod"), ("supervised.model=dsm-net", "supervised.heads=['rec']"), "learn rec"),
    ],
)
def test_labels_that_cannot_be_used(
    picked: Run, labelled: Any, names: tuple[str, ...], settings: tuple[str, ...], said: str
) -> None:
    labelled(one=(spots(), names))
    with pytest.raises((DataError, ConfigurationError), match=said):
        made_of(picked, *settings)


def test_no_labels_at_all(picked: Run) -> None:
    with pytest.raises(NothingToDoError, match="no tomogram of the run has labels"):
        made_of(picked)


def test_how_many_boxes_are_drawn() -> None:
    assert wanted_boxes(5000, [Zyx(64, 64, 64)], Zyx(32, 32, 32)) == 64
    assert wanted_boxes(50, [Zyx(64, 64, 64)], Zyx(32, 32, 32)) == 50
    assert wanted_boxes(5000, [Zyx(32, 32, 32)], Zyx(32, 32, 32)) == 16


def test_the_promise_covers_the_set(picked: Run, labelled: Any) -> None:
    labelled(one=(spots(), ("ball", "rod")))
    made, access = made_of(picked)
    held = made.inputs.nbytes + sum(values.nbytes for values in made.targets.values())
    promised = TrainSupervisedStage().bytes_needed(access)
    assert promised > 256 * 2**20 + held
    more = replace(access, config=access.config.model_copy(
        update={"supervised": access.config.supervised.model_copy(update={"channels": 64})}
    ))  # fmt: skip
    assert TrainSupervisedStage().bytes_needed(more) > promised


# -- boxes of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("masked", [True, False])
def test_boxes_become_dark_with_mean_0_and_sd_1(sign: int, masked: bool) -> None:
    rng = np.random.default_rng(0)
    grid = np.indices((12, 12, 12)) - 5.5
    ball = (grid**2).sum(axis=0) <= 9
    data = (rng.normal(0, 1, (6, 12, 12, 12)) + sign * 4 * ball + 100).astype(np.float32)
    masks = np.broadcast_to(ball, data.shape).astype(np.uint8) if masked else None
    files = tuple(Path(f"{n}.mrc") for n in range(6))
    assert normalise_boxes(data, files, masks, "auto") == ("bright" if sign > 0 else "dark")
    np.testing.assert_allclose(data.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(data.std(axis=(1, 2, 3)), 1, atol=1e-4)
    assert data[:, ball].mean() < -1


def test_what_the_person_says_of_contrast_counts() -> None:
    data = np.random.default_rng(0).normal(0, 1, (2, 8, 8, 8)).astype(np.float32)
    files = (Path("a.mrc"), Path("b.mrc"))
    dark, bright = data.copy(), data.copy()
    assert normalise_boxes(dark, files, None, "dark") == "dark"
    assert normalise_boxes(bright, files, None, "bright") == "bright"
    assert np.array_equal(dark, -bright)
    data[1] = 3
    with pytest.raises(DataError, match=r"b\.mrc"):
        normalise_boxes(data, files, None, "auto")


def test_heads_are_those_that_the_truth_allows(picked: Run) -> None:
    config = picked.config.supervised
    net = config.model_copy(update={"model": "dsm-net"})
    assert wanted_heads(net, ("cls", "seg"), "x") == ("cls", "seg")
    assert wanted_heads(net.model_copy(update={"heads": ("seg", "cls")}), ("cls", "seg"), "x") == (
        "cls",
        "seg",
    )
    with pytest.raises(ConfigurationError, match="seg, but x"):
        wanted_heads(config, ("cls",), "x")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two simulated tomograms with boxes of their own."""
    place = tmp_path_factory.mktemp("boxes") / "run"
    settings = [
        "simulate.scene.shape=[48, 96, 96]", "simulate.scene.voxel_size_angstrom=20",
        "simulate.scene.margin_angstrom=100", "simulate.scene.membranes={vesicles=0}",
        'simulate.scene.particles=[{density="ring", copies=12}, {density="ball", copies=10}]',
        "simulate.imaging.snr=2", "simulate.subtomograms={count=20, size_voxels=16}",
        "pick.radius_angstrom=100", "patch.size_voxels=16", "patch.smooth_sigma_voxels=0",
        "supervised.truth=subtomograms", "supervised.model=dsm-net",
    ]  # fmt: skip
    set_up_simulation(str(place), "cell-demo", seed=5, tomograms=2, settings=settings)
    run = Run.open(place)
    assert not drive(run, until="subtomograms").failures
    return run


def boxes_of(run: Run, *settings: str) -> Access:
    stage = TrainSupervisedStage()
    return Access(
        run=run, config=apply_settings(run.config, list(settings)), tomogram="",
        tomograms=tuple(source.name for source in run.config.inputs), reads=stage.reads, writes=stage.writes,
        key="k",
    )  # fmt: skip


def test_boxes_of_a_run_are_those_of_its_tomograms_in_order(
    simulated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = boxes_of(simulated)
    plain = {
        name: np.concatenate([access.subtomograms(t).read(name, slice(None)) for t in access.tomograms])
        for name in ("data", "mask", "density")
    }
    split = np.concatenate([access.subtomograms(t).table["split"] for t in access.tomograms])
    kept = split != "test"
    monkeypatch.setattr(particle_boxes, "ROWS_PER_SHARD", 3)  # parts that do not end with a tomogram
    made = supervised_set(access)
    assert set(made.targets) == {"cls", "seg", "rec"}
    assert np.array_equal(made.inputs[:, 0], plain["data"][kept])
    assert np.array_equal(made.targets["seg"], plain["mask"][kept] != 0)
    sd = made.preprocessing["density_sd"]
    assert sd == pytest.approx(plain["density"][kept].std(dtype=np.float64))
    np.testing.assert_allclose(made.targets["rec"][:, 0], -plain["density"][kept] / sd, rtol=1e-5)
    assert made.test is not None
    assert np.array_equal(made.test.inputs[:, 0], plain["data"][~kept])


@pytest.mark.parametrize(
    ("settings", "arrays"),
    [
        ((), {"data", "mask", "density"}),
        (("supervised.heads=['cls', 'seg']",), {"data", "mask"}),
        (("supervised.model=ssn3d-ed",), {"data", "mask"}),
        (("supervised.model=dsrf3d-v2",), {"data"}),
    ],
)
def test_only_what_is_learned_is_read_and_the_promise_covers_it(
    simulated: Run, settings: tuple[str, ...], arrays: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access, seen = boxes_of(simulated, *settings), set()
    read = Subtomograms.read

    def noted(self: Subtomograms, name: str, rows: Any) -> Any:
        seen.add(name)
        return read(self, name, rows)

    monkeypatch.setattr(Subtomograms, "read", noted)
    supervised_set(access)  # what is imported on the way is not counted
    tracemalloc.start()
    made = supervised_set(access)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == arrays
    voxels, sample, gather = supervised_sizes._set(access)
    count = 20
    assert sample == count * voxels * (4 + ("mask" in arrays) + 4 * ("density" in arrays))
    assert made.test is not None
    held = sum(a.nbytes for one in (made, made.test) for a in (one.inputs, *one.targets.values()))
    assert held <= sample + 8 * count
    assert peak <= sample + gather + 200_000  # tables and objects of Python


def test_contrast_box_by_box_is_that_of_all() -> None:
    rng = np.random.default_rng(1)
    data = rng.normal(0, 1, (5, 8, 8, 8)).astype(np.float32)
    masks = rng.random(data.shape) < 0.2
    for masked in (None, masks.astype(np.uint8)):
        where = np.broadcast_to(particle_boxes._middle((8, 8, 8)), data.shape) if masked is None else masks
        for sign in (1, -1):
            boxes = sign * data
            plain = "bright" if boxes[where].mean() > boxes[~where].mean() else "dark"
            assert particle_boxes._contrast_of(boxes, masked) == plain
