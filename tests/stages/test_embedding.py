"""Sums of windows given plane by plane are those of all windows at once, for any core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.errors import DataError
from cryoscale.geometry import Box, Zyx
from cryoscale.ops.blend import Windows, weight_window
from cryoscale.stages.embedding import blended, embedded, object_first, shares_of, touching
from cryoscale.stages.networks import ALONE_VOXELS, BATCH, BATCH_VOXELS, batch_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryoscale.stages.embedding import Float32, Slices


def add(result: Float32, inner: Slices, target: Float32) -> None:
    target += result[(slice(None), *inner)]


def answers(windows: Windows, core: Box, channels: int) -> Iterator[Float32]:
    """A prediction for each window that depends on where it stands alone."""
    weight = weight_window(windows.size)
    for start in windows.starts_for(core):
        rng = np.random.default_rng([*start])
        yield rng.random((channels, *windows.size), np.float32) * weight


@st.composite
def cases(draw: st.DrawFn) -> tuple[Windows, Box]:
    size = [draw(st.integers(1, 6)) for _ in range(3)]
    overlap = [draw(st.integers(0, s - 1)) for s in size]
    shape = [draw(st.integers(1, 14)) for _ in range(3)]
    start = [draw(st.integers(0, n - 1)) for n in shape]
    stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    return Windows.of(shape, size, overlap), Box.of(start, stop)


def summed(windows: Windows, core: Box) -> Float32:
    sums = np.full((2, *core.shape), np.nan, np.float32)
    planes = core.start.z
    for first, part in blended(windows, core, 2, answers(windows, core, 2), add):
        assert first == planes
        sums[:, first - core.start.z : first - core.start.z + part.shape[1]] = part
        planes = first + part.shape[1]
    assert planes == core.stop.z
    return sums


@given(cases())
def test_planes_are_the_planes_of_all_windows_at_once(case: tuple[Windows, Box]) -> None:
    windows, core = case
    whole = Box.whole(windows.shape)
    expected = np.zeros((2, *windows.shape), np.float32)
    for start, result in zip(windows.starts_for(whole), answers(windows, whole, 2), strict=True):
        inside = windows.window(start).intersect(whole)
        expected[(slice(None), *inside.slices)] += result[(slice(None), *inside.relative_to(start).slices)]
    np.testing.assert_array_equal(summed(windows, core), expected[(slice(None), *core.slices)])


def test_patches_that_touch_a_core_and_no_others() -> None:
    centres = np.array([[2, 2, 2], [2, 2, 9], [2, 2, 12], [30, 2, 2]])
    core = Box.of((0, 0, 4), (8, 8, 12))
    assert touching(core, centres, Zyx(4, 4, 4)).tolist() == [1, 2]
    found = list(embedded(core, centres, Zyx(4, 4, 4), lambda rows: rows * 10, 1))
    assert [(row, int(result)) for row, result, _, _ in found] == [(1, 10), (2, 20)]
    assert found[1][2] == (slice(0, 4), slice(0, 4), slice(6, 8))
    assert found[1][3] == (slice(0, 4), slice(0, 4), slice(0, 2))


def test_object_comes_before_class() -> None:
    votes = np.array([[0.4, 0.6, 0.0], [0.35, 0.3, 0.0], [0.25, 0.1, 0.0]], np.float32)[:, None, None]
    assert object_first(votes).ravel().tolist() == [1, 0, 0]


def test_shares_of_votes() -> None:
    votes = np.array([[1.0, 0.0, 0.25], [3.0, 0.0, 0.0], [0.0, 0.0, 0.75]], np.float32)[:, None, None]
    np.testing.assert_array_equal(shares_of(votes)[:, 0, 0], [[0.75, 0, 0], [0, 0, 0.75]])
    votes[1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        shares_of(votes)


def test_batches_get_smaller_as_items_get_larger() -> None:
    assert [batch_for(side**3) for side in (8, 32, 40, 48, 60, 64, 128)] == [64, 64, 64, 32, 16, 1, 1]
    assert all(
        batch_for(n) * n <= BATCH_VOXELS and batch_for(n) <= BATCH for n in range(1, ALONE_VOXELS, 997)
    )
