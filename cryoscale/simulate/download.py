"""Structures of the Protein Data Bank, fetched by id into a folder that is kept.

Beside each file stands ``<file>.sha256`` with its checksum, in the form of the program ``sha256sum``; it is
compared whenever the file is used. A file put there by hand is taken like one that was fetched. Where there
is no network the message says which file to put where.
"""

from __future__ import annotations

import http.client
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryoscale.errors import ConfigurationError, CryoscaleError, DataError, FormatError, SurroundingsError
from cryoscale.simulate.finding import STRUCTURE_ID, checksum_path, verified_sha256
from cryoscale.simulate.structures import read_atoms

DEFAULT_URL = "https://files.rcsb.org/download"
"""Where structures come from: the RCSB's copy of the Protein Data Bank; ``<id>.cif.gz`` is put behind it."""

URL_VARIABLE = "CRYOSCALE_STRUCTURES_URL"
CACHE_VARIABLE = "CRYOSCALE_CACHE"

_MOST_BYTES = 1 << 30
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass
class Downloaded:
    """What came of a request.

    Parameters
    ----------
    files : dict
        File by id, as it was asked for: fetched, or there already.
    fetched : list of str
        Ids that were fetched now.
    failures : dict
        Error by id.
    """

    files: dict[str, Path] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)
    failures: dict[str, CryoscaleError] = field(default_factory=dict)


class _Interrupted(Exception):
    """A transfer that may go well another time."""


