"""Label pyramids and instances against brute force on whole volumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Pyramid, pyramid_levels
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table
from cryoscale.data.tomogram import LabelVolume
from cryoscale.geometry import Block, Box, Grid
from cryoscale.stages.labelling import coarser, finer
from tests.pipeline.driving import drive, settle

SIX = ndimage.generate_binary_structure(3, 1)


def mode_of_cells(labels: np.ndarray) -> np.ndarray:
    """Most frequent label of each 2x2x2 cell, the smaller on a tie; odd sides repeat their last voxel."""
    even = np.pad(labels, [(0, n % 2) for n in labels.shape], mode="edge")
    made = np.zeros([n // 2 for n in even.shape], np.uint8)
    for z, y, x in np.ndindex(*made.shape):
        cell = even[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
        made[z, y, x] = np.bincount(cell).argmax()
    return made


def pyramid_of(shape: tuple[int, int, int], level: int, labels: np.ndarray) -> Pyramid:
    pyramid = Pyramid(Folder.of("memory://labels"), writable=True)
    pyramid.create(pyramid_levels(shape, 1.0, count=2), np.uint8, chunk=8, shard=8, image=False)
    for box in Grid.of(labels.shape, 8).boxes():
        pyramid.write(level, box, labels[box.slices])
    return pyramid


SHAPES = st.tuples(*[st.integers(1, 13)] * 3).filter(lambda shape: max(shape) > 1)


@settings(max_examples=25)
@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([4, 8, 16]))
def test_coarser_labels_are_the_mode_of_cells(shape: tuple[int, int, int], seed: int, edge: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)
    pyramid = pyramid_of(shape, 0, labels)
    expected = mode_of_cells(labels)
    for number, box in enumerate(Grid.of(expected.shape, edge).boxes()):
        assert np.array_equal(coarser(pyramid, Block(number, box, box, 1)), expected[box.slices])


@settings(max_examples=25)
@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([3, 8, 16]))
def test_finer_labels_repeat_the_coarse_ones(shape: tuple[int, int, int], seed: int, edge: int) -> None:
    coarse = [-(-n // 2) for n in shape]
    labels = np.random.default_rng(seed).integers(0, 4, coarse).astype(np.uint8)
    pyramid = pyramid_of(shape, 1, labels)
    expected = np.kron(labels, np.ones((2, 2, 2), np.uint8))[tuple(slice(0, n) for n in shape)]
    for number, box in enumerate(Grid.of(shape, edge).boxes()):
        assert np.array_equal(finer(pyramid, Block(number, box, box, 0)), expected[box.slices])


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_levels_of_the_label_volume_agree(finished_run: Run, name: str) -> None:
    volume = LabelVolume(finished_run.tomogram(name), "classes")
    fine, coarse = (volume.read(i, Box.whole(volume.facts.levels[i].shape)) for i in (0, 1))
    assert set(np.unique(fine)) == {0, 1, 2} or fine.any()
    assert np.array_equal(coarse, mode_of_cells(fine))


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_instances_equal_scipy_on_the_whole_volume(finished_run: Run, name: str) -> None:
    volume = LabelVolume(finished_run.tomogram(name), "classes")
    labels = volume.read(0, Box.whole(volume.facts.levels[0].shape))
    expected = []
    for value in (1, 2):
        parts, count = ndimage.label(labels == value, SIX)
        sizes = np.bincount(parts.ravel())[1:]
        centres = np.array(ndimage.center_of_mass(labels == value, parts, range(1, count + 1)))
        expected += [
            (value, int(size), *(10.0 * c for c in centre))
            for size, centre in zip(sizes, centres.reshape(-1, 3), strict=True)
            if size >= 4
        ]
    table = read_table(finished_run.instances, f"{name}.parquet")
    assert len(table["z"]) == len(expected) > 10
    columns = ("class_value", "voxels", "z", "y", "x")
    found = sorted(zip(*(table[c].tolist() for c in columns), strict=True))
    np.testing.assert_allclose(found, sorted(expected), atol=1e-6)
    assert table["class_name"].tolist() == [["", "particle", "other"][v] for v in table["class_value"]]
    np.testing.assert_allclose(table["volume_nm3"], table["voxels"] * 1.0)


def test_labels_are_made_at_the_working_level_and_repeated_below(copied_run: Run) -> None:
    settle(copied_run, "run.working_voxel_size_angstrom=20", "pick.radius_angstrom=60",
           "pick.min_distance_angstrom=60", "patch.size_voxels=4", "patch.smooth_sigma_voxels=0",
           "cluster.n_clusters=4")  # fmt: skip
    ended = drive(copied_run)
    if ended.failures:  # masks of a network this small may say nothing
        assert {f["stage"] for f in ended.failures} == {"train_segmenter"}
        pytest.skip("the tiny network found no object at the coarse level")
    volume = LabelVolume(copied_run.tomogram("alpha"), "classes")
    facts = volume.facts
    assert facts.working_level == 1
    fine, coarse = (volume.read(i, Box.whole(facts.levels[i].shape)) for i in (0, 1))
    assert np.array_equal(fine, np.kron(coarse, np.ones((2, 2, 2), np.uint8)))
