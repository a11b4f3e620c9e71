"""Particle positions to STAR and CSV files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, SurroundingsError
from cryoscale.formats.points_table import CENTRED, TomogramGeometry, centre_of


def write_star(
    path: str | os.PathLike[str],
    positions_N3: npt.ArrayLike,
    *,
    tomogram: str,
    shape: Sequence[int],
    voxel_size_angstrom: float,
    score_N: npt.ArrayLike | None = None,
    class_number_N: npt.ArrayLike | None = None,
    quaternion_N4: npt.ArrayLike | None = None,
    unbinned: TomogramGeometry | None = None,
) -> None:
    """Write positions as a RELION-5 particle file of one tomogram.

    Parameters
    ----------
    path : path
        The file to write; an existing one is replaced when the new one is whole.
    positions_N3 : (N, 3) float
        z, y, x, Å.
    tomogram : str
        For ``rlnTomoName``.
    shape, voxel_size_angstrom, unbinned
        As in `read_positions`: they fix the centre.
    score_N : (N,) float, optional
        For ``rlnAutopickFigureOfMerit``.
    class_number_N : (N,) int, optional
        For ``rlnClassNumber``.
    quaternion_N4 : (N, 4) float, optional
        x, y, z, w; turns xyz of the particle's frame into xyz of the tomogram. For ``rlnAngleRot``,
        ``rlnAngleTilt``, ``rlnAnglePsi``.

    Raises
    ------
    ConfigurationError
        Columns of different length, or a tomogram name with white space.
    SurroundingsError
        The file cannot be written.
    """
    import pandas

    positions = np.asarray(positions_N3, dtype=np.float64).reshape(-1, 3)
    if not tomogram or any(c.isspace() for c in tomogram):
        raise ConfigurationError(f"'{tomogram}' cannot be a tomogram's name in a STAR file: no white space.")
    centred = positions - centre_of(shape, voxel_size_angstrom, unbinned)
    columns: dict[str, Any] = {"rlnTomoName": [tomogram] * len(positions)}
    columns |= {name: centred[:, axis] for name, axis in zip(CENTRED[::-1], (2, 1, 0), strict=True)}
    if score_N is not None:
        columns["rlnAutopickFigureOfMerit"] = _column(path, score_N, len(positions))
    if class_number_N is not None:
        columns["rlnClassNumber"] = _column(path, class_number_N, len(positions)).astype(np.int64)
    if quaternion_N4 is not None:
        angles = relion_angles(quaternion_N4)
        if len(angles) != len(positions):
            raise ConfigurationError(
                f"{path}: {len(angles)} orientations do not go with {len(positions)} rows."
            )
        names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
        columns |= {name: angles[:, column] for column, name in enumerate(names)}
    _write_star(Path(path), {"particles": pandas.DataFrame(columns)})


def relion_angles(quaternion_N4: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn orientations into RELION's rot, tilt, psi in degrees.

    RELION's matrix A = Rz(psi) Ry(tilt) Rz(rot), in passive form, takes xyz of the reference to xyz of the
    particle as it stands in the tomogram, which is what our quaternions do; so the angles are the intrinsic
    ZYZ angles of the inverse turn.

    Parameters
    ----------
    quaternion_N4 : (N, 4) float
        x, y, z, w.

    Returns
    -------
    angles_N3 : (N, 3) float64
        rot, tilt, psi.
    """
    import warnings

    from scipy.spatial.transform import Rotation

    quaternions = np.asarray(quaternion_N4, dtype=np.float64).reshape(-1, 4)
    if not len(quaternions):
        return np.empty((0, 3))
    with (
        warnings.catch_warnings()
    ):  # where tilt is 0 only rot + psi is fixed; scipy sets psi to 0 and says so
        warnings.simplefilter("ignore", UserWarning)
        angles: npt.NDArray[np.float64] = Rotation.from_quat(quaternions).inv().as_euler("ZYZ", degrees=True)
    return angles


def write_import_list(path: str | os.PathLike[str], files: Mapping[str, str]) -> None:
    """Write the two-column list by which RELION-5 imports particle files: tomogram name to file."""
    import pandas

    table = pandas.DataFrame({"rlnTomoName": list(files), "rlnTomoImportParticleFile": list(files.values())})
    _write_star(Path(path), {"": table})


def write_csv(
    path: str | os.PathLike[str],
    positions_N3: npt.ArrayLike,
    *,
    voxel_size_angstrom: float,
    tomogram: str | None = None,
    score_N: npt.ArrayLike | None = None,
    class_N: npt.ArrayLike | None = None,
) -> None:
    """Write positions as CSV, in voxels and in Å.

    Parameters
    ----------
    path : path
        The file to write.
    positions_N3 : (N, 3) float
        z, y, x, Å.
    voxel_size_angstrom : float
        Voxel size, Å.
    tomogram : str, optional
        Goes into a column of its own.
    score_N, class_N : (N,) arrays, optional
        More columns.
    """
    positions = np.asarray(positions_N3, dtype=np.float64).reshape(-1, 3)
    columns: dict[str, Sequence[Any]] = {}
    if tomogram is not None:
        columns["tomogram"] = [tomogram] * len(positions)
    for suffix, scale in (("voxel", voxel_size_angstrom), ("angstrom", 1.0)):
        for axis, name in ((2, "x"), (1, "y"), (0, "z")):
            columns[f"{name}_{suffix}"] = [f"{v:.4f}" for v in positions[:, axis] / scale]
    if score_N is not None:
        columns["score"] = [repr(float(v)) for v in _column(path, score_N, len(positions))]
    if class_N is not None:
        columns["class"] = [str(v) for v in _column(path, class_N, len(positions))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    _write_text(Path(path), text.getvalue())


def _column(path: str | os.PathLike[str], values: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
    """Check the length of a column."""
    array = np.asarray(values)
    if array.shape != (count,):
        raise ConfigurationError(
            f"{path}: a column of shape {array.shape} does not go with {count} positions."
        )
    return array


def _write_star(path: Path, blocks: Mapping[str, Any]) -> None:
    """Write tables; the first line that starfile adds has the time in it and would differ each run."""
    import starfile

    _, _, text = starfile.to_string(blocks, float_format="%.3f").partition("\n")
    _write_text(path, f"# written by cryoscale\n{text}")


def _write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SurroundingsError(
            f"{path} cannot be written: {error.strerror}.", remedy="Check the folder and the space on it."
        ) from error
