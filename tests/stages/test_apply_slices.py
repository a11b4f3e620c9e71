"""Networks in slices: blended tiles of each slice against plain torch; one axis is as another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box, Zyx
from cryoscale.ops.blend import Windows, weight_window
from cryoscale.ops.slices import SliceFilter
from cryoscale.ops.tiles import reflected
from cryoscale.stages.networks import CACHE
from cryoscale.testing.phantoms import blobs, small_run
from tests.pipeline.driving import drive
from tests.stages.applied import (
    access_of,
    answers,
    apply,
    check_labels,
    density_of,
    install,
    network,
    shares_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryoscale.data.run import Run

SHAPE = Zyx(9, 40, 70)


@pytest.fixture(autouse=True)
def no_networks_kept() -> Iterator[None]:
    yield
    CACHE.close()


@pytest.fixture(scope="module")
def flat_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same small slab lying along z, y and x."""
    folder = tmp_path_factory.mktemp("slices")
    slab = blobs(SHAPE, seed=0)[0]
    files = []
    for axis, turned in {"z": slab, "y": np.moveaxis(slab, 0, 1), "x": np.moveaxis(slab, 0, 2)}.items():
        files.append(folder / f"along_{axis}.mrc")
        write_mrc(files[-1], np.ascontiguousarray(turned), 10.0)
    run = small_run(folder / "run", files, "ingest.levels=1")
    assert not drive(run, until="pick").failures
    return run


def slices_on(axis: str, **more: Any) -> dict[str, Any]:
    return {"slices": {"axis": axis, "tile": 32, "neighbours": 0} | more}


def test_tiles_of_each_slice_are_blended(flat_run: Run) -> None:
    module = network(name="unet2d", n_classes=3, channels=2, slices=3)
    install(flat_run, module, sigma=0, **slices_on("z", neighbours=1))
    access = access_of(
        flat_run, "segment.probabilities=true", "segment.overlap_voxels=10", tomogram="along_z"
    )
    labels = apply(access)
    density = density_of(access)
    windows = Windows.of((1, *SHAPE[1:]), (1, 32, 32), (0, 10, 10))
    total, weights = np.zeros((3, *SHAPE)), np.zeros(SHAPE)
    weight_YX = weight_window(windows.size)[0]
    for plane in range(SHAPE.z):
        for start in windows.starts_for(Box.whole(windows.shape)):
            box = Box.of((plane - 1, *start[1:]), (plane + 2, *windows.window(start).stop[1:]))
            item = reflected(density, Box.whole(SHAPE), box, SHAPE)
            found = answers(module, item[None])["seg"][0]
            y, x = box.intersect(Box.of((plane - 1, 0, 0), (plane + 2, *SHAPE[1:]))).slices[1:]
            part = (slice(0, y.stop - y.start), slice(0, x.stop - x.start))
            total[:, plane, y, x] += found[:, *part] * weight_YX[part]
            weights[plane, y, x] += weight_YX[part]
    check_labels(labels, total / weights)
    np.testing.assert_allclose(shares_of(access), total / weights, atol=2e-3)


@pytest.mark.parametrize("name", ["unet2d", "cnn2d-chen"])
def test_one_axis_is_as_another(flat_run: Run, name: str) -> None:
    module = network(name=name, n_classes=3, channels=2)
    if name == "cnn2d-chen":  # its first answers are small on purpose, and everything would be background
        with torch.no_grad():
            for one in module.networks:
                one.conv3.weight.mul_(10)
    found = {}
    for number, axis in enumerate("zyx"):
        install(flat_run, module, sigma=0, **slices_on(axis))
        access = access_of(
            flat_run, "segment.probabilities=true", "segment.overlap_voxels=8", tomogram=f"along_{axis}"
        )
        labels = apply(access)
        found[axis] = np.moveaxis(labels, number, 0), np.moveaxis(shares_of(access), 1 + number, 1)
    for axis in "yx":
        np.testing.assert_allclose(found[axis][1], found["z"][1], atol=2e-3)
    assert len(np.unique(found["z"][0])) > 1
    check_labels(found["y"][0], found["z"][1])
    check_labels(found["x"][0], found["z"][1])


def test_the_filter_in_front_sees_beyond_its_tile(flat_run: Run) -> None:
    """One tile holds the slice, so the result is that of the slice, reflected as far as the filter looks."""
    module = network(name="cnn2d-chen", n_classes=2, channels=2, kernel=5)
    band = SliceFilter(0.7, 3.0, mean=0.01, sd=0.2)
    install(flat_run, module, sigma=0, preprocessing=band.card, **slices_on("z", tile=128))
    access = access_of(flat_run, "segment.probabilities=true", tomogram="along_z")
    apply(access)
    h = band.halo
    box = Box.of((0, -h, -h), (9, 40 + h, 70 + h))
    grown = np.asarray(reflected(density_of(access), Box.whole(SHAPE), box, SHAPE), np.float32)
    filtered = band(torch.from_numpy(grown[:, None])).numpy()[:, :, h : 40 + h, h : 70 + h]
    shares = answers(module, filtered)["seg"].transpose(1, 0, 2, 3)
    np.testing.assert_allclose(shares_of(access), shares, atol=2e-3)
