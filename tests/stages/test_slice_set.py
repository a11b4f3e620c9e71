"""Tiles of slices: cut right, drawn evenly, and of bounded memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from cryoscale.config import apply_settings
from cryoscale.data.access import Access
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, DataError
from cryoscale.geometry import Box
from cryoscale.ops.slices import preprocessing_of
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.simulation import set_up_simulation
from cryoscale.stages import slice_drawing
from cryoscale.stages import slice_set as module
from cryoscale.stages.label_boxes import Labelled
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.slice_set import IGNORED, SliceSet, slice_set, slice_set_bytes, tile_side
from cryoscale.stages.train_supervised import TrainSupervisedStage

SHAPE = (20, 56, 72)
SCENE = [
    f"simulate.scene.shape={list(SHAPE)}", "simulate.scene.margin_angstrom=60",
    'simulate.scene.particles=[{density="ball", copies=4}, {density="barrel", copies=4}]',
    "simulate.scene.membranes={vesicles=0}",
    "ingest.chunk=16", "ingest.shard=32", "ingest.levels=2", "patch.size_voxels=8",
    "patch.smooth_sigma_voxels=1", "pick.radius_angstrom=80", "pick.threshold=0",
    'supervised.model="unet2d"', "execution.block_voxels=32", "execution.memory_budget=4GB",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("slices") / "run"
    set_up_simulation(str(place), "cell-demo", seed=1, snr=0.5, tomograms=2, settings=SCENE)
    made = Run.open(place)
    for until in ("truth_labels", "pick"):
        run_pipeline(made, Options(executor="serial", until=until))
    return made


def grant(run: Run, *settings: str) -> Access:
    config = apply_settings(run.config, list(settings))
    names = tuple(source.name for source in config.inputs)
    reads = TrainSupervisedStage.reads
    return Access(run, config, "", names, reads=reads, writes="segmenter", key="k")


def truth(access: Access, name: str) -> Any:
    return access.drawn_labels(name).read(0, Box.whole(SHAPE))


def volume(access: Access, name: str) -> Any:
    return PatchReader.for_access(access, name).read(Box.whole(SHAPE))


def found_at(made: SliceSet, access: Access, axis: int) -> list[tuple[str, int]]:
    """Say of which tomogram and plane each whole-plane tile is, by its density."""
    places = []
    volumes = {name: np.moveaxis(volume(access, name), axis, 0) for name in access.tomograms}
    for tile in made.inputs_NCYX[:, made.inputs_NCYX.shape[1] // 2]:
        for name, planes in volumes.items():
            u, v = planes.shape[1:]
            top, left = ((side - n) // 2 for side, n in zip(tile.shape, (u, v), strict=True))
            inner = tile[-(-(tile.shape[0] - u) // 2) :, -(-(tile.shape[1] - v) // 2) :][:u, :v]
            errors = np.abs(planes - inner).max(axis=(1, 2))
            if errors.min() < 1e-5:
                places.append((name, int(errors.argmin())))
                break
        else:
            raise AssertionError((top, left))
    return places


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_tiles_larger_than_slices_hold_whole_planes(run: Run, axis: str) -> None:
    number = "zyx".index(axis)
    access = grant(run, f'supervised.axis="{axis}"', "supervised.neighbours=1")
    made = slice_set(access)
    across = [n for n, side in zip(SHAPE, SHAPE, strict=True) if n != SHAPE[number]]
    side = made.inputs_NCYX.shape[-1]
    assert side == -(-max(across) // 16) * 16 == tile_side(access)
    assert made.inputs_NCYX.shape[1:] == (3, side, side)
    places = found_at(made, access, number)
    assert len(set(places)) == len(places)  # none twice
    assert len(places) <= 2 * SHAPE[number]
    low = [-(-(side - n) // 2) for n in across]
    inner = (slice(low[0], low[0] + across[0]), slice(low[1], low[1] + across[1]))
    for (name, plane), target, tile in zip(places, made.targets_NYX, made.inputs_NCYX, strict=True):
        expected = np.moveaxis(truth(access, name), number, 0)[plane]
        assert np.array_equal(target[inner], expected)
        assert (target == IGNORED).sum() == target.size - expected.size
        beside = np.moveaxis(volume(access, name), number, 0)
        for channel, other in enumerate((plane - 1, plane, plane + 1)):
            reflected = min(max(other, 0), SHAPE[number] - 1)  # the edge plane is repeated
            np.testing.assert_allclose(tile[channel][inner], beside[reflected], atol=1e-5)


@pytest.mark.parametrize("cell", [16, 128])
def test_tiles_smaller_than_slices_lie_inside_and_show_objects(
    run: Run, monkeypatch: pytest.MonkeyPatch, cell: int
) -> None:
    monkeypatch.setattr(slice_drawing, "CELL", cell)
    access = grant(run, "supervised.tile_voxels=32", "supervised.object_share=1")
    made = slice_set(access)
    assert made.inputs_NCYX.shape[1:] == (1, 32, 32)
    assert (made.targets_NYX != IGNORED).all()
    assert all(target.any() for target in made.targets_NYX)
    shares = [(made.targets_NYX == value).any(axis=(1, 2)).mean() for value in (1, 2)]
    assert min(shares) > 0.35
    planes = np.concatenate([volume(access, name) for name in access.tomograms])
    windows = np.lib.stride_tricks.sliding_window_view(planes, (32, 32), axis=(1, 2))
    for tile in made.inputs_NCYX[:5, 0]:
        close = np.isclose(windows[..., 0, 0], tile[0, 0], atol=1e-5)
        assert any(np.allclose(window, tile, atol=1e-5) for window in windows[close])


def test_the_seed_decides(run: Run) -> None:
    one, same, other = (
        slice_set(grant(run, f"supervised.seed={n}", "supervised.tile_voxels=32")) for n in (1, 1, 2)
    )
    assert np.array_equal(one.inputs_NCYX, same.inputs_NCYX)
    assert np.array_equal(one.validation_rows, same.validation_rows)
    assert not np.array_equal(one.inputs_NCYX[:5], other.inputs_NCYX[:5])


def test_small_chunks_give_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    access = grant(run, "supervised.tile_voxels=32", "supervised.neighbours=1")
    whole = slice_set(access)
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 4000)
    in_chunks = slice_set(access)
    assert np.array_equal(whole.inputs_NCYX, in_chunks.inputs_NCYX)
    assert np.array_equal(whole.targets_NYX, in_chunks.targets_NYX)


@pytest.mark.parametrize("neighbours", [0, 2])
def test_planes_are_held_back_with_a_gap_as_wide_as_what_a_tile_sees(run: Run, neighbours: int) -> None:
    access = grant(run, f"supervised.neighbours={neighbours}", "supervised.validation_fraction=0.25")
    made = slice_set(access)
    assert made.notes["sample"]["validation"] == "planes of their own"
    assert made.notes["slices"] == {"axis": "z", "tile": 80, "neighbours": neighbours}
    assert made.class_names == tuple(made.notes["classes"]["names"]) == ("ball", "barrel")
    assert sum(made.notes["sample"]["voxels"].values()) == 2 * np.prod(SHAPE)
    places = found_at(made, access, 0)
    held = set(made.validation_rows.tolist())
    for name in access.tomograms:
        rows = [row for row, (tomogram, _) in enumerate(places) if tomogram == name]
        last = max(places[row][1] for row in rows if row not in held)
        first = min(places[row][1] for row in rows if row in held)
        drawn = (truth(access, name) > 0).sum(axis=(1, 2))
        cut = int(np.searchsorted(np.cumsum(drawn), 0.75 * drawn.sum()))
        assert last < cut - neighbours
        assert first >= cut


@pytest.mark.parametrize("drawn", ["few planes", "a class at the end"])
def test_a_random_share_where_planes_cannot_be_held_back(
    run: Run, monkeypatch: pytest.MonkeyPatch, drawn: str
) -> None:
    read = Labelled.read

    def changed(self: Labelled, box: Box) -> Any:
        labels = read(self, box)
        planes = np.arange(box.start.z, box.stop.z)[:, None, None]
        if drawn == "few planes":
            return np.where((planes >= 9) & (planes <= 11), labels, IGNORED).astype(np.uint8)
        return np.where(planes == SHAPE[0] - 1, 2, labels > 0).astype(np.uint8)

    monkeypatch.setattr(Labelled, "read", changed)
    made = slice_set(grant(run, "supervised.tile_voxels=32", "supervised.validation_fraction=0.25"))
    assert made.notes["sample"]["validation"] == "a random share: tiles may overlap"
    assert len(made.validation_rows) == round(0.25 * len(made.inputs_NCYX))
    assert len(np.unique(made.validation_rows)) == len(made.validation_rows)


def test_the_small_network_sees_what_its_card_says(run: Run) -> None:
    access = grant(
        run, 'supervised.model="cnn2d-chen"', "supervised.tile_voxels=40", "supervised.max_patches=12"
    )
    made = slice_set(access)
    front = preprocessing_of(made.notes)
    assert front is not None
    assert len(made.inputs_NCYX) == 12
    assert np.abs(made.inputs_NCYX).max() <= 1
    slices, halo = np.concatenate([volume(access, name) for name in access.tomograms]), front.halo
    padded = np.pad(slices, ((0, 0), (halo, halo), (halo, halo)), mode="symmetric")
    with torch.inference_mode():
        whole = front(torch.from_numpy(padded)[:, None])[:, 0, halo:-halo, halo:-halo].numpy()
        band = front.band(torch.from_numpy(padded)[:, None])[:, 0, halo:-halo, halo:-halo].numpy()
    assert front.sd == pytest.approx(band.std(), rel=0.5)  # tiles show more objects than slices do
    assert abs(front.mean - band.mean()) < 0.2 * front.sd
    windows = np.lib.stride_tricks.sliding_window_view(whole, (40, 40), axis=(1, 2))
    for tile in made.inputs_NCYX[:, 0]:
        close = np.isclose(windows[..., 20, 20], tile[20, 20], atol=1e-4)
        assert any(np.allclose(window, tile, atol=1e-4) for window in windows[close])


def test_the_promise_bounds_the_set(run: Run) -> None:
    access = grant(run, "supervised.tile_voxels=64")
    made = slice_set(access)
    assert slice_set_bytes(access) >= made.inputs_NCYX.nbytes + made.targets_NYX.nbytes + module.CHUNK_BYTES


def test_neighbours_of_a_network_that_sees_one_slice_are_refused(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="sees one slice"):
        slice_set(grant(run, 'supervised.model="cnn2d-chen"', "supervised.neighbours=1"))


@pytest.mark.parametrize(("value", "instead", "message"), [(2, 0, "'barrel'"), (0, 7, "beyond")])
def test_labels_that_cannot_be_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, value: int, instead: int, message: str
) -> None:
    read = Labelled.read

    def changed(self: Labelled, box: Box) -> Any:
        labels = read(self, box)
        return np.where(labels == value, instead, labels).astype(np.uint8)

    monkeypatch.setattr(Labelled, "read", changed)
    with pytest.raises(DataError, match=message):
        slice_set(grant(run))


def test_a_set_of_one_tomogram_is_its_own(run: Run) -> None:
    access = grant(run, "supervised.tile_voxels=32")
    alone = slice_set(dataclasses.replace(access, tomograms=access.tomograms[:1]))
    assert sum(alone.notes["sample"]["voxels"].values()) == np.prod(SHAPE)
