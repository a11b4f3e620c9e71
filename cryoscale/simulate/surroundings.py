"""What else is in a tomogram: carbon film with its grain, gold beads, and empty ice beyond a lamella.

Shape suffixes: N points, Z, Y, X voxels, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erfc

from cryoscale.config.simulate import SurroundingsConfig
from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Box, Grid

Floats = npt.NDArray[np.float64]

HOLE_RADIUS_ANGSTROM = 10_000.0
"""Of the usual holey film: holes of 2 micrometres."""

GRAIN = 0.25
"""Standard deviation of amorphous carbon's grain at the resolution of the picture, relative to its mean."""

NOISE_TILE = 64
"""Edge of the fixed tiles that the grain is drawn on, voxels."""

EDGE_CONTOUR = 0.8416212335729143
"""Widths beyond a blurred edge at which a fifth of the density is left: the contour of labels."""


@dataclass(frozen=True)
class Carbon:
    """A film with a round hole whose edge enters the volume from one side.

    Parameters
    ----------
    hole : two floats
        Middle of the hole, y, x, Å.
    hole_radius : float
        Its radius, Å.
    height : float
        Middle of the film, z, Å.
    thickness : float
        Of the film, Å.
    contrast : float
        Scattering relative to protein.
    """

    hole: tuple[float, float]
    hole_radius: float
    height: float
    thickness: float
    contrast: float

    def depth(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Return the distance from the surface, negative inside; coordinates broadcast."""
        dy, dx = y - self.hole[0], x - self.hole[1]
        into_hole = self.hole_radius - np.sqrt(dy * dy + dx * dx)
        above = np.abs(z - self.height) - self.thickness / 2
        a, b = np.maximum(into_hole, 0), np.maximum(above, 0)
        depth: Floats = np.sqrt(a * a + b * b) + np.minimum(np.maximum(into_hole, above), 0)
        return depth

    def approach(self, points_N3: Floats) -> tuple[Floats, Floats]:
        """Return the distance from the surface, negative inside, and the direction in which it grows."""
        z, y, x = points_N3.T
        dy, dx = y - self.hole[0], x - self.hole[1]
        radial = np.maximum(np.sqrt(dy * dy + dx * dx), 1e-9)
        into_hole, above = self.hole_radius - radial, np.abs(z - self.height) - self.thickness / 2
        up = np.where(z < self.height, -1.0, 1.0)
        # outside of the edge both count; otherwise the nearer face alone
        both = (into_hole > 0) & (above > 0)
        a = np.where(both, into_hole, (into_hole >= above).astype(float))
        b = np.where(both, above, (into_hole < above).astype(float))
        way = np.stack([b * up, -a * dy / radial, -a * dx / radial], axis=1)
        length = np.sqrt((way**2).sum(axis=1, keepdims=True))
        return self.depth(z, y, x), way / np.maximum(length, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description."""
        return {
            "hole_centre_yx": list(self.hole),
            "hole_radius_angstrom": self.hole_radius,
            "height_angstrom": self.height,
            "thickness_angstrom": self.thickness,
            "contrast": self.contrast,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Carbon:
        """Make it again from its description."""
        y, x = value["hole_centre_yx"]
        names = ("hole_radius_angstrom", "height_angstrom", "thickness_angstrom", "contrast")
        return cls((float(y), float(x)), *(float(value[name]) for name in names))


@dataclass(frozen=True)
class Gold:
    """Gold beads, all of one size.

    Parameters
    ----------
    centres_N3 : (N, 3) float64
        z, y, x, Å.
    radius : float
        Å.
    contrast : float
        Scattering relative to protein.
    """

    centres_N3: Floats
    radius: float
    contrast: float

    def approach(self, points_N3: Floats) -> tuple[Floats, Floats]:
        """Return the distance from the nearest surface, negative inside, and the way in which it grows."""
        distance, way = np.full(len(points_N3), np.inf), np.zeros_like(points_N3)
        for centre in self.centres_N3:
            off = points_N3 - centre
            length = np.sqrt((off**2).sum(axis=1))
            nearer = length < distance
            distance[nearer] = length[nearer]
            way[nearer] = off[nearer] / np.maximum(length[nearer], 1e-9)[:, None]
        return distance - self.radius, way

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description."""
        centres = [[float(v) for v in centre] for centre in self.centres_N3]
        return {"centres_zyx": centres, "radius_angstrom": self.radius, "contrast": self.contrast}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Gold:
        """Make it again from its description."""
        centres = np.array(value["centres_zyx"], dtype=np.float64).reshape(-1, 3)
        return cls(centres, float(value["radius_angstrom"]), float(value["contrast"]))


def place_carbon(config: SurroundingsConfig, size: Floats, rng: np.random.Generator) -> Carbon | None:
    """Let the edge of a hole in the film enter the volume from a random side, by a tenth to a quarter of it.

    Raises
    ------
    ConfigurationError
        The film is thicker than the ice.
    """
    if not config.carbon_edge:
        return None
    free = size[0] - 2 * config.border_angstrom - config.carbon_thickness_angstrom
    if free < 0:
        raise ConfigurationError(
            f"a carbon film of {config.carbon_thickness_angstrom:g} Å is thicker than the ice, "
            f"{size[0] - 2 * config.border_angstrom:g} Å.",
            remedy="Set simulate.scene.surroundings.carbon_thickness_angstrom lower, or border_angstrom.",
        )
    height = (
        config.border_angstrom + config.carbon_thickness_angstrom / 2 + free * float(rng.uniform(0, 0.25))
    )
    side = math.pi / 2 * int(rng.integers(4))
    way = np.array([math.sin(side), math.cos(side)])  # from the middle to the film
    half = float((np.abs(way) * size[1:] / 2).sum())
    inner = half - 2 * half * float(rng.uniform(0.1, 0.25))  # of the edge, from the middle, along the way
    across = np.array([-way[1], way[0]]) * float(rng.uniform(-0.25, 0.25)) * size[1:]
    y, x = size[1:] / 2 + (inner - HOLE_RADIUS_ANGSTROM) * way + across
    return Carbon(
        (float(y), float(x)),
        HOLE_RADIUS_ANGSTROM,
        height,
        config.carbon_thickness_angstrom,
        config.carbon_contrast,
    )


def occupancy(depth: Floats, sigma_angstrom: float) -> Floats:
    """Return a solid's blurred edge from the distance to its surface: exactly 1 and 0 beyond four widths."""
    filled: Floats = 0.5 * erfc(depth / (math.sqrt(2) * sigma_angstrom))
    filled[depth > 4 * sigma_angstrom] = 0
    filled[depth < -4 * sigma_angstrom] = 1
    return filled


def lamella(
    first: int, last: int, voxel_size: float, size_z: float, border: float, sigma_angstrom: float
) -> Floats:
    """Return, for planes `first` to `last`, how much of them is within the lamella: 1 without borders."""
    z: Floats = np.arange(first, last, dtype=np.float64) * voxel_size
    if border <= 0:
        return np.ones(len(z))
    return occupancy(border - z, sigma_angstrom) * occupancy(z - (size_z - border), sigma_angstrom)


@functools.lru_cache(maxsize=27)
def _noise_tile(seed: int, z: int, y: int, x: int) -> npt.NDArray[np.float32]:
    """Draw the grain of one fixed tile: it depends on the seed and the place of the tile alone."""
    # Tiles begin one before the volume, for the halo of the smoothing: no negative words in a seed
    words = np.random.SeedSequence([seed, 0xC0A1, z + 16, y + 16, x + 16])
    rng = np.random.Generator(np.random.Philox(words))
    return rng.standard_normal((NOISE_TILE,) * 3, dtype=np.float32)


def grain(seed: int, box: Box, sigma_voxels: float) -> npt.NDArray[np.float32]:
    """Return smooth noise of unit variance in a box, the same however the volume is cut.

    White noise on fixed tiles, smoothed by repeated (1, 2, 1) / 4 along each axis, as often as comes nearest
    to a Gaussian of this width.

    Parameters
    ----------
    seed : int
        Of the scene.
    box : Box
        What is wanted, voxels.
    sigma_voxels : float
        Width of the smoothing.
    """
    passes = max(1, round(2 * sigma_voxels**2))
    wide = box.grow(passes)
    noise = np.empty(wide.shape, np.float32)
    low = [a // NOISE_TILE for a in wide.start]
    high = [-(-b // NOISE_TILE) for b in wide.stop]
    for tile in itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))):
        origin = [t * NOISE_TILE for t in tile]
        cell = Box.of(origin, [o + NOISE_TILE for o in origin])
        part = cell.intersect(wide)
        noise[part.relative_to(wide.start).slices] = _noise_tile(seed, *tile)[part.relative_to(origin).slices]
    for _ in range(passes):
        noise = np.float32(0.25) * (noise[2:] + noise[:-2]) + np.float32(0.5) * noise[1:-1]
        noise = np.float32(0.25) * (noise[:, 2:] + noise[:, :-2]) + np.float32(0.5) * noise[:, 1:-1]
        noise = np.float32(0.25) * (noise[..., 2:] + noise[..., :-2]) + np.float32(0.5) * noise[..., 1:-1]
    # The sum of squares of binomial coefficients: what the passes leave of the variance along one axis
    left = math.comb(4 * passes, 2 * passes) / 16.0**passes
    scaled: npt.NDArray[np.float32] = noise * np.float32(left**-1.5)
    return scaled


def tiles_of(box: Box, edge: int) -> list[Box]:
    """Cut a box into cells of an edge, anchored at the origin of the volume."""
    first = [a // edge * edge for a in box.start]
    cells = Grid.of([b - a for a, b in zip(first, box.stop, strict=True)], edge).boxes()
    return [cell.shift(first).intersect(box) for cell in cells]


def solids(carbon: Carbon | None, gold: Gold | None) -> Sequence[Any]:
    """Return the solid things there are."""
    return tuple(thing for thing in (carbon, gold) if thing is not None)
