"""What all readers and writers of positions share: the result, the target tomogram, and columns by name.

Shape suffixes: N positions, 3 coordinates z, y, x.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, FormatError
from cryoscale.geometry import Zyx

Floats = npt.NDArray[np.float64]
Convention = Literal["auto", "angstrom", "voxels", "relion5", "relion4", "warp"]

CENTRED = tuple(f"rlnCenteredCoordinate{a}Angst" for a in "ZYX")
CORNER = tuple(f"rlnCoordinate{a}" for a in "ZYX")
_SCORES = ("score", "rlnAutopickFigureOfMerit", "rlnLCCmax", "rlnMaxValueProbDistribution")
_CLASSES = ("class", "label", "kind", "class_name", "rlnClassNumber")
_TOMOGRAMS = ("tomogram", "tomo_name", "rlnTomoName", "rlnMicrographName")


@dataclass(frozen=True)
class Positions:
    """Positions of particles in one tomogram.

    Parameters
    ----------
    positions_N3 : (N, 3) float64
        z, y, x in Å; voxel i is centred at i times the voxel size.
    score_N : (N,) float64 or None
        Larger is better, where the file has scores.
    class_N : (N,) str or None
        Class of each, where the file has classes.
    convention : str
        How the numbers of the file were read, for the person to see.
    outside : int
        Positions that lay outside the tomogram and were left out.
    """

    positions_N3: Floats
    score_N: Floats | None
    class_N: npt.NDArray[np.str_] | None
    convention: str
    outside: int = 0

    def __len__(self) -> int:
        return len(self.positions_N3)


@dataclass(frozen=True)
class TomogramGeometry:
    """Size of a tilt series' tomogram before binning, from RELION's ``tomograms.star``.

    Parameters
    ----------
    size : Zyx
        Extent in pixels of the tilt series.
    pixel_size_angstrom : float
        Pixel size of the tilt series, Å.
    """

    size: Zyx
    pixel_size_angstrom: float


@dataclass(frozen=True)
class Target:
    """The tomogram that the positions are for."""

    shape: Zyx
    voxel_size_angstrom: float
    name: str | None
    pixel_size_angstrom: float | None
    unbinned: TomogramGeometry | None


class Table:
    """Columns of text by name, whatever file they came from; names are found without regard to case."""

    def __init__(self, path: Path, columns: Mapping[str, Iterable[object]]) -> None:
        self.path = path
        self.columns = {name.strip().lower(): [str(v) for v in values] for name, values in columns.items()}

    def has(self, names: Iterable[str]) -> bool:
        """Whether all of these columns exist."""
        return all(name.lower() in self.columns for name in names)

    def first(self, names: Iterable[str]) -> list[str] | None:
        """Return the first of these columns that exists."""
        return next((self.columns[n.lower()] for n in names if n.lower() in self.columns), None)

    def numbers(self, names: Sequence[str]) -> Floats:
        """Return columns side by side as float64."""
        try:
            return np.array([[float(v) for v in self.columns[n.lower()]] for n in names], dtype=np.float64).T
        except ValueError as error:
            raise FormatError(
                f"{self.path}: a value of {', '.join(names)} is no number ({error})."
            ) from error

    def rows_of(self, tomogram: str | None) -> Table:
        """Return the rows of one tomogram; refuse to mix tomograms."""
        names = self.first(_TOMOGRAMS)
        if not names:  # no such column, or no rows at all
            return self
        short = [Path(n).name.removesuffix(".tomostar") for n in names]
        known = sorted(set(short))
        if tomogram is None and len(known) <= 1:
            return self
        if tomogram is None or tomogram not in known:
            listed = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
            wanted = "no tomogram was named" if tomogram is None else f"it has no rows for '{tomogram}'"
            raise ConfigurationError(
                f"{self.path} holds positions of {len(known)} tomograms ({listed}); {wanted}.",
                remedy="Name one of them.",
            )
        keep = [n == tomogram for n in short]
        chosen = {k: [v for v, use in zip(c, keep, strict=True) if use] for k, c in self.columns.items()}
        return Table(self.path, chosen)

    def positions(self, positions_N3: Floats, convention: str) -> Positions:
        """Join positions with the score and class columns, where there are such."""
        score_name = next((n for n in _SCORES if n.lower() in self.columns), None)
        score_N = None if score_name is None else self.numbers([score_name])[:, 0]
        classes = self.first(_CLASSES)
        class_N = None if classes is None else np.array(classes, dtype=np.str_)
        return Positions(positions_N3.reshape(-1, 3), score_N, class_N, convention)


def centre_of(shape: Sequence[int], voxel_size_angstrom: float, unbinned: TomogramGeometry | None) -> Floats:
    """Return where RELION's C++ puts the centre: half the unbinned size, Å along z, y, x."""
    if unbinned is not None:
        return np.array(unbinned.size) / 2 * unbinned.pixel_size_angstrom
    return np.array(shape, dtype=np.float64) / 2 * voxel_size_angstrom
