from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cryoscale.ops.gaussian import filter_tile, halo_voxels, smooth_exact, smooth_tile


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_halo_is_six_sigma():
    assert halo_voxels(1.0) == 6
    assert halo_voxels(5.85) == 36
    assert halo_voxels(0.0) == 0


@pytest.mark.parametrize("sigma", [0.05, 0.4, 0.8, 1.5, 3.0])
def test_exact_smoothing_equals_scipy_with_a_long_kernel(sigma):
    volume = noise((17, 24, 31))
    reference = ndimage.gaussian_filter(volume.astype(np.float64), sigma, mode="reflect", truncate=12.0)
    np.testing.assert_allclose(smooth_exact(volume, sigma), reference, atol=2e-6)


def test_zero_width_changes_nothing():
    volume = noise((5, 6, 7))
    np.testing.assert_allclose(smooth_exact(volume, 0.0), volume, atol=1e-6)
    np.testing.assert_allclose(smooth_tile(volume, 0.0), volume, atol=1e-6)


def test_smoothing_keeps_constants_and_type():
    result = smooth_exact(np.full((4, 5, 6), 3, dtype=np.int16), 2.0)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, 3.0, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 21)] * 3),
    sigma=st.floats(0.3, 8.0),
    ratio=st.floats(1.05, 3.0),
    seed=st.integers(0, 99),
)
def test_periodic_tile_equals_scipy(shape, sigma, ratio, seed):
    tile = noise(shape, seed)
    terms = [(1.0, sigma), (-1.0, sigma * ratio)]
    wide = tile.astype(np.float64)
    reference = ndimage.gaussian_filter(wide, sigma, mode="wrap", truncate=9.0)
    reference -= ndimage.gaussian_filter(wide, sigma * ratio, mode="wrap", truncate=9.0)
    np.testing.assert_allclose(filter_tile(tile, terms), reference, atol=2e-6)


def test_kept_part_is_part_of_the_whole():
    tile = noise((20, 24, 18))
    keep = (slice(3, 15), slice(2, 20), slice(5, 18))
    whole = filter_tile(tile, [(1.0, 2.0)])
    np.testing.assert_allclose(filter_tile(tile, [(1.0, 2.0)], keep), whole[keep], atol=1e-6)


def test_padded_tile_equals_exact_inside():
    sigma, halo = 1.7, halo_voxels(1.7)
    volume = noise((40, 40, 40))
    tile = smooth_tile(volume[4:36, 4:36, 4:36], sigma)[halo:-halo, halo:-halo, halo:-halo]
    exact = smooth_exact(volume, sigma)[4 + halo : 36 - halo, 4 + halo : 36 - halo, 4 + halo : 36 - halo]
    np.testing.assert_allclose(tile, exact, atol=1e-6)
