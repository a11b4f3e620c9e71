"""From a scene to a tomogram by transfer functions in Fourier space: the direct route.

A reconstruction keeps nothing in the missing wedge, neither signal nor noise, so the wedge acts on both.
All is done in one spectrum, plane by plane: the peak is the scene, its spectrum and the tomogram, three
volumes of float32 and a little. Transforms are periodic and of the volume's own size, whatever that is:
nothing is padded, so what a filter spreads over a face comes in at the opposite one.

Shape suffixes: ZYX a volume, ZX and YX planes of it; the x axis of a spectrum is halved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from cryoscale.errors import ConfigurationError, DataError
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
    wedge_mask,
)

__all__ = ["Imaging", "filter_signal", "image", "realised_snr_by_correlation"]

Floats = npt.NDArray[np.float32]
Waves = npt.NDArray[np.complex64]


def image(
    signal_ZYX: Floats,
    voxel_size_angstrom: float,
    imaging: Imaging,
    seed: int,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> tuple[Floats, float]:
    """Image a scene: wedge, transfer function, envelope, detector, noise; objects become dark.

    A share of the noise variance enters before the transfer function, the rest after it, through the
    detector alone.

    Parameters
    ----------
    signal_ZYX : (Z, Y, X) float32
        Scattering, objects positive.
    voxel_size_angstrom : float
        Voxel size, Å.
    imaging : Imaging
        The settings.
    seed : int
        Seed of the noise.
    workers : int
        Threads. The result is the same bytes for any number.
    overwrite : bool
        Put the tomogram in the place of the scene: two volumes of memory instead of three.

    Returns
    -------
    volume_ZYX : (Z, Y, X) float32
        Objects dark; mean 0; noise has variance 1.
    realised_snr : float
        Variance of the filtered signal over that of the noise, measured on the two.

    Raises
    ------
    ConfigurationError
        The scene is empty, or nothing of it is left by the filters.
    DataError
        The scene holds values that are not finite.
    """
    spectrum = _Spectrum(signal_ZYX, voxel_size_angstrom, imaging, workers)
    signal, optics, detector = spectrum.filter_signal()
    spectrum.noise = _Noise(signal_ZYX.shape, seed, *noise_gains(optics, detector, imaging))
    noise = spectrum.noise_variance()
    noise_factor = 1 / math.sqrt(noise)
    signal_factor = math.sqrt(imaging.snr / signal)
    spectrum.add_noise(noise_factor, -signal_factor)
    realised = (signal_factor**2 * signal) / (noise_factor**2 * noise)
    return spectrum.volume(signal_ZYX if overwrite else None), realised


def filter_signal(
    signal_ZYX: Floats,
    voxel_size_angstrom: float,
    imaging: Imaging,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> Floats:
    """Return a scene through all filters of `image` without noise; objects stay positive, the mean is 0.

    With `overwrite` it takes the place of the scene.
    """
    spectrum = _Spectrum(signal_ZYX, voxel_size_angstrom, imaging, workers)
    spectrum.filter_signal()
    each(spectrum.invert_z, signal_ZYX.shape[1], workers)
    return spectrum.volume(signal_ZYX if overwrite else None)


def realised_snr_by_correlation(first_ZYX: Floats, second_ZYX: Floats) -> float:
    """Return the signal-to-noise ratio that two realisations of the noise over one signal show: c / (1 - c).

    c is their correlation: the signal's share of the variance (Frank and Al-Ali 1975, doi:10.1038/256376a0).

    Raises
    ------
    DataError
        The two have different shapes, or one of them is constant.
    """
    if first_ZYX.shape != second_ZYX.shape:
        raise DataError(f"two realisations have different shapes: {first_ZYX.shape}, {second_ZYX.shape}.")
    means = [volume.mean(dtype=np.float64) for volume in (first_ZYX, second_ZYX)]
    products = np.zeros(3)
    for a_YX, b_YX in zip(first_ZYX, second_ZYX, strict=True):
        a, b = a_YX.astype(np.float64) - means[0], b_YX.astype(np.float64) - means[1]
        products += (a * b).sum(), (a * a).sum(), (b * b).sum()
    if not products[1] * products[2] > 0:
        raise DataError("a constant volume has no signal-to-noise ratio.")
    correlation = float(products[0] / math.sqrt(products[1] * products[2]))
    return correlation / (1 - correlation)


@dataclass
class _Noise:
    """White noise made in Fourier space, one y plane at a time, each from its own stream.

    Parameters
    ----------
    shape : three ints
        Of the volume.
    seed : int
        Of the noise.
    before, after : float
        As in `noise_transfer`.
    """

    shape: tuple[int, ...]
    seed: int
    before: float
    after: float

    def __post_init__(self) -> None:
        # The waves at kx = 0 and at Nyquist belong to real fields in z and y and must have their symmetry:
        # they are transforms of such fields.
        n_z, n_y, n_x = self.shape
        self.n_columns = n_x // 2 + 1
        self.real_columns = [0] if n_x % 2 else [0, n_x // 2]
        self.real_CZY = [
            fft.fft2(math.sqrt(n_x) * seeded(self.seed, n_y, c).standard_normal((n_z, n_y), dtype=np.float32))
            for c in self.real_columns
        ]

    def plane(self, y: int, optics_ZX: Floats, detector_ZX: Floats) -> Waves:
        """Return the waves (Z, X // 2 + 1) of one y frequency, filtered; unit variance over the volume."""
        n_z = self.shape[0]
        parts = seeded(self.seed, y).standard_normal((n_z, 2 * self.n_columns), dtype=np.float32)
        waves: Waves = parts.view(np.complex64)
        waves *= np.float32(math.sqrt(math.prod(self.shape) / 2))
        for column, real_ZY in zip(self.real_columns, self.real_CZY, strict=True):
            waves[:, column] = real_ZY[:, y]
        waves *= noise_transfer(optics_ZX, detector_ZX, self.before, self.after)
        if y == 0:
            waves[0, 0] = 0
        return waves


class _Spectrum:
    """The waves of a scene, on their way to a tomogram.

    Planes of x and y are transformed as they lie in the scene, then columns of z for one y frequency after
    the other: filters and noise are made for that plane alone.
    """

    noise: _Noise

    def __init__(
        self, signal_ZYX: Floats, voxel_size_angstrom: float, imaging: Imaging, workers: int
    ) -> None:
        self.shape = signal_ZYX.shape
        self.voxel, self.imaging, self.workers = voxel_size_angstrom, imaging, workers
        n_z, n_y, n_x = self.shape
        self.squares = square_frequencies(self.shape, voxel_size_angstrom)
        self.measured_ZX = wedge_mask(n_z, n_x, imaging)
        self.weights_X = half_weights(n_x)
        self.waves_ZYX = np.empty((n_z, n_y, n_x // 2 + 1), np.complex64)
        self.mean = np.float32(signal_ZYX.mean(dtype=np.float64))

        def transform(z: int) -> None:
            plane_YX = signal_ZYX[z].astype(np.float32)  # a copy
            plane_YX -= self.mean
            self.waves_ZYX[z] = fft.rfft2(plane_YX, overwrite_x=True)

        each(transform, n_z, workers)

    def filters(self, y: int) -> tuple[Floats, Floats]:
        """Return the filters (Z, X // 2 + 1) of what passes the optics and of what the detector adds."""
        z, line_y, x = self.squares
        square_ZX: Floats = z[:, None] + x + line_y[y]
        optics_ZX = optics_transfer(square_ZX, self.voxel, self.imaging)
        detector_ZX = detector_transfer(square_ZX, self.voxel, self.imaging)
        optics_ZX *= self.measured_ZX
        detector_ZX *= self.measured_ZX
        return optics_ZX, detector_ZX

    def power(self, plane_ZX: Floats | Waves) -> float:
        """Return the sum of squares over a plane, each wave as often as it stands in the full transform."""
        flat: Floats = np.ascontiguousarray(plane_ZX).view(np.float32)
        columns = np.einsum("zk,zk->k", flat, flat, dtype=np.float64)
        return float(columns.reshape(len(self.weights_X), -1).sum(axis=1) @ self.weights_X)

    def filter_signal(self) -> tuple[float, float, float]:
        """Filter the signal, leaving z in Fourier space.

        Returns
        -------
        signal, optics, detector : float
            Variance of the filtered signal, mean squares of the two filters.
        """
        voxels = math.prod(self.shape)

        def one(y: int) -> tuple[float, float, float]:
            optics_ZX, detector_ZX = self.filters(y)
            waves_ZX = fft.fft(self.waves_ZYX[:, y], axis=0)
            waves_ZX *= optics_ZX
            if y == 0:
                waves_ZX[0, 0] = 0
            self.waves_ZYX[:, y] = waves_ZX
            return self.power(waves_ZX) / voxels, self.power(optics_ZX), self.power(detector_ZX)

        rows = each(one, self.shape[1], self.workers)
        signal, optics, detector = (math.fsum(column) / voxels for column in zip(*rows, strict=True))
        if not math.isfinite(signal):
            raise DataError(
                "the scene holds values that are not finite.", remedy="Look for what painted them."
            )
        if not signal > 0:
            raise ConfigurationError(
                "the scene is empty: there is no signal to give a signal-to-noise ratio.",
                remedy="Put particles in it.",
            )
        return signal, optics, detector

    def noise_variance(self) -> float:
        """Return the variance of the noise as drawn; close to 1."""

        def one(y: int) -> float:
            return self.power(self.noise.plane(y, *self.filters(y)))

        return math.fsum(each(one, self.shape[1], self.workers)) / math.prod(self.shape) ** 2

    def add_noise(self, noise_factor: float, signal_factor: float) -> None:
        """Draw the noise again, the same, and add it to the signal; take z out of Fourier space."""

        def one(y: int) -> None:
            waves_ZX = self.noise.plane(y, *self.filters(y))
            waves_ZX *= np.float32(noise_factor)
            waves_ZX += self.waves_ZYX[:, y] * np.float32(signal_factor)
            self.waves_ZYX[:, y] = waves_ZX
            self.invert_z(y)

        each(one, self.shape[1], self.workers)

    def invert_z(self, y: int) -> None:
        """Take z out of Fourier space for one y frequency."""
        self.waves_ZYX[:, y] = fft.ifft(self.waves_ZYX[:, y], axis=0, overwrite_x=False)

    def volume(self, out_ZYX: Floats | None) -> Floats:
        """Take y and x out of Fourier space."""
        into_ZYX = np.empty(self.shape, np.float32) if out_ZYX is None else out_ZYX

        def one(z: int) -> None:
            into_ZYX[z] = fft.irfft2(self.waves_ZYX[z], s=self.shape[1:], overwrite_x=True)

        each(one, self.shape[0], self.workers)
        return into_ZYX
