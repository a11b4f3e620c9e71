"""What a microscope and a tilt series do to the waves of a scene: settings, transfer functions, wedge.

Frequencies are in 1/Å unless said otherwise; transfer functions depend on their square alone, so square
frequencies go in. A tilt by t measures the plane through ky and the direction (cos t, sin t) of (kx, kz):
the beam is z at tilt 0 and the tilt axis is y.

After Pei, Xu, Frazier, Alber 2016, doi:10.1186/s12859-016-1283-3, with the constants named where they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import fft

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]
Result = TypeVar("Result")

MTF_AT_NYQUIST = 2 / math.pi
"""A detector of square pixels passes sinc(pi r / 2) at the fraction r of Nyquist: 2 / pi there."""


@dataclass(frozen=True)
class Imaging:
    """How a scene is imaged.

    Parameters
    ----------
    snr : float
        Variance of the filtered signal over the variance of all noise.
    tilt_min_degrees, tilt_max_degrees : float
        The range of tilts about the y axis, within [-90, 90]; a range of 180 degrees has no missing wedge.
    tilt_step_degrees : float
        From one tilt to the next. The direct route takes the range as measured without gaps.
    defocus_micrometre : float or None
        Underfocus, positive; None means no contrast transfer function.
    spherical_aberration_mm : float
        Cs.
    voltage_kv : float
        Acceleration voltage.
    amplitude_contrast : float
        Share of the contrast that does not vanish at low resolution.
    envelope : float
        Where the envelope has fallen to 1/e, as a fraction of Nyquist; infinite means none. It acts on what
        passes the lenses: the signal, and the noise before the contrast transfer function.
    mtf_at_nyquist : float
        What the detector leaves of the amplitude at Nyquist; 1 means all. It acts on everything.
    noise_before_share : float
        Share of the noise variance that enters before the contrast transfer function (ice, other molecules);
        the rest is the detector's. Both shares are counted after all filters.

    Raises
    ------
    ConfigurationError
        A value is out of range.
    """

    snr: float
    tilt_min_degrees: float = -60.0
    tilt_max_degrees: float = 60.0
    tilt_step_degrees: float = 1.0
    defocus_micrometre: float | None = None
    spherical_aberration_mm: float = 2.0
    voltage_kv: float = 300.0
    amplitude_contrast: float = 0.07
    envelope: float = 0.4
    mtf_at_nyquist: float = MTF_AT_NYQUIST
    noise_before_share: float = 0.5

    def __post_init__(self) -> None:
        low, high, step = self.tilt_min_degrees, self.tilt_max_degrees, self.tilt_step_degrees
        _demand(0 < self.snr < math.inf, "signal-to-noise ratio", self.snr, "Give a number above 0.")
        _demand(-90 <= low <= 90, "smallest tilt", low, "Give degrees from -90 to 90.")
        _demand(-90 <= high <= 90, "largest tilt", high, "Give degrees from -90 to 90.")
        _demand(low < high, "range of tilts", f"{low} to {high}", "The first must be smaller, in degrees.")
        _demand(0 < step <= high - low, "tilt step", step, f"Give degrees, above 0, at most {high - low:g}.")
        if self.defocus_micrometre is not None:
            remedy = "Give underfocus as positive micrometres, at most 100, or None for no transfer function."
            _demand(0 < self.defocus_micrometre <= 100, "defocus", self.defocus_micrometre, remedy)
        cs, kv = self.spherical_aberration_mm, self.voltage_kv
        _demand(0 <= cs <= 100, "spherical aberration", cs, "Give millimetres, from 0 to 100.")
        _demand(10 <= kv <= 3000, "voltage", kv, "Give kilovolts, from 10 to 3000.")
        contrast, mtf = self.amplitude_contrast, self.mtf_at_nyquist
        _demand(0 <= contrast < 1, "amplitude contrast", contrast, "Give a share, at least 0, below 1.")
        _demand(self.envelope > 0, "envelope", self.envelope, "Give a fraction of Nyquist above 0.")
        _demand(0 < mtf <= 1, "MTF at Nyquist", mtf, "Give a share above 0, at most 1 (no loss).")
        share = self.noise_before_share
        _demand(0 <= share <= 1, "share of the noise before the optics", share, "Give one from 0 to 1.")

    @property
    def has_wedge(self) -> bool:
        """Whether some directions are not measured."""
        return self.tilt_max_degrees - self.tilt_min_degrees < 180


def _demand(holds: bool, what: str, value: object, remedy: str) -> None:
    """Raise unless a setting is in its range; a NaN fails every comparison and so is refused."""
    if not holds:
        raise ConfigurationError(f"the {what} of the imaging cannot be {value}.", remedy=remedy)


def wavelength_angstrom(voltage_kv: float) -> float:
    """Return the wavelength of electrons, Å, with relativity: 0.01969 at 300 kV.

    h / sqrt(2 m e V (1 + e V / (2 m c^2))), in numbers 12.2643 / sqrt(V + 0.978476e-6 V^2) (CODATA 2018).
    """
    volts = voltage_kv * 1e3
    return 12.264259661 / math.sqrt(volts * (1 + 0.978475598e-6 * volts))


def contrast_transfer(square_frequency: Floats, imaging: Imaging) -> Floats:
    """Return the contrast transfer at square frequencies in 1/Å²; positive at low resolution (underfocus).

    sin(pi/2 (2 dz l k^2 - Cs l^3 k^4) + asin(A)) for an underfocus dz > 0 and an amplitude contrast A.
    """
    if imaging.defocus_micrometre is None:
        return np.ones_like(square_frequency)
    wave = wavelength_angstrom(imaging.voltage_kv)
    defocus = np.float32(math.pi * wave * imaging.defocus_micrometre * 1e4)
    aberration = np.float32(math.pi / 2 * wave**3 * imaging.spherical_aberration_mm * 1e7)
    phase = square_frequency * (defocus - aberration * square_frequency)
    phase += np.float32(math.asin(imaging.amplitude_contrast))
    np.sin(phase, out=phase)
    return phase


def detector_transfer(square_frequency: Floats, voxel_size_angstrom: float, imaging: Imaging) -> Floats:
    """Return the modulation transfer of the detector at square frequencies in 1/Å².

    m^(r^2) at the fraction r of Nyquist. With m = 2 / pi it stays within 0.01 of sinc(pi r / 2), the square
    pixel, up to Nyquist, and has no zero beyond, where the corners of a volume lie.
    """
    square_nyquist = 1 / (2 * voxel_size_angstrom) ** 2
    transfer = square_frequency * np.float32(math.log(imaging.mtf_at_nyquist) / square_nyquist)
    np.exp(transfer, out=transfer)
    return transfer


def optics_transfer(square_frequency: Floats, voxel_size_angstrom: float, imaging: Imaging) -> Floats:
    """Return what becomes of the signal: contrast transfer, envelope exp(-(r / envelope)^2) and detector."""
    cutoff = imaging.envelope / (2 * voxel_size_angstrom)
    transfer = contrast_transfer(square_frequency, imaging)
    transfer *= np.exp(square_frequency * np.float32(-1 / cutoff**2))
    transfer *= detector_transfer(square_frequency, voxel_size_angstrom, imaging)
    return transfer


def wedge_mask(n_z: int, n_x: int, imaging: Imaging) -> Masks:
    """Return which waves a tilt series without gaps has measured; it does not depend on y.

    Parameters
    ----------
    n_z, n_x : int
        Extent of the volume, voxels of equal edges.
    imaging : Imaging
        Its range of tilts.

    Returns
    -------
    measured_ZX : (n_z, n_x // 2 + 1) bool
        In the layout of `scipy.fft.rfft2`. The wave at Nyquist stands for both of its signs and counts as
        measured if one of them is.
    """
    kz = fft.fftfreq(n_z)[:, None]
    kx = fft.rfftfreq(n_x)[None, :]
    both = (np.abs(kz) == 0.5) | (kx == 0.5)
    measured_ZX: Masks = _within(kz, kx, imaging) | (both & _within(-kz, kx, imaging))
    return measured_ZX


def _within(kz: npt.NDArray[np.float64], kx: npt.NDArray[np.float64], imaging: Imaging) -> Masks:
    """Return where the direction (kx, kz), kx >= 0, lies within the range of tilts."""
    if not imaging.has_wedge:
        return np.ones(np.broadcast_shapes(kz.shape, kx.shape), dtype=np.bool_)
    # Slopes of the last tilts, bent to infinity at 90 degrees; a little slack for rounding.
    slopes = [
        math.tan(math.radians(t)) if abs(t) < 90 else math.copysign(math.inf, t)
        for t in (imaging.tilt_min_degrees, imaging.tilt_max_degrees)
    ]
    lower, upper = (np.where(kx > 0, s, 0.0) * np.where(kx > 0, kx, 1.0) for s in slopes)
    if abs(imaging.tilt_min_degrees) == 90 or abs(imaging.tilt_max_degrees) == 90:
        # The beam's own direction is measured, from both of its ends.
        lower, upper = (np.where(kx > 0, line, sign * np.inf) for line, sign in ((lower, -1), (upper, 1)))
    within: Masks = (kz >= lower - 1e-9) & (kz <= upper + 1e-9)
    return within


def square_frequencies(shape: Sequence[int], voxel_size_angstrom: float) -> list[Floats]:
    """Return the square frequencies along each axis of a real transform, 1/Å²; the last axis is halved."""
    *full, last = shape
    axes = [fft.fftfreq(n, voxel_size_angstrom) for n in full] + [fft.rfftfreq(last, voxel_size_angstrom)]
    return [(k * k).astype(np.float32) for k in axes]


def half_weights(n_x: int) -> npt.NDArray[np.float64]:
    """Return how many waves of the full transform each column of a real transform stands for: 1 or 2."""
    weights = np.full(n_x // 2 + 1, 2.0)
    weights[0] = 1
    if n_x % 2 == 0:
        weights[-1] = 1
    return weights


def noise_transfer(optics: Floats, detector: Floats, before: float, after: float) -> Floats:
    """Return the one filter that gives white noise the spectrum of both kinds of noise together.

    Gaussian noise is known by its spectrum alone, so the sum of two independent fields, one through the
    optics and one through the detector, is one field through the root of the sum of squares.

    Parameters
    ----------
    optics, detector : float32
        The filters of noise before and after the contrast transfer function.
    before, after : float
        Variance wanted of either kind over the mean square of its filter.
    """
    power = np.float32(before) * optics * optics
    power += np.float32(after) * detector * detector
    np.sqrt(power, out=power)
    return power


def noise_gains(optics_power: float, detector_power: float, imaging: Imaging) -> tuple[float, float]:
    """Return `before` and `after` of `noise_transfer` for a total variance of 1.

    Parameters
    ----------
    optics_power, detector_power : float
        Mean square of either filter over all waves.
    """
    return imaging.noise_before_share / optics_power, (1 - imaging.noise_before_share) / detector_power


def each(function: Callable[[int], Result], count: int, workers: int) -> list[Result]:
    """Return the results of a function for 0 … count - 1, in order, from several threads.

    Every call does the same work whatever the number of threads, so results are the same bytes.
    """
    if workers <= 1:
        return [function(i) for i in range(count)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, range(count)))


def seeded(seed: int, *path: int) -> np.random.Generator:
    """Return the stream of random numbers of one plane or tilt: the same whoever asks, and when."""
    entropy: list[Any] = [seed, *path]
    return np.random.default_rng(np.random.SeedSequence(entropy))
