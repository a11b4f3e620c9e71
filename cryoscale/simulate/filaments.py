"""Filaments: microtubules and actin on gently curved lines through the volume.

The axis of a filament is an arc of a circle much larger than the volume, so the nearest point of the axis,
and with it the place along and around the filament, has a closed form.

Shape suffixes: N points, V voxels, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from cryoscale.config.simulate import FilamentConfig
from cryoscale.errors import ConfigurationError
from cryoscale.simulate.membranes import HEAD_SURFACE_ANGSTROM, Membrane, nearest_membrane
from cryoscale.simulate.shapes import CONTOUR

Floats = npt.NDArray[np.float64]

MICROTUBULE_RADII_ANGSTROM = 85.0, 125.0
"""Inside and outside of the wall."""

PROTOFILAMENTS = 13
TUBULIN_REPEAT_ANGSTROM = 41.0
TUBULIN_STARTS = 3
"""Tubulin forms a three-start helix: one turn climbs three monomers."""

ACTIN_RADIUS_ANGSTROM = 35.0
ACTIN_STRAND_ANGSTROM = 17.0
"""From the axis to the middle of a strand; a strand is about as wide as twice that."""

ACTIN_RISE_ANGSTROM = 27.5
"""From one subunit to the next, which is on the other strand."""

ACTIN_CROSSOVER_ANGSTROM = 360.0
"""Half a turn of the two strands."""

CLEARANCE_ANGSTROM = 15.0
"""Least distance of a filament's surface from other filaments and from membranes."""

Kind = Literal["microtubule", "actin"]
RADII: dict[str, float] = {"microtubule": MICROTUBULE_RADII_ANGSTROM[1], "actin": ACTIN_RADIUS_ANGSTROM}


