"""What stands where in a tomogram: membranes, filaments, film, beads and particles, before painting.

`place_scene` decides it all from a seed. `Placed` goes to the truth table and comes back from it, so that
painting can happen later, in other processes, block by block.

Shape suffixes: N particles, E entries of the configuration, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import ParticlesConfig, SceneConfig
from cryoscale.data.truth import Truth
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.geometry import Zyx
from cryoscale.simulate.crowding import Barrier, PackingError, Room, Rows, pack_crowded
from cryoscale.simulate.filaments import Filament, place_filaments
from cryoscale.simulate.membranes import (
    HEAD_SURFACE_ANGSTROM,
    Membrane,
    nearest_membrane,
    place_membranes,
    points_near,
)
from cryoscale.simulate.packing import random_quaternions
from cryoscale.simulate.surroundings import Carbon, Gold, place_carbon

Floats = npt.NDArray[np.float64]

MOST_CLASSES = 255
"""Label volumes count classes in one byte."""

# Each kind of thing draws from its own stream: more gold does not move a membrane.
_CARBON, _MEMBRANES, _FILAMENTS, _GOLD, _PARTICLES, _ROTATIONS, _SHARES = range(7)


@dataclass(frozen=True)
class Placed:
    """Everything that stands in a tomogram.

    Parameters
    ----------
    shape : Zyx
        Extent, voxels.
    voxel_size_angstrom, resolution_angstrom : float
        As the scene is painted, Å.
    seed : int
        Of the scene; the grain of the carbon film is drawn from it when it is painted.
    class_names : tuple of str
        Name by label value; 0 is background.
    particle_classes : int
        How many of them are classes of particles.
    densities : (E,) tuple of str
        The density of each entry.
    entry_counts : (E,) tuple of int
        Copies of each entry; rows are in the order of entries.
    radii : (E,) tuple of float
        Radius of the bounding sphere of each entry's density, Å.
    positions_N3 : (N, 3) float64
        Centres z, y, x, Å.
    class_N : (N,) uint8
        Label value of each particle.
    quaternion_N4 : (N, 4) float64
        x, y, z, w; turns xyz of the particle's frame into xyz of the volume.
    contrast_N : (N,) float32
        The whole factor on each particle's density.
    membrane_distance_N : (N,) float32
        From the centre to the middle of the nearest bilayer, Å; infinite without membranes.
    placement_N : (N,) str
        "free", "at", "near" or "far".
    membranes, filaments, carbon, gold
        What else there is.
    border_angstrom : float
        Empty ice at either face in z, Å.
    """

    shape: Zyx
    voxel_size_angstrom: float
    resolution_angstrom: float
    seed: int
    class_names: tuple[str, ...]
    particle_classes: int
    densities: tuple[str, ...]
    entry_counts: tuple[int, ...]
    radii: tuple[float, ...]
    positions_N3: Floats
    class_N: npt.NDArray[np.uint8]
    quaternion_N4: Floats
    contrast_N: npt.NDArray[np.float32]
    membrane_distance_N: npt.NDArray[np.float32]
    placement_N: npt.NDArray[np.str_]
    membranes: tuple[Membrane, ...] = ()
    filaments: tuple[Filament, ...] = ()
    carbon: Carbon | None = None
    gold: Gold | None = None
    border_angstrom: float = 0.0
    _entry_N: npt.NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_entry_N", np.repeat(np.arange(len(self.entry_counts)), self.entry_counts))

    def __len__(self) -> int:
        return len(self.positions_N3)

    @property
    def radius_N(self) -> Floats:
        """Radius of each particle's bounding sphere, Å."""
        return np.array(self.radii, dtype=np.float64)[self._entry_N]

    @property
    def size_angstrom(self) -> Floats:
        """From the centre of the first to that of the last voxel along z, y, x."""
        return (np.array(self.shape) - 1) * self.voxel_size_angstrom

    @property
    def filled(self) -> float:
        """Share of the volume that bounding spheres take."""
        whole = float(np.prod(np.array(self.shape) * self.voxel_size_angstrom))
        return float((4 / 3 * np.pi * self.radius_N**3).sum()) / whole

    def density_of(self, row: int) -> str:
        """Name of a particle's density, as configured."""
        return self.densities[int(self._entry_N[row])]

    def value_of(self, class_name: str) -> int:
        """Label value of a class."""
        return self.class_names.index(class_name)

    def to_truth(self) -> Truth:
        """Return the table of particles, with notes that TOML can hold and that make the scene again."""
        notes: dict[str, Any] = {
            "seed": self.seed,
            "shape": list(self.shape),
            "voxel_size_angstrom": float(self.voxel_size_angstrom),
            "resolution_angstrom": float(self.resolution_angstrom),
            "particle_classes": self.particle_classes,
            "densities": list(self.densities),
            "entry_counts": list(self.entry_counts),
            "radii_angstrom": list(self.radii),
            "filled": self.filled,
            "border_angstrom": float(self.border_angstrom),
            "membranes": [m.to_dict() for m in self.membranes],
            "filaments": [f.to_dict() for f in self.filaments],
        }
        if self.carbon is not None:
            notes["carbon"] = self.carbon.to_dict()
        if self.gold is not None:
            notes["gold"] = self.gold.to_dict()
        return Truth(
            self.positions_N3, self.class_N, self.class_names, self.quaternion_N4,
            self.contrast_N, self.membrane_distance_N, self.placement_N, notes,
        )  # fmt: skip

    @classmethod
    def from_truth(cls, truth: Truth) -> Placed:
        """Make the scene again from the truth about it.

        Raises
        ------
        StateError
            The notes are not those of a scene that was placed here.
        """
        notes = truth.notes
        try:
            carbon = Carbon.from_dict(notes["carbon"]) if "carbon" in notes else None
            gold = Gold.from_dict(notes["gold"]) if "gold" in notes else None
            placed = cls(
                Zyx.of(notes["shape"]), float(notes["voxel_size_angstrom"]),
                float(notes["resolution_angstrom"]), int(notes["seed"]), truth.class_names,
                int(notes["particle_classes"]), tuple(notes["densities"]), tuple(notes["entry_counts"]),
                tuple(float(r) for r in notes["radii_angstrom"]), truth.positions_N3, truth.class_N,
                truth.quaternion_N4, truth.contrast_N, truth.membrane_distance_N, truth.placement_N,
                tuple(Membrane.from_dict(m) for m in notes["membranes"]),
                tuple(Filament.from_dict(f) for f in notes["filaments"]),
                carbon, gold, float(notes["border_angstrom"]),
            )  # fmt: skip
        except KeyError as error:
            raise StateError(f"the truth has no note {error}; it was not placed by this version.") from error
        if len(placed._entry_N) != len(placed):
            raise StateError(
                f"the truth has {len(placed)} rows, but its notes count {len(placed._entry_N)} copies."
            )
        return placed


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
    names = scene.class_names
    if len(names) - 1 > MOST_CLASSES:
        raise ConfigurationError(f"{len(names) - 1} classes do not fit into a label volume ({MOST_CLASSES}).")
    _check_sizes(scene, radii)
    border = scene.surroundings.border_angstrom
    carbon = place_carbon(scene.surroundings, size, _stream(seed, _CARBON))
    solid: tuple[Any, ...] = (carbon,) if carbon is not None else ()
    membranes = place_membranes(scene.membranes, size, _stream(seed, _MEMBRANES), solid=solid)
    filaments = place_filaments(
        scene.filaments,
        size,
        _stream(seed, _FILAMENTS),
        membranes=membranes,
        solid=solid,
        border_angstrom=border,
    )
    things = (*filaments, *solid)
    gold = _place_gold(scene, size, membranes, things, _stream(seed, _GOLD))
    if gold is not None:
        things = (*things, gold)
    entry_N = np.repeat(np.arange(len(scene.particles)), [p.copies for p in scene.particles])
    positions_N3 = _place_particles(scene, radii, size, membranes, things, _stream(seed, _PARTICLES))
    value = np.array([names.index(p.class_name) for p in scene.particles], dtype=np.uint8)
    contrasts, least_shares = contrasts or {}, least_shares or {}
    least = np.array([p.least_share or least_shares.get(p.density, 1.0) for p in scene.particles])
    factor = np.array([p.contrast * contrasts.get(p.density, 1.0) for p in scene.particles])
    share_N = _stream(seed, _SHARES).uniform(least[entry_N] if len(entry_N) else [], 1.0)
    distance_N, _ = nearest_membrane(membranes, positions_N3)
    return Placed(
        Zyx.of(scene.shape),
        float(scene.voxel_size_angstrom),
        float(scene.resolution_angstrom or 3 * scene.voxel_size_angstrom),
        int(seed),
        names,
        len(scene.particle_classes),
        tuple(p.density for p in scene.particles),
        tuple(p.copies for p in scene.particles),
        tuple(float(radii[p.density]) for p in scene.particles),
        positions_N3,
        value[entry_N] if len(entry_N) else np.empty(0, np.uint8),
        random_quaternions(len(entry_N), _stream(seed, _ROTATIONS)),
        (share_N * (factor[entry_N] if len(entry_N) else 1.0)).astype(np.float32),
        distance_N.astype(np.float32),
        np.array([p.placement for p in scene.particles], dtype="<U4")[entry_N]
        if len(entry_N)
        else np.empty(0, "<U4"),
        membranes,
        filaments,
        carbon,
        gold,
        float(border),
    )


def _stream(seed: int, what: int) -> np.random.Generator:
    """Return the source of chance of one kind of thing."""
    return np.random.default_rng([seed, what])


def _check_sizes(scene: SceneConfig, radii: Mapping[str, float]) -> None:
    """Refuse densities that nobody knows or that are larger than the volume, and margins without room."""
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


def _nearest_thing(things: Sequence[Any], points_N3: Floats) -> tuple[Floats, Floats]:
    """Return the distance from the surface of the nearest solid thing and the direction in which it grows."""
    distance, way = np.full(len(points_N3), np.inf), np.zeros_like(points_N3)
    for thing in things:
        other, direction = thing.approach(points_N3)
        nearer = other < distance
        distance[nearer], way[nearer] = other[nearer], direction[nearer]
    return distance, way


def _barriers(
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
    barriers = _barriers(radius_N, membranes, things, zeros, far)
    boxes = np.tile(low, (count, 1)), np.tile(high, (count, 1))
    room = Room(*boxes, barriers, lambda rows, source: source.uniform(low, high, (len(rows), 3)))
    try:
        centres_N3 = pack_crowded(radius_N, room, rng)
    except PackingError as error:
        raise ConfigurationError(
            f"only {len(error.placed)} of {count} gold beads fit.", remedy="Ask for fewer or smaller ones."
        ) from error
    return Gold(centres_N3, radius, config.gold_contrast)


def _gap_range(scene: SceneConfig, entry: ParticlesConfig) -> tuple[float, float]:
    """Return the least and greatest gap between a particle and the nearest membrane."""
    return {
        "free": (0.0, np.inf),
        "at": (0.0, scene.at_angstrom),
        "near": (scene.at_angstrom, scene.near_angstrom),
        "far": (scene.near_angstrom, np.inf),
    }[entry.placement]


def _place_particles(
    scene: SceneConfig,
    radii: Mapping[str, float],
    size: Floats,
    membranes: Sequence[Membrane],
    things: Sequence[Any],
    rng: np.random.Generator,
) -> Floats:
    """Place all particles."""
    counts = [p.copies for p in scene.particles]
    if not sum(counts):
        return np.empty((0, 3))
    radius_N = np.repeat([float(radii[p.density]) for p in scene.particles], counts)
    least_N, most_N = (
        np.repeat([_gap_range(scene, p)[end] for p in scene.particles], counts) for end in (0, 1)
    )
    low_N3 = np.full((len(radius_N), 3), float(scene.margin_angstrom))
    border = scene.surroundings.border_angstrom
    if border:
        low_N3[:, 0] = np.maximum(low_N3[:, 0], border + radius_N)
    high_N3 = np.maximum(size - low_N3, low_N3)
    bound_N = np.isfinite(most_N)

    def draw(rows: Rows, source: np.random.Generator) -> Floats:
        points_N3 = source.uniform(low_N3[rows], high_N3[rows])
        bound = bound_N[rows]
        if bound.any():
            which = rows[bound]
            gap_N = radius_N[which] + HEAD_SURFACE_ANGSTROM + source.uniform(least_N[which], most_N[which])
            points_N3[bound] = points_near(membranes, gap_N, size, source)
        return points_N3

    barriers = _barriers(radius_N, membranes, things, least_N, most_N)
    try:
        return pack_crowded(radius_N, Room(low_N3, high_N3, barriers, draw), rng)
    except PackingError as error:
        raise _no_room(scene, radius_N, error) from error


def _no_room(scene: SceneConfig, radius_N: Floats, error: PackingError) -> ConfigurationError:
    """Say what was reached."""
    whole = float(np.prod(np.array(scene.shape) * scene.voxel_size_angstrom))
    reached, wanted = (
        100 * float((4 / 3 * np.pi * r**3).sum()) / whole for r in (radius_N[error.placed], radius_N)
    )
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
        remedy="Ask for fewer copies under simulate.scene.particles, fewer membranes or filaments, "
        "a smaller margin_angstrom, or a larger shape.",
    )
