"""A folder on any storage: a local path or an fsspec URL, with whole-object reads and atomic writes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import tomli_w

from cryoscale.config.urls import refuse_credentials
from cryoscale.errors import ConfigurationError, StateError, SurroundingsError

if TYPE_CHECKING:
    from cryoscale.data.fence import Fence

TEMPORARY, PARTIAL = ".tmp-", ".partial"  # how names of unfinished objects begin and end
_CLIENT_ERRORS = (  # what clients of storages raise beside OSError; looked up only where they are loaded
    ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"), ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A place where objects are kept, addressed by relative paths with forward slashes.

    Small and picklable: workers get folders, never open handles.

    Parameters
    ----------
    url : str
        A local path, or an fsspec URL such as `s3://bucket/run`.
    fence : Fence, optional
        Asked before each object that is written or deleted; folders below have it, too.
    """

    url: str
    fence: Fence | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, place: str | os.PathLike[str]) -> Folder:
        """Make a folder from a path or URL; local paths become absolute."""
        text = os.fspath(place)
        refuse_credentials(text)
        if "://" in text and not text.startswith("file://"):
            return cls(text.rstrip("/"))
        return cls(str(Path(text.removeprefix("file://")).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        """Whether this is a plain path of the machine (or of a shared file system)."""
        return "://" not in self.url

    def child(self, *parts: str) -> Folder:
        """Return the folder below this one."""
        return Folder("/".join([self.url, *parts]), self.fence)

    def guard(self, *, anew: bool = False) -> None:
        """Raise `OvertakenError` when who holds this folder may not write into it any more."""
        if self.fence is not None:
            self.fence.check(anew=anew)

    def path(self, name: str = "") -> str:
        """Return the full path or URL of an object."""
        return f"{self.url}/{name}" if name else self.url

    @contextlib.contextmanager
    def _remote(self) -> Iterator[tuple[Any, str]]:
        """Yield the file system and the path in it; what its client says becomes an error of ours."""
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:  # not a protocol, or its package is not installed
            raise ConfigurationError(
                f"{self.url} cannot be reached: {str(error).rstrip('.')}.",
                remedy="Give a path, or a URL of a storage whose fsspec package is installed.",
            ) from error
        try:
            yield filesystem, root
        except _client_errors() as error:
            raise SurroundingsError(
                f"{self.url}: {str(error).rstrip('.')}.",
                remedy="Check the address, the connection and the credentials.",
            ) from error

    def read_bytes(self, name: str) -> bytes:
        """Return a whole object; raises `FileNotFoundError` when there is none."""
        if self.is_local:
            return Path(self.path(name)).read_bytes()
        with self._remote() as (filesystem, root):
            return bytes(filesystem.cat_file(f"{root}/{name}"))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole object so that readers see the old one or the new one, never a part."""
        self.guard()
        if not self.is_local:
            with self._remote() as (filesystem, root):
                filesystem.pipe_file(f"{root}/{name}", data)
            return
        target = Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=TEMPORARY, suffix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            self.guard()
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Write a whole object unless there is one; say whether it was written.

        On a local path one of several writers wins, whatever happens. Object stores promise less: where they
        know no conditional write the last of several writers at one moment wins, so read again after a while
        who it was.
        """
        if not self.is_local:
            return self._create_remote(name, data)
        target = Path(self.path(name))
        temporary = f"{TEMPORARY}{os.getpid()}-{next(_numbers)}{PARTIAL}"
        self.child(*name.split("/")[:-1]).write_bytes(temporary, data)
        beside = target.parent / temporary
        try:
            os.link(beside, target)  # a new name for a whole file: never seen half written
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with target.open("xb") as stream:
                    stream.write(data)
            except FileExistsError:
                return False
        finally:
            beside.unlink(missing_ok=True)
        return True

    def _create_remote(self, name: str, data: bytes) -> bool:
        if self.exists(name):
            return False
        with self._remote() as (filesystem, root):
            try:
                filesystem.pipe_file(f"{root}/{name}", data, mode="create")
            except FileExistsError:
                return False
            except (TypeError, ValueError, NotImplementedError):  # it cannot write on a condition
                filesystem.pipe_file(f"{root}/{name}", data)
        return True

    def take(self, name: str, data: bytes) -> bool:
        """Remove an object if it still holds `data`; say whether this call removed it.

        On a local path only one of several callers removes it. What another wrote since stays, but for the
        time of one system call: written between this one's look and its rename, it is put back, unless a
        third one wrote in that moment. So who wrote looks again after a while whether his is there.
        """
        if not self.is_local:
            if not self.exists(name) or self.read_bytes(name) != data:
                return False
            self.delete(name)
            return True
        target = Path(self.path(name))
        beside = target.parent / f"{TEMPORARY}{os.getpid()}-{next(_numbers)}{PARTIAL}"
        mine = False
        try:
            if target.read_bytes() != data:
                return False
            target.rename(beside)
            mine = beside.read_bytes() == data
        except FileNotFoundError:
            return False
        finally:
            if not mine and beside.exists():  # somebody was faster, or we cannot know: it goes back
                try:
                    os.link(beside, target)
                except OSError:
                    if not target.exists():
                        beside.rename(target)
            beside.unlink(missing_ok=True)
        return mine

    def exists(self, name: str = "") -> bool:
        """Whether an object or folder of this name exists."""
        if self.is_local:
            return Path(self.path(name)).exists()
        with self._remote() as (filesystem, root):
            return bool(filesystem.exists(f"{root}/{name}" if name else root))

    def delete(self, name: str = "") -> None:
        """Remove an object or a whole folder; it is no error when there is none."""
        self.guard()
        if self.is_local:
            target = Path(self.path(name))
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            return
        with self._remote() as (filesystem, root), contextlib.suppress(FileNotFoundError):
            filesystem.rm(f"{root}/{name}" if name else root, recursive=True)

    def names(self, under: str = "") -> list[str]:
        """Return the sorted names directly below a folder; empty when it does not exist.

        Temporary files of a write that is going on, or that was killed, are not listed.
        """
        if self.is_local:
            place = Path(self.path(under))
            names = sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
            return [n for n in names if not (n.startswith(TEMPORARY) and n.endswith(PARTIAL))]
        with self._remote() as (filesystem, root):
            place_url = f"{root}/{under}" if under else root
            if not filesystem.exists(place_url):
                return []
            entries = filesystem.ls(place_url, detail=False)
        return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def files(self) -> list[str]:
        """Return the sorted relative paths of all objects below, by one listing; empty when there is none.

        Raises `OSError` when a folder below cannot be listed: what stands is then not known.
        Temporary files of a write that is going on, or that was killed, are not listed.
        """
        if not self.is_local:
            with self._remote() as (filesystem, root):
                under = root.strip("/") + "/"
                found = (str(path).strip("/") for path in filesystem.find(root))
                return sorted(path.removeprefix(under) for path in found if path.startswith(under))
        below: list[str] = []
        for folder, _, names in os.walk(self.url, onerror=_unless_gone):
            above = "" if folder == self.url else os.path.relpath(folder, self.url) + "/"
            below += [above + n for n in names if not (n.startswith(TEMPORARY) and n.endswith(PARTIAL))]
        return sorted(below)

    def sizes(self, under: str = "", *, limit: int = 1000) -> tuple[list[tuple[str, int]], list[str], bool]:
        """Return what lies directly in a folder: files with their bytes, folders, and whether that is all.

        At most `limit` entries are looked at; one that goes meanwhile is left out.
        """
        if not self.is_local:
            with self._remote() as (filesystem, root):
                place = f"{root}/{under}" if under else root
                found = filesystem.ls(place, detail=True) if filesystem.exists(place) else []
            names = (str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in found)
            rows = [
                (name, str(entry["type"]), int(entry.get("size") or 0))
                for name, entry in zip(names, found, strict=True)
            ]
        else:
            rows, gone = [], (FileNotFoundError, NotADirectoryError)
            with contextlib.suppress(*gone), os.scandir(self.path(under)) as entries:
                for entry in itertools.islice(entries, limit + 1):
                    with contextlib.suppress(FileNotFoundError):
                        folder = entry.is_dir(follow_symlinks=False)
                        size = 0 if folder else entry.stat(follow_symlinks=False).st_size
                        rows.append((entry.name, "directory" if folder else "file", size))
        files = [(name, size) for name, kind, size in rows[:limit] if kind != "directory"]
        folders = [name for name, kind, _ in rows[:limit] if kind == "directory"]
        return sorted(files), sorted(folders), len(rows) <= limit

    def size_bytes(self) -> int:
        """Return the bytes that all objects below take."""
        if not self.is_local:
            with self._remote() as (filesystem, root):
                return int(filesystem.du(root)) if filesystem.exists(root) else 0
        total = 0
        for folder, _, files in os.walk(self.url):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(folder, name)).st_size
        return total

    def modified(self, name: str) -> float | None:
        """Return when an object was written, by the clock of its storage; None where that is not told.

        Seconds since the epoch. Raises `FileNotFoundError` when there is none.
        """
        if self.is_local:
            return os.stat(self.path(name)).st_mtime
        with self._remote() as (filesystem, root):
            try:
                return float(filesystem.modified(f"{root}/{name}").timestamp())
            except (NotImplementedError, AttributeError, KeyError):
                return None

    def free_bytes(self) -> int | None:
        """Return the free space in bytes, or None where the storage does not tell."""
        if not self.is_local:
            return None
        place = Path(self.url)
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def read_json(self, name: str) -> Any:
        """Read an object as JSON; raises `StateError` that names it when it is not."""
        try:
            return json.loads(self.read_bytes(name))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise StateError(
                f"{self.path(name)} is damaged: {error}.",
                remedy="Remove the file; what it recorded is done again.",
            ) from error

    def write_json(self, name: str, value: Any) -> None:
        """Write an object as JSON with sorted keys."""
        self.write_bytes(name, json.dumps(value, sort_keys=True, indent=1).encode())

    def read_toml(self, name: str) -> dict[str, Any]:
        """Read an object as TOML; raises `StateError` that names it when it is not."""
        try:
            return tomllib.loads(self.read_bytes(name).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise StateError(f"{self.path(name)} is not valid TOML: {error}.") from error

    def write_toml(self, name: str, value: dict[str, Any]) -> None:
        """Write an object as TOML."""
        self.write_bytes(name, tomli_w.dumps(value).encode())

    @contextlib.contextmanager
    def open_read(self, name: str) -> Iterator[Any]:
        """Open an object for reading as a seekable binary stream."""
        if self.is_local:
            with open(self.path(name), "rb") as stream:
                yield stream
        else:
            with self._remote() as (filesystem, root), filesystem.open(f"{root}/{name}", "rb") as stream:
                yield stream


_numbers = itertools.count()


def _unless_gone(error: OSError) -> None:
    """Raise what a walk met, unless the folder is not there (any more)."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _client_errors() -> tuple[type[Exception], ...]:
    """List the exceptions that are not `OSError` of the storage clients that are loaded."""
    loaded = ((sys.modules.get(module), name) for module, name in _CLIENT_ERRORS)
    return tuple(getattr(module, name) for module, name in loaded if hasattr(module, name))


def _umask() -> int:
    """Return the process's umask; there is no way to read it without setting it for a moment."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