@dataclass(frozen=True)
class Filament:
    """One filament.

    Parameters
    ----------
    kind : {"microtubule", "actin"}
        What it is.
    middle : three floats
        A point of the axis, z, y, x, Å.
    tangent, normal : three floats
        Unit vectors: the axis' direction at that point, and away from the centre of its arc.
    bend_angstrom : float
        Radius of the arc.
    phase : float
        Turn about the axis, radians.
    contrast : float
        Scattering relative to protein.
    """

    kind: Kind
    middle: tuple[float, float, float]
    tangent: tuple[float, float, float]
    normal: tuple[float, float, float]
    bend_angstrom: float
    phase: float = 0.0
    contrast: float = 1.0

    @property
    def class_name(self) -> str:
        """Name of its class."""
        return self.kind

    @property
    def radius_angstrom(self) -> float:
        """Radius of its surface."""
        return RADII[self.kind]

    def local(self, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Return place in the filament's frame: across in the plane of its arc, across that plane, along."""
        dz, dy, dx = (c - m for c, m in zip((z, y, x), self.middle, strict=True))
        (tz, ty, tx), (nz, ny, nx) = self.tangent, self.normal
        bz, by, bx = _cross(self.tangent, self.normal)
        out = ((dz * nz + dy * ny) + dx * nx) + self.bend_angstrom
        on = (dz * tz + dy * ty) + dx * tx
        across = np.sqrt(out * out + on * on) - self.bend_angstrom
        return across, (dz * bz + dy * by) + dx * bx, self.bend_angstrom * np.arctan2(on, out)

    def distance(self, z: Floats, y: Floats, x: Floats) -> Floats:
        """Return the distance from the axis."""
        across, over, _ = self.local(z, y, x)
        found: Floats = np.sqrt(across * across + over * over)
        return found

    def approach(self, points_N3: Floats) -> tuple[Floats, Floats]:
        """Return the distance from the surface, negative inside, and the direction in which it grows."""
        across, over, along = self.local(*points_N3.T)
        angle = along / self.bend_angstrom
        radial = np.outer(np.cos(angle), self.normal) + np.outer(np.sin(angle), self.tangent)
        way = across[:, None] * radial + over[:, None] * np.array(_cross(self.tangent, self.normal))
        distance = np.sqrt(across * across + over * over)
        return distance - self.radius_angstrom, way / np.maximum(distance, 1e-9)[:, None]

    def axis(self, along_N: Floats) -> Floats:
        """Return points (N, 3) of the axis at these lengths from its middle, Å."""
        angle = along_N / self.bend_angstrom
        out, on = self.bend_angstrom * (np.cos(angle) - 1), self.bend_angstrom * np.sin(angle)
        points: Floats = np.array(self.middle) + np.outer(out, self.normal) + np.outer(on, self.tangent)
        return points

    def density(self, z: Floats, y: Floats, x: Floats, blur_angstrom: float) -> Floats:
        """Return the density at points near the filament, at most about the contrast; zero far from it.

        Parameters
        ----------
        z, y, x : (V,) float64
            Coordinates, Å.
        blur_angstrom : float
            Width of the Gaussian that everything is blurred with. Repeats that it wipes out are left out.
        """
        across, over, along = self.local(z, y, x)
        shape = _microtubule if self.kind == "microtubule" else _actin
        found = self.contrast * shape(across, over, along, self.phase, blur_angstrom)
        found[np.sqrt(across * across + over * over) > self.radius_angstrom + 4 * blur_angstrom] = 0
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return a plain description."""
        return {
            "kind": self.kind,
            "middle_zyx": list(self.middle),
            "tangent_zyx": list(self.tangent),
            "normal_zyx": list(self.normal),
            "bend_angstrom": self.bend_angstrom,
            "phase": self.phase,
            "radius_angstrom": self.radius_angstrom,
            "contrast": self.contrast,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Filament:
        """Make it again from its description."""
        middle, tangent, normal = (_three(value[f"{k}_zyx"]) for k in ("middle", "tangent", "normal"))
        bend, phase, contrast = (float(value[k]) for k in ("bend_angstrom", "phase", "contrast"))
        return cls(value["kind"], middle, tangent, normal, bend, phase, contrast)


def _three(values: Sequence[float] | Floats) -> tuple[float, float, float]:
    """Return three plain floats."""
    z, y, x = (float(v) for v in values)
    return z, y, x


def _cross(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return the cross product of two vectors."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _kept(period_angstrom: float, blur_angstrom: float) -> float:
    """Return what a blur leaves of the amplitude of a wave; nothing of what is finer than two widths."""
    left = math.exp(-2 * (math.pi * blur_angstrom / period_angstrom) ** 2)
    return left if left > 0.02 else 0.0


def _microtubule(across: Floats, over: Floats, along: Floats, phase: float, blur: float) -> Floats:
    """Return a hollow tube whose wall is 13 protofilaments of tubulin every 41 Å, in a three-start helix."""
    inner, outer = MICROTUBULE_RADII_ANGSTROM
    radial = np.sqrt(across * across + over * over)
    width = math.sqrt(2) * blur
    wall: Floats = 0.5 * (erf((radial - inner) / width) - erf((radial - outer) / width))
    turn = np.arctan2(over, across) + phase
    around = _kept(2 * math.pi * (inner + outer) / 2 / PROTOFILAMENTS, blur)
    if around:
        wall *= 1 + 0.5 * around * np.cos(PROTOFILAMENTS * turn)
    repeat = _kept(TUBULIN_REPEAT_ANGSTROM, blur)
    if repeat:
        wall *= 1 + 0.3 * repeat * np.cos(
            2 * math.pi / TUBULIN_REPEAT_ANGSTROM * along - TUBULIN_STARTS * turn
        )
    return wall


def _actin(across: Floats, over: Floats, along: Floats, phase: float, blur: float) -> Floats:
    """Return two strands that wind about each other, with subunits every 55 Å, staggered by half of that."""
    spread = 11.0**2 + blur**2
    twist = math.pi / ACTIN_CROSSOVER_ANGSTROM * along + phase
    y, x = ACTIN_STRAND_ANGSTROM * np.sin(twist), ACTIN_STRAND_ANGSTROM * np.cos(twist)
    bead = 0.4 * _kept(2 * ACTIN_RISE_ANGSTROM, blur) * np.cos(math.pi / ACTIN_RISE_ANGSTROM * along)
    first = np.exp(-((across - x) ** 2 + (over - y) ** 2) / (2 * spread)) * (1 + bead)
    second = np.exp(-((across + x) ** 2 + (over + y) ** 2) / (2 * spread)) * (1 - bead)
    both: Floats = first + second
    # The blur spreads a strand over a larger section
    return both * (11.0**2 / spread) * 1.2


def filament_peak(filament: Filament, blur_angstrom: float) -> float:
    """Return the greatest density of a filament, found on a fine sampling of one stretch of it."""
    line = np.arange(-130.0, 130.0, 2.5)
    along = np.arange(0.0, 110.0, 2.75)
    a, b, c = (g.ravel() for g in np.meshgrid(line, [0.0], along, indexing="ij"))
    shape = _microtubule if filament.kind == "microtubule" else _actin
    return filament.contrast * float(shape(a, b, c, 0.0, blur_angstrom).max())


def contour_of(filament: Filament, blur_angstrom: float) -> float:
    """Return the density above which a voxel is the filament's."""
    return CONTOUR * filament_peak(filament, blur_angstrom)


def place_filaments(
    config: FilamentConfig,
    size: Floats,
    rng: np.random.Generator,
    *,
    membranes: Sequence[Membrane] = (),
    solid: Sequence[Any] = (),
    border_angstrom: float = 0.0,
    attempts: int = 3000,
) -> tuple[Filament, ...]:
    """Place filaments that keep off each other and off membranes, microtubules first.

    Parameters
    ----------
    config : FilamentConfig
        How many of which.
    size : (3,) float64
        Extent of the volume along z, y, x, Å.
    rng : numpy.random.Generator
        Source of chance.
    membranes : sequence of Membrane
        To keep off.
    solid : sequence
        Other things with an `approach` to keep off (carbon).
    border_angstrom : float
        Empty ice at either face in z, Å: what of a filament lies there does not count.
    attempts : int
        Draws per filament before giving up.

    Raises
    ------
    ConfigurationError
        They do not fit.
    """
    low = np.array([border_angstrom, 0.0, 0.0])
    ice = low, size - low
    placed: list[Filament] = []
    wanted: tuple[tuple[Kind, int], ...] = (("microtubule", config.microtubules), ("actin", config.actin))
    for kind, count in wanted:
        for number in range(count):
            for attempt in range(attempts):
                new = _random_filament(kind, config.contrast, ice, placed, membranes, attempt / attempts, rng)
                if _apart(new, placed, membranes, solid, ice):
                    placed.append(new)
                    break
            else:
                raise ConfigurationError(
                    f"only {number} of {count} filaments of kind '{kind}' fit "
                    f"into {size.round().astype(int).tolist()} Å (z, y, x) beside what stands there already.",
                    remedy="Ask for fewer filaments or membranes, or a larger volume.",
                )
    return tuple(placed)


def _random_filament(
    kind: Kind,
    contrast: float,
    ice: tuple[Floats, Floats],
    placed: Sequence[Filament],
    membranes: Sequence[Membrane],
    late: float,
    rng: np.random.Generator,
) -> Filament:
    """Draw a filament, mostly lying flat; the later the attempt, the straighter and the more along others."""
    size = ice[1] - ice[0]
    tangent = np.array([0.0, *rng.normal(size=2)])
    steepest = min(0.35, 0.5 * float(size[0] / size[1:].min()))
    tangent[0] = steepest * rng.uniform(-1, 1) * math.hypot(tangent[1], tangent[2])
    flat = [np.array(m.anchor) for m in membranes if m.kind == "plane"]
    if placed and rng.uniform() < late:
        tangent = np.array(placed[int(rng.integers(len(placed)))].tangent) + 0.1 * rng.normal(size=3)
    if flat and rng.uniform() < 0.5 + late:
        normal = flat[int(rng.integers(len(flat)))]
        tangent = tangent - (tangent * normal).sum() * normal
    tangent /= np.sqrt((tangent**2).sum())
    normal = rng.normal(size=3)
    normal -= (normal * tangent).sum() * tangent
    normal /= np.sqrt((normal**2).sum())
    # Radii of curvature as in tomograms of cells: actin bends more than microtubules do
    bend = float(rng.uniform(2, 8)) * float(np.sqrt((size**2).sum())) * (1 if kind == "actin" else 2)
    middle = ice[0] + rng.uniform(0.1, 0.9, 3) * size
    phase = float(rng.uniform(0, 2 * math.pi))
    bend *= 1 + 20 * late
    return Filament(kind, _three(middle), _three(tangent), _three(normal), bend, phase, contrast)


def _apart(
    new: Filament,
    placed: Sequence[Filament],
    membranes: Sequence[Membrane],
    solid: Sequence[Any],
    ice: tuple[Floats, Floats],
) -> bool:
    """Whether a new filament keeps off everything within the volume."""
    low, high = ice
    diagonal = float(np.sqrt(((high - low) ** 2).sum()))
    step = 20.0
    points = new.axis(np.arange(-diagonal, diagonal, step))
    reach = new.radius_angstrom
    points = points[((points > low - reach) & (points < high + reach)).all(axis=1)]
    # half a step lies between a point of the axis and the nearest one looked at
    keep = reach + CLEARANCE_ANGSTROM + step / 2
    if len(points) * step < 0.6 * float((high - low)[1:].min()):
        return False  # it only cuts a corner
    if (nearest_membrane(membranes, points)[0] < keep + HEAD_SURFACE_ANGSTROM).any():
        return False
    for double in (m for m in membranes if len(m.levels) == 2):
        depth = double.depth(*points.T)
        if ((depth > double.levels[0]) & (depth < double.levels[1])).any():
            return False  # nothing runs along within a double membrane
    return all((thing.approach(points)[0] >= keep).all() for thing in (*placed, *solid))
