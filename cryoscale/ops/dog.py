"""Difference of Gaussians: scores blobs of one size, whole or tile by tile.

Pei et al. 2016, doi:10.1186/s12859-016-1283-3; Voss et al. 2009, doi:10.1016/j.jsb.2009.01.004. Gaussians
compose: smoothing by s and then filtering by a equals one Gaussian of variance s^2 + a^2, so the whole
filter is the difference of two Gaussians, computed with one Fourier transform there and one back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Box, Zyx
from cryoscale.ops.gaussian import SLAB, Float32, cutoff, filter_exact, filter_tile, halo_voxels
from cryoscale.ops.peaks import local_maxima
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
    """Return how many voxels around a tile `dog_candidates` needs: the filter's reach, and one neighbour."""
    return dog.halo + 1


def required_read(core: Box, shape: Sequence[int], dog: Dog, tile: int = TILE) -> Box:
    """Return the box of voxels that `dog_candidates` needs for `core`.

    Every tile that touches `core`, clipped to the volume, grown by `candidates_halo(dog)`; what leaves the
    volume is reflected back inside. For a core that is a union of tiles this is core plus halo, clipped.
    """
    return required_voxels(core, shape, tile, candidates_halo(dog))


def working_bytes(shape: Sequence[int], dog: Dog, tile: int = TILE) -> int:
    """Bound the memory that `dog_candidates` takes beside its input, bytes (without the maxima it returns).

    The buffer, three copies of the kept part of its spectrum, a few planes, the scores of a tile, and the
    voxels that survive the first tests for a maximum; the narrower the filter, the more of both.
    """
    z, y, x = buffer_shape(shape, tile, candidates_halo(dog))
    kept = min(1.0, cutoff(dog.terms) / math.pi)
    spectrum = 8.0 * z * (kept * y + 2.0) * (kept * x / 2.0 + 2.0)
    planes = 4 * SLAB * 8.0 * y * (x // 2 + 1)
    voxels = math.prod(n + 2 for n in tile_edge(shape, tile))
    return math.ceil(4.0 * z * y * x + 3.0 * spectrum + planes + voxels * (6.0 + 32.0 * kept)) + 1_000_000


def dog_candidates(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    shape: Sequence[int],
    dog: Dog,
    tile: int = TILE,
) -> tuple[npt.NDArray[np.int64], Float32]:
    """Find every local maximum of the difference of Gaussians of the inverted density inside `core`.

    Parameters
    ----------
    read_ZYX : (Z, Y, X) float
        Canonical density (objects dark) of the box `read`.
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
    """
    extent = Zyx.of(shape)
    # Filtering the density by the negated sum inverts it without a copy.
    terms = [(-weight, sigma) for weight, sigma in dog.terms]
    found: list[npt.NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    scores: list[Float32] = [np.empty(0, dtype=np.float32)]
    tiles = filtered_tiles(
        read_ZYX,
        read,
        core,
        extent,
        tile=tile,
        halo=dog.halo,
        margin=1,
        apply=lambda buffer, keep: filter_tile(buffer, terms, keep),
    )
    for box, cover, score_ZYX in tiles:
        local_N3 = local_maxima(score_ZYX)
        positions_N3 = local_N3 + np.array(cover.start)
        inside = box.intersect(core)
        mine = np.all((positions_N3 >= inside.start) & (positions_N3 < inside.stop), axis=1)
        found.append(positions_N3[mine])
        scores.append(score_ZYX[tuple(local_N3[mine].T)])
    positions, values = np.concatenate(found), np.concatenate(scores)
    order = np.lexsort(positions.T[::-1])
    return positions[order], values[order]
