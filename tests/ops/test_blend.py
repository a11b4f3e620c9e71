from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError, DataError, LayoutError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.ops.blend import Windows, most_likely, weight_window
from cryoscale.ops.tiles import reflected

layouts = st.tuples(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(0, 8)] * 3),
).map(lambda t: Windows.of(t[0], t[1], [min(o, s - 1) for o, s in zip(t[2], t[1], strict=True)]))


@settings(max_examples=60, deadline=None)
@given(windows=layouts)
def test_windows_cover_the_volume_and_end_flush(windows):
    whole = Box.whole(windows.shape)
    covered = np.zeros(windows.shape, dtype=int)
    starts = windows.starts_for(whole)
    assert starts == sorted(set(starts))
    for start in starts:
        box = windows.window(start)
        for axis in range(3):
            assert box.stop[axis] <= max(windows.shape[axis], windows.size[axis])
        covered[box.intersect(whole).slices] += 1
    assert covered.min() >= 1
    for axis in range(3):
        steps = np.diff(windows.axis_starts(axis))
        assert (steps > 0).all()
        assert (steps <= windows.size[axis] - windows.overlap[axis]).all()


def predict(windows, volume, core):
    """A stand-in for a network: two classes that depend on the window's content and on the place in it."""
    read = windows.read_box(core)
    part = volume[read.slices]
    ramp = np.linspace(0.9, 1.1, windows.size.voxels, dtype=np.float32).reshape(windows.size)
    for start in windows.starts_for(core):
        patch = reflected(part, read, windows.window(start), windows.shape)
        yield np.stack([patch * ramp, 1 - patch * ramp])


@settings(max_examples=40, deadline=None)
@given(windows=layouts, edge=st.tuples(*[st.integers(2, 20)] * 3), seed=st.integers(0, 99))
def test_blocks_do_not_change_a_bit(windows, edge, seed):
    volume = np.random.default_rng(seed).random(windows.shape, dtype=np.float32)
    whole = Box.whole(windows.shape)
    together = windows.accumulate(whole, windows.starts_for(whole), predict(windows, volume, whole), 2)
    for core in Grid.of(windows.shape, edge).boxes():
        part = windows.accumulate(core, windows.starts_for(core), predict(windows, volume, core), 2)
        np.testing.assert_array_equal(part, together[(slice(None), *core.slices)])


def test_blend_is_the_weighted_mean():
    windows = Windows.of((1, 1, 6), (1, 1, 4), (0, 0, 2))
    whole = Box.whole(windows.shape)
    starts = windows.starts_for(whole)
    assert starts == [Zyx(0, 0, 0), Zyx(0, 0, 2)]
    probs = [np.full((1, 1, 1, 4), 1.0), np.full((1, 1, 1, 4), 3.0)]
    blended = windows.accumulate(whole, starts, probs, 1)[0, 0, 0]
    w = weight_window((1, 1, 4))[0, 0]
    expected = [1, 1, (w[2] + 3 * w[0]) / (w[2] + w[0]), (w[3] + 3 * w[1]) / (w[3] + w[1]), 3, 3]
    np.testing.assert_allclose(blended, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, (2, 3, 4), 64, (96, 96, 96)])
def test_weights_are_positive_symmetric_and_largest_in_the_middle(size):
    weight = weight_window(size)
    assert weight.dtype == np.float32
    assert weight.shape == Zyx.of(size)
    assert weight.min() > 0
    np.testing.assert_allclose(weight, weight[::-1, ::-1, ::-1], rtol=1e-5)
    middle = tuple(n // 2 for n in weight.shape)
    assert weight[middle] == weight.max()


def test_misuse_is_refused():
    with pytest.raises(ConfigurationError, match="leaves no step"):
        Windows.of((8, 8, 8), 4, 4)
    with pytest.raises(ConfigurationError, match="above 0"):
        Windows.of((8, 8, 0), 4, 1)
    windows = Windows.of((8, 8, 8), 4, 1)
    core = Box.of((0, 0, 0), (2, 2, 2))
    starts = windows.starts_for(core)
    good = [np.zeros((2, 4, 4, 4))] * len(starts)
    with pytest.raises(LayoutError, match="not those"):
        windows.accumulate(core, [], good, 2)
    with pytest.raises(LayoutError, match="not one prediction"):
        windows.accumulate(core, starts, good[1:], 2)
    with pytest.raises(LayoutError, match="expected"):
        windows.accumulate(core, starts, [np.zeros((3, 4, 4, 4))] * len(starts), 2)
    with pytest.raises(DataError, match="not finite"):
        windows.accumulate(core, starts, [np.full((2, 4, 4, 4), np.nan)] * len(starts), 2)
    assert windows.starts_for(Box.of((8, 0, 0), (9, 2, 2))) == []
    assert windows.read_box(Box.of((8, 0, 0), (9, 2, 2))).empty


def weighted(windows, volume, core):
    weight = weight_window(windows.size)
    for probs in predict(windows, volume, core):
        yield probs * weight


@settings(max_examples=40, deadline=None)
@given(windows=layouts, edge=st.tuples(*[st.integers(2, 20)] * 3), seed=st.integers(0, 99))
def test_labels_are_the_largest_of_the_blend_whatever_the_block(windows, edge, seed):
    volume = np.random.default_rng(seed).random(windows.shape, dtype=np.float32)
    whole = Box.whole(windows.shape)
    starts = windows.starts_for(whole)
    blended = windows.accumulate(whole, starts, predict(windows, volume, whole), 2)
    together = windows.labels(whole, starts, weighted(windows, volume, whole), 2)
    sure = np.abs(blended[1] - blended[0]) > 1e-5
    np.testing.assert_array_equal(together[sure], blended.argmax(axis=0)[sure])
    for core in Grid.of(windows.shape, edge).boxes():
        part = windows.labels(core, windows.starts_for(core), weighted(windows, volume, core), 2)
        np.testing.assert_array_equal(part, together[core.slices])


def test_misuse_of_labels_is_refused():
    windows = Windows.of((8, 8, 8), 4, 1)
    core = Box.of((0, 0, 0), (2, 2, 2))
    starts = windows.starts_for(core)
    good = [np.ones((2, 4, 4, 4), np.float32)] * len(starts)
    assert not windows.labels(core, starts, good, 2).any()
    with pytest.raises(LayoutError, match="not those"):
        windows.labels(core, [], good, 2)
    with pytest.raises(LayoutError, match="not one prediction"):
        windows.labels(core, starts, good[1:], 2)
    with pytest.raises(LayoutError, match="expected"):
        windows.labels(core, starts, good, 3)
    with pytest.raises(DataError, match="not finite"):
        windows.labels(core, starts, [one * np.float32(np.nan) for one in good], 2)


@pytest.mark.parametrize("classes", [1, 2, 5, 256])
def test_most_likely_is_the_first_argmax(classes):
    votes = np.random.default_rng(0).integers(0, 4, (classes, 3, 5, 7)).astype(np.float32)  # many ties
    np.testing.assert_array_equal(most_likely(votes), votes.argmax(axis=0))
    votes[classes // 2, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        most_likely(votes)
