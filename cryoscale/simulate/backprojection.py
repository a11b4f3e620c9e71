"""From a tilt series to a tomogram: weighted back-projection, and the mixing of signal and noise.

Geometry as in `cryoscale.simulate.tilts`. The tilt axis is y, so rows y of the tomogram need rows y of the
tilts alone, and come out as the same bits with any others.

The ramp filter makes the noise grow with the frequency, as in every real reconstruction; that of the direct
route does not. So at one signal-to-noise ratio large structures stand out more here.

Shape suffixes: T tilts, Z, Y, X of the volume, U along the detector's rows, F fine samples along them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, sparse

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.simulate.imaging import filter_signal
from cryoscale.simulate.tilts import detector_width, image_tilt, project, tilt_angles
from cryoscale.simulate.transfer import Imaging, each, half_weights, wedge_mask

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

UPSAMPLING = 4
"""Fine samples per pixel, between which is interpolated linearly. The fine samples are sharpened by what that
takes away (sinc^2); what is left is 2 % of a wave at Nyquist, and 0.4 % at half of it, as its images."""

BATCH = 16
"""Rows are filtered in batches filled up to a multiple of this, so that each meets the same arithmetic."""

COLUMNS = 64
"""Rows y that are back-projected at once: few enough that the filtered tilts stay in a processor's cache."""

SOFT_EDGE = 0.1
"""Width of the cosine edge of the low-pass below its cutoff, as a fraction of Nyquist."""


def angular_weights(angles_degrees: Sequence[float] | Doubles) -> Doubles:
    """Return the angle that each tilt stands for, radians: half the gaps to both neighbours.

    The first and last tilts stand for their one gap: what they measured does not end at their middle.
    """
    angles = np.radians(np.asarray(angles_degrees, dtype=np.float64))
    if len(angles) == 1:
        return np.array([math.pi])
    gaps = np.diff(angles)
    if not (gaps > 0).all():
        raise ConfigurationError("the tilts must rise.", remedy="Sort the tilts by their angle.")
    return np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])


def ramp_filter(length: int, cutoff: float = 1.0) -> Floats:
    """Return the filter of weighted back-projection in Fourier space: |k| in cycles per pixel, low-passed.

    Parameters
    ----------
    length : int
        Of the padded rows, pixels: at least twice the detector's width, or rows meet their next period.
    cutoff : float
        Where nothing passes any more, as a fraction of Nyquist; a cosine edge leads there.

    Returns
    -------
    ramp_K : (length // 2 + 1,) float32
        In the layout of `scipy.fft.rfft`.

    Raises
    ------
    ConfigurationError
        A cutoff out of range.

    Notes
    -----
    The transform of the ramp's exact samples 1/4, 0, -1 / (pi n)^2, 0, …, which keeps the mean and the slow
    waves of padded rows right: Kak and Slaney 1988, Principles of Computerized Tomographic Imaging, eq. 61.
    """
    if not 0 < cutoff <= 1:
        raise ConfigurationError(
            f"the cutoff of the back-projection cannot be {cutoff}.",
            remedy="Give a fraction of Nyquist above 0, at most 1.",
        )
    n = np.fft.fftfreq(length, 1 / length)
    taps = np.zeros(length)
    odd = n % 2 == 1
    taps[odd] = -1 / (math.pi * n[odd]) ** 2
    taps[0] = 0.25
    ramp_K = fft.rfft(taps).real
    r = 2 * fft.rfftfreq(length)
    edge = np.clip((r - (cutoff - SOFT_EDGE)) / SOFT_EDGE, 0, 1)
    filter_K: Floats = (ramp_K * (0.5 + 0.5 * np.cos(math.pi * edge))).astype(np.float32)
    return filter_K


