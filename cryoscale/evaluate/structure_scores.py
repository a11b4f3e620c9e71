"""What structure the found particles of a class hold: averages at known orientations, and their resolution.

The particles are turned back and centred by the truth, as a perfect alignment would: what is scored is which
particles were found, in which noise, not the alignment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.pyramid import Level
from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.data.truth import Truth, density_key
from cryoscale.evaluate.known import Known
from cryoscale.evaluate.matching import match_points
from cryoscale.geometry import Box

if TYPE_CHECKING:
    from cryoscale.evaluate.averages import ParticleAverage

ReadBox = Callable[[Box], npt.NDArray[Any]]
ReadDensity = Callable[[str], tuple[npt.NDArray[Any], float]]

LARGEST_BOX = 64  # voxels; averages are made at level 0
LEAST_PARTICLES = 8  # in all: fewer have halves that say nothing
MOST_PARTICLES = 500
EDGE_VOXELS = 3.0  # of the soft mask
SAME_SIZE = 0.01  # by which the voxels of a density may differ from those of a tomogram


@dataclass(frozen=True)
class TrueDensity:
    """The density that a class is made of, objects positive, its origin at the middle voxel, side // 2.

    Parameters
    ----------
    name : str
        Under which the run keeps it.
    volume_ZYX : (Z, Y, X) float
        In the particle's frame.
    voxel_size_angstrom, radius_angstrom : float
        Of the voxels, and of the ball that holds the particle.
    """

    name: str
    volume_ZYX: npt.NDArray[Any]
    voxel_size_angstrom: float
    radius_angstrom: float


def density_of_class(
    run: Run, truths: Sequence[Truth], class_name: str, read: ReadDensity
) -> TrueDensity | None:
    """Return the density of a class; None where it was not kept, or the class is made of several.

    Parameters
    ----------
    truths : sequence of Truth
        Of all tomograms in question.
    read : callable
        Path of a map to its values (Z, Y, X) and voxel size, Å.
    """
    keys: set[str] = set()
    for truth in truths:
        entries = np.repeat(
            np.array(truth.notes.get("densities", []), dtype=str), truth.notes.get("entry_counts", [])
        )
        if class_name not in truth.class_names or len(entries) != len(truth):
            return None
        keys |= {density_key(density) for density in np.unique(entries[truth.of_class(class_name)]).tolist()}
    if len(keys) != 1:
        return None
    (key,) = keys
    folder = run.densities
    if not (folder.exists("densities.toml") and folder.exists(f"{key}.mrc")):
        return None
    radius = float(folder.read_toml("densities.toml")[key]["radius_angstrom"])
    volume_ZYX, voxel_size = read(folder.path(f"{key}.mrc"))
    return TrueDensity(key, volume_ZYX, voxel_size, radius)


@dataclass(frozen=True)
class Found:
    """The matched picks of one class in one tomogram: whole voxels, the rest, turns, side of boxes."""

    tomogram: str
    index_N3: npt.NDArray[np.int64]
    offsets_N3: npt.NDArray[np.float64]
    quaternion_N4: npt.NDArray[np.float64]
    box: int

    def __len__(self) -> int:
        return len(self.index_N3)


def found_particles(
    tomogram: str,
    level: Level,
    picks_N3: npt.NDArray[np.float64],
    known: Known,
    class_name: str,
    radius: float,
    box: int,
) -> Found:
    """Return the picks that are matched with a class and whose boxes lie inside the tomogram.

    Parameters
    ----------
    picks_N3 : (N, 3) float
        Å.
    known : Known
        With the truth of a simulation.
    radius : float
        Largest distance of a pair, Å.
    box : int
        Side of the boxes, voxels.
    """
    assert known.truth is not None
    of_class = known.of_class(class_name)
    match = match_points(picks_N3, known.positions_M3[of_class], radius)
    true_N3 = known.positions_M3[of_class][match.truth_K] / level.voxel_size_angstrom
    index_N3 = level.to_voxels(picks_N3[match.pick_K])
    start_N3 = index_N3 - box // 2
    inside = ((start_N3 >= 0) & (start_N3 + box <= np.array(level.shape))).all(axis=1)
    quaternion = known.truth.quaternion_N4[of_class][match.truth_K]
    return Found(tomogram, index_N3[inside], (true_N3 - index_N3)[inside], quaternion[inside], box)


def box_voxels(run: Run, level: int) -> int:
    """Return the side of the boxes at level 0: that of the patches, even, at most `LARGEST_BOX`."""
    largest = max(run.config.patch.box) * 2**level
    return int(max(8, min(LARGEST_BOX, largest) // 2 * 2))


def structure_scores(
    run: Run,
    found: Sequence[Found],
    density: TrueDensity | None = None,
    *,
    most: int = MOST_PARTICLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Average the found particles of a class and measure the resolution.

    Parameters
    ----------
    run : Run
        Of a simulation.
    found : sequence of Found
        One per tomogram.
    density : TrueDensity, optional
        What the class is made of, with the voxels of level 0; one with others is not compared.
    most : int
        Largest number of particles, drawn by the seed.

    Returns
    -------
    scores : dict
        `particles`, `box_voxels`, `voxel_size_angstrom`, `mask_radius_angstrom`, `half_fsc_0.143_angstrom`,
        `half_fsc` (frequency, correlation), and with a density `density`, `fsc_0.5_angstrom`,
        `fsc_0.143_angstrom` and `fsc`, against it. `random_…`: the same when the particles' turns are
        shuffled among them. Frequencies that the tilt range does not measure are left out; the contrast
        transfer function is in the tomogram and in the average. Resolutions that are not reached are None.
    """
    from cryoscale.evaluate.structures import soft_spherical_mask

    chosen = _Chosen.of(found, most, seed)
    if len(chosen.index_N3) < LEAST_PARTICLES:
        return {"particles": len(chosen.index_N3)}
    tomograms = [Tomogram(run.tomogram(part.tomogram)) for part in found]
    size, box = tomograms[0].facts.levels[0].voxel_size_angstrom, chosen.box
    if density is not None and abs(density.voxel_size_angstrom / size - 1) > SAME_SIZE:
        density = None
    radius = max(1.0, box / 2 - EDGE_VOXELS - 1)
    if density is not None:
        radius = min(radius, density.radius_angstrom / size)
    mask = soft_spherical_mask((box, box, box), radius, edge_voxels=EDGE_VOXELS)
    readers = [functools.partial(tomogram.read_canonical, 0) for tomogram in tomograms]
    scores: dict[str, Any] = {
        "particles": len(chosen.index_N3), "box_voxels": box, "voxel_size_angstrom": size,
        "mask_radius_angstrom": float(radius * size), **({"density": density.name} if density else {}),
    }  # fmt: skip
    for prefix, particles in (("", chosen), ("random_", chosen.shuffled(seed))):
        mean = particles.average(readers, seed=seed, dark=True, tilts_degrees=tilts_of(run))
        halves = mean.half_correlation(size, mask=mask)
        scores |= {
            f"{prefix}half_fsc_0.143_angstrom": _plain(halves.at_0143), f"{prefix}half_fsc": _curve(halves),
        }  # fmt: skip
        if density is not None:
            against = mean.correlation_with(density.volume_ZYX, size, mask=mask)
            scores |= {
                f"{prefix}fsc_0.5_angstrom": _plain(against.at_half),
                f"{prefix}fsc_0.143_angstrom": _plain(against.at_0143),
                f"{prefix}fsc": _curve(against),
            }
    return scores


