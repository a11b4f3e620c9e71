"""Where things stand: random sequential addition of spheres without overlap, found by a grid of cells.

Widom 1966, doi:10.1063/1.1726548. It reaches about a third of the volume;
the crowded cytosol holds 20 to 30 %. `cryoscale.simulate.crowding` goes beyond.

Shape suffixes: N spheres, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shell:
    """A spherical membrane: spheres may be inside or outside, but not touch it.

    Parameters
    ----------
    centre : three floats
        z, y, x, Å.
    radius : float
        Of the middle of the membrane, Å.
    half_thickness : float
        From the middle to where spheres may begin, Å.
    """

    centre: tuple[float, float, float]
    radius: float
    half_thickness: float

    def clear_of(self, position: Floats, radius: float) -> bool:
        """Whether a sphere keeps off the membrane."""
        return abs(math.dist(position, self.centre) - self.radius) >= radius + self.half_thickness


@dataclass
class CellGrid:
    """Spheres sorted into cubic cells, so that only near ones are looked at.

    Parameters
    ----------
    cell : float
        Edge of a cell, Å: at least the largest diameter.
    """

    cell: float
    _members: dict[tuple[int, int, int], list[tuple[float, float, float, float]]] = field(
        default_factory=dict
    )

    def _key(self, position: Sequence[float] | Floats) -> tuple[int, int, int]:
        z, y, x = (math.floor(p / self.cell) for p in position)
        return z, y, x

    def free(self, position: Sequence[float] | Floats, radius: float) -> bool:
        """Whether a sphere overlaps none that was added."""
        z, y, x = position
        kz, ky, kx = self._key(position)
        for a, b, c in itertools.product((-1, 0, 1), repeat=3):
            for oz, oy, ox, other in self._members.get((kz + a, ky + b, kx + c), ()):
                if (z - oz) ** 2 + (y - oy) ** 2 + (x - ox) ** 2 < (radius + other) ** 2:
                    return False
        return True

    def add(self, position: Sequence[float] | Floats, radius: float) -> None:
        """Add a sphere."""
        z, y, x = position
        self._members.setdefault(self._key(position), []).append((z, y, x, radius))


def pack_spheres(
    radii_N: Sequence[float],
    *,
    low: Sequence[float] | Floats,
    high: Sequence[float] | Floats,
    rng: np.random.Generator,
    shells: Sequence[Shell] = (),
    attempts: int = 3000,
) -> Floats:
    """Place spheres at random without overlap, large ones first.

    Parameters
    ----------
    radii_N : (N,) float
        Radii, Å.
    low, high : three floats
        Box for the centres: z, y, x, Å.
    rng : numpy.random.Generator
        Source of chance.
    shells : sequence of Shell
        Membranes to keep off.
    attempts : int
        Draws per sphere before giving up.

    Returns
    -------
    centres_N3 : (N, 3) float64
        z, y, x in Å, in the order of `radii_N`.

    Raises
    ------
    ConfigurationError
        They do not fit.
    """
    radii = np.asarray(radii_N, dtype=np.float64)
    centres_N3 = np.empty((len(radii), 3))
    grid = CellGrid(cell=float(2 * radii.max(initial=1.0)))
    for done, index in enumerate(np.argsort(-radii, kind="stable")):
        radius = float(radii[index])
        for _ in range(attempts):
            position = rng.uniform(low, high)
            if grid.free(position, radius) and all(shell.clear_of(position, radius) for shell in shells):
                break
        else:
            raise ConfigurationError(
                f"only {done} of {len(radii)} particles fit without overlap.",
                remedy="Ask for fewer copies or vesicles, or a larger volume.",
            )
        grid.add(position, radius)
        centres_N3[index] = position
    return centres_N3


def place_shells(
    count: int,
    *,
    radius_range: tuple[float, float],
    half_thickness: float,
    extent: Sequence[float] | Floats,
    rng: np.random.Generator,
    attempts: int = 2000,
) -> list[Shell]:
    """Place vesicles apart from each other; faces of the volume may cut them, as a lamella does.

    Parameters
    ----------
    count : int
        How many.
    radius_range : two floats
        Smallest and largest radius, Å.
    half_thickness : float
        Of the membrane with its surroundings, Å.
    extent : three floats
        Size of the volume along z, y, x, Å.
    rng : numpy.random.Generator
        Source of chance.

    Raises
    ------
    ConfigurationError
        They do not fit.
    """
    shells: list[Shell] = []
    for number in range(count):
        for _ in range(attempts):
            radius = float(rng.uniform(*radius_range))
            z, y, x = (float(v) for v in rng.uniform(0.15, 0.85, 3) * np.asarray(extent))
            gaps = [math.dist((z, y, x), s.centre) - radius - s.radius for s in shells]
            if all(gap > 3 * half_thickness for gap in gaps):
                break
        else:
            raise ConfigurationError(
                f"only {number} of {count} vesicles fit.", remedy="Ask for fewer or smaller vesicles."
            )
        shells.append(Shell((z, y, x), radius, half_thickness))
    return shells


def random_quaternions(count: int, rng: np.random.Generator) -> Floats:
    """Return uniformly distributed rotations as unit quaternions x, y, z, w (scalar last).

    A normalised 4-D Gaussian is uniform on the sphere of quaternions, hence on rotations (Shoemake 1992).
    """
    quaternions_N4 = rng.normal(size=(count, 4))
    unit: Floats = quaternions_N4 / np.linalg.norm(quaternions_N4, axis=1, keepdims=True)
    return unit
