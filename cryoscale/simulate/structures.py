"""Densities by name, and from atoms: read the file, bring it to the common form.

Reading of MRC files is handed in as a function: this room knows no file formats but those of atoms, which are
read by gemmi.

Shape suffixes: N atoms; 3 coordinates, z, y, x in a map and **x, y, z** in a file of atoms.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import math
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, CryoscaleError, FormatError
from cryoscale.simulate.densities import (
    SCALE_RESOLUTION_ANGSTROM,
    Density,
    density_from_map,
    density_from_shape,
)
from cryoscale.simulate.finding import DensitySource, find_density, stem_of, verified_sha256

__all__ = [
    "DensitySource",
    "ReadMap",
    "density_from_atoms",
    "find_density",
    "load_densities",
    "load_density",
    "read_atoms",
]

Points = npt.NDArray[np.float64]
ReadMap: TypeAlias = Callable[[Path], tuple[npt.NDArray[Any], float]]
"""From a path to a map (Z, Y, X) and its voxel size in Å."""

_DECOMPRESS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open}  # type: ignore[dict-item]
_MOST_BYTES = 4 << 30
"""A compressed file that becomes larger than this is refused."""
_MOST_GRID_VOXELS = 300_000_000


def load_density(
    name: str,
    folders: Iterable[str | Path] = (),
    *,
    voxel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    read_map: ReadMap,
    cache: str | Path | None = None,
    assembly: str = "1",
) -> Density:
    """Find and load one density; its name is the one that it was asked for by.

    Parameters
    ----------
    name, folders, cache
        As in `find_density`.
    voxel_size_angstrom, resolution_angstrom
        As in `cryoscale.simulate.densities.density_from_map`.
    read_map : callable
        Reads an uncompressed MRC file: from a path to (Z, Y, X) array and voxel size in Å.
    assembly : str
        As in `density_from_atoms`.

    Raises
    ------
    ConfigurationError
        As in `find_density`, or voxel size and resolution do not fit together.
    FormatError
        The file is broken, flat, empty, not finite, or not the one whose checksum was recorded.
    """
    source = find_density(name, folders, cache=cache)
    if source.path is None:
        return density_from_shape(
            name, voxel_size_angstrom=voxel_size_angstrom, resolution_angstrom=resolution_angstrom
        )
    sha256 = verified_sha256(source.path)
    if source.form == "atoms":
        density = density_from_atoms(
            source.path, name=name, voxel_size_angstrom=voxel_size_angstrom,
            resolution_angstrom=resolution_angstrom, assembly=assembly,
        )  # fmt: skip
        return dataclasses.replace(density, sha256=sha256)
    volume_ZYX, map_voxel = _read_map(source.path, read_map)
    return density_from_map(
        volume_ZYX, map_voxel, name=name, voxel_size_angstrom=voxel_size_angstrom,
        resolution_angstrom=resolution_angstrom, source=f"map {source.path.name}", sha256=sha256,
    )  # fmt: skip


def load_densities(
    names: Iterable[str],
    folders: Sequence[str | Path] = (),
    *,
    voxel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    read_map: ReadMap,
    cache: str | Path | None = None,
    assembly: str = "1",
) -> dict[str, Density]:
    """Load densities by name, each once; all names are found before the first file is read.

    Parameters and errors are those of `load_density`.
    """
    wanted = dict.fromkeys(names)
    for name in wanted:
        find_density(name, folders, cache=cache)
    return {
        name: load_density(
            name, folders, voxel_size_angstrom=voxel_size_angstrom, resolution_angstrom=resolution_angstrom,
            read_map=read_map, cache=cache, assembly=assembly,
        )
        for name in wanted
    }  # fmt: skip


def density_from_atoms(
    path: str | Path,
    *,
    voxel_size_angstrom: float,
    name: str | None = None,
    resolution_angstrom: float | None = None,
    assembly: str = "1",
) -> Density:
    """Make a density from the atoms of an mmCIF or PDB file, plain or gzipped.

    Each atom but hydrogen and those of water counts with its atomic number times its occupancy: a stand-in
    for how it scatters electrons. Only differences in composition show in it, not the unit: see the grey
    scale in `cryoscale.simulate.densities`.

    Parameters
    ----------
    path : path
        The file. Of several models the first is taken.
    voxel_size_angstrom : float
        Voxel size, Å.
    name : str, optional
        Name of the density; the stem of the file by default.
    resolution_angstrom : float, optional
        Where the low-pass leaves 1/e of the amplitude, Å; three voxels by default.
    assembly : str
        The biological assembly to build, where the file declares any; empty for the coordinates as they
        stand.

    Raises
    ------
    ConfigurationError
        The file declares assemblies, but not this one; or the molecule is too large for the resolution.
    FormatError
        The file cannot be read, or holds no atoms.
    """
    path = Path(path)
    positions_N3, weight_N, note = read_atoms(path, assembly=assembly)
    wanted = 3 * voxel_size_angstrom if resolution_angstrom is None else resolution_angstrom
    pitch = min(wanted, SCALE_RESOLUTION_ANGSTROM) / 6
    volume_ZYX, origin_zyx = _deposited(positions_N3, weight_N, pitch, path)
    return density_from_map(
        volume_ZYX, pitch, name=name or stem_of(path) or path.stem, voxel_size_angstrom=voxel_size_angstrom,
        resolution_angstrom=resolution_angstrom, origin_zyx_angstrom=origin_zyx,
        # Linear shares blur along each axis like a triangle from -pitch to pitch, of variance pitch^2 / 6.
        blurred_by_angstrom=pitch / math.sqrt(6), source=f"atoms {path.name}, {note}",
        sha256=verified_sha256(path),
    )  # fmt: skip


def read_atoms(path: str | Path, *, assembly: str = "1") -> tuple[Points, Points, str]:
    """Read positions and weights of the atoms of a file.

    Parameters
    ----------
    path, assembly
        As in `density_from_atoms`.

    Returns
    -------
    positions_N3 : (N, 3) float64
        x, y, z in Å, all copies of the assembly.
    weight_N : (N,) float64
        Atomic number times occupancy.
    note : str
        What was taken, in words.

    Raises
    ------
    ConfigurationError
        The file declares assemblies, but not this one.
    FormatError
        The file cannot be read, or holds no atoms.
    """
    import gemmi

    path = Path(path)
    structure = _structure(path)
    structure.remove_hydrogens()
    structure.remove_waters()
    atoms = gemmi.FlatStructure(structure)
    positions_N3 = np.array(atoms.pos, dtype=np.float64).reshape(-1, 3)
    weight_N = np.array(atoms.elements, np.float64) * np.array(atoms.occ, np.float64)
    model_N = np.asarray(atoms.model_num)
    chosen_N = (weight_N > 0) & (model_N == (model_N[0] if len(model_N) else 0))
    if not chosen_N.any():
        raise FormatError(f"{path} holds no atoms.", remedy="Is it a coordinate file, and complete?")
    if not np.isfinite(positions_N3[chosen_N]).all():
        raise FormatError(f"{path} holds coordinates that are not finite.")
    if not structure.assemblies or not assembly:
        return positions_N3[chosen_N], weight_N[chosen_N], f"{int(chosen_N.sum())} atoms"
    names = [declared.name for declared in structure.assemblies]
    if assembly not in names:
        raise ConfigurationError(
            f"{path} declares no assembly '{assembly}'.",
            remedy=f"It has {', '.join(names)}; an empty name takes the coordinates as they stand.",
        )
    chains_N, subchains_N = (
        np.ascontiguousarray(a).view("S8").ravel() for a in (atoms.chain_ids, atoms.subchains)
    )
    parts: list[Points] = []
    weights: list[Points] = []
    for generator in structure.assemblies[names.index(assembly)].generators:
        # PDB files name chains as authors do, mmCIF files their parts.
        of_it_N = np.isin(chains_N, [c.encode() for c in generator.chains])
        of_it_N |= np.isin(subchains_N, [c.encode() for c in generator.subchains])
        of_it_N &= chosen_N
        for operator in generator.operators:
            matrix_33 = np.array(operator.transform.mat.tolist(), dtype=np.float64)
            shift_3 = np.array(operator.transform.vec.tolist(), dtype=np.float64)
            parts.append(positions_N3[of_it_N] @ matrix_33.T + shift_3)
            weights.append(weight_N[of_it_N])
    total = sum(len(part) for part in parts)
    if not total:
        raise FormatError(f"{path}: assembly '{assembly}' is made of chains that hold no atoms.")
    return np.concatenate(parts), np.concatenate(weights), f"assembly {assembly}, {total} atoms"


def _read_map(path: Path, read_map: ReadMap) -> tuple[npt.NDArray[Any], float]:
    """Read a map, through a temporary copy where it is compressed."""
    opener = _DECOMPRESS.get(path.suffix.lower())
    if opener is None:
        return read_map(path)
    with tempfile.TemporaryDirectory(prefix="cryoscale-map-") as folder:
        plain = Path(folder) / path.stem
        try:
            with opener(path) as packed, plain.open("wb") as file:
                left = _MOST_BYTES
                while piece := packed.read(1 << 20):
                    left -= len(piece)
                    if left < 0:
                        raise FormatError(f"it becomes larger than {_MOST_BYTES >> 30} GiB.")
                    file.write(piece)
            return read_map(plain)
        except (EOFError, OSError, zlib.error) as error:
            raise FormatError(f"{path} cannot be unpacked: {error}") from error
        except CryoscaleError as error:  # it names the copy
            raise type(error)(f"{path}: {error}") from error


def _structure(path: Path) -> Any:
    """Read a file of atoms by gemmi."""
    import gemmi

    is_cif = path.name.lower().removesuffix(".gz").endswith((".cif", ".mmcif"))
    form = gemmi.CoorFormat.Mmcif if is_cif else gemmi.CoorFormat.Pdb
    try:
        opener = _DECOMPRESS.get(path.suffix.lower())
        with opener(path) if opener else path.open("rb") as file:
            data = file.read(_MOST_BYTES)
        return gemmi.read_structure_string(data.decode("utf-8", "replace"), format=form)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no file {path}.") from error
    except (EOFError, OSError, ValueError, RuntimeError, IndexError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} cannot be read as {'mmCIF' if is_cif else 'PDB'}: {reason}.") from error


def _deposited(
    positions_N3: Points, weight_N: Points, pitch: float, path: Path
) -> tuple[npt.NDArray[np.float32], tuple[float, float, float]]:
    """Share each atom's weight among the eight grid points around it, linearly.

    Returns
    -------
    volume_ZYX : (Z, Y, X) float32
        With a margin of two grid points.
    origin_zyx : three floats
        Coordinates of the first grid point, Å.
    """
    low_3, high_3 = positions_N3.min(axis=0), positions_N3.max(axis=0)
    shape = [math.ceil(float(n) / pitch) + 5 for n in (high_3 - low_3)[::-1]]
    if math.prod(shape) > _MOST_GRID_VOXELS:
        raise ConfigurationError(
            f"{path}: the atoms spread over {np.round(high_3 - low_3).tolist()} Å, too far for one particle.",
            remedy="Use another assembly, or a map.",
        )
    volume_ZYX = np.zeros(shape, np.float32)
    place_N3 = (positions_N3 - low_3)[:, ::-1] / pitch + 2
    floor_N3 = np.floor(place_N3).astype(np.int64)
    rest_N3 = place_N3 - floor_N3
    for corner in np.ndindex(2, 2, 2):
        share_N = np.prod(np.where(corner, rest_N3, 1 - rest_N3), axis=1)
        np.add.at(volume_ZYX, tuple((floor_N3 + corner).T), (share_N * weight_N).astype(np.float32))
    x, y, z = (float(v) - 2 * pitch for v in low_3)
    return volume_ZYX, (z, y, x)
