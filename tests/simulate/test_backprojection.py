"""Weighted back-projection against what was projected, seams, and the two routes against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import fft, ndimage

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.simulate.backprojection import (
    angular_weights,
    backproject,
    compare_routes,
    mixture,
    ramp_filter,
    reconstruct_signal,
    row_sums,
)
from cryoscale.simulate.imaging import filter_signal
from cryoscale.simulate.scene import build_scene
from cryoscale.simulate.tilts import detector_width, image_tilt, project, tilt_angles
from cryoscale.simulate.transfer import Imaging
from tests.simulate.test_tilts import blob

COPIES = {"ribosome": 6, "barrel": 6, "ball": 6}


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return build_scene((48, 80, 84), 14.0, COPIES, vesicles=1, margin_angstrom=150.0, seed=3).signal_ZYX


def series(scene: np.ndarray, imaging: Imaging) -> tuple[np.ndarray, np.ndarray]:
    angles = tilt_angles(imaging)
    width = detector_width(scene.shape, angles)
    return np.stack([project(scene, angle, width=width) for angle in angles]), angles


def test_weights_are_half_the_gaps() -> None:
    np.testing.assert_allclose(np.degrees(angular_weights([-10, -5, 5, 6])), [5, 7.5, 5.5, 1])
    assert angular_weights(tilt_angles(Imaging(0.1, -90, 90, 2))).sum() == pytest.approx(math.pi)
    assert angular_weights([7.0])[0] == pytest.approx(math.pi)
    with pytest.raises(ConfigurationError, match="rise"):
        angular_weights([3.0, 2.0])


def test_the_ramp_is_a_ramp() -> None:
    ramp = ramp_filter(240)
    k = fft.rfftfreq(240)
    passed = k < 0.44
    np.testing.assert_allclose(ramp[passed], k[passed], atol=1e-3)
    assert 0 < ramp[0] < 2e-3  # of a row as long as this one, the mean is not nothing
    assert ramp[-1] == pytest.approx(0, abs=1e-6)
    half = ramp_filter(240, cutoff=0.5)
    assert np.abs(half[k >= 0.25]).max() < 1e-6


def test_without_a_wedge_the_scene_comes_back() -> None:
    """Height, width and place at once: nothing scaled, blurred or moved by a part of a voxel."""
    original = blob((30, 12, 44), (17.3, 5.0, 27.6), 1.5)
    tilts, angles = series(original, Imaging(0.1, -90, 90, 1.5))
    found = backproject(tilts, angles, 30, width_x=44)
    np.testing.assert_allclose(found, original, atol=2e-3)
    assert found.dtype == np.float32


def test_rows_and_threads_do_not_change_the_bytes() -> None:
    """Any rows of the tilts give the same rows of the tomogram, bit for bit."""
    rng = np.random.default_rng(0)
    tilts, angles = rng.standard_normal((15, 150, 40), dtype=np.float32), np.linspace(-50, 70, 15)
    whole = backproject(tilts, angles, 14, width_x=37)
    assert whole.shape == (14, 150, 37)
    np.testing.assert_array_equal(backproject(tilts, angles, 14, width_x=37, workers=3), whole)
    for start, stop in ((0, 1), (1, 18), (18, 101), (101, 150)):
        part = backproject(tilts[:, start:stop], angles, 14, width_x=37)
        np.testing.assert_array_equal(part, whole[:, start:stop])


def test_what_the_detector_did_not_see_adds_nothing() -> None:
    tilts = np.ones((1, 2, 11), np.float32)
    found = backproject(tilts, [0.0], 3, width_x=31)
    assert not found[:, :, :10].any()
    assert not found[:, :, 21:].any()
    assert found[:, :, 10:21].all()


def test_what_cannot_be_reconstructed() -> None:
    with pytest.raises(ConfigurationError, match=r"cutoff .* 1\.5"):
        backproject(np.zeros((2, 4, 5), np.float32), [0.0, 1.0], 4, cutoff=1.5)
    with pytest.raises(DataError, match="3 tilts have 2 angles"):
        backproject(np.zeros((3, 4, 5), np.float32), [0.0, 1.0], 4)


@pytest.mark.parametrize("tilts", [(-60.0, 60.0), (-50.0, 70.0)])
def test_the_two_routes_agree(scene: np.ndarray, tilts: tuple[float, float]) -> None:
    """Thresholds are a little below what was measured; a wedge on the wrong side or a shift by half a
    voxel falls far below."""
    imaging = Imaging(0.1, *tilts, defocus_micrometre=5.0, envelope=1.0)
    routes = compare_routes(scene, 14.0, imaging)
    assert routes.correlation > 0.99
    assert routes.scale == pytest.approx(1, abs=0.04)
    assert routes.leaked_share < 0.04
    middle = (routes.shell_S > 0.2) & (routes.shell_S < 0.8)
    assert routes.shell_correlation_S[middle].min() > 0.99
    np.testing.assert_allclose(routes.shell_scale_S[middle], 1, atol=0.03)
    inside = (routes.cone_C > tilts[0] + 10) & (routes.cone_C < tilts[1] - 10)
    assert routes.cone_correlation_C[inside].min() > 0.97
    beyond = (routes.cone_C < tilts[0] - 4) | (routes.cone_C > tilts[1] + 4)
    assert np.isnan(routes.cone_correlation_C[beyond]).all()


def test_the_comparison_notices_what_is_wrong(scene: np.ndarray) -> None:
    """The same measures, with the other route's tilts mirrored."""
    imaging = Imaging(0.1, -40, 70, defocus_micrometre=5.0, envelope=1.0)
    mirrored = Imaging(0.1, -70, 40, defocus_micrometre=5.0, envelope=1.0)
    direct = filter_signal(scene, 14.0, imaging)
    right, wrong = (reconstruct_signal(scene, 14.0, i) for i in (imaging, mirrored))
    moved = ndimage.shift(right, (0, 0, 0.5), order=3)
    scores = [np.corrcoef(direct.ravel(), v.ravel())[0, 1] for v in (right, wrong, moved)]
    assert scores[0] > 0.97
    assert scores[0] > scores[1] + 0.05
    assert scores[0] > scores[2] + 0.02


