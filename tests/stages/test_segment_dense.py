"""Dense labels: tiles with a margin are the whole volume at once; blocks change nothing; thin ones fit."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cryoscale.config import apply_settings
from cryoscale.data.access import Access
from cryoscale.errors import DataError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.models.edss3d import EDSS3D
from cryoscale.models.registry import build
from cryoscale.ops.blend import Windows, weight_window
from cryoscale.ops.tiles import reflected
from cryoscale.stages import dense
from cryoscale.stages.networks import open_segmenter
from cryoscale.stages.patching import PatchReader
from cryoscale.testing.phantoms import small_run
from tests.pipeline.driving import drive

if TYPE_CHECKING:
    from pathlib import Path

    from cryoscale.data.run import Run


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory: pytest.TempPathFactory, small_sources: list[Path]) -> Run:
    """A run with tomograms and a network of random weights, whose classes are about equally frequent."""
    run = small_run(tmp_path_factory.mktemp("dense") / "run", small_sources)
    drive(run, until="ingest")
    module = EDSS3D(4, channels=4, seed=3).requires_grad_(False)
    logits = module(torch.randn((1, 1, 32, 32, 32), generator=torch.Generator().manual_seed(0)))
    module.classify.weight *= 1 / logits.std()
    module.classify.bias -= logits.mean(dim=(0, 2, 3, 4)) / logits.std()
    card = {"architecture": module.architecture, "voxel_size_angstrom": 10.0}
    run.model("segmenter").save(module.state_dict(), card, {})
    return run


def access_of(run: Run, *settings: str) -> Access:
    return Access(
        run=run, config=apply_settings(run.config, list(settings)), tomogram="alpha", tomograms=(),
        reads=frozenset({"tomogram", "segmenter"}), writes="labels", key="k", upstream={},
    )  # fmt: skip


def labels_of(access: Access, edge: int | tuple[int, int, int] = 1000) -> np.ndarray:
    shape = access.open_tomogram().facts.levels[0].shape
    labels = np.full(shape, 255, np.uint8)
    with dense.open_dense(access) as predict:
        for core in Grid.of(shape, edge).boxes():
            labels[core.slices] = predict(core)
    return labels


def logits_of(access: Access, density_ZYX: np.ndarray) -> np.ndarray:
    """What plain torch says of a whole volume."""
    model = access.model("segmenter")
    module = build(model.card["architecture"])
    module.load_state_dict(model.load())
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(density_ZYX)[None, None])[0].numpy())


def sure(votes: np.ndarray) -> np.ndarray:
    top = np.sort(votes, axis=0)
    return np.asarray(top[-1] - top[-2] > 1e-3)


@pytest.mark.parametrize("sigma", [0, 1])
def test_tiles_with_the_margin_of_the_network_are_the_whole_volume(
    labelled_run: Run, monkeypatch: pytest.MonkeyPatch, sigma: float
) -> None:
    monkeypatch.setattr(dense, "TILE", 24)
    monkeypatch.setattr(dense, "MARGIN", 12)  # what the network looks at, in full
    monkeypatch.setattr(dense, "SHARD", 32)
    access = access_of(labelled_run, 'segment.windows="tiles"', f"patch.smooth_sigma_voxels={sigma}")
    labels = labels_of(access)
    reader = PatchReader.for_access(access)
    logits = logits_of(access, reader.read(Box.whole(labels.shape)))
    assert len(np.unique(labels)) > 1
    assert sure(logits).mean() > 0.9
    np.testing.assert_array_equal(labels[sure(logits)], logits.argmax(axis=0)[sure(logits)])


@pytest.mark.parametrize("windows", ["tiles", "box"])
def test_blocks_do_not_change_a_label(
    labelled_run: Run, monkeypatch: pytest.MonkeyPatch, windows: str
) -> None:
    monkeypatch.setattr(dense, "TILE", 24)
    monkeypatch.setattr(dense, "SHARD", 32)
    access = access_of(labelled_run, f'segment.windows="{windows}"')
    together = labels_of(access)
    assert len(np.unique(together)) > 1
    for edge in (32, (7, 30, 61)):
        np.testing.assert_array_equal(labels_of(access, edge), together)


def test_windows_of_the_box_are_blended(labelled_run: Run) -> None:
    access = access_of(labelled_run, "segment.overlap_voxels=2")
    assert not dense.in_tiles(access)
    labels = labels_of(access)
    reader = PatchReader.for_access(access)
    whole = Box.whole(labels.shape)
    density = reader.read(whole)
    windows = Windows.of(labels.shape, reader.box, 2)
    starts = windows.starts_for(whole)
    probs = [torch.softmax(torch.from_numpy(logits_of(access, density[windows.window(s).slices])), 0).numpy()
             for s in starts]  # fmt: skip
    blended = windows.accumulate(whole, starts, probs, len(probs[0]))
    np.testing.assert_array_equal(labels[sure(blended)], blended.argmax(axis=0)[sure(blended)])


@pytest.mark.parametrize("windows", ["tiles", "box"])
def test_a_tomogram_thinner_than_the_box_is_reflected(labelled_run: Run, windows: str) -> None:
    """The tomogram is 40 voxels thin."""
    access = access_of(labelled_run, f'segment.windows="{windows}"', "patch.size_voxels=[48, 32, 32]")
    labels = labels_of(access)
    if windows == "box":
        assert labels.max() < 255
        return
    reader = PatchReader.for_access(access)
    whole = Box.whole(labels.shape)
    filled = reflected(reader.read(whole), whole, Box(whole.start, Zyx(48, 64, 64)), labels.shape)
    logits = logits_of(access, np.asarray(filled, np.float32))[:, :40]
    np.testing.assert_array_equal(labels[sure(logits)], logits.argmax(axis=0)[sure(logits)])


def test_small_boxes_are_blended_and_large_ones_tiled(labelled_run: Run) -> None:
    assert not dense.in_tiles(access_of(labelled_run, "patch.size_voxels=[28, 32, 32]"))
    assert dense.in_tiles(access_of(labelled_run, "patch.size_voxels=32"))
    assert not dense.in_tiles(access_of(labelled_run, "patch.size_voxels=32", 'segment.windows="box"'))


@pytest.mark.parametrize("windows", ["tiles", "box"])
def test_a_network_that_gives_no_numbers_is_met(
    labelled_run: Run, monkeypatch: pytest.MonkeyPatch, windows: str
) -> None:
    class Broken:
        output_shape = (3, 8, 8, 8)

        def run(self, items: np.ndarray) -> np.ndarray:
            classes = 1 if windows == "tiles" else 3
            return np.full((len(items), classes, *items.shape[2:]), np.nan, np.float32)

    opener: Any = lambda *_: contextlib.nullcontext(Broken())  # noqa: E731
    monkeypatch.setattr(dense, "open_labeller", opener)
    monkeypatch.setattr(dense, "open_segmenter", opener)
    with pytest.raises(DataError, match="not finite"):
        labels_of(access_of(labelled_run, f'segment.windows="{windows}"'))


def test_weights_of_the_windows_are_in_the_network(labelled_run: Run) -> None:
    access = access_of(labelled_run)
    items = np.random.default_rng(0).normal(size=(3, 1, *access.config.patch.box)).astype(np.float32)
    shares = np.stack([torch.softmax(torch.from_numpy(logits_of(access, i[0])), 0).numpy() for i in items])
    weight = weight_window(access.config.patch.box)
    with open_segmenter(access, "weighted") as engine:
        np.testing.assert_allclose(engine.run(items), shares * weight, atol=1e-5)
    with open_segmenter(access, "background") as engine:
        np.testing.assert_allclose(engine.run(items), shares[:, :1] * weight, atol=1e-5)
