"""Shell correlations against formulas and a plain loop; averages against the density that was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.evaluate import averages
from cryoscale.evaluate import structures as s
from cryoscale.simulate.shapes import particle_density


def noise(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def filtered(volume: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    return np.fft.ifftn(np.fft.fftn(volume) * transfer).real


def radius(shape: tuple[int, int, int]) -> np.ndarray:
    k = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    return np.sqrt(sum(v**2 for v in k))


def wedge(shape: tuple[int, int, int], tilt: float) -> np.ndarray:
    """Which voxels of a real transform lie within a tilt of the kx axis."""
    kz, kx = np.fft.fftfreq(shape[0])[:, None, None], np.fft.rfftfreq(shape[2])
    return np.abs(kz) <= np.abs(kx) * math.tan(math.radians(tilt)) + 1e-9


def plain_loop(a: np.ndarray, b: np.ndarray) -> tuple[list[float], list[int]]:
    """Over the full transform, voxel by voxel."""
    f, g = np.fft.fftn(a - a.mean()), np.fft.fftn(b - b.mean())
    n = min(a.shape)
    shell = np.rint(radius(a.shape) * n)
    correlation, counts = [], []
    for k in range(1, n // 2 + 1):
        i = shell == k
        norm = math.sqrt((abs(f[i]) ** 2).sum() * (abs(g[i]) ** 2).sum())
        correlation.append(float((f[i] * g[i].conj()).sum().real / norm))
        counts.append(int(i.sum()))
    return correlation, counts


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(4, 13)] * 3))
def test_it_is_the_correlation_of_shells(seed: int, shape: tuple[int, int, int]) -> None:
    a = noise(seed, shape)
    b = a + noise(seed + 1, shape)
    found = s.fourier_shell_correlation(a, b, 2.0)
    correlation, counts = plain_loop(a, b)
    np.testing.assert_allclose(found.correlation_K, correlation, atol=1e-10)
    assert found.counts_K.tolist() == counts
    np.testing.assert_allclose(found.frequency_K, np.arange(1, len(counts) + 1) / (2.0 * min(shape)))


def test_waves_by_hand() -> None:
    z, y, x = np.meshgrid(*[np.arange(8)] * 3, indexing="ij")
    wave = 2 * np.pi / 8
    a = 2 * np.cos(wave * x) + np.cos(wave * y) + np.cos(2 * wave * z)
    b = np.cos(wave * x) - np.cos(wave * y) + 5 * np.cos(2 * wave * z + 1.0)
    found = s.fourier_shell_correlation(a, b, 3.0)
    # Shell 1: (2 - 1) / sqrt((4 + 1) (1 + 1)). Shell 2: the phase. Beyond: nothing in either.
    np.testing.assert_allclose(
        found.correlation_K, [1 / math.sqrt(10), math.cos(1), np.nan, np.nan], atol=1e-12
    )
    only_a = s.fourier_shell_correlation(a, np.cos(wave * x), 3.0)
    np.testing.assert_allclose(only_a.correlation_K, [2 / math.sqrt(5), 0, np.nan, np.nan], atol=1e-12)


def test_same_volume_scale_and_offset() -> None:
    a, b = noise(0, (12, 14, 10)), noise(1, (12, 14, 10))
    b = a + b
    np.testing.assert_allclose(s.fourier_shell_correlation(a, a, 1.0).correlation_K, 1)
    np.testing.assert_allclose(s.fourier_shell_correlation(a, -3 * a + 9, 1.0).correlation_K, -1)
    mask = s.soft_spherical_mask(a.shape, 3)
    for m in (None, mask):
        plain = s.fourier_shell_correlation(a, b, 1.0, mask=m)
        moved = s.fourier_shell_correlation(0.1 * a - 40, 7 * b + 1000, 1.0, mask=m)
        np.testing.assert_allclose(moved.correlation_K, plain.correlation_K, atol=1e-9)
    assert s.fourier_shell_correlation(a, a, 4.0).at_half == 8.0
    assert s.fourier_shell_correlation(a, -a, 4.0).at_half == math.inf


def test_independent_noise_stays_within_its_error() -> None:
    z_values = []
    for seed in range(20):
        found = s.fourier_shell_correlation(noise(seed, (16, 20, 18)), noise(99 + seed, (16, 20, 18)), 1.0)
        z_values.append(found.correlation_K * np.sqrt(found.counts_K))
    z = np.concatenate(z_values)
    assert z.std() == pytest.approx(1, abs=0.15)
    assert abs(z.mean()) < 0.25


@pytest.mark.parametrize("shape", [(48, 48, 48), (40, 48, 56)])
def test_crossings_where_the_formula_puts_them(shape: tuple[int, int, int]) -> None:
    voxel, decay, sigma = 5.0, 0.25, 0.3
    transfer = np.exp(-((radius(shape) / decay) ** 2))
    a = noise(0, shape)
    b = filtered(a, transfer) + sigma * noise(1, shape)
    # FSC = H / sqrt(H^2 + sigma^2) is t where H = sigma t / sqrt(1 - t^2).
    found = s.fourier_shell_correlation(a, b, voxel)
    for threshold in (0.5, 0.143):
        height = sigma * threshold / math.sqrt(1 - threshold**2)
        frequency = decay * math.sqrt(math.log(1 / height))
        assert found.resolution(threshold) == pytest.approx(voxel / frequency, rel=0.05), threshold
    # Two halves with noise of their own: FSC = P / (P + sigma^2), 0.5 where P = sigma^2.
    halves = [filtered(a, transfer) + sigma * noise(seed, shape) for seed in (2, 3)]
    expected = decay * math.sqrt(math.log(1 / sigma))
    assert s.fourier_shell_correlation(*halves, voxel).at_half == pytest.approx(voxel / expected, rel=0.05)


def test_resolution_rules() -> None:
    def at(*values: float) -> float:
        k = np.arange(1, len(values) + 1) / 10
        return s.ShellCorrelation(k, np.array(values), np.ones(len(values), np.int64), 1.0).resolution(0.5)

    assert at(0.9, 0.7, 0.3, 0.9) == pytest.approx(1 / 0.25)
    assert at(0.9, np.nan, 0.1) == pytest.approx(1 / 0.2)
    assert at(0.4, 0.3) == math.inf
    assert at(0.4, 0.9) == 2
    assert at(-0.4, np.nan, 0.9, 0.7, 0.3, 0.9) == pytest.approx(1 / 0.45)
    assert at(0.9, 0.5) == 2
    assert math.isnan(at(np.nan, np.nan))


def test_the_missing_wedge_can_be_left_out() -> None:
    shape = (24, 20, 24)
    a = noise(0, shape)
    kept = wedge(shape, 50)
    b = np.fft.irfftn(np.fft.rfftn(a) * kept, s=shape, axes=(0, 1, 2))
    assert s.fourier_shell_correlation(a, b, 1.0).correlation_K.max() < 0.95
    inside = s.fourier_shell_correlation(a, b, 1.0, measured=kept)
    np.testing.assert_allclose(inside.correlation_K, 1)
    assert (inside.counts_K < s.fourier_shell_correlation(a, b, 1.0).counts_K).all()
    mine = s.measured_by_tilts(shape, (-50, 50))
    np.testing.assert_array_equal(mine, np.broadcast_to(kept, mine.shape))


def test_an_uneven_tilt_range_lies_between_its_angles() -> None:
    shape = (31, 5, 31)
    measured = s.measured_by_tilts(shape, (-30, 60))
    kz, kx = np.fft.fftfreq(31)[:, None], np.fft.rfftfreq(31)[None, :]
    angle = np.degrees(np.arctan2(kz, kx))
    off = kx[0] > 0
    np.testing.assert_array_equal(measured[:, 2, off], ((angle >= -30 - 1e-6) & (angle <= 60 + 1e-6))[:, off])
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()  # the particle's y is the volume's -x
    turned = s.measured_by_tilts((31, 31, 31), (-30, 30), rotation_33=quarter)
    assert turned[0, 5, 0]
    assert turned[1, 10, 0]
    assert not turned[10, 1, 0]
    assert turned[0, 0, 9]
    assert not turned[9, 0, 9]


def test_mask() -> None:
    mask = s.soft_spherical_mask((21, 21, 31), 5, edge_voxels=4)
    assert mask[10, 10, 15] == mask[10, 10, 20] == 1
    assert mask[10, 10, 22] == pytest.approx(0.5)
    assert mask[10, 10, 24] == pytest.approx(0, abs=1e-7)
    sharp = s.soft_spherical_mask((9, 9, 9), 2, edge_voxels=0, centre=(4, 4, 3))
    assert set(np.unique(sharp)) == {0, 1}
    assert sharp[4, 4, 1] == 1
    assert sharp[4, 4, 6] == 0
    assert sharp.sum() == 33  # lattice points within 2 of one of them


def test_a_patch_turns_back_to_the_density() -> None:
    """The convention of the quaternion, by the simulator: particle_density turns with the same one."""
    turn = Rotation.from_euler("zyx", [40, 25, 70], degrees=True)
    offset = (0.3, -0.4, 0.2)
    patch = particle_density("ribosome", 10.0, rotation_33=turn.as_matrix(), offset_zyx=offset)
    truth = averages.on_grid(particle_density("ribosome", 10.0), patch.shape)
    back = averages.turned_back(patch, turn.as_quat(), offset)
    assert np.corrcoef(back.ravel(), truth.ravel())[0, 1] > 0.99
    wrong = averages.turned_back(patch, turn.inv().as_quat(), offset)
    assert np.corrcoef(wrong.ravel(), truth.ravel())[0, 1] < 0.95


def test_grids_keep_their_middle_voxel() -> None:
    for n in (4, 5, 8, 9):
        volume = np.zeros((n, n, n))
        volume[n // 2, n // 2, n // 2] = 1
        for m in (3, 4, 7, 10):
            placed = averages.on_grid(volume, (m, m, m))
            assert placed.shape == (m, m, m)
            assert placed[m // 2, m // 2, m // 2] == placed.sum() == 1


VOXEL = 15.0
BOX = (24, 24, 24)


def particles(
    n: int, noise_sd: float, tilts: float | None = None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Dark particles at random turns, with noise, and a wedge if one is asked for."""
    rng = np.random.default_rng(0)
    turns = Rotation.random(n, rng=rng)
    offsets = rng.uniform(-0.5, 0.5, (n, 3))
    patches = []
    for turn, offset in zip(turns, offsets, strict=True):
        density = particle_density("ribosome", VOXEL, rotation_33=turn.as_matrix(), offset_zyx=tuple(offset))
        patch = -averages.on_grid(density, BOX) + rng.normal(0, noise_sd, BOX)
        if tilts is not None:
            patch = np.fft.irfftn(np.fft.rfftn(patch) * wedge(BOX, tilts), s=BOX, axes=(0, 1, 2))
        patches.append(patch)
    return patches, turns.as_quat(), offsets


