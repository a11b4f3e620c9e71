"""Where particles go: as many as asked for, each at its distance from membranes, none overlapping.

Shape suffixes: N particles, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import ParticlesConfig, SceneConfig
from cryoscale.errors import ConfigurationError
from cryoscale.simulate.crowding import Barrier, PackingError, Room, Rows, pack_crowded
from cryoscale.simulate.membranes import HEAD_SURFACE_ANGSTROM, Membrane, nearest_membrane, points_near

Floats = npt.NDArray[np.float64]

DENSEST = 0.8
"""Nobody tries to fill more than this share of the room. Equal spheres fill at most 0.74 of a box (Hales
2005, doi:10.4007/annals.2005.162.1065: full boxes side by side would be a packing of all space). Mixtures of
sizes can be a little denser, but only where they are well ordered."""

REACHED = 0.63
"""Most that `pack_crowded` reaches, in rooms much larger than the spheres (random close packing of equal
ones: 0.64); in rooms of a few diameters, whose walls count, it is 0.5 to 0.6."""

REMEDY = (
    "Ask for fewer copies under simulate.scene.particles, fewer membranes or filaments, "
    "a smaller margin_angstrom, or a larger shape."
)


def place_particles(
    scene: SceneConfig,
    radii: Mapping[str, float],
    size: Floats,
    membranes: Sequence[Membrane],
    things: Sequence[Any],
    rng: np.random.Generator,
) -> Floats:
    """Place all particles.

    Parameters
    ----------
    scene : SceneConfig
        What is wanted.
    radii : mapping
        From each configured density to the radius of its bounding sphere, Å.
    size : (3,) float64
        From the centre of the first to that of the last voxel along z, y, x, Å.
    membranes, things : sequence
        What stands there already: bilayers, and what is solid.
    rng : numpy.random.Generator
        Source of chance.

    Returns
    -------
    positions_N3 : (N, 3) float64
        Centres in the order of the configuration, Å.

    Raises
    ------
    ConfigurationError
        There is no room; the message says how many copies have some.
    """
    counts = [p.copies for p in scene.particles]
    if not sum(counts):
        return np.empty((0, 3))
    radius_N = np.repeat([float(radii[p.density]) for p in scene.particles], counts)
    least_N, most_N = (
        np.repeat([_gap_range(scene, p)[end] for p in scene.particles], counts) for end in (0, 1)
    )
    low_N3, high_N3 = _boxes(scene, radius_N, size)
    bound_N = np.isfinite(most_N)

    def draw(rows: Rows, source: np.random.Generator) -> Floats:
        points_N3 = source.uniform(low_N3[rows], high_N3[rows])
        bound = bound_N[rows]
        if bound.any():
            which = rows[bound]
            gap_N = radius_N[which] + HEAD_SURFACE_ANGSTROM + source.uniform(least_N[which], most_N[which])
            points_N3[bound] = points_near(membranes, gap_N, size, source)
        return points_N3

    room = Room(low_N3, high_N3, barriers_of(radius_N, membranes, things, least_N, most_N), draw)
    refuse_too_many("particles", radius_N, room, remedy=REMEDY)
    try:
        return pack_crowded(radius_N, room, rng)
    except PackingError as error:
        raise _no_room(scene, radius_N, error) from error


def refuse_too_many(what: str, radius_N: Floats, room: Room, *, remedy: str) -> None:
    """Refuse at once what no packing reaches; trying and failing takes minutes.

    Spheres lie within the boxes of their centres, grown by their radii. What membranes and other things take
    of that is not counted here, so what passes may still not fit.

    Parameters
    ----------
    what : str
        Word for them in the message.
    radius_N : (N,) float64
        Radii of the spheres, Å.
    room : Room
        Where each may be.
    remedy : str
        What to do.

    Raises
    ------
    ConfigurationError
        The spheres have more than `DENSEST` of the volume that they may touch.
    """
    low, high = (room.low_N3 - radius_N[:, None]).min(axis=0), (room.high_N3 + radius_N[:, None]).max(axis=0)
    share = _volume(radius_N) / float(np.prod(high - low))
    if share > DENSEST:
        count = len(radius_N)
        fitting = int(REACHED / share * count)
        raise ConfigurationError(
            f"the {what} cannot fit without overlap: their bounding spheres have {100 * share:.0f} % of the "
            f"volume that they may take up, and packings reach {100 * REACHED:.0f} % at most. About "
            f"{fitting} of {count} copies would fit, fewer where membranes and other things stand.",
            remedy=remedy,
        )


def barriers_of(
    radius_N: Floats, membranes: Sequence[Membrane], things: Sequence[Any], least_N: Floats, most_N: Floats
) -> list[Barrier]:
    """Return what spheres keep off: membranes, with gaps between least and most, and solid things."""
    found = []
    if membranes:
        off = radius_N + HEAD_SURFACE_ANGSTROM
        found.append(Barrier(lambda points: nearest_membrane(membranes, points), off + least_N, off + most_N))
    if things:
        far = np.full(len(radius_N), np.inf)
        found.append(Barrier(lambda points: _nearest_thing(things, points), radius_N, far))
    return found


def _nearest_thing(things: Sequence[Any], points_N3: Floats) -> tuple[Floats, Floats]:
    """Return the distance from the surface of the nearest solid thing and the direction in which it grows."""
    distance, way = np.full(len(points_N3), np.inf), np.zeros_like(points_N3)
    for thing in things:
        other, direction = thing.approach(points_N3)
        nearer = other < distance
        distance[nearer], way[nearer] = other[nearer], direction[nearer]
    return distance, way


def _boxes(scene: SceneConfig, radius_N: Floats, size: Floats) -> tuple[Floats, Floats]:
    """Return the lowest and highest centre of each particle; whole spheres keep off the empty borders."""
    low_N3 = np.full((len(radius_N), 3), float(scene.margin_angstrom))
    border = scene.surroundings.border_angstrom
    if border:
        low_N3[:, 0] = np.maximum(low_N3[:, 0], border + radius_N)
    return low_N3, np.maximum(size - low_N3, low_N3)


def _gap_range(scene: SceneConfig, entry: ParticlesConfig) -> tuple[float, float]:
    """Return the least and greatest gap between a particle and the nearest membrane."""
    return {
        "free": (0.0, np.inf),
        "at": (0.0, scene.at_angstrom),
        "near": (scene.at_angstrom, scene.near_angstrom),
        "far": (scene.near_angstrom, np.inf),
    }[entry.placement]


def _volume(radius_N: Floats) -> float:
    """Return the volume of all spheres together."""
    return float((4 / 3 * np.pi * radius_N**3).sum())


def _no_room(scene: SceneConfig, radius_N: Floats, error: PackingError) -> ConfigurationError:
    """Say what was reached."""
    whole = float(np.prod(np.array(scene.shape) * scene.voxel_size_angstrom))
    reached, wanted = (100 * _volume(r) / whole for r in (radius_N[error.placed], radius_N))
    entry_N = np.repeat(np.arange(len(scene.particles)), [p.copies for p in scene.particles])
    lacking = np.bincount(entry_N[error.missing], minlength=len(scene.particles))
    worst = ", ".join(
        f"{lacking[n]} of '{p.class_name}' ({p.placement})"
        for n, p in sorted(enumerate(scene.particles), key=lambda item: -lacking[item[0]])[:3]
        if lacking[n]
    )
    return ConfigurationError(
        f"the particles do not fit without overlap: {len(error.placed)} of {len(radius_N)} copies did, "
        f"{reached:.0f} % of the volume, of {wanted:.0f} % that were asked for. Without a place: {worst}.",
        remedy=REMEDY,
    )
