from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.ops.gaussian import filter_tile, halo_voxels, smooth_exact
from cryoscale.ops.tiles import buffer_shape, filtered_tiles, reflected, required_voxels, smoothed, tile_edge

extents = st.tuples(*[st.integers(1, 9)] * 3)


def test_tile_edge_is_clipped_per_axis():
    assert tile_edge((10, 200, 500), 192) == Zyx(10, 192, 192)
    assert buffer_shape((10, 200, 500), 192, 36) == Zyx(90, 270, 270)


@settings(max_examples=60, deadline=None)
@given(shape=extents, pad=st.integers(0, 25))
def test_reflection_equals_numpy_symmetric_for_any_halo(shape, pad):
    volume = np.arange(np.prod(shape)).reshape(shape)
    want = Box.whole(shape).grow(pad)
    found = reflected(volume, Box.whole(shape), want, shape)
    np.testing.assert_array_equal(found, np.pad(volume, pad, mode="symmetric"))


@settings(max_examples=60, deadline=None)
@given(shape=extents, data=st.data())
def test_any_box_out_of_just_what_it_needs(shape, data):
    volume = np.random.default_rng(0).integers(0, 999, shape)
    start = [data.draw(st.integers(-12, 12)) for _ in range(3)]
    stop = [a + data.draw(st.integers(1, 9)) for a in start]
    want = Box.of(start, stop)
    padded = np.pad(volume, 24, mode="symmetric")
    expected = padded[want.shift((24, 24, 24)).slices]
    indices = [
        np.pad(np.arange(n), 24, mode="symmetric")[a + 24 : b + 24]
        for a, b, n in zip(start, stop, shape, strict=True)
    ]
    read = Box.of([i.min() for i in indices], [i.max() + 1 for i in indices])
    np.testing.assert_array_equal(reflected(volume[read.slices], read, want, shape), expected)
    for axis in range(3):
        if read.shape[axis] > 1:
            less = list(read.stop)
            less[axis] -= 1
            small = Box.of(read.start, less)
            with pytest.raises(LayoutError, match=f"axis {'zyx'[axis]}"):
                reflected(volume[small.slices], small, want, shape)


def test_array_and_box_must_agree():
    with pytest.raises(LayoutError, match="has shape"):
        reflected(np.zeros((2, 2, 2)), Box.whole((2, 2, 3)), Box.whole((2, 2, 2)), (5, 5, 5))


def smoothing(sigma):
    return lambda buffer, keep: filter_tile(buffer, [(1.0, sigma)], keep)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 30), st.integers(8, 30), st.integers(8, 30)),
    tile=st.integers(4, 16),
    margin=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_tiles_cover_once_and_equal_the_whole(shape, tile, margin, seed):
    volume = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    sigma = 1.3
    exact = smooth_exact(volume, sigma)
    seen = np.zeros(shape, dtype=int)
    whole = Box.whole(shape)
    for box, cover, part in filtered_tiles(
        volume, whole, whole, shape, tile=tile, halo=halo_voxels(sigma), margin=margin, apply=smoothing(sigma)
    ):
        seen[box.slices] += 1
        assert cover == box.grow(margin).intersect(whole)
        np.testing.assert_allclose(part, exact[cover.slices], atol=2e-6)
    assert (seen == 1).all()


def test_required_voxels_suffice_and_are_tight():
    shape, core = (40, 50, 20), Box.of((17, 3, 0), (20, 9, 20))
    box = required_voxels(core, shape, tile=16, halo=5)
    assert box == Box.of((11, 0, 0), (37, 21, 20))
    volume = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    apply = smoothing(0.8)
    parts = list(filtered_tiles(volume[box.slices], box, core, shape, tile=16, halo=5, apply=apply))
    assert len(parts) == 1 * 1 * 2
    small = Box.of(box.start, [box.stop.z, box.stop.y - 1, box.stop.x])
    with pytest.raises(LayoutError, match="was read"):
        list(filtered_tiles(volume[small.slices], small, core, shape, tile=16, halo=5, apply=apply))


def test_a_core_outside_needs_nothing():
    core = Box.of((50, 0, 0), (60, 5, 5))
    assert required_voxels(core, (40, 50, 20), 16, 5).empty


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 30), st.integers(5, 30), st.integers(5, 30)),
    edge=st.integers(4, 20),
    tile=st.integers(5, 16),
    seed=st.integers(0, 9),
)
def test_smoothing_by_blocks_gives_the_same_bits(shape, edge, tile, seed):
    volume = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    whole, sigma = Box.whole(shape), 0.9
    together = smoothed(volume, whole, whole, shape, sigma, tile)
    np.testing.assert_allclose(together, smooth_exact(volume, sigma), atol=2e-6)
    for core in Grid.of(shape, edge).boxes():
        read = required_voxels(core, shape, tile, halo_voxels(sigma))
        part = smoothed(volume[read.slices], read, core, shape, sigma, tile)
        np.testing.assert_array_equal(part, together[core.slices])


def test_smoothing_outside_the_volume_is_refused():
    with pytest.raises(LayoutError, match="leaves the volume"):
        smoothed(np.zeros((4, 4, 4)), Box.whole((4, 4, 4)), Box.whole((4, 4, 5)), (4, 4, 4), 1.0, 4)
