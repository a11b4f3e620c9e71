"""Settings that are refused, the wavelength, the transfer functions and the wedge, against formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.transfer import (
    MTF_AT_NYQUIST,
    Imaging,
    contrast_transfer,
    detector_transfer,
    each,
    half_weights,
    noise_gains,
    noise_transfer,
    optics_transfer,
    seeded,
    square_frequencies,
    wavelength_angstrom,
    wedge_mask,
)


@pytest.mark.parametrize(("kv", "picometres"), [(100, 3.701), (200, 2.508), (300, 1.969)])
def test_wavelengths_are_those_of_the_textbooks(kv: float, picometres: float) -> None:
    assert wavelength_angstrom(kv) * 100 == pytest.approx(picometres, abs=6e-4)


def test_the_transfer_function_has_its_zeros_where_the_formula_puts_them() -> None:
    imaging = Imaging(0.1, defocus_micrometre=5.0, spherical_aberration_mm=0.0, amplitude_contrast=0.0)
    first_zero = np.sqrt(1 / (wavelength_angstrom(300) * 5e4))
    k = np.array([0.0, first_zero / np.sqrt(2), first_zero, first_zero * np.sqrt(2)], np.float32)
    np.testing.assert_allclose(contrast_transfer(k * k, imaging), [0, 1, 0, 0], atol=1e-4)
    below = contrast_transfer(np.float32([first_zero * 0.9, first_zero * 1.1]) ** 2, imaging)
    assert below[0] > 0 > below[1]
    assert (contrast_transfer(k, Imaging(0.1)) == 1).all()


@pytest.mark.parametrize("kv", [200.0, 300.0])
def test_spherical_aberration_counteracts_underfocus(kv: float) -> None:
    imaging = Imaging(0.1, defocus_micrometre=1.0, spherical_aberration_mm=2.7, voltage_kv=kv)
    lam = wavelength_angstrom(kv)
    expected = np.sin(np.pi * lam * 1e4 / 64 - np.pi / 2 * 2.7e7 * lam**3 / 64**2 + np.arcsin(0.07))
    assert contrast_transfer(np.float32([1 / 64]), imaging)[0] == pytest.approx(expected, abs=1e-4)


def test_the_detector_is_a_square_pixel_up_to_nyquist() -> None:
    r = np.linspace(0.01, 1, 50)
    square = (r / 28).astype(np.float32) ** 2  # Nyquist of 14 Å
    passed = detector_transfer(square, 14.0, Imaging(0.1))
    np.testing.assert_allclose(passed, np.sin(np.pi * r / 2) / (np.pi * r / 2), atol=0.01)
    assert passed[-1] == pytest.approx(MTF_AT_NYQUIST, rel=1e-5)
    assert (detector_transfer(square, 14.0, Imaging(0.1, mtf_at_nyquist=1.0)) == 1).all()


def test_the_optics_are_the_product_of_all() -> None:
    imaging = Imaging(0.1, defocus_micrometre=5.0, envelope=0.4, mtf_at_nyquist=0.5)
    square = np.float32([(0.4 / 20) ** 2])  # 0.4 of Nyquist of 10 Å: the envelope is 1/e there
    expected = contrast_transfer(square, imaging) * np.exp(-1) * 0.5**0.16
    np.testing.assert_allclose(optics_transfer(square, 10.0, imaging), expected, rtol=1e-5)
    no_envelope = Imaging(0.1, envelope=math.inf, mtf_at_nyquist=1.0)
    assert (optics_transfer(square, 10.0, no_envelope) == 1).all()


def test_the_wedge_is_what_planes_of_the_tilts_cover() -> None:
    imaging = Imaging(0.1, -50, 70)
    measured = wedge_mask(41, 63, imaging)
    kz, kx = fft.fftfreq(41)[:, None], fft.rfftfreq(63)[None, :]
    angle = np.degrees(np.arctan2(kz, kx))
    inside = (angle > -50) & (angle < 70)
    inside[0, 0] = True
    np.testing.assert_array_equal(measured, inside)
    assert measured[5, 5]
    assert not wedge_mask(41, 41, imaging)[-10, 6]  # tilted by -59 degrees: beyond -50
    assert wedge_mask(41, 41, imaging)[10, 6]  # and 59, which was measured


def test_the_wedge_filters_real_volumes_to_real_ones() -> None:
    """The waves at Nyquist have no sign: whatever the mask does to one, it must do to its mirror image."""
    for n_z, n_x in ((8, 10), (7, 10), (8, 9)):
        measured = wedge_mask(n_z, n_x, Imaging(0.1, -20, 65))
        mirrored = measured[-np.arange(n_z)]
        for column in [0] + ([n_x // 2] if n_x % 2 == 0 else []):
            np.testing.assert_array_equal(measured[:, column], mirrored[:, column])


def test_no_wedge_without_a_limit() -> None:
    assert wedge_mask(24, 28, Imaging(0.1, -90, 90)).all()
    to_the_beam = wedge_mask(24, 28, Imaging(0.1, 0, 90))
    assert to_the_beam[:, 0].all()
    assert not to_the_beam[13:, 1:-1].any()
    share = wedge_mask(64, 64, Imaging(0.1)).mean()
    assert 0.6 < share < 0.75  # two thirds of the directions, on a square grid a little more or less


@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 6, 8)])
def test_half_a_spectrum_counts_as_a_whole_one(shape: tuple[int, ...]) -> None:
    volume = np.random.default_rng(0).standard_normal(shape)
    power = (np.abs(fft.rfftn(volume)) ** 2 * half_weights(shape[2])).sum()
    assert power == pytest.approx((np.abs(fft.fftn(volume)) ** 2).sum(), rel=1e-12)
    z, y, x = square_frequencies(shape, 2.0)
    np.testing.assert_allclose(z, fft.fftfreq(shape[0], 2.0) ** 2, rtol=1e-6)
    assert (len(y), len(x)) == (shape[1], shape[2] // 2 + 1)


def test_one_filter_has_the_spectrum_of_two_noises() -> None:
    rng = np.random.default_rng(0)
    optics, detector = rng.random((2, 9, 5), dtype=np.float32)
    imaging = Imaging(0.1, noise_before_share=0.3)
    powers = float((optics**2).mean()), float((detector**2).mean())
    total = noise_transfer(optics, detector, *noise_gains(*powers, imaging)) ** 2
    assert total.mean() == pytest.approx(1, rel=1e-5)
    expected = 0.3 * optics**2 / powers[0] + 0.7 * detector**2 / powers[1]
    np.testing.assert_allclose(total, expected, rtol=1e-4)


def test_threads_keep_order_and_streams_differ() -> None:
    assert each(lambda i: i * i, 50, 3) == each(lambda i: i * i, 50, 1) == [i * i for i in range(50)]
    draws = {float(seeded(s, i).random()) for s in range(4) for i in range(4)}
    assert len(draws) == 16
    assert seeded(3, 1).random() == seeded(3, 1).random()


@settings(max_examples=50, deadline=None)
@given(low=st.floats(-90, 89), extent=st.floats(0.5, 180), n_z=st.integers(2, 30), n_x=st.integers(2, 30))
def test_a_wider_range_measures_more(low: float, extent: float, n_z: int, n_x: int) -> None:
    high = min(90.0, low + extent)
    narrow = wedge_mask(n_z, n_x, Imaging(0.1, low, high, 0.1))
    wide = wedge_mask(n_z, n_x, Imaging(0.1, max(-90.0, low - 5), min(90.0, high + 5), 0.1))
    assert narrow[0, 0]
    assert (wide >= narrow).all()


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"snr": 0.0}, "signal-to-noise ratio .* cannot be 0.0"),
        ({"snr": math.nan}, "signal-to-noise ratio .* nan"),
        ({"snr": math.inf}, "signal-to-noise ratio"),
        ({"tilt_min_degrees": -91}, "smallest tilt .* -91"),
        ({"tilt_max_degrees": 100}, "largest tilt .* 100"),
        ({"tilt_min_degrees": 60, "tilt_max_degrees": -60}, "range of tilts .* 60 to -60"),
        ({"tilt_min_degrees": 10, "tilt_max_degrees": 10}, "range of tilts"),
        ({"tilt_step_degrees": 0}, "tilt step"),
        ({"tilt_step_degrees": 121}, "tilt step .* at most 120"),
        ({"defocus_micrometre": -5.0}, "defocus .* -5.0.* positive micrometres"),
        ({"defocus_micrometre": 50000}, "defocus .* 50000"),
        ({"spherical_aberration_mm": -1}, "spherical aberration"),
        ({"voltage_kv": 300000}, "voltage .* 300000.* kilovolts"),
        ({"amplitude_contrast": 1.0}, "amplitude contrast"),
        ({"envelope": 0}, "envelope .* 0.* fraction of Nyquist"),
        ({"mtf_at_nyquist": 0}, "MTF"),
        ({"mtf_at_nyquist": 1.1}, "MTF"),
        ({"noise_before_share": 1.5}, "noise before"),
    ],
)
def test_impossible_settings(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Imaging(**{"snr": 0.1, **keywords})
