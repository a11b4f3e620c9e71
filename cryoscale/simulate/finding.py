"""Which file a name of a density stands for, and whether the file is still the one that was stored.

A name such as ``1KP8`` is looked for in folders, as a map (MRC) or as atoms (mmCIF, PDB), whatever the case
of its letters; a path is taken as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryoscale.errors import ConfigurationError, FormatError, SurroundingsError
from cryoscale.simulate.shapes import KINDS

MAP_SUFFIXES = tuple(s + c for s in (".mrc", ".map", ".ccp4") for c in ("", ".gz", ".bz2"))
ATOM_SUFFIXES = tuple(s + c for s in (".cif", ".mmcif", ".pdb", ".ent") for c in ("", ".gz"))

STRUCTURE_ID = re.compile(r"(?:pdb_0000)?([1-9][a-z0-9]{3})", re.IGNORECASE)
"""An id of the Protein Data Bank, in its short or its long form."""


@dataclass(frozen=True)
class DensitySource:
    """Where a density is to come from.

    Parameters
    ----------
    name : str
        As it was asked for.
    form : str
        ``"map"``, ``"atoms"`` or ``"shape"`` (a procedural kind).
    path : Path or None
        The file; None for a procedural kind.
    """

    name: str
    form: Literal["map", "atoms", "shape"]
    path: Path | None = None

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"the procedural kind '{self.name}'"


def find_density(
    name: str, folders: Iterable[str | Path] = (), *, cache: str | Path | None = None
) -> DensitySource:
    """Find what a name stands for.

    Parameters
    ----------
    name : str
        A procedural kind; or the stem of a file in the folders, or its whole name, whatever the case; or a
        path.
    folders : iterable of path
        Where files are looked for, not in folders below them.
    cache : path, optional
        Where downloaded structures are. It counts only where nothing else is found.

    Raises
    ------
    ConfigurationError
        Nothing is found, or more than one thing, or a folder is not there.
    SurroundingsError
        A folder cannot be read.
    """
    places = [Path(folder).expanduser() for folder in folders]
    if "/" in name or "\\" in name or name.startswith("~"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"density '{name}': there is no such file.")
        return DensitySource(name, _form_of(path), path)
    found = [DensitySource(name, "shape")] if name in KINDS else []
    found += [DensitySource(name, _form_of(path), path) for path in _matches(name, places)]
    if not found and cache is not None and Path(cache).is_dir():
        found = [DensitySource(name, _form_of(path), path) for path in _matches(name, [Path(cache)])]
    if len(found) > 1:
        raise ConfigurationError(
            f"density '{name}' is ambiguous: {' and '.join(str(source) for source in found)}.",
            remedy="Give the path of the one that is meant, or its file name with the ending.",
        )
    if not found:
        raise _missing(name, places, cache)
    return found[0]


def verified_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; where one is recorded beside it, in ``<file>.sha256``, they must agree.

    Raises
    ------
    FormatError
        They do not agree.
    SurroundingsError
        The file cannot be read.
    """
    record = checksum_path(path)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        recorded = record.read_text(encoding="utf-8").split() if record.is_file() else []
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be read: {error.strerror}.") from error
    if recorded and recorded[0].lower() != sha256:
        raise FormatError(
            f"{path} is not the file that was stored: its SHA-256 is {sha256}, recorded in {record.name} is "
            f"{recorded[0]}.",
            remedy="Delete both to get it again; or only the record, if the change was meant.",
        )
    return sha256


def checksum_path(path: Path) -> Path:
    """Return where the checksum of a file is recorded, in the form of the program ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def stem_of(path: Path) -> str | None:
    """Return a file's name without the ending; None for a file that is neither map nor atoms."""
    for suffix in sorted((*MAP_SUFFIXES, *ATOM_SUFFIXES), key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return None


def _form_of(path: Path) -> Literal["map", "atoms"]:
    """Tell maps from atoms by the ending."""
    name = path.name.lower()
    if name.endswith(MAP_SUFFIXES):
        return "map"
    if name.endswith(ATOM_SUFFIXES):
        return "atoms"
    raise ConfigurationError(
        f"density '{path}': neither a map nor a file of atoms by its ending.",
        remedy=f"Maps end in {', '.join(MAP_SUFFIXES)}, files of atoms in {', '.join(ATOM_SUFFIXES)}.",
    )


def _listed(folder: Path) -> list[Path]:
    """Return the maps and files of atoms in a folder, in order."""
    try:
        return sorted(path for path in folder.iterdir() if stem_of(path) and path.is_file())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(f"there is no folder of densities {folder}.") from error
    except OSError as error:
        raise SurroundingsError(
            f"the folder of densities {folder} cannot be read: {error.strerror}."
        ) from error


def _matches(name: str, folders: Sequence[Path]) -> list[Path]:
    """Return the files that a name may mean, each once."""
    wanted = name.lower()
    identifier = STRUCTURE_ID.fullmatch(wanted)
    stems = {wanted, identifier[1]} if identifier else {wanted}
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in _listed(folder):
            if path.name.lower() == wanted or (stem_of(path) or "").lower() in stems:
                found.setdefault(path.resolve(), path)
    return list(found.values())


def _missing(name: str, folders: Sequence[Path], cache: str | Path | None) -> ConfigurationError:
    """Say what was looked for, and where, and what to do."""
    places = [str(folder) for folder in folders] + ([str(cache)] if cache is not None else [])
    where = f"in {', '.join(places)}" if places else "anywhere, for no folder was given"
    remedy = f"Put a map or a file of atoms named '{name}' there, or use one of {', '.join(KINDS)}."
    if STRUCTURE_ID.fullmatch(name):
        remedy = (
            f"Get it by `cryoscale simulate structures {name}`, "
            f"or put {name}.mrc, {name}.cif or {name}.pdb there yourself."
        )
    return ConfigurationError(
        f"there is no density '{name}': no procedural kind has that name, and no {name}.mrc, .map, .cif or "
        f".pdb (also .gz) was found {where}.",
        remedy=remedy,
    )
