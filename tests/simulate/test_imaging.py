"""The direct route: wedge, filters, noise, the ratio that was asked for, bytes and memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy import fft

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.simulate.imaging import Imaging, filter_signal, image, realised_snr_by_correlation
from cryoscale.simulate.transfer import contrast_transfer, optics_transfer, wedge_mask

SHAPE = (24, 28, 32)


def spikes(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(0)
    signal = np.zeros(shape, np.float32)
    for z, y, x in rng.integers(5, min(shape) - 5, (12, 3)):
        signal[z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3] = 1
    return signal


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    return spikes()


def frequencies(shape: tuple[int, ...], voxel: float) -> tuple[Any, Any, Any]:
    z, y, x = shape
    kz, ky = fft.fftfreq(z, voxel)[:, None, None], fft.fftfreq(y, voxel)[:, None]
    return kz, ky, fft.rfftfreq(x, voxel)


@pytest.mark.parametrize("snr", [0.01, 0.1, 2.0])
def test_realised_snr_by_the_correlation_of_two_realisations(signal: np.ndarray, snr: float) -> None:
    imaging = Imaging(snr, envelope=1.0, defocus_micrometre=4.0)
    found = []
    for seed in range(8):
        (a, realised), (b, _) = (image(signal, 10.0, imaging, s) for s in (2 * seed, 2 * seed + 1))
        assert realised == pytest.approx(snr, rel=1e-6)
        found.append(realised_snr_by_correlation(a, b))
    assert np.mean(found) == pytest.approx(snr, rel=0.1, abs=0.006)


@pytest.mark.parametrize("shape", [SHAPE, (15, 14, 13), (17, 19, 23), (16, 15, 20)])
@pytest.mark.parametrize("tilts", [(-60, 60), (-50, 70), (-90, 90)])
def test_the_signal_goes_through_the_filters_of_the_formulas(
    shape: tuple[int, int, int], tilts: tuple[float, float]
) -> None:
    """Plane by plane gives what whole arrays give; volumes of any size, also of prime ones."""
    scene = spikes(shape)
    imaging = Imaging(0.1, *tilts, defocus_micrometre=5.0)
    kz, ky, kx = frequencies(shape, 12.0)
    transfer = optics_transfer((kz**2 + ky**2 + kx**2).astype(np.float32), 12.0, imaging)
    transfer *= wedge_mask(shape[0], shape[2], imaging)[:, None]
    expected = fft.irfftn(fft.rfftn(scene.astype(np.float64) - scene.mean()) * transfer, s=shape)
    found = filter_signal(scene, 12.0, imaging)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(scene).max())
    assert found.dtype == np.float32


def test_a_tomogram_is_noise_minus_the_filtered_signal(signal: np.ndarray) -> None:
    imaging = Imaging(3.0, -50, 70, defocus_micrometre=5.0)
    volume, realised = image(signal, 12.0, imaging, 5)
    filtered = filter_signal(signal, 12.0, imaging)
    noise = volume + filtered * np.float32(np.sqrt(3.0) / filtered.std())
    assert noise.var() == pytest.approx(1, rel=1e-4)
    assert realised == pytest.approx(3.0, rel=1e-6)
    assert abs(volume.mean()) < 1e-5
    # another scene, the same seed: the same noise
    other, _ = image(signal[:, ::-1], 12.0, imaging, 5)
    again = other + filtered[:, ::-1] * np.float32(np.sqrt(3.0) / filtered.std())
    np.testing.assert_allclose(again, noise, atol=1e-4)


def test_nothing_is_left_in_the_missing_wedge_of_uneven_tilts(signal: np.ndarray) -> None:
    volume, _ = image(signal, 10.0, Imaging(0.1, -40, 65, envelope=1.0), 1)
    power = np.abs(fft.fftn(volume)) ** 2
    kz, _, kx = np.meshgrid(*(fft.fftfreq(n) for n in SHAPE), indexing="ij")
    angle = np.degrees(np.arctan2(kz * np.where(kx < 0, -1, 1), np.abs(kx)))
    sure = (np.abs(kz) < 0.5) & (np.abs(kx) < 0.5)
    missing = ((angle > 65 + 1e-6) | (angle < -40 - 1e-6)) & sure & (kx != 0)
    measured = (angle < 65) & (angle > -40) & sure
    assert power[missing].max() < 1e-9 * power.max()
    assert power[measured].mean() > 0.01 * power.mean()


def test_objects_are_dark(signal: np.ndarray) -> None:
    for defocus in (None, 4.0):
        volume, _ = image(signal, 10.0, Imaging(5.0, defocus_micrometre=defocus, envelope=1.0), 0)
        assert volume[signal > 0].mean() < volume[signal == 0].mean() - 0.5
        assert volume.dtype == np.float32
        assert volume.shape == SHAPE


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_each_noise_goes_through_its_own_filter(signal: np.ndarray, share: float) -> None:
    """Near a zero of the transfer function only the detector's share is left."""
    imaging = Imaging(
        1e-9, -90, 90, defocus_micrometre=5.0, spherical_aberration_mm=0.0, envelope=50.0,
        mtf_at_nyquist=1.0, noise_before_share=share,
    )  # fmt: skip
    volume, _ = image(signal, 14.0, imaging, 0)
    power = np.abs(fft.rfftn(volume)) ** 2
    kz, ky, kx = frequencies(SHAPE, 14.0)
    transfer = contrast_transfer((kz**2 + ky**2 + kx**2).astype(np.float32), imaging)
    expected = (1 - share) + share * transfer**2 / (transfer**2).mean()
    low, high = transfer**2 < 0.05, transfer**2 > 0.9
    ratio = power[low].mean() / power[high].mean()
    assert ratio == pytest.approx(expected[low].mean() / expected[high].mean(), rel=0.15)


