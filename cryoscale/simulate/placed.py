"""Everything that stands in a simulated tomogram, as data: to the truth table and back from it.

Placing and painting happen in different processes, the latter block by block; the table is what lies between.

Shape suffixes: N particles, E entries of the configuration, 3 coordinates z, y, x in Å.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.truth import Truth
from cryoscale.errors import StateError
from cryoscale.geometry import Zyx
from cryoscale.simulate.filaments import Filament
from cryoscale.simulate.membranes import Membrane
from cryoscale.simulate.surroundings import Carbon, Gold

Floats = npt.NDArray[np.float64]


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