def backproject(
    tilts_TYU: Floats,
    angles_degrees: Sequence[float] | Doubles,
    depth_z: int,
    *,
    width_x: int | None = None,
    cutoff: float = 1.0,
    workers: int = 1,
) -> Floats:
    """Reconstruct a tomogram, or any rows y of it, from the same rows of the tilts.

    Parameters
    ----------
    tilts_TYU : (T, Y, U) float32
        The tilts, or a range of their rows.
    angles_degrees : (T,) float
        Their angles, rising.
    depth_z : int
        Extent of the tomogram along z.
    width_x : int, optional
        Its extent along x; that of the tilts by default.
    cutoff : float
        Of the low-pass, as a fraction of Nyquist.
    workers : int
        Threads; the result is the same bytes for any number.

    Returns
    -------
    volume_ZYX : (Z, Y, X) float32
        The density whose line integrals the tilts are, without what no tilt has measured.

    Raises
    ------
    DataError
        Not one angle per tilt.
    ConfigurationError
        The tilts do not rise, or the cutoff is out of range.
    """
    n_t, n_y, n_u = tilts_TYU.shape
    if len(angles_degrees) != n_t:
        raise DataError(f"{n_t} tilts have {len(angles_degrees)} angles.", remedy="Give one angle per tilt.")
    weights_T = angular_weights(angles_degrees)
    interpolation = _Interpolation(angles_degrees, n_u, width_x or n_u, depth_z)
    volume_ZYX = np.empty((depth_z, n_y, interpolation.n_x), np.float32)
    for start in range(0, n_y, COLUMNS):
        part = slice(start, start + COLUMNS)
        fine_TFY = _filtered(tilts_TYU[:, part], weights_T, cutoff)
        flat_SY = fine_TFY.reshape(-1, fine_TFY.shape[2])

        def plane(z: int, part: slice = part, flat_SY: Floats = flat_SY) -> None:
            volume_ZYX[z, part] = (interpolation.matrix(z) @ flat_SY).T

        each(plane, depth_z, workers)
    return volume_ZYX


