"""Particle positions from and to the files of other programs.

Every reader ends in the same place: z, y, x in Å, with the centre of voxel i at i times the voxel size. What
each kind of file means by its numbers:

=============  ==================================================  =======================================
convention     columns                                             meaning
=============  ==================================================  =======================================
``angstrom``   CSV ``x_angstrom`` or ``x_A``; copick JSON          Å from the first voxel's centre
``voxels``     CSV ``x_vox``, ``x_voxel``, ``x``; portal ndjson    voxels of the tomogram
``relion5``    STAR ``rlnCenteredCoordinateXAngst``                Å from the tomogram's centre, size / 2
``relion4``    STAR ``rlnCoordinateX``                             pixels of the tilt series (bin 1)
``warp``       STAR ``rlnCoordinateX``, ``rlnMicrographName``      voxels of the tomogram
=============  ==================================================  =======================================
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscale.errors import ConfigurationError, FormatError, SurroundingsError
from cryoscale.formats.points_star import read_star_positions, read_tomograms_star
from cryoscale.formats.points_table import Convention, Floats, Positions, Table, Target, TomogramGeometry
from cryoscale.formats.points_write import write_csv, write_import_list, write_star
from cryoscale.geometry import Zyx

if TYPE_CHECKING:
    import os

__all__ = [
    "Convention",
    "Positions",
    "TomogramGeometry",
    "read_positions",
    "read_tomograms_star",
    "write_csv",
    "write_import_list",
    "write_star",
]

OUTSIDE_TOLERANCE = 0.1
"""Share of positions outside the tomogram above which the convention must be wrong."""


def read_positions(
    path: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    voxel_size_angstrom: float,
    tomogram: str | None = None,
    convention: Convention = "auto",
    pixel_size_angstrom: float | None = None,
    unbinned: TomogramGeometry | None = None,
) -> Positions:
    """Read particle positions for one tomogram.

    Parameters
    ----------
    path : path
        ``.csv``, ``.star`` (RELION-5, RELION-4, Warp), copick ``.json``, portal ``.ndjson``.
    shape : three ints
        Extent of the tomogram, voxels along z, y, x.
    voxel_size_angstrom : float
        Its voxel size, Å.
    tomogram : str, optional
        Which tomogram's rows to take from a file with several.
    convention : str
        How to read the numbers; ``"auto"`` decides by the columns and refuses to guess.
    pixel_size_angstrom : float, optional
        Pixel size of the tilt series, for RELION-4 coordinates without an optics table.
    unbinned : TomogramGeometry, optional
        For RELION-5: the size whose half is the centre; by default `shape` times the voxel size.

    Raises
    ------
    ConfigurationError
        No such file, unknown kind of file, a convention that must be named, no rows for the tomogram.
    FormatError
        Missing columns, values that are not finite, or more than a tenth outside the tomogram.
    SurroundingsError
        The file cannot be read.
    """
    path = Path(path)
    target = Target(Zyx.of(shape), float(voxel_size_angstrom), tomogram, pixel_size_angstrom, unbinned)
    readers = {
        ".csv": _read_csv,
        ".star": read_star_positions,
        ".json": _read_copick,
        ".ndjson": _read_ndjson,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"positions cannot be read from {path}.", remedy=f"Use one of {', '.join(readers)}."
        )
    try:
        found = reader(path, target, convention)
    except FileNotFoundError:
        raise ConfigurationError(f"there is no file {path}.", remedy="Check the path.") from None
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be read: {error.strerror}.") from error
    return _inside(path, found, target)


def _inside(path: Path, found: Positions, target: Target) -> Positions:
    """Leave out positions beyond the tomogram's faces; refuse when they are too many."""
    if not np.isfinite(found.positions_N3).all():
        raise FormatError(f"{path} holds positions that are not finite numbers.", remedy="Remove those rows.")
    index_N3 = found.positions_N3 / target.voxel_size_angstrom
    inside_N = ((index_N3 >= -0.5) & (index_N3 <= np.array(target.shape) - 0.5)).all(axis=1)
    count = len(index_N3)
    outside = count - int(np.count_nonzero(inside_N))
    if outside > OUTSIDE_TOLERANCE * count:
        low, high = index_N3.min(axis=0), index_N3.max(axis=0)
        raise FormatError(
            f"{path}: {outside} of {count} positions lie outside the tomogram of {tuple(target.shape)} "
            f"voxels (z, y, x): read as {found.convention}, they span {np.round(low).tolist()} to "
            f"{np.round(high).tolist()} voxels.",
            remedy="Check the voxel size, and which convention and pixel size the file uses.",
        )
    return replace(
        found,
        positions_N3=found.positions_N3[inside_N],
        score_N=None if found.score_N is None else found.score_N[inside_N],
        class_N=None if found.class_N is None else found.class_N[inside_N],
        outside=outside,
    )


