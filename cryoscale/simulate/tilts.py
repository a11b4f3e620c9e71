"""A tilt series of a scene: projections, and what the microscope makes of each.

The tilt axis is y and goes through the middle of the volume, (n - 1) / 2 along z and x. At tilt t a point
(x, z) from the middle falls on the detector at u = x cos t + z sin t from its middle. So a projection is the
plane of the scene's spectrum through ky and the direction (cos t, sin t) of (kx, kz), as in `wedge_mask`.

Shape suffixes: Z, Y, X of the volume, U along the detector's rows, K frequencies along x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import fft

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.transfer import (
    Imaging,
    detector_transfer,
    each,
    half_weights,
    noise_gains,
    noise_transfer,
    optics_transfer,
    seeded,
    square_frequencies,
)

Floats = npt.NDArray[np.float32]

ROWS = 16
"""Rows of y that are projected at once. Every batch is filled up to it, so that each row meets the same
arithmetic (and gives the same bits) whatever rows it comes with."""

STEEP_DEGREES = 60.0
"""Beyond this tilt the volume is sheared along z instead of x: the sheared lines are shorter."""


def tilt_angles(imaging: Imaging) -> npt.NDArray[np.float64]:
    """Return the tilts of a series, degrees, rising.

    The last one is the largest tilt if the step leads there. -90 and 90 are one projection, taken once.
    """
    extent = imaging.tilt_max_degrees - imaging.tilt_min_degrees
    count = math.floor(extent / imaging.tilt_step_degrees + 1e-6) + 1
    angles = imaging.tilt_min_degrees + imaging.tilt_step_degrees * np.arange(count)
    tilts: npt.NDArray[np.float64] = angles[angles - angles[0] < 180 - 1e-6]
    return tilts


def detector_width(shape: Sequence[int], angles_degrees: Sequence[float] | npt.NDArray[np.float64]) -> int:
    """Return the least width of a detector on which no tilt loses a part of the volume.

    It is even where the volume's x extent is and odd where that is, so pixels and voxels agree at tilt 0.
    """
    n_z, _, n_x = shape
    radians = np.radians(angles_degrees)
    widest = math.ceil(float((n_x * np.cos(radians) + n_z * np.abs(np.sin(radians))).max()) - 1e-6)
    widest = max(widest, n_x)
    return widest + (widest - n_x) % 2


def project(
    signal_ZYX: Floats, angle_degrees: float, *, width: int | None = None, workers: int = 1
) -> Floats:
    """Project a scene along the beam at one tilt: line integrals in voxels, without loss of sharpness.

    A row of y needs the same row of the scene alone, and gives the same bits with any others.

    Parameters
    ----------
    signal_ZYX : (Z, Y, X) float32
        The scene; nothing is beyond its faces.
    angle_degrees : float
        The tilt, within [-90, 90].
    width : int, optional
        Pixels along the detector's rows; X by default. See `detector_width`.
    workers : int
        Threads; the result is the same bytes for any number.

    Returns
    -------
    projection_YU : (Y, U) float32
        Pixels as large as voxels; the middle of the detector is the middle of the volume.

    Raises
    ------
    ConfigurationError
        A tilt that is out of range.

    Notes
    -----
    Shear and stretch with trigonometric interpolation: lines of x are shifted by z tan t in Fourier space and
    summed, and the sum is read at u / cos t. Waves beyond Nyquist of the detector are left out.
    """
    if not -90 <= angle_degrees <= 90:
        raise ConfigurationError(
            f"a tilt cannot be {angle_degrees} degrees.", remedy="Give degrees from -90 to 90."
        )
    _, n_y, n_x = signal_ZYX.shape
    width = n_x if width is None else width
    if angle_degrees < 0:  # mirror z
        signal_ZYX, angle_degrees = signal_ZYX[::-1], -angle_degrees
    if angle_degrees > STEEP_DEGREES:  # exchange z and x
        signal_ZYX, angle_degrees = signal_ZYX.transpose(2, 1, 0), 90 - angle_degrees
    shear = _Shear(signal_ZYX.shape[0], signal_ZYX.shape[2], width, math.radians(angle_degrees))
    projection_YU = np.empty((n_y, width), np.float32)

    def rows(number: int) -> None:
        part_YU = projection_YU[number * ROWS : (number + 1) * ROWS]
        batch_ZYX = np.zeros((signal_ZYX.shape[0], ROWS, signal_ZYX.shape[2]), np.float32)
        batch_ZYX[:, : len(part_YU)] = signal_ZYX[:, number * ROWS : (number + 1) * ROWS]
        part_YU[:] = shear.project(batch_ZYX)[: len(part_YU)]

    each(rows, -(-n_y // ROWS), workers)
    return projection_YU


class _Shear:
    """The projection of lines of x at one tilt, at most `STEEP_DEGREES`."""

    def __init__(self, n_z: int, n_x: int, width: int, radians: float) -> None:
        slope, cosine = math.tan(radians), math.cos(radians)
        # Lines so long that the detector does not see the next period of the sheared volume; odd, because
        # the wave at Nyquist of an even length has no phase and could not be shifted.
        self.length = math.ceil((n_x + n_z * slope + width / cosine) / 2) + 8
        while self.length % 2 == 0 or fft.next_fast_len(self.length, real=True) != self.length:
            self.length += 1
        count = math.floor(0.5 * cosine * self.length) + 1
        waves_K = 2 * math.pi * np.arange(count) / self.length
        shifts_Z = (np.arange(n_z) - (n_z - 1) / 2) * slope
        places_U = (np.arange(width) - (width - 1) / 2) / cosine + (n_x - 1) / 2
        self.shift_ZK = np.exp(-1j * shifts_Z[:, None] * waves_K).astype(np.complex64)
        # Back from Fourier space at the detector's places: each wave but the first stands for two.
        twice_K = np.where(waves_K > 0, 2.0, 1.0) / (self.length * cosine)
        phase_UK = places_U[:, None] * waves_K
        self.cos_UK = (np.cos(phase_UK) * twice_K).astype(np.float32)
        self.sin_UK = (np.sin(phase_UK) * twice_K).astype(np.float32)

    def project(self, batch_ZYX: Floats) -> Floats:
        """Project a batch of rows."""
        lines_ZYK = fft.rfft(batch_ZYX, n=self.length, axis=2)[..., : self.shift_ZK.shape[1]]
        lines_ZYK *= self.shift_ZK[:, None]
        sheared_YK = lines_ZYK.sum(axis=0)
        # einsum, not matmul: a BLAS may change the last bits with the number of its threads.
        real = np.einsum("yk,uk->yu", np.ascontiguousarray(sheared_YK.real), self.cos_UK)
        imaginary = np.einsum("yk,uk->yu", np.ascontiguousarray(sheared_YK.imag), self.sin_UK)
        projection_YU: Floats = real - imaginary
        return projection_YU


def image_tilt(
    projection_YU: Floats,
    voxel_size_angstrom: float,
    imaging: Imaging,
    *,
    index: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Image one projection: transfer function, envelope, detector; the noise of the same tilt apart.

    All that follows is linear, so signal and noise stay apart until the whole reconstruction of both is known
    and the signal-to-noise ratio can be set: see `cryoscale.simulate.backprojection.mixture`.

    Parameters
    ----------
    projection_YU : (Y, U) float32
        Line integrals of the scene, objects positive.
    voxel_size_angstrom : float
        Pixel size, Å.
    imaging : Imaging
        The settings.
    index : int
        Its number in the series: part of the noise's seed.
    seed : int
        Seed of the noise of the series.

    Returns
    -------
    signal_YU, noise_YU : (Y, U) float32
        The signal, objects positive, and noise of variance 1 with mean 0.
    """
    lines = square_frequencies(projection_YU.shape, voxel_size_angstrom)
    square_YK: Floats = lines[0][:, None] + lines[1]
    optics_YK = optics_transfer(square_YK, voxel_size_angstrom, imaging)
    detector_YK = detector_transfer(square_YK, voxel_size_angstrom, imaging)
    weights_K = half_weights(projection_YU.shape[1])
    before, after = noise_gains(
        _mean_square(optics_YK, weights_K), _mean_square(detector_YK, weights_K), imaging
    )
    white_YU = seeded(seed, index).standard_normal(projection_YU.shape, dtype=np.float32)
    noise_YU = _filtered(white_YU - white_YU.mean(), noise_transfer(optics_YK, detector_YK, before, after))
    return _filtered(projection_YU, optics_YK), noise_YU


def _mean_square(filter_YK: Floats, weights_K: npt.NDArray[np.float64]) -> float:
    """Return the mean square of a filter over all waves of the full transform."""
    columns = np.einsum("yk,yk->k", filter_YK, filter_YK, dtype=np.float64)
    return float(columns @ weights_K / (len(filter_YK) * weights_K.sum()))


def _filtered(plane_YU: Floats, filter_YK: Floats) -> Floats:
    """Multiply a plane by a filter in Fourier space."""
    waves_YK = fft.rfft2(plane_YU)
    waves_YK *= filter_YK
    back: Floats = fft.irfft2(waves_YK, s=plane_YU.shape, overwrite_x=True)
    return back