@pytest.fixture(scope="module")
def noisy() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    return particles(80, 1.0)


MASK = s.soft_spherical_mask(BOX, 8, edge_voxels=3)
TRUTH = particle_density("ribosome", VOXEL)


def test_the_average_recovers_the_density(noisy: tuple) -> None:
    patches, quaternions, offsets = noisy
    average = averages.average_particles(patches, quaternions, offsets, dark=True)
    found = average.correlation_with(TRUTH, VOXEL, mask=MASK)
    one = s.fourier_shell_correlation(
        -averages.turned_back(patches[0], quaternions[0], offsets[0]),
        averages.on_grid(TRUTH, BOX),
        VOXEL,
        mask=MASK,
    )
    wrong = averages.average_particles(
        patches, Rotation.random(80, rng=np.random.default_rng(5)).as_quat(), dark=True
    )
    blurred = wrong.correlation_with(TRUTH, VOXEL, mask=MASK)
    assert found.at_half < 48
    assert found.at_half < 0.7 * min(one.at_half, blurred.at_half)
    assert average.half_correlation(VOXEL, mask=MASK).at_0143 < 48
    np.testing.assert_allclose(average.average_ZYX, (average.first_ZYX + average.second_ZYX) / 2, atol=1e-12)


def test_streamed_patches_and_the_seed(noisy: tuple) -> None:
    patches, quaternions, offsets = noisy
    read: list[int] = []

    def one(i: int) -> np.ndarray:
        read.append(i)
        return patches[i]

    a = averages.average_particles(one, quaternions[:9], offsets[:9], order=1, seed=3)
    b = averages.average_particles(patches[:9], quaternions[:9], offsets[:9], order=1, seed=3)
    other = averages.average_particles(patches[:9], quaternions[:9], offsets[:9], order=1, seed=4)
    assert sorted(set(read)) == list(range(9))
    np.testing.assert_array_equal(a.first_ZYX, b.first_ZYX)
    assert not np.allclose(a.first_ZYX, other.first_ZYX)
    np.testing.assert_allclose(other.average_ZYX, a.average_ZYX, atol=1e-9)
    assert a.first_weight_ZYX.max() + a.second_weight_ZYX.max() == 9