def _read_csv(path: Path, target: Target, convention: Convention) -> Positions:
    """Read a CSV file with a header line."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = [line for line in csv.reader(stream) if line and any(field.strip() for field in line)]
    if not lines:
        raise FormatError(f"{path} is empty.")
    header, rows = lines[0], lines[1:]
    if any(len(row) != len(header) for row in rows):
        raise FormatError(f"{path}: the rows do not all have {len(header)} fields like the header.")
    table = Table(path, {name: [row[n] for row in rows] for n, name in enumerate(header)})
    table = table.rows_of(target.name)
    units = {"angstrom": ("{}_angstrom", "{}_a"), "voxels": ("{}_voxel", "{}_vox", "{}_voxels", "{}")}
    for unit, forms in units.items():
        if convention not in ("auto", unit):
            continue
        for form in forms:
            names = [form.format(a) for a in "zyx"]
            if table.has(names):
                scale = 1.0 if unit == "angstrom" else target.voxel_size_angstrom
                return table.positions(table.numbers(names) * scale, f"{unit} ({', '.join(names[::-1])})")
    raise FormatError(
        f"{path} has no columns for positions as '{convention}'; it has {', '.join(header)}.",
        remedy="Give it a header line with x_angstrom, y_angstrom, z_angstrom or x_voxel, y_voxel, z_voxel.",
    )


def _read_copick(path: Path, target: Target, convention: Convention) -> Positions:
    """Read copick picks: x, y, z in Å from the corner."""
    document = _json(path, path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or not isinstance(document.get("points"), list):
        raise FormatError(f"{path} is not a copick picks file: it has no list 'points'.")
    unit = document.get("unit", "angstrom")
    if unit != "angstrom" or convention not in ("auto", "angstrom"):
        raise FormatError(
            f"{path}: copick picks are in angstrom, not '{unit if unit != 'angstrom' else convention}'."
        )
    points = document["points"]
    positions_N3 = _locations(path, points)
    scores = [p.get("score") for p in points]
    score_N = None if any(s is None for s in scores) or not scores else np.array(scores, dtype=np.float64)
    name = document.get("pickable_object_name")
    class_N = None if name is None else np.full(len(points), str(name))
    return Positions(positions_N3, score_N, class_N, "angstrom (copick)")


def _read_ndjson(path: Path, target: Target, convention: Convention) -> Positions:
    """Read annotation points of the CryoET Data Portal: one JSON object a line, in voxels."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    points = [_json(path, line) for line in lines]
    if convention not in ("auto", "voxels"):
        raise FormatError(f"{path}: portal annotations are in voxels, not '{convention}'.")
    positions_N3 = _locations(path, points) * target.voxel_size_angstrom
    return Positions(positions_N3, None, None, f"voxels of {target.voxel_size_angstrom:g} Å (portal)")


def _json(path: Path, text: str) -> Any:
    """Parse JSON with an error that names the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{path} is not JSON ({error}).") from error


def _locations(path: Path, points: Sequence[Any]) -> Floats:
    """Return z, y, x of objects with a location."""
    try:
        rows = [[float(p["location"][a]) for a in "zyx"] for p in points]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: a point has no location with numbers x, y, z ({error!r}).") from error
    return np.array(rows, dtype=np.float64).reshape(-1, 3)