def _filtered(tilts_TYU: Floats, weights_T: Doubles, cutoff: float) -> Floats:
    """Weight the tilts, filter their rows, and sample them finely; y becomes the last axis.

    Returns
    -------
    fine_TFY : (T, UPSAMPLING * U + 2, Y) float32
        A zero sample stands before the first and after the last.
    """
    n_t, n_y, n_u = tilts_TYU.shape
    length = fft.next_fast_len(2 * n_u, real=True)
    filter_K = ramp_filter(length, cutoff) * np.float32(UPSAMPLING)
    filter_K /= np.sinc(fft.rfftfreq(length) / UPSAMPLING).astype(np.float32) ** 2
    fine_TFY = np.zeros((n_t, UPSAMPLING * n_u + 2, n_y), np.float32)
    rows_YU = np.zeros((-(-n_y // BATCH) * BATCH, n_u), np.float32)
    for t, weight in enumerate(weights_T):
        rows_YU[:n_y] = tilts_TYU[t]
        waves_YK = fft.rfft(rows_YU, n=length, axis=1)
        waves_YK *= filter_K * np.float32(weight)
        fine_YF = fft.irfft(waves_YK, n=UPSAMPLING * length, axis=1)
        fine_TFY[t, 1:-1] = fine_YF[:n_y, : UPSAMPLING * n_u].T
    return fine_TFY


class _Interpolation:
    """Which two fine samples of each tilt make up each voxel of a plane z, as a sparse matrix."""

    def __init__(self, angles_degrees: Sequence[float] | Doubles, n_u: int, n_x: int, n_z: int) -> None:
        self.n_x, self.n_u, self.n_z = n_x, n_u, n_z
        radians = np.radians(np.asarray(angles_degrees, dtype=np.float64))
        self.cos_T, self.sin_T = np.cos(radians), np.sin(radians)
        self.samples = UPSAMPLING * n_u + 2

    def matrix(self, z: int) -> sparse.csr_array:
        """Return the matrix (X, T * F) of one plane."""
        x = np.arange(self.n_x)[:, None] - (self.n_x - 1) / 2
        u_XT = x * self.cos_T + (z - (self.n_z - 1) / 2) * self.sin_T + (self.n_u - 1) / 2
        seen_XT = (u_XT >= -0.5) & (u_XT <= self.n_u - 0.5)
        fine_XT = np.clip(UPSAMPLING * u_XT + 1, 0, self.samples - 1.001)
        first_XT = fine_XT.astype(np.int32)
        share_XT = (fine_XT - first_XT) * seen_XT
        values_XT2 = np.stack([seen_XT - share_XT, share_XT], axis=-1).astype(np.float32)
        first_XT += np.arange(len(self.cos_T), dtype=np.int32) * np.int32(self.samples)
        columns_XT2 = np.stack([first_XT, first_XT + np.int32(1)], axis=-1)
        ends = np.arange(self.n_x + 1, dtype=np.int32) * np.int32(2 * len(self.cos_T))
        shape = (self.n_x, len(self.cos_T) * self.samples)
        return sparse.csr_array((values_XT2.ravel(), columns_XT2.ravel(), ends), shape=shape)


@dataclass(frozen=True)
class Mixture:
    """How the reconstructions of signal and noise are added up.

    Parameters
    ----------
    signal_factor, noise_factor : float
        What either is multiplied with.
    offset : float
        What is added to the sum, so that its mean is 0.
    realised_snr : float
        Variance of the signal over that of the noise, measured.
    """

    signal_factor: float
    noise_factor: float
    offset: float
    realised_snr: float

    def apply(self, signal_ZYX: Floats, noise_ZYX: Floats) -> Floats:
        """Return the tomogram, or a part of it: objects dark, mean 0, noise of variance 1."""
        volume_ZYX = noise_ZYX * np.float32(self.noise_factor)
        volume_ZYX += np.float32(self.signal_factor) * signal_ZYX
        volume_ZYX += np.float32(self.offset)
        return volume_ZYX


def row_sums(volume_ZYX: Floats) -> Doubles:
    """Return sums and sums of squares of each row y, (Y, 2): what `mixture` needs to know of a part."""
    rows_YZX = (np.ascontiguousarray(volume_ZYX[:, y]).astype(np.float64) for y in range(volume_ZYX.shape[1]))
    return np.array([(row.sum(), (row * row).sum()) for row in rows_YZX])


def mixture(signal_Y2: Doubles, noise_Y2: Doubles, voxels: int, snr: float) -> Mixture:
    """Return how to add signal and noise at a wanted ratio of their variances.

    Parameters
    ----------
    signal_Y2, noise_Y2 : (Y, 2) float64
        `row_sums` of all rows of either reconstruction, in any order: they are added without rounding.
    voxels : int
        How many voxels these are.
    snr : float
        The wanted ratio, as in `Imaging`.

    Raises
    ------
    ConfigurationError
        The signal is empty.
    DataError
        A sum is not finite.
    """
    signal_mean, signal = _moments(signal_Y2, voxels)
    noise_mean, noise = _moments(noise_Y2, voxels)
    if not (math.isfinite(signal) and math.isfinite(noise)):
        raise DataError("the reconstruction holds values that are not finite.", remedy="Simulate it anew.")
    if not (signal > 0 and noise > 0):
        raise ConfigurationError(
            "the scene is empty: there is no signal to give a signal-to-noise ratio.",
            remedy="Put particles in it.",
        )
    signal_factor, noise_factor = -math.sqrt(snr / signal), 1 / math.sqrt(noise)
    offset = -(signal_factor * signal_mean + noise_factor * noise_mean)
    realised = signal_factor**2 * signal / (noise_factor**2 * noise)
    return Mixture(signal_factor, noise_factor, offset, realised)


def _moments(rows_Y2: Doubles, voxels: int) -> tuple[float, float]:
    """Return mean and variance."""
    mean, square = (math.fsum(column) / voxels for column in rows_Y2.T)
    return mean, square - mean * mean


@dataclass(frozen=True)
class RouteComparison:
    """The two routes over one scene without noise, side by side.

    Correlations are of Fourier coefficients, real part, without the mean. S shells of |k|, C cones of tilt.

    Parameters
    ----------
    direct_ZYX, tilts_ZYX : (Z, Y, X) float32
        What either route makes of the scene; objects positive, mean 0.
    correlation : float
        Of all waves up to Nyquist within the measured range of tilts.
    scale : float
        How strong the tilt series' waves are on the direct route's scale: 1 if both keep as much.
    leaked_share : float
        Share of the tilt series' power that lies in the missing wedge.
    shell_S, shell_correlation_S, shell_scale_S : (S,) float64
        Middle of each shell as a fraction of Nyquist; correlation and scale within the measured range.
    cone_C, cone_correlation_C : (C,) float64
        Middle of each range of directions from x to z, degrees; the correlation in it. Not a number where
        the direct route has nothing.
    """

    direct_ZYX: Floats
    tilts_ZYX: Floats
    correlation: float
    scale: float
    leaked_share: float
    shell_S: Doubles
    shell_correlation_S: Doubles
    shell_scale_S: Doubles
    cone_C: Doubles
    cone_correlation_C: Doubles


def reconstruct_signal(
    signal_ZYX: Floats, voxel_size_angstrom: float, imaging: Imaging, *, workers: int = 1
) -> Floats:
    """Take a whole scene through a tilt series and back, without noise: for small volumes and comparisons."""
    angles = tilt_angles(imaging)
    width = detector_width(signal_ZYX.shape, angles)
    tilts = [project(signal_ZYX, angle, width=width, workers=workers) for angle in angles]
    imaged = [
        image_tilt(tilt, voxel_size_angstrom, imaging, index=number, seed=0)[0]
        for number, tilt in enumerate(tilts)
    ]
    n_z, _, n_x = signal_ZYX.shape
    return backproject(np.stack(imaged), angles, n_z, width_x=n_x, workers=workers)


def compare_routes(
    signal_ZYX: Floats, voxel_size_angstrom: float, imaging: Imaging, *, workers: int = 1, shells: int = 16
) -> RouteComparison:
    """Take one scene both ways without noise and measure how well they agree.

    Parameters
    ----------
    signal_ZYX : (Z, Y, X) float32
        The scene, best with empty faces: the direct route is periodic, the tilt series is not.
    voxel_size_angstrom : float
        Voxel size, Å.
    imaging : Imaging
        The settings; its signal-to-noise ratio is not used.
    workers : int
        Threads.
    shells : int
        Number of shells.
    """
    direct_ZYX = filter_signal(signal_ZYX, voxel_size_angstrom, imaging, workers=workers)
    tilts_ZYX = reconstruct_signal(signal_ZYX, voxel_size_angstrom, imaging, workers=workers)
    tilts_ZYX -= tilts_ZYX.mean(dtype=np.float64)
    n_z, n_y, n_x = signal_ZYX.shape
    first, second = fft.rfftn(direct_ZYX), fft.rfftn(tilts_ZYX)
    kz, ky, kx = fft.fftfreq(n_z), fft.fftfreq(n_y), fft.rfftfreq(n_x)
    radius = 2 * np.sqrt(kz[:, None, None] ** 2 + ky[:, None] ** 2 + kx**2)
    direction = np.degrees(np.arctan2(kz[:, None, None], kx)) + 0 * radius
    measured = wedge_mask(n_z, n_x, imaging)[:, None] & (radius <= 1) & (radius > 0)
    weights = np.broadcast_to(half_weights(n_x), radius.shape)
    products = weights * (first * second.conj()).real, weights * abs(first) ** 2, weights * abs(second) ** 2

    def sums(inside: npt.NDArray[np.bool_], place: Doubles, edges: Doubles) -> list[Doubles]:
        return [np.histogram(place[inside], edges, weights=p[inside])[0] for p in products]

    rings = np.linspace(0, 1, shells + 1)
    cones = np.arange(-90.0, 91.0, 10.0)
    cross, one, two = sums(measured, radius, rings)
    cross_C, one_C, two_C = sums((radius <= 1) & (radius > 0), direction, cones)
    one_C[one_C < 1e-9 * one_C.sum()] = np.nan  # rounding errors, in the missing wedge
    with np.errstate(divide="ignore", invalid="ignore"):  # shells and cones without a wave are NaN
        agreement = cross / np.sqrt(one * two), cross / one, cross_C / np.sqrt(one_C * two_C)
    return RouteComparison(
        direct_ZYX=direct_ZYX,
        tilts_ZYX=tilts_ZYX,
        correlation=float(cross.sum() / np.sqrt(one.sum() * two.sum())),
        scale=float(cross.sum() / one.sum()),
        leaked_share=float(1 - two.sum() / two_C.sum()),
        shell_S=(rings[1:] + rings[:-1]) / 2,
        shell_correlation_S=agreement[0],
        shell_scale_S=agreement[1],
        cone_C=(cones[1:] + cones[:-1]) / 2,
        cone_correlation_C=agreement[2],
    )
