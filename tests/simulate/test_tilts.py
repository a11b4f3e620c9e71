"""Projections against closed forms, and what the microscope makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, ndimage

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.tilts import detector_width, image_tilt, project, tilt_angles
from cryoscale.simulate.transfer import Imaging, optics_transfer

SHAPE = (30, 20, 44)


def blob(shape: tuple[int, int, int], centre: tuple[float, float, float], sigma: float) -> np.ndarray:
    lines = [np.exp(-0.5 * ((np.arange(n) - c) / sigma) ** 2) for n, c in zip(shape, centre, strict=True)]
    return (lines[0][:, None, None] * lines[1][:, None] * lines[2]).astype(np.float32)


def test_the_tilts_of_a_series() -> None:
    np.testing.assert_array_equal(tilt_angles(Imaging(0.1)), np.arange(-60, 61))
    np.testing.assert_allclose(tilt_angles(Imaging(0.1, -50, 70, 3)), np.arange(-50, 71, 3))
    assert len(tilt_angles(Imaging(0.1, -90, 90, 1.0))) == 180  # 90 is -90 seen from behind
    assert len(tilt_angles(Imaging(0.1, -60, 60, 0.1))) == 1201  # whatever 0.1 is in binary
    assert tilt_angles(Imaging(0.1, -50, 50, 33))[-1] == 49


@settings(max_examples=30, deadline=None)
@given(
    angle=st.floats(-90, 90),
    z=st.floats(11, 18),
    x=st.floats(11, 32),
    sigma=st.floats(1.3, 2.0),
    width=st.integers(50, 61),
)
def test_a_blob_falls_where_the_formula_says(
    angle: float, z: float, x: float, sigma: float, width: int
) -> None:
    """A Gaussian's line integrals are Gaussians: place, height and width at once, to float32."""
    projection = project(blob(SHAPE, (z, 9.0, x), sigma), angle, width=width)
    t = math.radians(angle)
    u = (x - 21.5) * math.cos(t) + (z - 14.5) * math.sin(t) + (width - 1) / 2
    height = math.sqrt(2 * math.pi) * sigma
    lines = [np.exp(-0.5 * ((np.arange(n) - c) / sigma) ** 2) for n, c in ((20, 9.0), (width, u))]
    np.testing.assert_allclose(projection, height * lines[0][:, None] * lines[1], atol=2e-3 * height)
    assert projection.dtype == np.float32


def test_tilt_zero_is_the_sum_along_the_beam() -> None:
    scene = np.random.default_rng(0).standard_normal((9, 18, 21)).astype(np.float32)
    np.testing.assert_allclose(project(scene, 0.0), scene.sum(axis=0), atol=2e-5)
    sideways = project(scene, 90.0, width=9)  # u grows with z
    np.testing.assert_allclose(sideways, scene.sum(axis=2).T, atol=2e-5)


@pytest.mark.parametrize("angle", [0.0, 25.0, -50.0, 59.0, 61.0, -80.0])
def test_nothing_is_lost_or_seen_twice(angle: float) -> None:
    """The whole scene lands on a detector that is wide enough, and does not come in again at its edges."""
    scene = np.zeros((24, 3, 40), np.float32)
    scene[4:-4, :, 4:-4] = np.random.default_rng(1).random((16, 3, 32), dtype=np.float32)
    scene = ndimage.gaussian_filter(scene, (1.3, 0, 1.3), mode="constant")
    narrow = detector_width(scene.shape, [angle])
    assert narrow % 2 == 0
    wide = project(scene, angle, width=narrow + 60)
    assert wide.sum() == pytest.approx(scene.sum(), rel=1e-3)
    inside = wide[:, 30:-30]
    np.testing.assert_allclose(project(scene, angle, width=narrow), inside, atol=1e-3 * inside.max())
    assert np.abs(wide[:, :25]).max() < 1e-3 * inside.max()
    assert np.abs(wide[:, -25:]).max() < 1e-3 * inside.max()


def test_rows_and_threads_do_not_change_the_bytes() -> None:
    scene = np.random.default_rng(2).standard_normal((13, 37, 30)).astype(np.float32)
    for angle in (17.0, -72.0):
        whole = project(scene, angle)
        np.testing.assert_array_equal(project(scene, angle, workers=3), whole)
        for rows in (slice(0, 5), slice(5, 29), slice(29, 37)):
            np.testing.assert_array_equal(project(scene[:, rows], angle), whole[rows])


def test_a_tilt_out_of_range() -> None:
    with pytest.raises(ConfigurationError, match="95"):
        project(np.ones((3, 3, 3), np.float32), 95.0)


def test_the_signal_of_a_tilt_goes_through_the_optics() -> None:
    imaging = Imaging(0.1, defocus_micrometre=5.0)
    plane = np.random.default_rng(0).standard_normal((21, 30)).astype(np.float32)
    signal, noise = image_tilt(plane, 12.0, imaging, index=0, seed=1)
    ky, kx = fft.fftfreq(21, 12.0)[:, None], fft.rfftfreq(30, 12.0)
    transfer = optics_transfer((ky**2 + kx**2).astype(np.float32), 12.0, imaging)
    np.testing.assert_allclose(signal, fft.irfft2(fft.rfft2(plane) * transfer, s=(21, 30)), atol=1e-5)
    other, same = image_tilt(plane * 2, 12.0, imaging, index=0, seed=1)
    np.testing.assert_allclose(other, 2 * signal, atol=1e-5)
    np.testing.assert_array_equal(same, noise)
    assert signal.dtype == noise.dtype == np.float32


def test_the_noise_of_a_tilt() -> None:
    """Variance 1, a stream of its own per tilt and seed, half of it through the optics."""
    imaging = Imaging(
        0.1, defocus_micrometre=8.0, amplitude_contrast=0.0, envelope=np.inf, mtf_at_nyquist=1.0
    )
    empty = np.zeros((128, 130), np.float32)

    def noise(index: int, seed: int, imaging: Imaging = imaging) -> np.ndarray:
        return image_tilt(empty, 10.0, imaging, index=index, seed=seed)[1]

    first = noise(0, 1)
    assert first.var() == pytest.approx(1, abs=0.05)
    assert abs(first.mean()) < 1e-4
    for other in (noise(1, 1), noise(0, 2)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05
    power = np.abs(fft.fft2(first)) ** 2
    ky, kx = fft.fftfreq(128, 10.0)[:, None], fft.fftfreq(130, 10.0)
    transfer = optics_transfer((ky**2 + kx**2).astype(np.float32), 10.0, imaging) ** 2
    expected = 0.5 + 0.5 * transfer / transfer.mean()
    low, high = transfer < 0.05, transfer > 0.9
    assert power[low].mean() / power[high].mean() == pytest.approx(
        expected[low].mean() / expected[high].mean(), rel=0.1
    )