@dataclass(frozen=True)
class _Chosen:
    """The particles that are averaged, and which tomogram each lies in."""

    box: int
    part_N: npt.NDArray[np.int64]
    index_N3: npt.NDArray[np.int64]
    offsets_N3: npt.NDArray[np.float64]
    quaternion_N4: npt.NDArray[np.float64]

    @classmethod
    def of(cls, found: Sequence[Found], most: int, seed: int) -> _Chosen:
        """Draw at most so many of all tomograms."""
        sizes = [len(part) for part in found]
        kept = np.sort(np.random.default_rng(seed).permutation(sum(sizes))[:most])
        return cls(
            min(part.box for part in found),
            np.repeat(np.arange(len(found)), sizes)[kept],
            np.concatenate([part.index_N3 for part in found])[kept],
            np.concatenate([part.offsets_N3 for part in found])[kept],
            np.concatenate([part.quaternion_N4 for part in found])[kept],
        )

    def shuffled(self, seed: int) -> _Chosen:
        """Give each particle the turn of another: an alignment that knows nothing."""
        order = np.random.default_rng(seed).permutation(len(self.quaternion_N4))
        return replace(self, quaternion_N4=self.quaternion_N4[order])

    def average(self, readers: Sequence[ReadBox], *, seed: int, **options: Any) -> ParticleAverage:
        """Average the boxes that the readers of the tomograms give."""
        from cryoscale.evaluate.averages import average_particles

        def read(row: int) -> npt.NDArray[np.floating[Any]]:
            start = self.index_N3[row] - self.box // 2
            box = Box.of(start.tolist(), (start + self.box).tolist())
            patch: npt.NDArray[np.floating[Any]] = readers[self.part_N[row]](box)
            return patch

        return average_particles(read, self.quaternion_N4, self.offsets_N3, seed=seed, **options)


def tilts_of(run: Run) -> tuple[float, float] | None:
    """Return the tilt range that a run was simulated with, None for others."""
    simulate = run.config.simulate
    if simulate is None:
        return None
    return float(simulate.imaging.tilt_min_degrees), float(simulate.imaging.tilt_max_degrees)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _curve(correlation: Any) -> dict[str, list[float | None]]:
    return {
        "frequency": [float(f) for f in correlation.frequency_K],
        "correlation": [_plain(c) for c in correlation.correlation_K],
    }
