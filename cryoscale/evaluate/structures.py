"""Structures against truth: Fourier shell correlation, masks in real and in Fourier space.

Shape suffixes: K shells, 3 coordinates z, y, x unless said otherwise, ZYX a volume, `ZYX`
of a Fourier mask in the layout of `scipy.fft.rfftn`: (Z, Y, X // 2 + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

from cryoscale.errors import ConfigurationError, DataError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ReadPatch = Callable[[int], npt.NDArray[np.floating]]

NO_POWER = 1e-26
"""Mean power of a shell, as a share of the strongest shell's, that is rounding error and no signal."""


@dataclass(frozen=True)
class ShellCorrelation:
    """How alike two volumes are, by resolution.

    Parameters
    ----------
    frequency_K : (K,) float64
        Middle of each shell, 1/Å. The shell of the mean is left out.
    correlation_K : (K,) float64
        In [-1, 1]; 0 where one volume alone has power, NaN where neither has any, or nothing was measured.
    counts_K : (K,) int64
        Voxels of the full transform in each shell. The correlation of two volumes of independent white noise
        has standard deviation 1 / sqrt(counts); fewer under a mask, which makes neighbours depend.
    voxel_size_angstrom : float
        Voxel size, Å.
    """

    frequency_K: Floats
    correlation_K: Floats
    counts_K: npt.NDArray[np.int64]
    voxel_size_angstrom: float

    def resolution(self, threshold: float = 0.5) -> float:
        """Return where the correlation falls below a threshold, Å.

        Parameters
        ----------
        threshold : float
            0.5 against a known truth; 0.143 between two halves of the data (Rosenthal and Henderson 2003,
            doi:10.1016/j.jmb.2003.07.013).

        Returns
        -------
        resolution : float
            By linear interpolation over frequency between the first shell below, after the first one that is
            not, and the one before: a contrast transfer that was not corrected leaves little in the lowest
            shells. Two voxels (Nyquist) if it never falls below after that, inf if all shells are below, NaN
            if no shell has a value. Shells without a value are passed over.
        """
        valid = np.isfinite(self.correlation_K)
        frequency, correlation = self.frequency_K[valid], self.correlation_K[valid]
        if not len(correlation):
            return math.nan
        reached = np.flatnonzero(correlation >= threshold)
        if not len(reached):
            return math.inf
        below = np.flatnonzero(correlation[reached[0] :] < threshold)
        if not len(below):
            return 2 * self.voxel_size_angstrom
        k = int(reached[0] + below[0])
        part = (correlation[k - 1] - threshold) / (correlation[k - 1] - correlation[k])
        return float(1 / (frequency[k - 1] + part * (frequency[k] - frequency[k - 1])))

    @property
    def at_half(self) -> float:
        """Resolution at 0.5, Å."""
        return self.resolution(0.5)

    @property
    def at_0143(self) -> float:
        """Resolution at 0.143, Å."""
        return self.resolution(0.143)


