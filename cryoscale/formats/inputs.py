"""From what a person typed to a list of files, their names, and their content ids."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryoscale.config.urls import refuse_credentials
from cryoscale.errors import ConfigurationError, SurroundingsError

SUFFIXES = (".mrc", ".rec", ".map", ".st")
"""Names of MRC files; all four hold the same format."""

_COMPRESSED = {".gz": "gunzip", ".bz2": "bunzip2"}


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """Turn paths and globs into files: sorted within a pattern, each file once.

    Parameters
    ----------
    patterns : list of str
        Paths, or globs with ``*``, ``?``, ``[…]``, ``**``. A path that exists is never read as a glob.

    Raises
    ------
    ConfigurationError
        A pattern matches nothing, a path is a folder, is not an MRC file by its suffix, or may not be read.
    """
    if not patterns:
        raise ConfigurationError(
            "no input was given.", remedy="Name MRC files or a pattern such as 'recon/*.mrc'."
        )
    found: dict[Path, Path] = {}
    for pattern in patterns:
        refuse_credentials(pattern)
        for path in _matches(os.path.expanduser(pattern)):
            _check_file(path)
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _matches(pattern: str) -> list[Path]:
    """Return the paths of one pattern; at least one."""
    if os.path.lexists(pattern):
        return [Path(pattern)]
    if not glob.has_magic(pattern):
        raise ConfigurationError(f"there is no file '{pattern}'.", remedy="Check the path.")
    paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not paths:
        raise ConfigurationError(
            f"no file matches the pattern '{pattern}' (from {Path.cwd()}).",
            remedy="Check the folder and the suffix; quote the pattern so that the shell leaves it alone.",
        )
    return paths


def _check_file(path: Path) -> None:
    """Refuse folders, other formats, and files that may not be read."""
    if path.is_dir():
        raise ConfigurationError(
            f"{path} is a folder.", remedy=f"Give the files in it, such as '{path}/*.mrc'."
        )
    if not path.exists():
        raise ConfigurationError(
            f"{path} is a link to a file that is not there.", remedy="Mend or remove the link."
        )
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        raise ConfigurationError(
            f"{path} is compressed; blocks cannot be read from it.",
            remedy=f"Decompress it first ({_COMPRESSED[suffix]} '{path}').",
        )
    if suffix not in SUFFIXES:
        raise ConfigurationError(
            f"{path} does not have one of the suffixes {', '.join(SUFFIXES)}.",
            remedy="Convert it to MRC, or rename it.",
        )
    if not os.access(path, os.R_OK):
        raise ConfigurationError(f"{path} may not be read by this user.", remedy="Change its permissions.")


def tomogram_name(path: str | os.PathLike[str]) -> str:
    """Return the name that a tomogram gets from its file: the stem, with only ``A-Za-z0-9._-`` in it.

    Other characters become ``-``. MRC suffixes are stripped, also doubled ones (``a.rec.mrc`` is ``a``).

    Raises
    ------
    ConfigurationError
        Nothing is left of the name.
    """
    name = Path(path).name
    while Path(name).suffix.lower() in (*SUFFIXES, *_COMPRESSED):
        name = Path(name).stem
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")
    if not cleaned:
        raise ConfigurationError(
            f"no tomogram name can be made from the file {path}.", remedy="Rename the file."
        )
    return cleaned


def names_for(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Path]:
    """Return name to path for all files; a clash is an error.

    Names that differ in case only clash too: some file systems cannot keep them apart.

    Raises
    ------
    ConfigurationError
        Two files give the same name.
    """
    names: dict[str, Path] = {}
    seen: dict[str, Path] = {}
    for given in paths:
        path = Path(given)
        name = tomogram_name(path)
        other = seen.setdefault(name.casefold(), path)
        if other is not path:
            raise ConfigurationError(
                f"{other} and {path} would both be the tomogram '{name}'.",
                remedy="Rename one of the files, or put them in separate runs.",
            )
        names[name] = path
    return names


def content_id(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits, read in small pieces.

    Raises
    ------
    SurroundingsError
        The file cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SurroundingsError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check it and try again."
        ) from error


def source_exists(path: str | os.PathLike[str]) -> bool:
    """Whether a source file is still where it was."""
    return Path(path).is_file()


def source_stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return size in bytes and modification time in ns: how a file whose content is known is recognised."""
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns
