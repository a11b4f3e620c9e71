"""Decide what stands where in a tomogram: membranes, filaments, film, beads and particles, before painting.

`place_scene` decides it all from a seed and returns a `Placed`.

Shape suffixes: N particles, E entries of the configuration, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import SceneConfig
from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Zyx
from cryoscale.simulate.crowding import PackingError, Room, pack_crowded
from cryoscale.simulate.filaments import Filament, place_filaments
from cryoscale.simulate.membranes import Membrane, nearest_membrane, place_membranes
from cryoscale.simulate.packing import random_quaternions
from cryoscale.simulate.particles import barriers_of, place_particles, refuse_too_many
from cryoscale.simulate.placed import Placed
from cryoscale.simulate.surroundings import Carbon, Gold, place_carbon

Floats = npt.NDArray[np.float64]

MOST_CLASSES = 255
"""Label volumes count classes in one byte."""

# Each kind of thing draws from its own stream: more gold does not move a membrane.
_CARBON, _MEMBRANES, _FILAMENTS, _GOLD, _PARTICLES, _ROTATIONS, _SHARES = range(7)


class _Standing(NamedTuple):
    """All that stands before the particles come."""

    membranes: tuple[Membrane, ...]
    filaments: tuple[Filament, ...]
    carbon: Carbon | None
    gold: Gold | None

    @property
    def solid(self) -> tuple[Any, ...]:
        """What nothing reaches into."""
        return (*self.filaments, *(thing for thing in (self.carbon, self.gold) if thing is not None))


def place_scene(
    scene: SceneConfig,
    radii: Mapping[str, float],
    *,
    seed: int,
    contrasts: Mapping[str, float] | None = None,
    least_shares: Mapping[str, float] | None = None,
) -> Placed:
    """Decide what stands where.

    Parameters
    ----------
    scene : SceneConfig
        What is wanted.
    radii : mapping
        From each configured density to the radius of its bounding sphere, Å.
    seed : int
        Source of all chance here: the same seed gives the same scene.
    contrasts : mapping, optional
        From densities to their own contrast; 1 by default.
    least_shares : mapping, optional
        From densities to the least share of the contrast that a copy has, where the configuration does not
        say; 1 by default.

    Returns
    -------
    placed : Placed
        Particles in the order of the configuration. No bounding sphere overlaps another one, a membrane's
        head groups, a filament, the film or a bead.

    Raises
    ------
    ConfigurationError
        Something is larger than the volume, or there is no room: the message says what was reached.
    """
    size = (np.array(scene.shape) - 1) * scene.voxel_size_angstrom
    _check_sizes(scene, radii)
    standing = _place_standing(scene, size, seed)
    positions_N3 = place_particles(
        scene, radii, size, standing.membranes, standing.solid, _stream(seed, _PARTICLES)
    )
    entry_N = np.repeat(np.arange(len(scene.particles)), [p.copies for p in scene.particles])
    values = [scene.class_names.index(p.class_name) for p in scene.particles]
    distance_N, _ = nearest_membrane(standing.membranes, positions_N3)
    return Placed(
        shape=Zyx.of(scene.shape), voxel_size_angstrom=float(scene.voxel_size_angstrom),
        resolution_angstrom=float(scene.resolution_angstrom or 3 * scene.voxel_size_angstrom),
        seed=int(seed), class_names=scene.class_names, particle_classes=len(scene.particle_classes),
        densities=tuple(p.density for p in scene.particles),
        entry_counts=tuple(p.copies for p in scene.particles),
        radii=tuple(float(radii[p.density]) for p in scene.particles),
        positions_N3=positions_N3, class_N=np.array(values, dtype=np.uint8)[entry_N],
        quaternion_N4=random_quaternions(len(entry_N), _stream(seed, _ROTATIONS)),
        contrast_N=_contrasts(scene, entry_N, contrasts or {}, least_shares or {}, _stream(seed, _SHARES)),
        membrane_distance_N=distance_N.astype(np.float32),
        placement_N=np.array([p.placement for p in scene.particles], dtype="<U4")[entry_N],
        border_angstrom=float(scene.surroundings.border_angstrom), **standing._asdict(),
    )  # fmt: skip


def _stream(seed: int, what: int) -> np.random.Generator:
    """Return the source of chance of one kind of thing."""
    return np.random.default_rng([seed, what])


def _check_sizes(scene: SceneConfig, radii: Mapping[str, float]) -> None:
    """Refuse too many classes, densities unknown or larger than the volume, and margins without room."""
    classes = len(scene.class_names) - 1
    if classes > MOST_CLASSES:
        raise ConfigurationError(f"{classes} classes do not fit into a label volume ({MOST_CLASSES}).")
    whole = np.array(scene.shape) * scene.voxel_size_angstrom
    border = np.array([2 * scene.surroundings.border_angstrom, 0, 0])
    said = " x ".join(f"{v:g}" for v in whole)
    for entry in scene.particles:
        if entry.density not in radii:
            raise ConfigurationError(f"no radius is known of the density '{entry.density}'.")
        diameter = 2 * radii[entry.density]
        if entry.copies and (diameter > whole - border).any():
            within = f" with empty borders of {border[0] / 2:g} Å in z" if border[0] else ""
            raise ConfigurationError(
                f"the density '{entry.density}' is larger than the volume: {diameter:.0f} Å across, in a "
                f"volume of {said} Å (z, y, x){within}.",
                remedy="Use a larger shape or voxel size under simulate.scene, or leave the density out.",
            )
    size = whole - scene.voxel_size_angstrom
    if scene.particles and (size <= 2 * scene.margin_angstrom).any():
        raise ConfigurationError(
            f"a volume of {said} Å (z, y, x) has no room within a margin of {scene.margin_angstrom:g} Å.",
            remedy="Use a larger simulate.scene.shape or a smaller margin_angstrom.",
        )


def _place_standing(scene: SceneConfig, size: Floats, seed: int) -> _Standing:
    """Place the film, then membranes, filaments and beads, each clear of what stands there."""
    carbon = place_carbon(scene.surroundings, size, _stream(seed, _CARBON))
    solid: tuple[Any, ...] = (carbon,) if carbon is not None else ()
    membranes = place_membranes(scene.membranes, size, _stream(seed, _MEMBRANES), solid=solid)
    filaments = place_filaments(
        scene.filaments, size, _stream(seed, _FILAMENTS), membranes=membranes, solid=solid,
        border_angstrom=scene.surroundings.border_angstrom,
    )  # fmt: skip
    gold = _place_gold(scene, size, membranes, (*filaments, *solid), _stream(seed, _GOLD))
    return _Standing(tuple(membranes), tuple(filaments), carbon, gold)


def _place_gold(
    scene: SceneConfig,
    size: Floats,
    membranes: Sequence[Membrane],
    things: Sequence[Any],
    rng: np.random.Generator,
) -> Gold | None:
    """Place gold beads wholly within the ice."""
    config = scene.surroundings
    if not config.gold_beads:
        return None
    radius = config.gold_diameter_angstrom / 2
    low = np.array([config.border_angstrom + radius, radius, radius])
    high = size - low
    if (low > high).any():
        raise ConfigurationError(
            f"gold beads of {2 * radius:g} Å are larger than the ice in a volume of {size.tolist()} Å.",
            remedy="Set simulate.scene.surroundings.gold_diameter_angstrom lower.",
        )
    count = config.gold_beads
    zeros, far = np.zeros(count), np.full(count, np.inf)
    radius_N = np.full(count, radius)
    barriers = barriers_of(radius_N, membranes, things, zeros, far)
    boxes = np.tile(low, (count, 1)), np.tile(high, (count, 1))
    room = Room(*boxes, barriers, lambda rows, source: source.uniform(low, high, (len(rows), 3)))
    refuse_too_many("gold beads", radius_N, room, remedy="Ask for fewer or smaller ones.")
    try:
        centres_N3 = pack_crowded(radius_N, room, rng)
    except PackingError as error:
        raise ConfigurationError(
            f"only {len(error.placed)} of {count} gold beads fit.", remedy="Ask for fewer or smaller ones."
        ) from error
    return Gold(centres_N3, radius, config.gold_contrast)


def _contrasts(
    scene: SceneConfig,
    entry_N: npt.NDArray[np.int64],
    contrasts: Mapping[str, float],
    least_shares: Mapping[str, float],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Return the whole factor on each particle's density: the class's, the density's, the copy's share."""
    least = np.array([p.least_share or least_shares.get(p.density, 1.0) for p in scene.particles])
    factor = np.array([p.contrast * contrasts.get(p.density, 1.0) for p in scene.particles])
    share_N: Floats = rng.uniform(least[entry_N], 1.0)
    contrast_N: npt.NDArray[np.float32] = (share_N * factor[entry_N]).astype(np.float32)
    return contrast_N