def fourier_shell_correlation(
    a_ZYX: npt.ArrayLike,
    b_ZYX: npt.ArrayLike,
    voxel_size_angstrom: float,
    *,
    mask: npt.ArrayLike | None = None,
    measured: npt.ArrayLike | None = None,
) -> ShellCorrelation:
    """Correlate two volumes shell by shell of their Fourier transforms.

    Parameters
    ----------
    a_ZYX, b_ZYX : (Z, Y, X) float
        Volumes on one grid; they need not be cubes. Scale (above 0) and offset do not matter.
    voxel_size_angstrom : float
        Voxel size, Å.
    mask : (Z, Y, X) float, optional
        Weight of each voxel, soft at its edge (`soft_spherical_mask`): a sharp one correlates by itself.
    measured : bool, optional
        Fourier voxels that count, in the layout of `scipy.fft.rfftn` or ready to broadcast to it: leaves out
        a missing wedge (`measured_by_tilts`).

    Returns
    -------
    correlation : ShellCorrelation
        Shells are 1 / (shortest side) wide, from one to Nyquist, so each holds all directions.

    Raises
    ------
    ConfigurationError
        Shapes that differ or are no volumes of at least 2 voxels, a voxel size not above 0.
    DataError
        Values that are not finite.

    Notes
    -----
    sum Re(A B*) / sqrt(sum |A|^2 sum |B|^2) over a shell: Harauz and van Heel 1986, Optik 73, 146-156;
    Saxton and Baumeister 1982, doi:10.1111/j.1365-2818.1982.tb00405.x.
    """
    if not (voxel_size_angstrom > 0 and math.isfinite(voxel_size_angstrom)):
        raise ConfigurationError(f"the voxel size must be above 0, got {voxel_size_angstrom}.")
    a, b = (_spectrum(v, name, mask) for v, name in ((a_ZYX, "first"), (b_ZYX, "second")))
    shape = np.shape(a_ZYX)
    if shape != np.shape(b_ZYX):
        raise ConfigurationError(
            f"volumes to correlate must lie on one grid, got shapes {shape} and {np.shape(b_ZYX)}.",
            remedy="Bring one to the other's with on_grid().",
        )
    shells = min(shape) // 2
    shell_ZYX = np.rint(_length(shape) * min(shape)).astype(np.intp)
    weight_ZYX = _multiplicity(shape)
    if measured is not None:
        weight_ZYX = weight_ZYX * np.broadcast_to(np.asarray(measured, dtype=np.bool_), a.shape)
    inside = (shell_ZYX >= 1) & (shell_ZYX <= shells) & (weight_ZYX > 0)
    index = shell_ZYX[inside] - 1

    def total(values_ZYX: Floats) -> Floats:
        weighted = values_ZYX[inside] * weight_ZYX[inside]
        return np.bincount(index, weighted, minlength=shells).astype(np.float64)

    counts_K = np.bincount(index, weight_ZYX[inside], minlength=shells)
    power = [_without_rounding(total(np.abs(v) ** 2), counts_K.astype(np.float64)) for v in (a, b)]
    cross_K, norm_K = total((a * b.conj()).real), np.sqrt(power[0] * power[1])
    nothing = np.where((power[0] > 0) | (power[1] > 0), 0.0, np.nan)
    correlation_K = np.divide(cross_K, norm_K, out=nothing, where=norm_K > 0)
    frequency_K = np.arange(1, shells + 1) / (min(shape) * voxel_size_angstrom)
    return ShellCorrelation(
        frequency_K, np.clip(correlation_K, -1, 1), counts_K.astype(np.int64), float(voxel_size_angstrom)
    )


def _spectrum(volume: npt.ArrayLike, name: str, mask: npt.ArrayLike | None) -> npt.NDArray[np.complex128]:
    """Return the transform of a volume without its mean under the mask, times the mask."""
    volume_ZYX = np.asarray(volume, dtype=np.float64)
    if volume_ZYX.ndim != 3 or min(volume_ZYX.shape) < 2:
        raise ConfigurationError(
            f"the {name} volume must be (Z, Y, X), 2 voxels at least, got {volume_ZYX.shape}."
        )
    if not np.isfinite(volume_ZYX).all():
        raise DataError(f"the {name} volume holds values that are not finite.")
    weight_ZYX = np.ones(()) if mask is None else np.asarray(mask, dtype=np.float64)
    if mask is not None and (weight_ZYX.shape != volume_ZYX.shape or not weight_ZYX.sum() > 0):
        raise ConfigurationError(
            f"the mask must be of shape {volume_ZYX.shape} and not empty, got {weight_ZYX.shape}."
        )
    weights_ZYX = np.broadcast_to(weight_ZYX, volume_ZYX.shape)
    mean = float(np.average(volume_ZYX, weights=weights_ZYX))
    spectrum: npt.NDArray[np.complex128] = fft.rfftn((volume_ZYX - mean) * weights_ZYX)
    return spectrum


