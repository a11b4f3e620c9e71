"""The narrow Gaussian by products agrees with the exact one, and no voxel depends on its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import LayoutError
from cryoscale.ops.gaussian import halo_voxels, smooth_exact
from cryoscale.ops.smooth import WIDEST, gaussian_kernel, smooth_inner


@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    sigma=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0, 2.0]),
    seed=st.integers(0, 9),
)
def test_it_is_the_exact_gaussian_away_from_the_faces(
    shape: tuple[int, int, int], sigma: float, seed: int
) -> None:
    halo = halo_voxels(sigma)
    volume = np.random.default_rng(seed).normal(size=[n + 2 * halo for n in shape]).astype(np.float32)
    inner = tuple(slice(halo, halo + n) for n in shape)
    expected = smooth_exact(volume, sigma)[inner]  # its reflection reaches the faces alone
    np.testing.assert_allclose(smooth_inner(volume, sigma), expected, rtol=0, atol=2e-6)


def test_the_widest_is_right_too() -> None:
    halo = halo_voxels(WIDEST)
    volume = np.random.default_rng(0).normal(size=[2 * halo + 5] * 3).astype(np.float32)
    inner = (slice(halo, -halo),) * 3
    np.testing.assert_allclose(
        smooth_inner(volume, WIDEST), smooth_exact(volume, WIDEST)[inner], rtol=0, atol=2e-6
    )


def test_the_kernel_keeps_the_mean() -> None:
    assert gaussian_kernel(1.3).sum() == pytest.approx(1, abs=1e-15)
    np.testing.assert_array_equal(gaussian_kernel(1.3), gaussian_kernel(1.3)[::-1])


def test_without_an_inside_it_says_so() -> None:
    with pytest.raises(LayoutError, match="halo of 6 voxels"):
        smooth_inner(np.zeros((12, 20, 20), np.float32), 1.0)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_threads_of_products_change_no_bit(sigma: float) -> None:
    from threadpoolctl import threadpool_limits

    volume = np.random.default_rng(0).standard_normal((70, 180, 430), dtype=np.float32)
    found = []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.append(smooth_inner(volume, sigma))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