def structures_folder() -> Path:
    """Return where structures are kept: below ``CRYOSCALE_CACHE``, else the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser() / "structures"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cryoscale" / "structures"


def structure_id(text: str) -> str:
    """Return an id in its short form and lower case: ``1kp8`` for ``1KP8`` and ``pdb_00001kp8``.

    Raises
    ------
    ConfigurationError
        It is no id.
    """
    match = STRUCTURE_ID.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            f"'{text}' is no id of the Protein Data Bank.",
            remedy="Use four characters, a digit first, such as 1KP8, or pdb_00001kp8.",
        )
    return match[1].lower()


def download_structures(
    ids: Iterable[str],
    folder: str | Path | None = None,
    *,
    base_url: str | None = None,
    checksums: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    offline: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Fetch structures into a folder, those that are not there yet; one bad id does not stop the others.

    Parameters
    ----------
    ids : iterable of str
        Ids of the Protein Data Bank.
    folder : path, optional
        Where files are kept; `structures_folder` by default.
    base_url : str, optional
        Where files come from, http or https; by default the environment's ``CRYOSCALE_STRUCTURES_URL``, or
        `DEFAULT_URL`.
    checksums : dict, optional
        Expected SHA-256 by file name; a file with another one is refused.
    timeout : float
        Longest silence of the other side, seconds.
    attempts : int
        Tries per file, for faults that may pass.
    offline : bool
        Fetch nothing.
    pause : callable
        Waits some seconds between two tries.

    Raises
    ------
    ConfigurationError
        The URL is none, or a number makes no sense.
    SurroundingsError
        The folder cannot be made or written.

    Notes
    -----
    After a host could not be reached at all, the ids that follow are not tried.
    """
    target = structures_folder() if folder is None else Path(folder).expanduser()
    base = base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    if urllib.parse.urlsplit(base).scheme not in ("http", "https") or not urllib.parse.urlsplit(base).netloc:
        raise ConfigurationError(f"'{base}' is no http or https address to fetch structures from.")
    if timeout <= 0 or attempts < 1:
        raise ConfigurationError(
            f"a timeout above 0 and 1 attempt or more are needed, got {timeout}, {attempts}."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurroundingsError(f"the folder {target} cannot be made: {error.strerror}.") from error
    result = Downloaded()
    unreachable: SurroundingsError | None = None
    for asked in dict.fromkeys(ids):
        try:
            name = f"{structure_id(asked)}.cif.gz"
            path = target / name
            url = f"{base.rstrip('/')}/{name}"
            if not path.exists():
                if offline:
                    raise _no_network(url, path, "nothing is fetched offline")
                if unreachable is not None:
                    raise _no_network(url, path, "the host could not be reached before")
                _fetch(url, path, (checksums or {}).get(name), timeout, attempts, pause)
                result.fetched.append(asked)
            _check(path, (checksums or {}).get(name))
            result.files[asked] = path
        except CryoscaleError as error:
            if isinstance(error, _UnreachableError):
                unreachable = error
            result.failures[asked] = error
    return result


class _UnreachableError(SurroundingsError):
    """The host does not answer at all."""


def read_checksums(path: str | Path) -> dict[str, str]:
    """Read expected checksums, as the program ``sha256sum`` writes them: ``<SHA-256>  <file name>`` per line.

    Raises
    ------
    ConfigurationError
        There is no such file.
    FormatError
        A line is something else.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the checksums {path} cannot be read: {error}.") from error
    expected: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(\S+)", line.strip())
        if match is None:
            raise FormatError(
                f"{path}, line {number}: expected '<SHA-256>  <file name>', got '{line[:100]}'."
            )
        expected[Path(match[2]).name] = match[1].lower()
    return expected


def _check(path: Path, expected: str | None) -> None:
    """Compare a stored file with its record and with what is expected; record one that came by hand."""
    sha256 = verified_sha256(path)
    if expected and expected.lower() != sha256:
        raise FormatError(
            f"{path} is not the file that was expected: its SHA-256 is {sha256}, not {expected}.",
            remedy=f"Delete it and {checksum_path(path).name} to fetch it again, or correct the checksums.",
        )
    if not checksum_path(path).exists():
        read_atoms(path)
        _record(path, sha256)


def _record(path: Path, sha256: str) -> None:
    """Write the checksum beside a file."""
    _write(checksum_path(path), f"{sha256}  {path.name}\n".encode())


def _fetch(
    url: str, path: Path, expected: str | None, timeout: float, attempts: int, pause: Callable[[float], None]
) -> None:
    """Fetch one file, try again where it may help, check it, and put it in place under its name."""
    for attempt in range(1, attempts + 1):
        try:
            data = _received(url, path, timeout)
            break
        except _Interrupted as fault:
            if attempt == attempts:
                raise SurroundingsError(
                    f"{url} could not be fetched in {attempts} tries: {fault}.",
                    remedy=f"Try again later, or put the file there yourself as {path}.",
                ) from fault
            pause(min(2.0 ** (attempt - 1), 30.0))
    _write(path, data, expected=expected, url=url)


def _received(url: str, path: Path, timeout: float) -> bytes:
    """Receive one file."""
    request = urllib.request.Request(url, headers={"User-Agent": "cryoscale", "Accept-Encoding": "identity"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            data: bytes = response.read(_MOST_BYTES + 1)
            announced = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _TRY_AGAIN:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        if error.code in (404, 410):
            raise DataError(
                f"there is no structure at {url} ({error.code}).",
                remedy="Is the id right? An entry may also have been replaced by another.",
            ) from error
        raise SurroundingsError(f"{url} was refused: {error.code} {error.reason}.") from error
    except http.client.HTTPException as error:
        raise _Interrupted(f"the answer broke off ({type(error).__name__})") from error
    except TimeoutError as error:
        raise _Interrupted(f"nothing came for {timeout:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Interrupted(f"nothing came for {timeout:g} s") from error
        raise _no_network(url, path, str(error.reason)) from error
    except OSError as error:  # while it was read
        raise _Interrupted(f"the connection broke off ({error.strerror or type(error).__name__})") from error
    if announced is not None and announced.isdigit() and len(data) < int(announced):
        raise _Interrupted(f"{len(data)} bytes came of {announced}")
    if len(data) > _MOST_BYTES:
        raise FormatError(f"{url} is larger than {_MOST_BYTES >> 30} GiB; that is no structure.")
    return data


def _no_network(url: str, path: Path, reason: str) -> _UnreachableError:
    """Say that there is no network, and how to do without."""
    return _UnreachableError(
        f"{url} cannot be fetched: {reason}.",
        remedy=f"Without a network, put the file there yourself as {path} "
        f"(the environment's {URL_VARIABLE} or --url names another place to fetch from).",
    )


def _write(path: Path, data: bytes, *, expected: str | None = None, url: str = "") -> None:
    """Write a file under a temporary name, check it where it is a structure, and rename it."""
    try:
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f".{path.name}")
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be written: {error.strerror}.") from error
    made = Path(temporary)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if url:
            _accept(made, path, url, expected)
        made.replace(path)
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        made.unlink(missing_ok=True)


def _accept(made: Path, path: Path, url: str, expected: str | None) -> None:
    """Refuse what was fetched unless it is a structure, and the expected one; record its checksum."""
    sha256 = verified_sha256(made)
    if expected and expected.lower() != sha256:
        raise FormatError(
            f"{url} is not the file that was expected, and was not kept: its SHA-256 is {sha256}, "
            f"not {expected}.",
            remedy="The entry may have been revised: look at it, then correct the checksums.",
        )
    try:
        read_atoms(made, assembly="")
    except CryoscaleError as error:
        reason = str(error).replace(str(made), path.name)
        raise FormatError(f"{url} is no gzipped mmCIF file with atoms, and was not kept: {reason}") from error
    _record(path, sha256)