def _axes(shape: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Return frequencies along z, y, x in cycles per voxel, ready to broadcast."""
    z, y, x = shape
    return fft.fftfreq(z)[:, None, None], fft.fftfreq(y)[None, :, None], fft.rfftfreq(x)[None, None, :]


def _length(shape: Sequence[int]) -> Floats:
    kz, ky, kx = _axes(shape)
    length: Floats = np.sqrt(kz**2 + ky**2 + kx**2)
    return length


def _multiplicity(shape: Sequence[int]) -> Floats:
    """How many voxels of the full transform each voxel of the half one stands for: 1 or 2."""
    weight_ZYX = np.full((shape[0], shape[1], shape[2] // 2 + 1), 2.0)
    weight_ZYX[..., 0] = 1
    if shape[2] % 2 == 0:
        weight_ZYX[..., -1] = 1
    return weight_ZYX


def _without_rounding(power_K: Floats, counts_K: Floats) -> Floats:
    """Set the power of shells to 0 that hold nothing but rounding errors of the transform."""
    mean_K = power_K / np.maximum(counts_K, 1)
    cleaned: Floats = np.where(mean_K > NO_POWER * mean_K.max(initial=0), power_K, 0.0)
    return cleaned


def soft_spherical_mask(
    shape: Sequence[int],
    radius_voxels: float,
    *,
    edge_voxels: float = 3.0,
    centre: Sequence[float] | None = None,
) -> npt.NDArray[np.float32]:
    """Return a ball of ones that falls to zero by a cosine.

    Parameters
    ----------
    shape : three ints
        Of the volume.
    radius_voxels : float
        Where the fall begins.
    edge_voxels : float
        How wide it is; 0 for a sharp edge.
    centre : three floats, optional
        z, y, x in voxels; the middle voxel, shape // 2, by default.
    """
    if radius_voxels < 0 or edge_voxels < 0:
        raise ConfigurationError(f"radius and edge must be at least 0, got {radius_voxels}, {edge_voxels}.")
    middle = [n // 2 for n in shape] if centre is None else centre
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    distance_ZYX = np.sqrt((z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2)
    beyond_ZYX = np.clip((distance_ZYX - radius_voxels) / max(edge_voxels, 1e-9), 0, 1)
    mask_ZYX: npt.NDArray[np.float32] = (0.5 + 0.5 * np.cos(np.pi * beyond_ZYX)).astype(np.float32)
    return mask_ZYX


def measured_by_tilts(
    shape: Sequence[int], tilts_degrees: tuple[float, float], *, rotation_33: Floats | None = None
) -> Bools:
    """Return which Fourier voxels a tilt series about y has measured, for a volume or for a turned particle.

    A tilt by t measures the plane through ky and the direction (cos t, sin t) of (kx, kz).

    Parameters
    ----------
    shape : three ints
        Of the volume.
    tilts_degrees : two floats
        Least and largest tilt, within [-90, 90].
    rotation_33 : (3, 3) float, optional
        Turns xyz of the particle's frame into xyz of the volume; the mask is then in the particle's frame.

    Returns
    -------
    measured_ZYX : (Z, Y, X // 2 + 1) bool
        In the layout of `scipy.fft.rfftn`.
    """
    low, high = tilts_degrees
    if not -90 <= low < high <= 90:
        raise ConfigurationError(f"tilts must rise within [-90, 90] degrees, got {tilts_degrees}.")
    turn = np.eye(3) if rotation_33 is None else np.asarray(rotation_33, dtype=np.float64)
    kz, ky, kx = _axes(shape)
    x_ZYX = turn[0, 0] * kx + turn[0, 1] * ky + turn[0, 2] * kz
    z_ZYX = turn[2, 0] * kx + turn[2, 1] * ky + turn[2, 2] * kz
    z_ZYX = np.where(x_ZYX < 0, -z_ZYX, z_ZYX)  # of a Friedel pair the one with kx >= 0
    x_ZYX = np.abs(x_ZYX)
    measured: Bools = np.ones(x_ZYX.shape, dtype=np.bool_)
    if high < 90:
        measured &= z_ZYX <= x_ZYX * math.tan(math.radians(high)) + 1e-9
    if low > -90:
        measured &= z_ZYX >= x_ZYX * math.tan(math.radians(low)) - 1e-9
    return measured
