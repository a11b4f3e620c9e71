"""The band-pass of slices: like the Fourier filter, but with an end."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError
from cryoscale.ops.slices import (
    CLAMP,
    NARROW_ENDS,
    WIDE_ENDS,
    WIDEST,
    SliceFilter,
    band_pass_fourier,
    band_pass_halo,
    high_pass_sigma,
    low_pass_sigma,
    preprocessing_of,
)


def noise(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def band(module: SliceFilter, image_UV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = module.band(torch.from_numpy(image_UV)[None, None])[0, 0].numpy()
    return found


@pytest.mark.parametrize("sides", [(192, 192), (256, 160)])
def test_it_does_what_the_fourier_filter_of_whole_slices_does(sides: tuple[int, int]) -> None:
    module = SliceFilter(low_pass_sigma(), high_pass_sigma(sides))
    image = noise(sides)
    inner = (
        slice(module.halo, -module.halo),
    ) * 2  # the one is periodic at the faces, the other repeats the edge
    mine, theirs = band(module, image)[inner], band_pass_fourier(image)[inner]
    assert np.corrcoef(mine.ravel(), theirs.ravel())[0, 1] > 0.99
    assert mine.std() == pytest.approx(theirs.std(), rel=0.06)


def test_it_is_the_difference_of_two_gaussians() -> None:
    module, image = SliceFilter(1.5, 4.0), noise((96, 96))
    narrow = scipy.ndimage.gaussian_filter(image.astype(float), 1.5, mode="nearest", truncate=6)
    wide = scipy.ndimage.gaussian_filter(image.astype(float), np.hypot(1.5, 4.0), mode="nearest", truncate=6)
    # Cut at 4 and 3 sigma the kernels lack 6e-5 and 3e-3 of their weight.
    assert np.abs(band(module, image) - (narrow - wide)).max() < 0.1 * (narrow - wide).std()


@pytest.mark.parametrize("sides", [(96, 96), (40, 75)])
def test_it_is_the_difference_of_the_cut_gaussians_to_rounding(sides: tuple[int, int]) -> None:
    module, image = SliceFilter(1.5, 4.0), noise(sides)
    smoothed = []
    for sigma, ends in ((1.5, NARROW_ENDS), (float(np.hypot(1.5, 4.0)), WIDE_ENDS)):
        reach = int(np.ceil(ends * sigma))
        weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        along_u = scipy.ndimage.correlate1d(image.astype(float), weights / weights.sum(), 0, mode="nearest")
        smoothed.append(scipy.ndimage.correlate1d(along_u, weights / weights.sum(), 1, mode="nearest"))
    np.testing.assert_allclose(band(module, image), smoothed[0] - smoothed[1], rtol=0, atol=2e-6)


@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, 40), side=st.integers(2, 30), seed=st.integers(0, 99))
def test_nothing_beyond_the_halo_plays_a_part(first: int, side: int, seed: int) -> None:
    module = SliceFilter(0.7, 2.5, 0.2, 0.4)
    halo = module.halo
    image = torch.from_numpy(noise((1, 2, 90, 90), seed))
    whole = module(image)
    tile = image[..., first : first + side + 2 * halo, first : first + side + 2 * halo]
    core = slice(halo, -halo)
    found = module(tile)[..., core, core]
    at = slice(first + halo, first + tile.shape[-1] - halo)
    torch.testing.assert_close(found, whole[..., at, at], rtol=0, atol=1e-6)


def test_a_voxel_at_the_halo_plays_one() -> None:
    module = SliceFilter(0.7, 2.5)
    image = torch.zeros(1, 1, 2 * module.halo + 1, 2 * module.halo + 1)
    image[..., 0, module.halo] = 1
    assert module.band(image)[0, 0, module.halo, module.halo] != 0
    assert module.halo == band_pass_halo(0.7, 2.5)


def test_values_are_scaled_clamped_and_divided() -> None:
    module, image = SliceFilter(0.7, 2.5, mean=0.05, sd=0.1), noise((64, 64))
    expected = np.clip((band(module, image) - 0.05) / 0.1, -CLAMP, CLAMP) / CLAMP
    found = module(torch.from_numpy(image)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() == 1.0
    assert found.min() == -1.0


def test_a_constant_becomes_nothing() -> None:
    found = SliceFilter(0.7, 5.0).band(torch.full((1, 1, 50, 50), 7.0))
    assert found.abs().max() < 1e-5


def test_the_card_makes_the_same_filter() -> None:
    module, image = SliceFilter(0.7, 2.5, 0.3, 1.7), torch.from_numpy(noise((1, 1, 40, 40)))
    again = preprocessing_of({"preprocessing": module.card})
    assert again is not None
    assert torch.equal(again(image), module(image))
    assert again.card == module.card
    assert preprocessing_of({}) is None
    assert preprocessing_of({"preprocessing": {}}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "wiener"}, "'wiener'"), ({"sd": None}, "incomplete"), ({"sd": 0}, "positive")],
)
def test_a_card_of_something_else_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        preprocessing_of({"preprocessing": SliceFilter(0.7, 2.5).card | change})


def test_widths() -> None:
    assert low_pass_sigma() == pytest.approx(0.6366, abs=1e-4)
    assert high_pass_sigma((512, 512)) == pytest.approx(16.3, abs=0.01)
    assert high_pass_sigma((4000, 4000)) == WIDEST
    with pytest.raises(ConfigurationError):
        SliceFilter(3.0, 2.0)
