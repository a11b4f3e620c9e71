"""Membranes: vesicles and planes, single and double, as geometry and as density.

A membrane is a set of levels of one function with unit gradient: the distance from the centre of a vesicle,
or the position along a plane's normal. Each level is the middle of a bilayer.

Shape suffixes: N points, V voxels, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import MembraneConfig
from cryoscale.errors import ConfigurationError
from cryoscale.simulate.scene import LEAFLET_OFFSET_ANGSTROM, LEAFLET_SIGMA_ANGSTROM
from cryoscale.simulate.shapes import CONTOUR

Floats = npt.NDArray[np.float64]

HEAD_SURFACE_ANGSTROM = LEAFLET_OFFSET_ANGSTROM + LEAFLET_SIGMA_ANGSTROM
"""From the middle of a bilayer to the outside of its head groups."""

MEMBRANE_GAP_ANGSTROM = 135.0
"""Least distance between the middles of two membranes that do not belong together."""

PLANE_GAP_ANGSTROM = 250.0
"""The same for two planes: more, so that there is room for particles between them."""


@dataclass(frozen=True)
class Membrane:
    """One membrane: a bilayer, or two that run side by side.

    Parameters
    ----------
    kind : {"vesicle", "plane"}
        Its form.
    anchor : three floats
        Centre of a vesicle, Å; unit normal of a plane. z, y, x.
    levels : one or two floats
        Radii of a vesicle's bilayers, or their positions along the normal of a plane, Å, rising.
    contrast : float
        Scattering of the head groups.
    """

    kind: Literal["vesicle", "plane"]
    anchor: tuple[float, float, float]
    levels: tuple[float, ...]
    contrast: float = 1.0

    @property
    def class_name(self) -> str:
        """Name of its class."""
        return "double_membrane" if len(self.levels) == 2 else "membrane"

    def depth(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Return the function whose levels the bilayers are; coordinates broadcast."""
        a, b, c = self.anchor
        if self.kind == "plane":
            along: Floats = (z * a + y * b) + x * c
            return along
        radial: Floats = np.sqrt(((z - a) ** 2 + (y - b) ** 2) + (x - c) ** 2)
        return radial

    def approach(self, points_N3: Floats) -> tuple[Floats, Floats]:
        """Return the distance from the middle of the nearest bilayer and the direction in which it grows."""
        depth = self.depth(*points_N3.T)
        off_LN = np.stack([depth - level for level in self.levels])
        nearest = off_LN[np.abs(off_LN).argmin(axis=0), np.arange(len(depth))]
        if self.kind == "plane":
            outward = np.broadcast_to(np.array(self.anchor), points_N3.shape)
        else:
            outward = (points_N3 - np.array(self.anchor)) / np.maximum(depth, 1e-9)[:, None]
        return np.abs(nearest), outward * np.where(nearest < 0, -1.0, 1.0)[:, None]

    def density(self, depth_V: Floats, sigma_angstrom: float) -> Floats:
        """Return two leaflets for each bilayer: Gaussians of this width, zero beyond four widths."""
        total = np.zeros_like(depth_V)
        for level, side in itertools.product(
            self.levels, (-LEAFLET_OFFSET_ANGSTROM, LEAFLET_OFFSET_ANGSTROM)
        ):
            off = (depth_V - (level + side)) / sigma_angstrom
            near = np.abs(off) < 4
            total[near] += np.exp(-0.5 * off[near] ** 2)
        total *= self.contrast
        return total

    def inside(self, depth_V: Floats, sigma_angstrom: float) -> npt.NDArray[np.bool_]:
        """Return which voxels are the membrane's: within its contour, the lipids' tails included."""
        half = contour_angstrom(sigma_angstrom)
        found = np.zeros(depth_V.shape, bool)
        for level in self.levels:
            found |= np.abs(depth_V - level) <= half
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description."""
        where = "centre_zyx" if self.kind == "vesicle" else "normal_zyx"
        levels = "radii_angstrom" if self.kind == "vesicle" else "offsets_angstrom"
        return {
            "kind": self.kind,
            "class": self.class_name,
            where: list(self.anchor),
            levels: list(self.levels),
            "contrast": self.contrast,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Membrane:
        """Make it again from its description."""
        vesicle = value["kind"] == "vesicle"
        z, y, x = value["centre_zyx" if vesicle else "normal_zyx"]
        levels = value["radii_angstrom" if vesicle else "offsets_angstrom"]
        return cls(value["kind"], (float(z), float(y), float(x)), tuple(levels), float(value["contrast"]))


def contour_angstrom(sigma_angstrom: float) -> float:
    """Return how far from the middle of a bilayer its density falls to the contour."""
    line = np.linspace(0, LEAFLET_OFFSET_ANGSTROM + 5 * sigma_angstrom, 4001)
    profile = np.zeros_like(line)
    for side in (-LEAFLET_OFFSET_ANGSTROM, LEAFLET_OFFSET_ANGSTROM):
        profile += np.exp(-0.5 * ((line - side) / sigma_angstrom) ** 2)
    return float(line[np.flatnonzero(profile >= CONTOUR * profile.max())[-1]])


def nearest_membrane(membranes: Sequence[Membrane], points_N3: Floats) -> tuple[Floats, Floats]:
    """Return the distance from the middle of the nearest bilayer, and the direction in which it grows."""
    distance, way = np.full(len(points_N3), np.inf), np.zeros_like(points_N3)
    for membrane in membranes:
        other, direction = membrane.approach(points_N3)
        nearer = other < distance
        distance[nearer], way[nearer] = other[nearer], direction[nearer]
    return distance, way


def points_near(
    membranes: Sequence[Membrane], gap_N: Floats, size: Floats, rng: np.random.Generator
) -> Floats:
    """Draw points at given distances from the middle of any bilayer, on either side, evenly over their areas.

    Parameters
    ----------
    membranes : sequence of Membrane
        Not empty.
    gap_N : (N,) float64
        Distance of each point, Å.
    size : (3,) float64
        Extent of the volume, Å; points may lie outside of it.
    """
    sheets = [(m, level) for m in membranes for level in m.levels]
    diagonal = float(np.sqrt((size**2).sum()))
    area = np.array([4 * math.pi * v**2 if m.kind == "vesicle" else diagonal * size.min() for m, v in sheets])
    chosen = rng.choice(len(sheets), len(gap_N), p=area / area.sum())
    way_N3 = rng.normal(size=(len(gap_N), 3))
    way_N3 /= np.sqrt((way_N3**2).sum(axis=1, keepdims=True))
    anywhere_N3 = rng.uniform(0, size, (len(gap_N), 3))
    signed = gap_N * rng.choice((-1.0, 1.0), len(gap_N))
    points_N3 = np.empty((len(gap_N), 3))
    for number, (membrane, level) in enumerate(sheets):
        rows = chosen == number
        anchor = np.array(membrane.anchor)
        if membrane.kind == "vesicle":
            points_N3[rows] = anchor + way_N3[rows] * (level + signed[rows])[:, None]
        else:
            along = (anywhere_N3[rows] * anchor).sum(axis=1)
            points_N3[rows] = anywhere_N3[rows] + (level + signed[rows] - along)[:, None] * anchor
    return points_N3


def place_membranes(
    config: MembraneConfig,
    size: Floats,
    rng: np.random.Generator,
    *,
    solid: Sequence[Any] = (),
    attempts: int = 3000,
) -> tuple[Membrane, ...]:
    """Place membranes that do not meet each other within the volume.

    Planes come first, then double vesicles, then single ones. The radius of a double vesicle is that of its
    inner bilayer. Faces of the volume may cut vesicles, as a lamella does.

    Parameters
    ----------
    config : MembraneConfig
        How many of which.
    size : (3,) float64
        Extent of the volume along z, y, x, Å.
    rng : numpy.random.Generator
        Source of chance.
    solid : sequence
        Things with an `approach` that vesicles keep off (carbon).
    attempts : int
        Draws per membrane before giving up.

    Raises
    ------
    ConfigurationError
        They do not fit.
    """
    wanted = (
        ("double planar membranes", config.double_planes),
        ("planar membranes", config.planes),
        ("double vesicles", config.double_vesicles),
        ("vesicles", config.vesicles),
    )
    placed: list[Membrane] = []
    for what, count in wanted:
        for number in range(count):
            for attempt in range(attempts):
                levels = (0.0, config.double_gap_angstrom) if "double" in what else (0.0,)
                if "plane" in what or "planar" in what:
                    new = _random_plane(config, levels, placed, attempt / attempts, size, rng)
                else:
                    new = _random_vesicle(config, levels, size, rng)
                if _apart(new, placed, solid, size):
                    placed.append(new)
                    break
            else:
                raise ConfigurationError(
                    f"only {number} of {count} {what} fit into "
                    f"{size.round().astype(int).tolist()} Å (z, y, x).",
                    remedy="Ask for fewer or smaller membranes, or a larger volume.",
                )
    return tuple(placed)


def _random_plane(
    config: MembraneConfig,
    levels: Sequence[float],
    placed: Sequence[Membrane],
    late: float,
    size: Floats,
    rng: np.random.Generator,
) -> Membrane:
    """Draw a plane; the later the attempt, the more it runs along a plane that stands already."""
    limit = math.radians(config.tilt_degrees)
    lean, azimuth = rng.uniform(-limit, limit), rng.uniform(0, 2 * math.pi)
    planes = [m for m in placed if m.kind == "plane"]
    if planes and late > 0.05:
        z, y, x = planes[int(rng.integers(len(planes)))].anchor
        spread = (1 - late) * 0.5
        lean = float(np.clip(math.asin(z) + spread * rng.normal() * limit, -limit, limit))
        azimuth = math.atan2(y, x) + spread * rng.normal()
    normal = (
        math.sin(lean),
        math.cos(lean) * math.sin(azimuth),
        math.cos(lean) * math.cos(azimuth),
    )
    through = rng.uniform(0.12, 0.88, 3) * size
    offset = float((through * np.array(normal)).sum()) - sum(levels) / 2
    return Membrane("plane", normal, tuple(offset + v for v in levels), config.contrast)


def _random_vesicle(
    config: MembraneConfig, levels: Sequence[float], size: Floats, rng: np.random.Generator
) -> Membrane:
    """Draw a vesicle with its centre well inside the volume."""
    low, high = sorted(config.vesicle_radius_angstrom)
    radius = float(rng.uniform(low, high))
    z, y, x = (float(v) for v in rng.uniform(0.15, 0.85, 3) * size)
    return Membrane("vesicle", (z, y, x), tuple(radius + v for v in levels), config.contrast)


def _apart(new: Membrane, placed: Sequence[Membrane], solid: Sequence[Any], size: Floats) -> bool:
    """Whether a new membrane keeps off all others within the volume."""
    if new.kind == "vesicle":
        outer = new.levels[-1]
        centre = np.array([new.anchor])
        if any(s.approach(centre)[0][0] < outer + HEAD_SURFACE_ANGSTROM + 20 for s in solid):
            return False
        for other in placed:
            depth = float(other.depth(*centre.T)[0])
            gap = outer + MEMBRANE_GAP_ANGSTROM
            # outside of it, for a vesicle; on one side of it, for a plane
            above = depth - other.levels[-1] >= gap
            below = other.kind == "plane" and other.levels[0] - depth >= gap
            if not (above or below):
                return False
        return True
    for other in placed:
        if other.kind == "plane" and _plane_gap(new, other, size) < PLANE_GAP_ANGSTROM:
            return False
    return True


def _plane_gap(first: Membrane, second: Membrane, size: Floats) -> float:
    """Return how near two planar membranes come within the volume; negative where they cross."""
    gaps = []
    for one, other in ((first, second), (second, first)):
        for level in one.levels:
            corners = _section(np.array(one.anchor), level, size)
            if len(corners):
                depth = (corners * np.array(other.anchor)).sum(axis=1)
                # a linear function on a convex polygon has its extremes at corners
                gaps.append(max(depth.min() - other.levels[-1], other.levels[0] - depth.max()))
    return float(min(gaps, default=math.inf))


def _section(normal: Floats, offset: float, size: Floats) -> Floats:
    """Return the corners (N, 3) of the polygon in which a plane cuts the volume."""
    corners = np.array(list(itertools.product((0.0, 1.0), repeat=3))) * size
    height = (corners * normal).sum(axis=1) - offset
    found = [corners[height == 0]]
    for a, b in itertools.combinations(range(8), 2):
        edge = (corners[a] != corners[b]).sum() == 1
        if edge and height[a] * height[b] < 0:
            share = height[a] / (height[a] - height[b])
            found.append((corners[a] + share * (corners[b] - corners[a]))[None])
    return np.concatenate(found)
