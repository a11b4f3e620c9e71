"""Differences of Gaussians on a coarse grid: matrices that thin, filter, and come back to every voxel.

A Gaussian of width s leaves nothing beyond 5.5 / s radians per voxel, so the whole filter can work on every
M-th voxel along each axis without loss. Three banded matrices per axis do it, all of fixed shapes::

    voxels --thin--> coarse samples --filter--> coarse scores --spread--> scores of every voxel
    brick            overlap-added              tile                      brick + 1 voxel

The same window F (Kaiser) thins and spreads; the filter in the middle is G / F^2, so that the three together
are G. Coarse sample j lies at M j + (M - 1) / 2: the centre of its M voxels. A brick is a cube of whole
coarse cells anchored at the origin; a tile is a few bricks along each axis. Faces reflect (edge voxel
repeated) because the thinning matrices of bricks near a face hold the mirror images too.

The matrices are made in `cryoscale.ops.multirate_plan`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cryoscale.geometry import Box, Zyx
from cryoscale.ops.gaussian import Float32
from cryoscale.ops.multirate_plan import MARGIN, Axis, BrickRun, TileRun, axis_plan

_ABREAST = 4  # bricks copied together


def plan_for(shape: Sequence[int], narrow: float, wide: float, tile: int) -> tuple[Axis, Axis, Axis]:
    """Return the matrices along z, y and x."""
    z, y, x = (axis_plan(n, narrow, wide, tile) for n in Zyx.of(shape))
    return z, y, x


def samples_box(axes: tuple[Axis, Axis, Axis], core: Box) -> Box:
    """Return the coarse samples that the tiles touching `core` read."""
    spans = [
        axis.samples_of(axis.tiles_of(a, b)) for axis, a, b in zip(axes, core.start, core.stop, strict=True)
    ]
    return Box.of([a for a, _ in spans], [b for _, b in spans])


def voxels_box(axes: tuple[Axis, Axis, Axis], core: Box) -> Box:
    """Return the voxels of the volume that are needed for `core`: whole bricks."""
    spans = []
    samples = samples_box(axes, core)
    for axis, low, high in zip(axes, samples.start, samples.stop, strict=True):
        bricks = axis.bricks_of(low, high)
        spans.append((axis.bricks[bricks[0]].start, axis.bricks[bricks[-1]].stop))
    return Box.of([a for a, _ in spans], [b for _, b in spans])


class Scratch:
    """Arrays that are used again and again: fresh memory costs more than what is computed in it."""

    def __init__(self) -> None:
        self._kept: dict[str, Float32] = {}

    def take(self, name: str, *shape: int) -> Float32:
        """Return an array of this shape that holds anything, in the memory of this name."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.size < size:
            kept = self._kept[name] = np.empty(size, np.float32)
        return kept[:size].reshape(shape)


def thin(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    axes: tuple[Axis, Axis, Axis],
    scratch: Scratch | None = None,
    offset: float = 0.0,
) -> tuple[Box, Float32]:
    """Compute the coarse samples, less `offset`, that the tiles touching `core` read.

    Each brick adds to the samples around it; bricks in raster order, so every sample is summed in the same
    order whatever the core.

    Returns
    -------
    box : Box
        The coarse samples.
    samples_ZYX : float32, shape of `box`
    """
    scratch = scratch or Scratch()
    box = samples_box(axes, core)
    samples = np.zeros(box.shape, np.float32)
    runs_z, runs_y, runs_x = (
        [axis.bricks[i] for i in axis.bricks_of(a, b)]
        for axis, a, b in zip(axes, box.start, box.stop, strict=True)
    )
    z0, y0, x0 = read.start
    for z, y in itertools.product(runs_z, runs_y):
        rows_ZYX = read_ZYX[z.start - z0 : z.stop - z0, y.start - y0 : y.stop - y0]
        for first in range(0, len(runs_x), _ABREAST):
            several = runs_x[first : first + _ABREAST]
            left, right = several[0].start, several[-1].stop
            # Copied a few bricks wide: memory is read in longer pieces.
            voxels_ZYX = scratch.take("voxels", z.stop - z.start, y.stop - y.start, right - left)
            rows = rows_ZYX[:, :, left - x0 : right - x0]
            np.subtract(rows, np.float32(offset), out=voxels_ZYX, dtype=np.float32, casting="unsafe")
            for x in several:
                part = _thinned(voxels_ZYX[:, :, x.start - left : x.stop - left], z, y, x, scratch)
                _add(samples, part, box.start, (z.low, y.low, x.low))
    return box, samples


def _thinned(voxels_ZYX: Float32, z: BrickRun, y: BrickRun, x: BrickRun, scratch: Scratch) -> Float32:
    """Thin one brick along x, y and z."""
    n_z, n_y, n_x = voxels_ZYX.shape
    c_z, c_y, c_x = (run.high - run.low for run in (z, y, x))
    by_x = scratch.take("by x", n_z, n_y, c_x)
    row = voxels_ZYX.strides[1]  # a brick in a wider array: its rows are evenly spaced
    rows = np.lib.stride_tricks.as_strided(voxels_ZYX, (n_z * n_y, n_x), (row, voxels_ZYX.itemsize))
    np.matmul(rows, x.thin_VC, out=by_x.reshape(n_z * n_y, c_x))
    by_y = scratch.take("by y", n_z, c_y, c_x)
    np.matmul(y.thin_VC.T, by_x, out=by_y)
    by_z = scratch.take("by z", c_z, c_y, c_x)
    np.matmul(z.thin_VC.T, by_y.reshape(n_z, -1), out=by_z.reshape(c_z, -1))
    return by_z