@pytest.mark.parametrize("shape", [(12, 14, 16), (11, 13, 15)])
def test_white_noise_is_white_in_every_wave_and_voxel(shape: tuple[int, int, int]) -> None:
    """Made in Fourier space: every wave must have the right power, those without a partner too."""
    imaging = Imaging(1e-12, -90, 90, envelope=np.inf, mtf_at_nyquist=1.0)
    scene = np.random.default_rng(0).random(shape, dtype=np.float32)
    volumes = np.stack([image(scene, 10.0, imaging, seed)[0] for seed in range(300)])
    per_wave = (np.abs(fft.fftn(volumes, axes=(1, 2, 3))) ** 2).mean(axis=0) / scene.size
    assert per_wave[0, 0, 0] < 1e-6
    np.testing.assert_allclose(per_wave.ravel()[1:], 1, atol=0.55)  # sd 0.08 for those that are real
    for column in (0, shape[2] // 2):
        assert per_wave[:, 1:, column].mean() == pytest.approx(1, abs=0.03)
    per_voxel = volumes.var(axis=0)
    assert per_voxel.std() < 0.1
    neighbour = np.mean(volumes * np.roll(volumes, 1, axis=2))
    assert abs(neighbour) < 0.01


def test_threads_and_place_do_not_change_the_bytes(signal: np.ndarray) -> None:
    imaging = Imaging(0.1, -50, 70, defocus_micrometre=5.0)
    before = signal.copy()
    first, _ = image(signal, 10.0, imaging, 3)
    np.testing.assert_array_equal(signal, before)
    for workers in (2, 3):
        np.testing.assert_array_equal(image(signal, 10.0, imaging, 3, workers=workers)[0], first)
    there, _ = image(before, 10.0, imaging, 3, overwrite=True)
    assert there is before
    np.testing.assert_array_equal(there, first)
    assert not np.array_equal(image(signal, 10.0, imaging, 4)[0], first)


MEASURE = """
import numpy as np
from cryoscale.simulate.imaging import Imaging, image
def peak():
    lines = open('/proc/self/status').read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith('VmHWM')).split()[1])
image(np.eye(16, dtype=np.float32)[None] * np.ones((16, 1, 1), np.float32), 10.0, Imaging(0.1), 0, workers=2)
before = peak()
scene = np.full((150, 250, 250), 0.5, np.float32)  # not zeros: those take no memory until written
scene[70:80, 100:120, 100:120] = 1
image(scene, 10.0, Imaging(0.1, defocus_micrometre=5.0), 0, workers=2, overwrite=OVERWRITE)
print((peak() - before) / scene.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("overwrite", "volumes"), [(True, 2.4), (False, 3.4)])
def test_peak_memory_is_the_promise(overwrite: bool, volumes: float) -> None:
    """The scene is counted in: at most three volumes, two in place, and planes."""
    code = MEASURE.replace("OVERWRITE", str(overwrite))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) < volumes


def test_scenes_that_cannot_be_imaged(signal: np.ndarray) -> None:
    for empty in (np.zeros(SHAPE, np.float32), np.full(SHAPE, 0.1, np.float32)):
        with pytest.raises(ConfigurationError, match="empty"):
            image(empty, 10.0, Imaging(0.1), 0)
    broken = signal.copy()
    broken[3, 4, 5] = np.nan
    with pytest.raises(DataError, match="finite"):
        image(broken, 10.0, Imaging(0.1), 0)


def test_correlations_that_mean_nothing(signal: np.ndarray) -> None:
    with pytest.raises(DataError, match="different shapes"):
        realised_snr_by_correlation(signal, signal[1:])
    with pytest.raises(DataError, match="constant"):
        realised_snr_by_correlation(signal, np.ones_like(signal))