def test_weights_make_up_for_the_missing_wedge() -> None:
    patches, quaternions, offsets = particles(40, 0.0, tilts=45)
    plain = averages.average_particles(patches, quaternions, offsets, dark=True)
    weighted = averages.average_particles(patches, quaternions, offsets, dark=True, tilts_degrees=(-45, 45))
    truth = averages.on_grid(TRUTH, BOX)
    inside = MASK > 0.5

    def error(volume: np.ndarray) -> float:
        difference = (volume - truth)[inside]
        return float(difference.std() / truth[inside].std())

    assert error(weighted.average_ZYX) < 0.4 * error(plain.average_ZYX)
    share = (weighted.first_weight_ZYX + weighted.second_weight_ZYX).mean() / 40
    assert share == pytest.approx(wedge(BOX, 45).mean(), abs=0.05)


def test_what_nobody_measured_stays_empty_and_does_not_count() -> None:
    patches = [noise(seed, (12, 12, 12)) for seed in range(4)]
    same = np.tile([0.0, 0, 0, 1], (4, 1))
    average = averages.average_particles(patches, same, tilts_degrees=(-40, 40), order=1)
    spectrum = np.fft.rfftn(average.average_ZYX)
    missing = ~np.broadcast_to(wedge((12, 12, 12), 40), spectrum.shape)
    missing[:, :, [0, -1]] = False  # planes that hold both of a Friedel pair
    assert abs(spectrum[missing]).max() < 1e-9
    counts = average.half_correlation(1.0).counts_K
    assert (counts < s.fourier_shell_correlation(patches[0], patches[1], 1.0).counts_K).all()


