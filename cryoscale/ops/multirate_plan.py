"""The matrices of `cryoscale.ops.multirate`: how wide its window is, its filters, its bricks and tiles.

Crochiere and Rabiner 1983, Multirate Digital Signal Processing, chapter 2 (decimation and interpolation).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.ops.gaussian import transfer

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Half width (in coarse cells) and shape of the Kaiser window. Images of the spectrum that it lets through
# add 1e-6 of the sd of the scores; 4.5 is the widest that gives a brick no more than SPILL neighbours.
WINDOW = 4.5
_BETA = 18.0
# Narrow width in coarse cells from which that holds.
_FINEST = 1.79
SPILL = 4  # coarse samples beyond a brick that its voxels reach
MARGIN = SPILL + 1  # coarse scores beyond a brick that its voxels and one layer around them need

_BRICK = 48  # voxels, about: a brick of scores stays in the second-level cache
_FEWEST = 4  # coarse cells along a brick at least


def factor_for(narrow: float) -> int:
    """Return by how much a filter of this narrow width (voxels) can be thinned; 1 for not at all."""
    return max(1, math.floor(narrow / _FINEST))


def window_taps(u: Float64, factor: int) -> Float64:
    """Return the Kaiser window at distances `u` (voxels) from a coarse sample, sum 1 over the voxels."""
    reach = WINDOW * factor

    def kaiser(v: Float64) -> Float64:
        inside = np.abs(v) < reach
        return np.where(inside, np.i0(_BETA * np.sqrt(np.where(inside, 1.0 - (v / reach) ** 2, 0.0))), 0.0)

    return np.asarray(kaiser(u) / kaiser(_lattice(factor)).sum())


def coarse_reach(wide: float, factor: int) -> int:
    """Return how far the coarse filter reaches, coarse cells: 5 times the width that is left to it."""
    u = _lattice(factor)
    variance = (wide**2 - 2.0 * float((window_taps(u, factor) * u**2).sum())) / factor**2
    return max(7, math.ceil(5.0 * math.sqrt(max(variance, 0.0))))


def coarse_taps(sigma: float, factor: int, reach: int) -> Float64:
    """Return the coarse filter at lags 0 … reach with which thin, filter, spread are a Gaussian of `sigma`.

    Least squares over the frequencies of the coarse grid: F^2 D closest to G, with sum 1. Near the highest
    frequencies F^2 vanishes, and G / F^2 would not be a short filter.
    """
    theta = np.pi * (np.arange(max(1024, 16 * reach)) + 0.5) / max(1024, 16 * reach)  # radians per cell
    u = _lattice(factor)
    window = (window_taps(u, factor)[None, :] * np.cos(theta[:, None] / factor * u[None, :])).sum(axis=1)
    twice = np.where(np.arange(reach + 1) > 0, 2.0, 1.0)
    waves = twice * np.cos(theta[:, None] * np.arange(reach + 1))
    small = 1e-9 * math.sqrt(len(theta)) * np.eye(reach + 1)  # what does not matter shall not grow
    matrix = np.concatenate([window[:, None] ** 2 * waves, 1e3 * twice[None, :], small])
    wanted = np.concatenate([transfer(theta / factor, sigma), [1e3], np.zeros(reach + 1)])
    return np.asarray(np.linalg.lstsq(matrix, wanted, rcond=None)[0])


def _lattice(factor: int) -> Float64:
    """Return the distances of voxels from a coarse sample, as far as the window reaches."""
    reach = math.ceil(WINDOW * factor)
    return np.asarray(np.arange(-reach, reach + 1) + (0.0 if factor % 2 else 0.5), dtype=np.float64)


@dataclass(frozen=True)
class BrickRun:
    """What one brick does along one axis: voxels [start, stop) add to coarse samples from `low` on."""

    start: int
    stop: int
    low: int
    thin_VC: Float32

    @property
    def high(self) -> int:
        """One past the last coarse sample that the brick adds to."""
        return self.low + int(self.thin_VC.shape[1])


@dataclass(frozen=True)
class TileRun:
    """One tile along one axis: bricks [first, last), and its coarse filters."""

    first: int
    last: int
    low: int  # the window of coarse samples starts here
    narrow_DW: Float32  # coarse scores from coarse samples
    wide_DW: Float32


@dataclass(frozen=True)
class Axis:
    """All matrices along one axis of `extent` voxels."""

    extent: int
    factor: int
    cells: int  # coarse cells along a brick
    bricks: tuple[BrickRun, ...]
    tiles: tuple[TileRun, ...]
    spread_VD: Float32  # a brick's voxels and one around them, from coarse scores

    @property
    def brick(self) -> int:
        """Voxels along a brick."""
        return self.cells * self.factor

    def tiles_of(self, start: int, stop: int) -> range:
        """Return the tiles that hold voxels of [start, stop)."""
        edge = self.tiles[0].last * self.brick
        return range(start // edge, -(-stop // edge))

    def samples_of(self, tiles: range) -> tuple[int, int]:
        """Return the coarse samples that these tiles read."""
        last = self.tiles[tiles[-1]]
        return self.tiles[tiles[0]].low, last.low + last.narrow_DW.shape[1]

    def bricks_of(self, low: int, high: int) -> list[int]:
        """Return the bricks that add to coarse samples [low, high)."""
        return [i for i, run in enumerate(self.bricks) if run.low < high and run.high > low]


@functools.lru_cache(maxsize=64)
def brick_cells(narrow: float, wide: float) -> int:
    """Return how many coarse cells a brick has along each axis.

    About `_BRICK` voxels, and so that whole bricks around a tile are little more than what it looks at.
    """
    factor = factor_for(narrow)
    reach = window_reach(wide, factor) + SPILL
    around = range(
        max(_FEWEST, round(_BRICK / factor * 2 / 3)), max(_FEWEST, round(_BRICK / factor * 4 / 3)) + 1
    )
    return min(around, key=lambda cells: (-(-reach // cells) * cells, -cells))


def tile_bricks(narrow: float, wide: float, tile: int) -> int:
    """Return how many bricks make a tile of about `tile` voxels along each axis."""
    return max(1, round(tile / (brick_cells(narrow, wide) * factor_for(narrow))))


def window_reach(wide: float, factor: int) -> int:
    """Return how many coarse samples beyond its cells a tile reads."""
    return coarse_reach(wide, factor) + MARGIN


@functools.lru_cache(maxsize=64)
def axis_plan(extent: int, narrow: float, wide: float, tile: int) -> Axis:
    """Make the matrices along one axis.

    Parameters
    ----------
    extent : int
        Voxels along the axis.
    narrow, wide : float
        Widths of the two Gaussians, voxels.
    tile : int
        Wanted tile edge, voxels; rounded to whole bricks.
    """
    factor = factor_for(narrow)
    cells, reach = brick_cells(narrow, wide), window_reach(wide, factor)
    count = -(-extent // (cells * factor))
    per_tile = tile_bricks(narrow, wide, tile)
    far = reach - MARGIN
    taps = [np.append(coarse_taps(sigma, factor, far), 0.0) for sigma in (narrow, wide)]
    tiles = []
    for first in range(0, count, per_tile):
        last = min(first + per_tile, count)
        read = np.arange(first * cells - reach, last * cells + reach)
        made = np.arange(first * cells - MARGIN, last * cells + MARGIN)
        lags = np.minimum(np.abs(made[:, None] - read[None, :]), far + 1)
        tiles.append(TileRun(first, last, int(read[0]), *(t[lags].astype(np.float32) for t in taps)))
    voxels = np.arange(-1, cells * factor + 1)
    samples = np.arange(-MARGIN, cells + MARGIN) * factor + (factor - 1) / 2
    spread = factor * window_taps(voxels[:, None] - samples[None, :], factor)
    return Axis(
        extent,
        factor,
        cells,
        _brick_runs(extent, factor, cells, reach),
        tuple(tiles),
        spread.astype(np.float32),
    )


def _brick_runs(extent: int, factor: int, cells: int, reach: int) -> tuple[BrickRun, ...]:
    """Make the thinning matrix of every brick; those far from the faces share one."""
    edge = cells * factor
    most = -(-extent // factor) + reach  # samples beyond are nobody's
    far = (reach + SPILL + 1) * factor
    runs: list[BrickRun] = []
    shared: Float32 | None = None
    for start in range(0, extent, edge):
        stop = min(start + edge, extent)
        inner = start >= far and stop + far <= extent
        if inner and shared is not None:
            runs.append(BrickRun(start, stop, start // factor - SPILL, shared))
            continue
        matrix = _thinning(np.arange(-reach, most), factor, start, stop, extent)
        used = np.flatnonzero(matrix.any(axis=1))
        if inner:  # none of them but the outermost can be zero by chance
            used = np.arange(start // factor - SPILL, start // factor + cells + SPILL) + reach
        thin_VC = np.ascontiguousarray(matrix[used[0] : used[-1] + 1].T, np.float32)
        runs.append(BrickRun(start, stop, int(used[0]) - reach, thin_VC))
        if inner:
            shared = thin_VC
    return tuple(runs)


def thinning(samples: npt.NDArray[np.int64], factor: int, extent: int) -> tuple[int, int, Float64]:
    """Return the voxels [start, stop) that these coarse samples (one run of them) need, and the matrix."""
    ends = np.array([samples[0] - WINDOW, samples[-1] + 1 + WINDOW]) * factor
    start, stop = max(0, math.floor(ends[0])), min(extent, math.ceil(ends[1]))
    # Near a face mirror images reach as far in as the samples reach out.
    if ends[0] < 0:
        stop = max(stop, min(extent, math.ceil(-ends[0])))
    if ends[1] > extent:
        start = min(start, max(0, math.floor(2 * extent - ends[1])))
    return start, stop, _thinning(samples, factor, start, stop, extent)


def _thinning(samples: npt.NDArray[np.int64], factor: int, start: int, stop: int, extent: int) -> Float64:
    """Return the matrix from voxels [start, stop) and their mirror images to coarse samples."""
    centres = samples * factor + (factor - 1) / 2
    reach = math.ceil(WINDOW * factor)
    return reflected_matrix(centres, start, stop, extent, reach, lambda u: window_taps(u, factor))


def reflected_matrix(
    centres: npt.NDArray[np.generic],
    start: int,
    stop: int,
    extent: int,
    reach: int,
    taps: Callable[[Float64], Float64],
) -> Float64:
    """Return the matrix of a filter from voxels [start, stop) of a reflected axis to these places.

    Parameters
    ----------
    centres : (N,) number
        Places, voxels; they may lie outside the volume.
    start, stop, extent : int
        The voxels given, and how many the axis has.
    reach : int
        The filter's reach, voxels.
    taps : callable
        The filter at distances of place minus voxel.

    Returns
    -------
    matrix_NV : (N, stop - start) float64
    """
    voxels = np.arange(start, stop)
    low, high = float(np.min(centres)) - reach, float(np.max(centres)) + reach
    total = np.zeros((len(centres), len(voxels)))
    turns = range(math.floor(low / (2 * extent)) - 1, math.ceil(high / (2 * extent)) + 2)
    for turn in turns:
        for image in (voxels + 2 * extent * turn, 2 * extent * turn - 1 - voxels):
            if image.max() >= low and image.min() <= high:
                distance = np.asarray(centres, np.float64)[:, None] - image[None, :]
                near = np.abs(distance) <= reach
                total[near] += taps(distance[near])
    return total
