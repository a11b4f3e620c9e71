"""Exact Gaussian filters in Fourier space, on whole volumes and on padded tiles.

A Gaussian of width s voxels multiplies frequency k (radians per voxel) by exp(-s^2 k^2 / 2), added up over
k + 2 pi m: that is the transform of a Gaussian sampled at the voxels. From s = 2 on the other terms vanish;
below, without them, the filter would ring far beyond its halo. The usual kernel cut at 4 s differs from the
exact one by 0.4 % of the sd of a difference of Gaussians, so nothing is cut here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import scipy.fft

Float32 = npt.NDArray[np.float32]

# Frequencies where every Gaussian has fallen below this are not computed at all: float32 rounds at 6e-8.
_NEGLIGIBLE = 1e-9

# A narrower Gaussian gives the next voxel less than 1e-21: it changes nothing.
_POINT = 0.1

# Planes per pass; fixed, because the last bits depend on how many lines are transformed together.
SLAB = 8


def halo_voxels(sigma: float) -> int:
    """Return how far a Gaussian of width `sigma` (voxels) reaches: 6 sigma, where it is below 2e-8."""
    return math.ceil(6.0 * sigma)


def smooth_exact(volume_ZYX: npt.ArrayLike, sigma: float) -> Float32:
    """Smooth a whole volume with an exact Gaussian, reflected at the faces (edge voxel repeated).

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float
        Density.
    sigma : float
        Width, voxels; 0 changes nothing.

    Returns
    -------
    smooth_ZYX : (Z, Y, X) float32
        The reference that tiled filters are compared with; it needs several times the volume in memory.

    Notes
    -----
    The cosine transform of type II is the Fourier transform of the volume and its mirror image, so the
    multiplier at index i of n is the Gaussian at k = pi i / n. Equals `scipy.ndimage.gaussian_filter` with
    a long enough `truncate`.
    """
    return filter_exact(volume_ZYX, [(1.0, sigma)])


def filter_exact(volume_ZYX: npt.ArrayLike, terms: Sequence[tuple[float, float]]) -> Float32:
    """Apply a weighted sum of Gaussians, `terms` being (weight, sigma in voxels), to a whole volume.

    The faces reflect as in `smooth_exact`, and so do the shapes, types and memory.
    """
    volume = np.asarray(volume_ZYX, dtype=np.float32)
    frequencies = [np.pi * np.arange(n) / n for n in volume.shape]
    spectrum = scipy.fft.dctn(volume, type=2, workers=1)
    spectrum *= _multiplier(frequencies, terms)
    return np.asarray(scipy.fft.idctn(spectrum, type=2, workers=1, overwrite_x=True), dtype=np.float32)


def smooth_tile(padded_ZYX: Float32, sigma: float) -> Float32:
    """Smooth a padded tile as if it were periodic; the caller trims the halo.

    Parameters
    ----------
    padded_ZYX : (Z, Y, X) float32
        A tile with at least `halo_voxels(sigma)` true voxels around it.
    sigma : float
        Width, voxels.

    Returns
    -------
    smooth_ZYX : (Z, Y, X) float32
        Same shape; only voxels at least `halo_voxels(sigma)` away from the faces are meaningful.
    """
    return filter_tile(padded_ZYX, [(1.0, sigma)])


def filter_tile(
    padded_ZYX: Float32,
    terms: Sequence[tuple[float, float]],
    keep: tuple[slice, slice, slice] = (slice(None), slice(None), slice(None)),
) -> Float32:
    """Apply a weighted sum of Gaussians to a periodic tile: one transform there, one back.

    Parameters
    ----------
    padded_ZYX : (Z, Y, X) float32
        The tile; periodic, so its faces lean on the opposite ones.
    terms : sequence of (float, float)
        Weight and width (voxels) of each Gaussian, for example ``[(1, narrow), (-1, wide)]``.
    keep : three slices
        The part of the result that is wanted; the rest is not computed.

    Returns
    -------
    filtered_ZYX : float32
        The part `keep` of the filtered tile.

    Notes
    -----
    The transform runs axis by axis. After each axis the frequencies that the narrowest Gaussian wipes out
    are dropped, and on the way back the voxels outside `keep`, so later axes transform fewer lines. The
    axes y and x are done a few planes at a time, which stay in the processor's cache.
    """
    n_z, n_y, n_x = padded_ZYX.shape
    reach = cutoff(terms)
    k_x = 2.0 * np.pi * scipy.fft.rfftfreq(n_x)
    k_x = k_x[: int(np.count_nonzero(k_x <= reach))]
    low_y, low_z = _low_bins(n_y, reach), _low_bins(n_z, reach)
    spectrum = np.empty((n_z, len(low_y), len(k_x)), dtype=np.complex64)
    for planes in _slabs(n_z):
        part = scipy.fft.rfft(padded_ZYX[planes], axis=2, workers=1)[:, :, : len(k_x)]
        spectrum[planes] = scipy.fft.fft(part, axis=1, workers=1)[:, low_y]
    spectrum = scipy.fft.fft(spectrum, axis=0, workers=1, overwrite_x=True)[low_z]
    k_z, k_y = (2.0 * np.pi * scipy.fft.fftfreq(n)[low] for n, low in ((n_z, low_z), (n_y, low_y)))
    spectrum *= _multiplier([k_z, k_y, k_x], terms)
    spectrum = scipy.fft.ifft(_spread(spectrum, 0, n_z, low_z), axis=0, workers=1, overwrite_x=True)[keep[0]]
    result = np.empty(
        [len(range(*s.indices(n))) for s, n in zip(keep, padded_ZYX.shape, strict=True)], np.float32
    )
    for planes in _slabs(len(spectrum)):
        part = scipy.fft.ifft(_spread(spectrum[planes], 1, n_y, low_y), axis=1, workers=1)[:, keep[1]]
        result[planes] = scipy.fft.irfft(part, n=n_x, axis=2, workers=1)[:, :, keep[2]]
    return result


def _slabs(planes: int) -> Iterator[slice]:
    """Yield slices of a few planes each."""
    for start in range(0, planes, SLAB):
        yield slice(start, min(start + SLAB, planes))


def cutoff(terms: Sequence[tuple[float, float]]) -> float:
    """Return the frequency (radians per voxel) beyond which every Gaussian of `terms` is negligible."""
    narrowest = min(sigma for _, sigma in terms)
    if narrowest <= 0.0:
        return math.inf
    return math.sqrt(-2.0 * math.log(_NEGLIGIBLE)) / narrowest


def _low_bins(length: int, reach: float) -> npt.NDArray[np.int64]:
    """Return the bins of a complex transform of this length whose frequency is at most `reach`."""
    return np.flatnonzero(2.0 * np.pi * np.abs(scipy.fft.fftfreq(length)) <= reach).astype(np.int64)


def _spread(
    spectrum: npt.NDArray[np.complex64], axis: int, length: int, bins: npt.NDArray[np.int64]
) -> npt.NDArray[np.complex64]:
    """Put kept frequencies back in their places along one axis, zeros elsewhere."""
    if len(bins) == length:
        return spectrum
    shape = list(spectrum.shape)
    shape[axis] = length
    full = np.zeros(shape, dtype=np.complex64)
    # The kept bins are the first few and the last few, so two slices do it.
    low = int(np.count_nonzero(bins < (length + 1) // 2))
    high = len(bins) - low
    lead = (slice(None),) * axis
    full[(*lead, slice(0, low))] = spectrum[(*lead, slice(0, low))]
    if high:
        full[(*lead, slice(length - high, length))] = spectrum[(*lead, slice(low, None))]
    return full


def _multiplier(
    frequencies: Sequence[npt.NDArray[np.float64]], terms: Sequence[tuple[float, float]]
) -> Float32:
    """Return the sum of weighted Gaussians on the grid of these frequencies (radians per voxel)."""
    total: Float32 | None = None
    for weight, sigma in terms:
        z, y, x = (transfer(k, sigma) for k in frequencies)
        # The outer product is float64 on two axes and float32 on the third: small, and close enough.
        plane = (weight * z[:, None] * y[None, :]).astype(np.float32)
        term = plane[:, :, None] * x.astype(np.float32)[None, None, :]
        total = term if total is None else np.add(total, term, out=total)
    if total is None:
        return np.zeros([len(k) for k in frequencies], dtype=np.float32)
    return total


def gaussian_taps(u: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Return a Gaussian sampled at whole voxels `u`, sum 1 over all voxels."""
    if sigma < _POINT:
        return np.asarray(u == 0, dtype=np.float64)
    reach = np.arange(-math.ceil(9.0 * sigma), math.ceil(9.0 * sigma) + 1)
    return np.asarray(np.exp(-0.5 * (u / sigma) ** 2) / np.exp(-0.5 * (reach / sigma) ** 2).sum())


def transfer(k: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Return the transform of a Gaussian sampled at the voxels, 1 at frequency 0 (Poisson summation)."""
    if sigma < _POINT:
        return np.ones_like(k)
    # Terms beyond this many are below 1e-17.
    copies = math.ceil(1.0 + 9.0 / (2.0 * np.pi * sigma))
    shifts = 2.0 * np.pi * np.arange(-copies, copies + 1)
    total = np.exp(-0.5 * (sigma * (k[:, None] + shifts)) ** 2).sum(axis=1)
    return np.asarray(total / np.exp(-0.5 * (sigma * shifts) ** 2).sum())