def _add(samples_ZYX: Float32, part_ZYX: Float32, origin: Sequence[int], place: Sequence[int]) -> None:
    """Add a part to the samples, as far as it lies among them."""
    here, there = [], []
    for low, start, n, extent in zip(place, origin, part_ZYX.shape, samples_ZYX.shape, strict=True):
        begin, end = max(low - start, 0), min(low - start + n, extent)
        here.append(slice(begin, end))
        there.append(slice(begin - low + start, end - low + start))
    samples_ZYX[tuple(here)] += part_ZYX[tuple(there)]


def filter_samples(
    samples_ZYX: Float32,
    runs: tuple[TileRun, TileRun, TileRun],
    scratch: Scratch | None = None,
    scale: float = 1.0,
) -> Float32:
    """Filter the window of one tile: wide minus narrow, times `scale`, at its cells and MARGIN around."""
    scratch = scratch or Scratch()
    z, y, x = runs
    n_z, n_y, n_x = samples_ZYX.shape
    d_z, d_y, d_x = (len(run.wide_DW) for run in runs)
    window = scratch.take("window", n_z, n_y, n_x)
    np.multiply(samples_ZYX, np.float32(scale), out=window)
    by_z, by_y = scratch.take("by z", d_z, n_y, n_x), scratch.take("by y", d_z, d_y, n_x)
    scores = scratch.take("scores", d_z, d_y, d_x), scratch.take("minus", d_z, d_y, d_x)
    for score, m_z, m_y, m_x in (
        (scores[0], z.wide_DW, y.wide_DW, x.wide_DW),
        (scores[1], z.narrow_DW, y.narrow_DW, x.narrow_DW),
    ):
        np.matmul(m_z, window.reshape(n_z, -1), out=by_z.reshape(d_z, -1))
        np.matmul(m_y, by_z, out=by_y)
        np.matmul(by_y.reshape(-1, n_x), m_x.T, out=score.reshape(-1, d_x))
    return np.subtract(scores[0], scores[1], out=scores[0])


def spread(window_ZYX: Float32, axes: tuple[Axis, Axis, Axis], scratch: Scratch | None = None) -> Float32:
    """Bring the coarse scores of one brick to its voxels and one layer around them."""
    scratch = scratch or Scratch()
    z, y, x = (axis.spread_VD for axis in axes)
    n_z, n_y, n_x = window_ZYX.shape
    window = scratch.take("brick", n_z, n_y, n_x)
    np.copyto(window, window_ZYX)
    by_z, by_y = scratch.take("spread z", len(z), n_y, n_x), scratch.take("spread y", len(z), len(y), n_x)
    np.matmul(z, window.reshape(n_z, -1), out=by_z.reshape(len(z), -1))
    np.matmul(y, by_z, out=by_y)
    score = scratch.take("score", len(z), len(y), len(x))
    np.matmul(by_y.reshape(-1, n_x), x.T, out=score.reshape(-1, len(x)))
    return score


def brick_scores(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    axes: tuple[Axis, Axis, Axis],
    *,
    offset: float = 0.0,
    scale: float = 1.0,
) -> Iterator[tuple[Box, Float32]]:
    """Filter the inverted density: wide minus narrow at the voxels of every brick that touches `core`.

    Parameters
    ----------
    read_ZYX : (Z, Y, X) float
        The voxels of `read`.
    read : Box
        Must contain `voxels_box(axes, core)`.
    core : Box
        Any box inside the volume.
    axes : three Axis
        From `plan_for`.
    offset, scale : float
        The density is (voxel - offset) times scale.

    Yields
    ------
    brick : Box
        The brick, which may leave the volume; bricks tile by tile, in raster order.
    score_ZYX : float32, shape of `brick` + 2
        With one layer around it; minus infinity outside the volume. Overwritten by the next.
    """
    scratch = Scratch()
    box, samples = thin(read_ZYX, read, core, axes, scratch, offset)
    tiles = [axis.tiles_of(a, b) for axis, a, b in zip(axes, core.start, core.stop, strict=True)]
    for indices in itertools.product(*tiles):
        runs = (axes[0].tiles[indices[0]], axes[1].tiles[indices[1]], axes[2].tiles[indices[2]])
        window = Box.of([run.low for run in runs], [run.low + run.narrow_DW.shape[1] for run in runs])
        coarse = filter_samples(samples[window.relative_to(box.start).slices], runs, scratch, scale)
        for place in itertools.product(*(range(run.first, run.last) for run in runs)):
            brick = Box.of(
                [i * axis.brick for i, axis in zip(place, axes, strict=True)],
                [(i + 1) * axis.brick for i, axis in zip(place, axes, strict=True)],
            )
            if brick.intersect(core).empty:
                continue
            cells = [(i - run.first) * axis.cells for i, run, axis in zip(place, runs, axes, strict=True)]
            z, y, x = (slice(a, a + axis.cells + 2 * MARGIN) for a, axis in zip(cells, axes, strict=True))
            score = spread(coarse[z, y, x], axes, scratch)
            _hide_outside(score, brick, axes)
            yield brick, score


def _hide_outside(score_ZYX: Float32, brick: Box, axes: tuple[Axis, Axis, Axis]) -> None:
    """Write minus infinity where a brick and its layer leave the volume."""
    lead: tuple[slice, ...] = ()
    for start, stop, axis in zip(brick.start, brick.stop, axes, strict=True):
        if start == 0:
            score_ZYX[(*lead, slice(0, 1))] = -np.inf
        if stop >= axis.extent:
            score_ZYX[(*lead, slice(axis.extent - start + 1, None))] = -np.inf
        lead = (*lead, slice(None))
