"""The wedge, the transfer function, and the signal-to-noise ratio that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.imaging import (
    WAVELENGTH_ANGSTROM,
    Imaging,
    contrast_transfer,
    frequencies,
    image,
    wedge_mask,
)

SHAPE = (24, 28, 32)


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    rng = np.random.default_rng(0)
    spikes = np.zeros(SHAPE, np.float32)
    for z, y, x in rng.integers(5, 19, (12, 3)):
        spikes[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 1
    return spikes


@pytest.mark.parametrize("snr", [0.01, 0.1, 2.0])
def test_realised_snr_by_the_correlation_of_two_realisations(signal: np.ndarray, snr: float) -> None:
    imaging = Imaging(snr, envelope=1.0, defocus_micrometre=4.0)
    pairs = []
    for seed in range(6):
        (a, realised), (b, _) = (image(signal, 10.0, imaging, seed=s) for s in (2 * seed, 2 * seed + 1))
        assert realised == pytest.approx(snr, rel=1e-3)
        c = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        pairs.append(c / (1 - c))
    assert np.mean(pairs) == pytest.approx(snr, rel=0.1, abs=0.006)


@pytest.mark.parametrize("degrees", [40.0, 60.0])
def test_nothing_is_left_in_the_missing_wedge(signal: np.ndarray, degrees: float) -> None:
    volume, _ = image(signal, 10.0, Imaging(0.1, degrees, envelope=1.0), seed=1)
    power = np.abs(fft.fftn(volume)) ** 2
    kz, _, kx = np.meshgrid(*(fft.fftfreq(n) for n in SHAPE), indexing="ij")
    angle = np.degrees(np.arctan2(np.abs(kz), np.abs(kx)))
    missing = (angle > degrees + 1e-6) & (kz != -0.5)
    assert power[missing].max() < 1e-9 * power.max()
    assert power[~missing & (angle < degrees)].mean() > 0.01 * power.mean()


def test_no_wedge_at_ninety_degrees() -> None:
    assert wedge_mask(SHAPE, 90).all()
    share = wedge_mask((64, 1, 64), 60).mean()
    assert 0.6 < share < 0.75  # two thirds of the directions, on a square grid a little more or less


def test_objects_are_dark(signal: np.ndarray) -> None:
    for defocus in (None, 4.0):
        volume, _ = image(signal, 10.0, Imaging(5.0, defocus_micrometre=defocus, envelope=1.0), seed=0)
        assert volume[signal > 0].mean() < volume[signal == 0].mean() - 0.5
        assert volume.dtype == np.float32
        assert volume.shape == SHAPE


def test_the_transfer_function_has_its_zeros_where_the_formula_puts_them() -> None:
    imaging = Imaging(0.1, defocus_micrometre=5.0, spherical_aberration_mm=0.0, amplitude_contrast=0.0)
    first_zero = np.sqrt(1 / (WAVELENGTH_ANGSTROM * 5e4))
    k = np.array([0.0, first_zero / np.sqrt(2), first_zero, first_zero * np.sqrt(2)], np.float32)
    np.testing.assert_allclose(contrast_transfer(k, imaging), [0, 1, 0, 0], atol=1e-4)
    below = contrast_transfer(np.float32([first_zero * 0.9, first_zero * 1.1]), imaging)
    assert below[0] > 0 > below[1]
    assert (contrast_transfer(k, Imaging(0.1)) == 1).all()


def test_spherical_aberration_counteracts_underfocus() -> None:
    k = np.float32([1 / 8.0])
    lam = WAVELENGTH_ANGSTROM
    with_cs = contrast_transfer(k, Imaging(0.1, defocus_micrometre=1.0, spherical_aberration_mm=2.7))[0]
    expected = np.sin(np.pi * lam * 1e4 / 64 - np.pi / 2 * 2.7e7 * lam**3 / 64**2 + np.arcsin(0.07))
    assert with_cs == pytest.approx(expected, abs=1e-4)


def test_frequencies_are_those_of_scipy() -> None:
    kz, ky, kx = frequencies(SHAPE, 10.0)
    np.testing.assert_allclose(kz.ravel(), fft.fftfreq(24, 10.0), rtol=1e-6)
    np.testing.assert_allclose(kx.ravel(), fft.rfftfreq(32, 10.0), rtol=1e-6)
    assert ky.shape == (1, 28, 1)


def test_half_the_noise_goes_through_the_optics(signal: np.ndarray) -> None:
    """Near a zero of the transfer function only the detector's half is left."""
    imaging = Imaging(1e-9, 90.0, defocus_micrometre=5.0, spherical_aberration_mm=0.0, envelope=50.0)
    volume, _ = image(signal, 14.0, imaging, seed=0)
    power = np.abs(fft.rfftn(volume)) ** 2
    kz, ky, kx = frequencies(SHAPE, 14.0)
    transfer = contrast_transfer(np.sqrt(kz**2 + ky**2 + kx**2), imaging)
    expected = 0.5 + 0.5 * transfer**2 / (transfer**2).mean()
    low, high = transfer**2 < 0.05, transfer**2 > 0.9
    assert power[high].mean() / power[low].mean() == pytest.approx(
        expected[high].mean() / expected[low].mean(), rel=0.15
    )


@pytest.mark.parametrize(
    ("keywords", "word"),
    [
        ({"snr": 0.0}, "signal-to-noise"),
        ({"snr": 1, "wedge_degrees": 0}, "tilt"),
        ({"snr": 1, "envelope": 0}, "envelope"),
    ],
)
def test_impossible_settings(keywords: dict, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        Imaging(**keywords)


def test_an_empty_scene_has_no_snr() -> None:
    with pytest.raises(ConfigurationError, match="empty"):
        image(np.zeros(SHAPE, np.float32), 10.0, Imaging(0.1), seed=0)
