"""From a scene to a tomogram by transfer functions in Fourier space: the direct route.

A reconstruction keeps nothing in the missing wedge, neither signal nor noise, so all filters act on both.
Simulation of a whole tomogram is global by nature: the peak memory is about eight volumes of float32.

After Pei, Xu, Frazier, Alber 2016, doi:10.1186/s12859-016-1283-3, with the constants named where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float32]

WAVELENGTH_ANGSTROM = 0.01969
"""Of electrons of 300 keV."""


@dataclass(frozen=True)
class Imaging:
    """How a scene is imaged.

    Parameters
    ----------
    snr : float
        Variance of the filtered signal over the variance of all noise.
    wedge_degrees : float
        Largest tilt to either side about the y axis; 90 means no missing wedge.
    defocus_micrometre : float or None
        Underfocus, positive; None means no contrast transfer function.
    spherical_aberration_mm : float
        Cs.
    amplitude_contrast : float
        Share of the contrast that does not vanish at low resolution.
    envelope : float
        Where the envelope has fallen to 1/e, as a fraction of Nyquist.
    """

    snr: float
    wedge_degrees: float = 60.0
    defocus_micrometre: float | None = None
    spherical_aberration_mm: float = 2.0
    amplitude_contrast: float = 0.07
    envelope: float = 0.4

    def __post_init__(self) -> None:
        if not (self.snr > 0 and math.isfinite(self.snr)):
            raise ConfigurationError(f"the signal-to-noise ratio must be above 0, got {self.snr}.")
        if not 0 < self.wedge_degrees <= 90:
            raise ConfigurationError(
                f"the largest tilt must be in (0, 90] degrees, got {self.wedge_degrees}."
            )
        if self.envelope <= 0:
            raise ConfigurationError(f"the envelope must be above 0, got {self.envelope}.")


def frequencies(shape: Sequence[int], voxel_size_angstrom: float) -> tuple[Floats, Floats, Floats]:
    """Return the frequencies of a real transform along z, y, x, 1/Å, ready to broadcast."""
    z, y, x = shape
    kz = fft.fftfreq(z, voxel_size_angstrom).astype(np.float32)[:, None, None]
    ky = fft.fftfreq(y, voxel_size_angstrom).astype(np.float32)[None, :, None]
    kx = fft.rfftfreq(x, voxel_size_angstrom).astype(np.float32)[None, None, :]
    return kz, ky, kx


def wedge_mask(shape: Sequence[int], wedge_degrees: float) -> npt.NDArray[np.bool_]:
    """Return which Fourier voxels a tilt series about y up to an angle has measured.

    A tilt by t measures the plane through ky and the direction (cos t, sin t) of (kx, kz), so what is
    measured lies within the largest tilt of the kx axis.

    Returns
    -------
    measured_ZYX : (Z, 1, X // 2 + 1) bool
        In the layout of `scipy.fft.rfftn`; it does not depend on y.
    """
    kz, _, kx = frequencies(shape, 1.0)
    if wedge_degrees >= 90:
        return np.ones((shape[0], 1, shape[2] // 2 + 1), dtype=np.bool_)
    measured: npt.NDArray[np.bool_] = np.abs(kz) <= np.abs(kx) * math.tan(math.radians(wedge_degrees)) + 1e-9
    return measured


def contrast_transfer(frequency: Floats, imaging: Imaging) -> Floats:
    """Return the contrast transfer at frequencies in 1/Å; positive at low resolution (underfocus).

    sin(pi/2 (Cs l^3 k^4 + 2 dz l k^2) + asin(A)) for an underfocus dz > 0 and an amplitude contrast A.
    """
    if imaging.defocus_micrometre is None:
        return np.ones_like(frequency)
    square = frequency * frequency
    lam = WAVELENGTH_ANGSTROM
    aberration = imaging.spherical_aberration_mm * 1e7 * lam**3 * square * square
    phase = math.pi / 2 * (2 * imaging.defocus_micrometre * 1e4 * lam * square - aberration)
    transfer: Floats = np.sin(phase + math.asin(imaging.amplitude_contrast)).astype(np.float32)
    return transfer


def image(
    signal_ZYX: Floats, voxel_size_angstrom: float, imaging: Imaging, *, seed: int
) -> tuple[Floats, float]:
    """Image a scene: wedge, transfer function, envelope, noise; objects become dark.

    Half the noise variance enters before the transfer function (ice, other molecules), half after it,
    through the envelope alone (the detector).

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

    Returns
    -------
    volume_ZYX : (Z, Y, X) float32
        Objects dark; the signal's mean is removed; noise has variance 1.
    realised_snr : float
        Variance of the filtered signal over that of the noise, measured on the two volumes.

    Raises
    ------
    ConfigurationError
        The scene is empty.
    """
    shape = signal_ZYX.shape
    kz, ky, kx = frequencies(shape, voxel_size_angstrom)
    frequency = np.sqrt(kz * kz + ky * ky + kx * kx)
    cutoff = imaging.envelope / (2 * voxel_size_angstrom)
    detector = np.exp(-((frequency / np.float32(cutoff)) ** 2)) * wedge_mask(shape, imaging.wedge_degrees)
    optics = contrast_transfer(frequency, imaging) * detector
    del frequency
    filtered_ZYX = _filtered(signal_ZYX - signal_ZYX.mean(dtype=np.float64), optics)
    if not filtered_ZYX.std() > 0:
        raise ConfigurationError("the scene is empty: there is no signal to give a signal-to-noise ratio.")
    rng = np.random.default_rng(seed)
    noise_ZYX = np.zeros(shape, np.float32)
    for transfer in (optics, detector):
        part_ZYX = _filtered(rng.standard_normal(shape, dtype=np.float32), transfer)
        noise_ZYX += part_ZYX * np.float32(math.sqrt(0.5) / part_ZYX.std(dtype=np.float64))
    wanted = math.sqrt(imaging.snr * noise_ZYX.var(dtype=np.float64) / filtered_ZYX.var(dtype=np.float64))
    filtered_ZYX *= np.float32(wanted)
    realised = float(filtered_ZYX.var(dtype=np.float64) / noise_ZYX.var(dtype=np.float64))
    noise_ZYX -= filtered_ZYX
    return noise_ZYX, realised


def _filtered(volume_ZYX: npt.NDArray[np.floating], transfer_ZYX: Floats) -> Floats:
    """Multiply a volume by a real transfer function in Fourier space."""
    spectrum = fft.rfftn(volume_ZYX.astype(np.float32, copy=False))
    spectrum *= transfer_ZYX
    back: Floats = fft.irfftn(spectrum, s=volume_ZYX.shape, overwrite_x=True)
    return back