def test_a_ball_stands_where_it_stood() -> None:
    """Both routes, to a fiftieth of a voxel, in spite of the wedge."""
    centre = (14.3, 20.0, 23.6)
    original = blob((30, 40, 44), centre, 2.0)
    imaging = Imaging(0.1, -58, 58, 2.0, defocus_micrometre=5.0, envelope=1.0)
    for volume in (filter_signal(original, 14.0, imaging), reconstruct_signal(original, 14.0, imaging)):
        top = np.unravel_index(volume.argmax(), volume.shape)
        for axis, place in enumerate(top):
            near = [
                volume[tuple(place + d if a == axis else p for a, p in enumerate(top))] for d in (-1, 0, 1)
            ]
            found = place + (near[0] - near[2]) / (2 * (near[0] - 2 * near[1] + near[2]))
            assert found == pytest.approx(centre[axis], abs=0.02)


def test_signal_and_noise_are_mixed_at_the_wanted_ratio(scene: np.ndarray) -> None:
    imaging = Imaging(0.1, -60, 60, 3.0, defocus_micrometre=5.0)
    tilts, angles = series(scene, imaging)
    pairs = [image_tilt(tilt, 14.0, imaging, index=n, seed=4) for n, tilt in enumerate(tilts)]
    depth, _, width = scene.shape
    signal, noise = (
        backproject(np.stack(part), angles, depth, width_x=width) for part in zip(*pairs, strict=True)
    )
    whole = mixture(row_sums(signal), row_sums(noise), signal.size, imaging.snr)
    assert whole.realised_snr == pytest.approx(0.1, rel=1e-6)
    volume = whole.apply(signal, noise)
    assert abs(volume.mean(dtype=np.float64)) < 1e-4
    assert (whole.noise_factor * noise).var() == pytest.approx(1, rel=1e-3)
    assert (whole.signal_factor * signal).var() == pytest.approx(0.1, rel=1e-3)
    smooth = ndimage.gaussian_filter(volume, 2)
    assert smooth[scene > 0.5].mean() < smooth[scene == 0].mean() - smooth.std()  # objects are dark
    # from parts, in any order, the same to the last bit
    parts = [
        np.concatenate([row_sums(v[:, s]) for s in (slice(31, 80), slice(0, 31))]) for v in (signal, noise)
    ]
    assert mixture(*parts, signal.size, imaging.snr) == whole
    part = whole.apply(signal[:, 3:9], noise[:, 3:9])
    np.testing.assert_array_equal(part, volume[:, 3:9])


def test_mixtures_that_cannot_be() -> None:
    noise = row_sums(np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32))
    with pytest.raises(ConfigurationError, match="empty"):
        mixture(np.zeros((5, 2)), noise, 120, 0.1)
    with pytest.raises(DataError, match="finite"):
        mixture(np.full((5, 2), np.nan), noise, 120, 0.1)
