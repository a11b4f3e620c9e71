"""From raw grey values to canonical density: robust statistics, contrast, and where the sample lies in z."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cryoscale.errors import DataError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.ops.gaussian import Float32, filter_exact

# The sd of a normal distribution over its median absolute deviation.
_MAD_TO_SD = 1.4826

# Whole-number data with a narrower spread than this many levels has too coarse a median.
_FEW_LEVELS = 8.0


def robust_statistics(sample_N: npt.ArrayLike) -> tuple[float, float]:
    """Return the robust mean and sd of grey values: median and 1.4826 times the median absolute deviation.

    Parameters
    ----------
    sample_N : float or int, any shape
        Grey values of the tomogram; values that are not finite are left out.

    Returns
    -------
    mean, sd : float
        In grey values; computed in float64. sd > 0.

    Raises
    ------
    DataError
        No finite value, or all of them equal.

    Notes
    -----
    Two kinds of data need care. Where one exact value makes up more than half (padding around a rotated
    volume, a masked background), the statistics are those of the other values. Whole numbers with few levels
    are spread evenly over the width of a level first, whose variance of 1/12 is taken off again.
    """
    sample = np.asarray(sample_N).ravel()
    if not np.issubdtype(sample.dtype, np.integer):
        sample = sample[np.isfinite(sample)]
    if not sample.size:
        raise DataError("the tomogram has no finite voxel.", remedy="Reconstruct or export it again.")
    values = sample.astype(np.float64)
    if values.min() == values.max():
        raise DataError(
            f"every voxel of the tomogram has the value {values[0]:g}.",
            remedy="Reconstruct or export it again.",
        )
    mean, sd = _median_and_sd(values)
    whole_numbers = bool(np.all(values == np.rint(values)))
    if sd == 0.0:
        rest = values[values != mean]
        # Padding leaves a distribution of its own; a few levels beside the commonest one are no padding.
        if rest.size >= 100 and _median_and_sd(rest)[1] > 0 and len(np.unique(rest[:100_000])) > 16:
            return robust_statistics(rest)
    if whole_numbers and sd < _FEW_LEVELS:
        # Multiples of the golden ratio fill [0, 1) evenly and know nothing of the order of the values.
        spread = (np.arange(len(values)) * 0.6180339887498949) % 1.0 - 0.5
        mean, sd = _median_and_sd(values + spread)
        sd = math.sqrt(max(sd**2 - 1.0 / 12.0, 0.0))
    # What is left without a spread is nearly constant data: the plain moments are better than nothing.
    return (mean, sd) if sd > 0.0 else (float(values.mean()), float(values.std()))


def _median_and_sd(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    median = float(np.median(values))
    return median, _MAD_TO_SD * float(np.median(np.abs(values - median)))


def canonical(volume_ZYX: npt.ArrayLike, mean: float, sd: float, bright: bool) -> Float32:
    """Return canonical density: ``(volume - mean) / sd``, negated if objects are bright; objects end up dark.

    Parameters
    ----------
    volume_ZYX : any shape
        Grey values of any real type.
    mean, sd : float
        Of the whole tomogram (`robust_statistics`), never of a block.
    bright : bool
        Whether the tomogram's objects are bright.

    Returns
    -------
    density : float32, same shape
    """
    if not (math.isfinite(mean) and math.isfinite(sd) and sd > 0):
        raise DataError(f"a mean of {mean} and an sd of {sd} cannot normalise a tomogram.")
    # float32 throughout: subtracting first keeps what a large offset would otherwise round away.
    density = np.array(volume_ZYX, dtype=np.float32)
    density -= np.float32(mean)
    density *= np.float32((-1.0 if bright else 1.0) / sd)
    return density


def sample_boxes(
    shape: Sequence[int], *, edge: int = 32, budget_voxels: int = 8_000_000, seed: int
) -> list[Box]:
    """Choose boxes whose voxels stand for the whole volume.

    Parameters
    ----------
    shape : three int
        Extent of the volume.
    edge : int
        Edge of a box, voxels; boxes lie on a grid from the origin, so a multiple of the chunk reads little.
    budget_voxels : int
        How many voxels to read at most (one box at least).
    seed : int
        Same seed, same boxes; blocks and workers play no part.

    Returns
    -------
    boxes : list of Box
        In raster order; a single box, the whole volume, if that is within the budget.
    """
    extent = Zyx.of(shape)
    if extent.voxels <= budget_voxels:
        return [Box.whole(extent)]
    grid = Grid.of(extent, edge)
    count = min(len(grid), max(1, budget_voxels // edge**3))
    drawn = np.sort(np.random.default_rng(seed).choice(len(grid), size=count, replace=False))
    places = np.stack(np.unravel_index(drawn, tuple(grid.counts)), axis=1)
    return [grid.box(place) for place in places.tolist()]


@dataclass(frozen=True)
class Contrast:
    """Whether a tomogram's objects are dark or bright, and why we think so.

    Parameters
    ----------
    value : "dark" or "bright"
        What objects are.
    reason : str
        One sentence for the person.
    confidence : float
        0 (a guess) to 1.
    """

    value: Literal["dark", "bright"]
    reason: str
    confidence: float


def guess_contrast(
    volumes: Sequence[npt.NDArray[np.generic]], voxel_size_angstrom: float | None = None
) -> Contrast:
    """Guess whether objects are dark or bright from sample boxes of a tomogram.

    Parameters
    ----------
    volumes : sequence of (Z, Y, X)
        Sample boxes, raw grey values.
    voxel_size_angstrom : float, optional
        Sets the widths to about 15 to 30 Å; without it they are 1.5 to 3 voxels.

    Returns
    -------
    contrast : Contrast
        "dark", as tomograms usually are, with low confidence when there is nothing to see.

    Notes
    -----
    A blob of protein answers a difference of Gaussians more strongly than the ice between blobs does the
    other way round. Both tails of the responses (the outermost 0.5 %) are compared at three widths. Wider
    filters see the hollows of shells and tubes instead of their walls. Outer z slices of one value are
    padding and do not count. The outermost 0.05 % of the grey values are clipped first, against gold and its
    fringes.
    """
    base = min(max(15.0 / voxel_size_angstrom, 1.5), 3.0) if voxel_size_angstrom else 1.5
    boxes = [v for v in (np.asarray(v, dtype=np.float32) for v in volumes) if v.size and np.isfinite(v).all()]
    if not boxes:
        return Contrast("dark", "no finite sample to look at: assumed dark, as tomograms usually are", 0.0)
    boxes = [inner for inner in map(_without_padding, boxes) if inner.size] or boxes
    low, high = np.percentile(np.concatenate([v.ravel() for v in boxes]), [0.05, 99.95])
    boxes = [np.clip(v, low, high) for v in boxes]
    widths = [base * factor for factor in (1.0, 1.4, 2.0)]
    evidence = float(np.mean([_darkness(boxes, width) for width in widths]))
    confidence = math.tanh(abs(evidence) / 0.2)
    ratio = f"{math.exp(abs(evidence)):.2f} times as strong"
    if confidence < 0.5:
        return Contrast("dark", "dark and bright blobs are about equally strong: assumed dark", confidence)
    if evidence > 0:
        return Contrast("dark", f"dark blobs are {ratio} as bright ones", confidence)
    return Contrast("bright", f"bright blobs are {ratio} as dark ones", confidence)


def _without_padding(box_ZYX: Float32) -> Float32:
    """Cut off outer z slices of one value: the step at padding would count as the strongest of all blobs."""
    varying = np.flatnonzero(np.ptp(box_ZYX, axis=(1, 2)))
    return box_ZYX[varying[0] : varying[-1] + 1] if len(varying) else box_ZYX[:0]


def _darkness(boxes: Sequence[Float32], width: float) -> float:
    """Return the log of the dark tail over the bright tail of responses at one width; 0 if there is none."""
    terms = [(1.0, width), (-1.0, 1.4 * width)]
    responses = np.concatenate([filter_exact(v, terms).ravel() for v in boxes]).astype(np.float64)
    responses -= np.median(responses)
    count = max(1, responses.size // 200)
    ordered = np.partition(responses, [count - 1, responses.size - count])
    dark, bright = -float(ordered[:count].mean()), float(ordered[-count:].mean())
    return math.log(dark / bright) if dark > 0 and bright > 0 else 0.0


_CONSTANT = 1e-6  # of the largest variance of a slice: what rounding leaves of padding


class ZRange(NamedTuple):
    """Where the sample lies: half open slices, or None for both where no empty ice was found."""

    start: int | None
    stop: int | None
    reason: str


def band_profile(volume_ZYX: npt.ArrayLike, sigma: float = 1.5) -> npt.NDArray[np.float64]:
    """Return the variance of each z slice after a band-pass: high where there are objects.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float
        A tomogram at a coarse level, or a column through it.
    sigma : float
        Width of the narrow Gaussian of the band, voxels; the wide one is twice that.

    Returns
    -------
    variance_Z : (Z,) float64
        Robust (from the median absolute deviation), so that gold beads do not count. The outermost slices
        repeat the first that reflection does not reach.
    """
    band = filter_exact(volume_ZYX, [(1.0, sigma), (-1.0, 2.0 * sigma)])
    variance = np.array([_median_and_sd(plane.ravel().astype(np.float64))[1] ** 2 for plane in band])
    # Reflection doubles what lies near the faces, so those slices repeat the nearest one it does not reach.
    edge = min(math.ceil(2.0 * sigma), (len(variance) - 1) // 2)
    variance[:edge] = variance[edge]
    variance[len(variance) - edge :] = variance[len(variance) - edge - 1]
    return variance


def suggest_z_range(variance_Z: npt.ArrayLike, *, smallest_ratio: float = 2.5) -> ZRange:
    """Find the slices that hold the sample between empty ones, as in a FIB lamella.

    Parameters
    ----------
    variance_Z : (Z,) float
        Variance of each slice after a band-pass (`band_profile`); profiles of columns may be averaged.
    smallest_ratio : float
        How many times the variance inside must be that outside.

    Returns
    -------
    range : ZRange
        ``(start, stop, reason)``; start and stop are None when the sample fills the volume.

    Notes
    -----
    Least squares fit of one plateau on a flat base to the log of the profile. It must explain 85 % of its
    variation: a profile that only sags towards the faces (the missing wedge does that) is no lamella.
    """
    profile = np.asarray(variance_Z, dtype=np.float64).ravel()
    positive = profile[np.isfinite(profile) & (profile > 0)]
    depth = len(profile)
    if depth < 8 or len(positive) < depth // 2:
        return ZRange(None, None, f"{depth} slices with {len(positive)} usable are too few to tell")
    floor = max(float(positive.min()), _CONSTANT * float(positive.max()))
    profile = np.maximum(profile, floor)  # NaN stays
    log = np.log(np.where(np.isfinite(profile) & (profile > 0), profile, floor))
    total = float(((log - log.mean()) ** 2).sum())
    start, stop = _plateau(log)
    inside = log[start:stop]
    outside = np.concatenate([log[:start], log[stop:]])
    if total < 1e-12 or len(outside) < max(2, depth // 20):
        return ZRange(None, None, "the variance is even along z: no empty ice found")
    left = float(((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum())
    ratio = math.exp(float(np.median(inside) - np.median(outside)))
    if ratio < smallest_ratio or left > 0.15 * total:
        reason = f"the variance along z has no clear plateau (best ratio {ratio:.2f}): no empty ice found"
        return ZRange(None, None, reason)
    # A third of the way up from the base already counts: empty ice costs less than lost objects.
    level = float(np.median(outside)) + math.log(ratio) / 3.0
    while start > 0 and log[start - 1] > level:
        start -= 1
    while stop < depth and log[stop] > level:
        stop += 1
    said = (
        ", the others are constant"
        if ratio > 0.01 / _CONSTANT
        else f" {ratio:.1f} times as much as the others"
    )
    return ZRange(start, stop, f"slices {start} to {stop - 1} vary{said}")


def _plateau(log: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Return the interval whose mean and the rest's mean fit best, among those where the inside is higher."""
    depth = len(log)
    sums = np.concatenate([[0.0], np.cumsum(log - log.mean())])
    start, stop = np.triu_indices(depth + 1, k=1)
    length = stop - start
    inner = sums[stop] - sums[start]
    proper = (length < depth) & (inner > 0)
    # The sum about the mean is zero, so the outer sum is minus the inner one.
    gain = np.where(proper, inner**2 / length + inner**2 / np.maximum(depth - length, 1), 0.0)
    best = int(np.argmax(gain))
    return int(start[best]), int(stop[best])
