"""Difference of Gaussians: scores blobs of one size, whole or tile by tile.

Pei et al. 2016, doi:10.1186/s12859-016-1283-3; Voss et al. 2009, doi:10.1016/j.jsb.2009.01.004. Gaussians
compose: smoothing by s and then filtering by a equals one Gaussian of variance s^2 + a^2, so the whole
filter is the difference of two Gaussians, computed with one Fourier transform there and one back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, LayoutError
from cryoscale.geometry import Box, Zyx
from cryoscale.ops import multirate, multirate_plan
from cryoscale.ops.gaussian import SLAB, Float32, cutoff, filter_exact, filter_tile, halo_voxels
from cryoscale.ops.peaks import local_maxima, maxima_inside, maxima_scratch
from cryoscale.ops.tiles import buffer_shape, filtered_tiles, required_voxels, tile_edge

# A larger tile wastes less on its halo but more on volumes that it does not divide; 192 takes 0.13 GB.
TILE = 128


@dataclass(frozen=True)
class Dog:
    """The widths of a difference of Gaussians, voxels.

    Parameters
    ----------
    sigma : float
        Width of the narrow Gaussian, applied after smoothing.
    ratio : float
        Width of the wide Gaussian over that of the narrow one, > 1.
    smooth_sigma : float
        Width of the smoothing that comes first; 0 for none.
    """

    sigma: float
    ratio: float = 1.1
    smooth_sigma: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.sigma, self.ratio, self.smooth_sigma)
        if not all(math.isfinite(v) for v in numbers) or self.sigma <= 0 or self.smooth_sigma < 0:
            raise ConfigurationError(
                f"a difference of Gaussians needs sigma > 0 and smoothing >= 0, got {self}.",
                remedy="Give the particle's radius, or widths in voxels.",
            )
        if self.ratio <= 1:
            raise ConfigurationError(f"the ratio of the two Gaussians must be above 1, got {self.ratio}.")

    @classmethod
    def of_radius(cls, radius_voxels: float, *, ratio: float = 1.1, smooth_sigma: float = 0.0) -> Dog:
        """Make the filter whose narrow width is r / sqrt(3), where a ball of radius r answers most strongly.

        Smoothing, if any, is taken out of that width: variances add.
        """
        variance = radius_voxels**2 / 3.0 - smooth_sigma**2
        if variance <= 0:
            raise ConfigurationError(
                f"smoothing by {smooth_sigma} voxels exceeds the filter of a radius of {radius_voxels}.",
                remedy="Smooth less, or look for larger particles.",
            )
        return cls(math.sqrt(variance), ratio, smooth_sigma)

    @classmethod
    def of_paper(cls, smooth: float = 2.0, sigma: float = 5.0, ratio: float = 1.1) -> Dog:
        """Make the filter of the paper: smoothing 2, sigma 5 voxels, ratio 1.1."""
        return cls(sigma, ratio, smooth)

    @property
    def narrow(self) -> float:
        """Width of the narrow Gaussian of the whole filter, voxels."""
        return math.hypot(self.smooth_sigma, self.sigma)

    @property
    def wide(self) -> float:
        """Width of the wide Gaussian of the whole filter, voxels."""
        return math.hypot(self.smooth_sigma, self.ratio * self.sigma)

    @property
    def halo(self) -> int:
        """How far the filter looks, voxels."""
        return halo_voxels(self.wide)

    @property
    def thinned(self) -> bool:
        """Whether `dog_candidates` works on a coarse grid: a narrow width of 3.6 voxels or more."""
        return multirate_plan.factor_for(self.narrow) > 1

    @property
    def terms(self) -> list[tuple[float, float]]:
        """Weight and width of both Gaussians."""
        return [(1.0, self.narrow), (-1.0, self.wide)]


def difference_of_gaussians(volume_ZYX: npt.ArrayLike, dog: Dog) -> Float32:
    """Score how blob-like each voxel's surroundings are, for blobs of one size.

    Bright blobs score high: invert a tomogram whose particles are dark.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float
        Density on an isotropic grid; the faces reflect.
    dog : Dog
        Widths.

    Returns
    -------
    score_ZYX : (Z, Y, X) float32
        Narrow minus wide, in the units of the volume: the exact reference for `dog_candidates`.
    """
    return filter_exact(volume_ZYX, dog.terms)


def candidates_halo(dog: Dog) -> int:
    """Return how many voxels around a tile `dog_candidates` needs: the filter's reach, and one neighbour.

    A wide filter works on whole bricks, so its reach is rounded up to these (`cryoscale.ops.multirate`).
    """
    if not dog.thinned:
        return dog.halo + 1
    factor = multirate_plan.factor_for(dog.narrow)
    cells = multirate_plan.brick_cells(dog.narrow, dog.wide)
    reach = multirate_plan.window_reach(dog.wide, factor) + multirate_plan.SPILL
    return -(-reach // cells) * cells * factor


def tile_voxels(shape: Sequence[int], dog: Dog, tile: int = TILE) -> Zyx:
    """Return the extent of the tiles of a volume: about `tile`, at most that of the volume.

    Blocks that are unions of these waste nothing.
    """
    edge = tile
    if dog.thinned:
        factor = multirate_plan.factor_for(dog.narrow)
        edge = (
            multirate_plan.tile_bricks(dog.narrow, dog.wide, tile)
            * multirate_plan.brick_cells(dog.narrow, dog.wide)
            * factor
        )
    return tile_edge(shape, edge)


def required_read(core: Box, shape: Sequence[int], dog: Dog, tile: int = TILE) -> Box:
    """Return the box of voxels that `dog_candidates` needs for `core`.

    Every tile that touches `core`, grown by at most `candidates_halo(dog)` and clipped to the volume.
    """
    if core.empty:
        return Box.of((0, 0, 0), (0, 0, 0))
    if dog.thinned:
        return multirate.voxels_box(multirate.plan_for(shape, dog.narrow, dog.wide, tile), core)
    return required_voxels(core, shape, tile, candidates_halo(dog))


def working_bytes(shape: Sequence[int], dog: Dog, tile: int = TILE, core: Sequence[int] | None = None) -> int:
    """Bound the memory that `dog_candidates` takes beside its input, bytes (without the maxima it returns).

    Parameters
    ----------
    shape : three int
        Extent of the volume.
    dog : Dog
        Widths.
    tile : int
        Tile edge, voxels.
    core : three int, optional
        Extent of the largest core; the whole volume otherwise. It matters little.
    """
    if dog.thinned:
        return _thinned_bytes(Zyx.of(shape), dog, tile, Zyx.of(shape if core is None else core))
    # The buffer, three copies of the kept part of its spectrum, a few planes, the scores of a tile, and the
    # voxels that survive the first tests for a maximum; the narrower the filter, the more of both.
    z, y, x = buffer_shape(shape, tile, candidates_halo(dog))
    kept = min(1.0, cutoff(dog.terms) / math.pi)
    spectrum = 8.0 * z * (kept * y + 2.0) * (kept * x / 2.0 + 2.0)
    planes = 4 * SLAB * 8.0 * y * (x // 2 + 1)
    voxels = math.prod(n + 2 for n in tile_edge(shape, tile))
    return math.ceil(4.0 * z * y * x + 3.0 * spectrum + planes + voxels * (6.0 + 32.0 * kept)) + 1_000_000


def _thinned_bytes(shape: Zyx, dog: Dog, tile: int, core: Zyx) -> int:
    """Bound the memory of the coarse way: coarse samples, a tile, a brick."""
    factor = multirate_plan.factor_for(dog.narrow)
    brick = multirate_plan.brick_cells(dog.narrow, dog.wide) * factor
    reach = multirate_plan.window_reach(dog.wide, factor)
    edge = multirate_plan.tile_bricks(dog.narrow, dog.wide, tile) * brick
    spans = [min(c + 2 * edge, -(-n // brick) * brick) for c, n in zip(core, shape, strict=True)]
    samples = math.prod(n // factor + 2 * reach for n in spans)
    window = math.prod(min(edge, n) // factor + 2 * (reach + multirate_plan.MARGIN) for n in spans)
    scores = (brick + 2) ** 3
    return 4 * samples + 28 * window + 24 * scores + 4_000_000


def dog_candidates(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    shape: Sequence[int],
    dog: Dog,
    tile: int = TILE,
    *,
    offset: float = 0.0,
    scale: float = 1.0,
) -> tuple[npt.NDArray[np.int64], Float32]:
    """Find every local maximum of the difference of Gaussians of the inverted density inside `core`.

    Parameters
    ----------
    read_ZYX : (Z, Y, X) number
        Voxels of the box `read`; (voxel - offset) times scale is canonical density, objects dark.
    read : Box
        Must contain `required_read(core, shape, dog, tile)`.
    core : Box
        Where maxima are wanted. Any box gives the same bits; a union of tiles wastes nothing.
    shape : three int
        Extent of the volume.
    dog : Dog
        Widths.
    tile : int
        Tile edge, voxels. Scores differ in the last bits between tile edges, so it belongs to the parameters.
    offset, scale : float
        As above: so nobody needs to turn a whole block into floating-point numbers.

    Returns
    -------
    positions_N3 : (N, 3) int64
        Voxels z, y, x of the volume, in raster order.
    scores_N : (N,) float32
        Positive for blobs darker than their surroundings.

    Raises
    ------
    LayoutError
        `read` is too small.

    Notes
    -----
    From a narrow width of 3.6 voxels on, the filter works on every second voxel or fewer along each axis
    (`cryoscale.ops.multirate`); below, in Fourier space, tile by tile.
    """
    found = [(np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=np.float32))]
    search = _thinned_maxima if dog.thinned else _tile_maxima
    for positions_N3, scores_N in search(read_ZYX, read, core, Zyx.of(shape), dog, tile, (offset, scale)):
        mine = np.all((positions_N3 >= core.start) & (positions_N3 < core.stop), axis=1)
        found.append((positions_N3[mine], scores_N[mine]))
    positions, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort(positions.T[::-1])
    return positions[order], values[order]


def _tile_maxima(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    shape: Zyx,
    dog: Dog,
    tile: int,
    grey: tuple[float, float],
) -> Iterator[tuple[npt.NDArray[np.int64], Float32]]:
    """Yield the maxima of each tile, filtered in Fourier space: positions in the volume, and scores."""
    # Filtering the density by the negated sum inverts it without a copy.
    terms = [(-weight * grey[1], sigma) for weight, sigma in dog.terms]

    if grey[0]:
        read_ZYX = np.subtract(read_ZYX, np.float32(grey[0]), dtype=np.float32, casting="unsafe")
    tiles = filtered_tiles(
        read_ZYX,
        read,
        core,
        shape,
        tile=tile,
        halo=dog.halo,
        margin=1,
        apply=lambda buffer, keep: filter_tile(buffer, terms, keep),
    )
    for box, cover, score_ZYX in tiles:
        local_N3 = local_maxima(score_ZYX)
        positions_N3 = local_N3 + np.array(cover.start)
        mine = np.all((positions_N3 >= box.start) & (positions_N3 < box.stop), axis=1)
        yield positions_N3[mine], score_ZYX[tuple(local_N3[mine].T)]


def _thinned_maxima(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    shape: Zyx,
    dog: Dog,
    tile: int,
    grey: tuple[float, float],
) -> Iterator[tuple[npt.NDArray[np.int64], Float32]]:
    """Yield the maxima of each brick, filtered on the coarse grid: positions in the volume, and scores."""
    if core.empty:
        return
    if tuple(read_ZYX.shape) != tuple(read.shape):
        raise LayoutError(f"the array has shape {read_ZYX.shape} but the box {read} has {tuple(read.shape)}")
    axes = multirate.plan_for(shape, dog.narrow, dog.wide, tile)
    needed = multirate.voxels_box(axes, core)
    for axis, name in enumerate("zyx"):
        if read.start[axis] > needed.start[axis] or read.stop[axis] < needed.stop[axis]:
            raise LayoutError(f"axis {name}: {core} needs the voxels of {needed}, but only {read} was read")
    scratch = maxima_scratch(math.prod(axis.brick + 2 for axis in axes))
    for box, score_ZYX in multirate.brick_scores(read_ZYX, read, core, axes, offset=grey[0], scale=grey[1]):
        local_N3 = maxima_inside(score_ZYX, scratch)
        yield local_N3 + (np.array(box.start) - 1), score_ZYX[tuple(local_N3.T)]