def test_true_orientations() -> None:
    truth = np.array([[10.0, 10, 10], [30, 30, 30]])
    quaternions = Rotation.random(2, rng=np.random.default_rng(0)).as_quat()
    picks = [[31, 30, 29], [60, 60, 60], [10, 9, 10]]
    found, offsets, match = averages.true_orientations(picks, truth, quaternions, 3.0, seed=1)
    assert match.tolist() == [True, False, True]
    np.testing.assert_array_equal(found[[2, 0]], quaternions)
    assert offsets.tolist() == [[-1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert np.linalg.norm(found[1]) == pytest.approx(1)


def test_bad_input() -> None:
    a = noise(0, (8, 8, 8))
    with pytest.raises(ConfigurationError, match="one grid"):
        s.fourier_shell_correlation(a, noise(0, (8, 8, 9)), 1.0)
    with pytest.raises(ConfigurationError, match="voxel size"):
        s.fourier_shell_correlation(a, a, 0.0)
    with pytest.raises(ConfigurationError, match="first volume"):
        s.fourier_shell_correlation(a[0], a[0], 1.0)
    with pytest.raises(DataError, match="second volume"):
        s.fourier_shell_correlation(a, a * np.nan, 1.0)
    with pytest.raises(ConfigurationError, match="mask"):
        s.fourier_shell_correlation(a, a, 1.0, mask=np.zeros((8, 8, 8)))
    with pytest.raises(ConfigurationError, match="tilts"):
        s.measured_by_tilts((8, 8, 8), (60, -60))
    with pytest.raises(ConfigurationError, match="radius"):
        s.soft_spherical_mask((8, 8, 8), -1)
    with pytest.raises(ConfigurationError, match="two particles"):
        averages.average_particles([a, a], np.ones((3, 4)))
    with pytest.raises(ConfigurationError, match="patch 1"):
        averages.average_particles([a, a[1:]], np.ones((2, 4)))
