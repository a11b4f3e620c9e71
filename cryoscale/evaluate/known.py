"""What is known of a tomogram: positions with classes, from the run's own truth or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.data.truth import TRUTH_LABELS, Truth, read_truth
from cryoscale.errors import ConfigurationError, FormatError
from cryoscale.geometry import Zyx

UNNAMED = "particle"  # the class of positions without a class
OUTSIDE_TOLERANCE = 0.1  # share of positions outside the tomogram above which they are of another one


@dataclass(frozen=True)
class Known:
    """True positions and their classes.

    Parameters
    ----------
    positions_M3 : (M, 3) float64
        z, y, x, Å.
    class_M : (M,) int64
        Row of `class_names` of each, at least 1.
    class_names : tuple of str
        "background" first, then the classes of particles; others (membranes) are not listed.
    truth : Truth or None
        All that a simulation knows.
    others : tuple of str
        Classes that are known, but have no positions.
    """

    positions_M3: npt.NDArray[np.float64]
    class_M: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    truth: Truth | None = None
    others: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions_M3)

    @property
    def particle_classes(self) -> tuple[str, ...]:
        """The classes without background."""
        return self.class_names[1:]

    def of_class(self, name: str) -> npt.NDArray[np.bool_]:
        """Return which positions belong to a class."""
        rows: npt.NDArray[np.bool_] = self.class_M == self.class_names.index(name)
        return rows

    def as_classes(self, class_names: tuple[str, ...]) -> npt.NDArray[np.int64]:
        """Return the class of each position as a row of another list of names; 0 where it is not there."""
        table = [class_names.index(n) if n in class_names else 0 for n in self.class_names]
        return np.array(table, np.int64)[self.class_M]


def known_from_positions(
    positions_M3: npt.ArrayLike, class_M: npt.ArrayLike | None = None, *, class_names: tuple[str, ...] = ()
) -> Known:
    """Take positions, and their classes where there are such.

    Parameters
    ----------
    positions_M3 : (M, 3) float
        z, y, x, Å.
    class_M : (M,) str, optional
        Class of each; none: all are one class.
    class_names : tuple of str
        Classes that exist whether or not there is a position of them.
    """
    positions = np.asarray(positions_M3, np.float64).reshape(-1, 3)
    names = np.asarray(np.full(len(positions), UNNAMED) if class_M is None else class_M).astype(str)
    if names.shape != (len(positions),):
        raise ConfigurationError(f"expected {len(positions)} classes, got {names.shape}.")
    found = class_names or tuple(sorted(set(names.tolist()))) or (UNNAMED,)
    missing = set(names.tolist()) - set(found)
    if missing:
        raise ConfigurationError(f"classes {', '.join(sorted(missing))} are not among {', '.join(found)}.")
    value = {name: number for number, name in enumerate(found, start=1)}
    class_values = np.array([value[n] for n in names.tolist()], np.int64)
    return Known(positions, class_values, ("background", *found))


def known_from_truth(truth: Truth) -> Known:
    """Take the particles of a simulation; membranes, filaments and the like have no positions."""
    names = ("background", *truth.particle_classes)
    values = truth.class_N.astype(np.int64)
    if len(values) and (values.min() < 1 or values.max() >= len(names)):
        raise FormatError(
            f"the truth holds classes {values.min()} to {values.max()}; its classes of particles are 1 to "
            f"{len(names) - 1}."
        )
    return Known(truth.positions_N3, values, names, truth, tuple(truth.class_names[len(names) :]))


def with_all_classes(known: Mapping[str, Known]) -> dict[str, Known]:
    """Give all tomograms the classes of all of them: one that a tomogram lacks has no positions there.

    Otherwise what was found of it would be matched with another class in one tomogram than in the next.
    """
    named = [k for k in known.values() if len(k) or k.particle_classes != (UNNAMED,)] or list(known.values())
    names = tuple(dict.fromkeys(name for k in named for name in k.class_names))
    others = tuple(dict.fromkeys(name for k in named for name in k.others if name not in names))
    return {
        tomogram: replace(k, class_M=k.as_classes(names), class_names=names, others=others)
        for tomogram, k in known.items()
    }


def known_of_run(run: Run, tomogram: str, shape: Zyx, voxel_size_angstrom: float) -> Known:
    """Read the truth that a run holds about a tomogram of its own.

    Raises
    ------
    StateError
        There is none.
    FormatError
        It is of a tomogram of another extent.
    """
    known = known_from_truth(read_truth(run.truth, tomogram))
    if len(known):
        index_M3 = known.positions_M3 / voxel_size_angstrom
        outside = ((index_M3 < -0.5) | (index_M3 > np.array(shape) - 0.5)).any(axis=1).sum()
        if outside > OUTSIDE_TOLERANCE * len(known):
            raise FormatError(
                f"the truth of '{tomogram}' is for another tomogram: {outside} of {len(known)} positions lie "
                f"outside its {tuple(shape)} voxels of {voxel_size_angstrom:g} Å (z, y, x).",
                remedy="Simulate it again, or give the right --truth.",
            )
    return known


def has_own_truth(run: Run) -> bool:
    """Whether a run holds the truth of any tomogram."""
    return any(name.endswith(".toml") for name in run.truth.names())


def true_labels(run: Run, tomogram: str) -> LabelVolume | None:
    """Return the true label volume of a tomogram, None without one."""
    folder = run.tomogram(tomogram)
    if not folder.exists(f"labels/{TRUTH_LABELS}/zarr.json"):
        return None
    return LabelVolume(folder, TRUTH_LABELS)
