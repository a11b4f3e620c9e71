"""A storage in memory that counts what is asked of it: how many requests a run makes to an object store.

Reached as `counted://NAME/…`; all stores live in this process and die with it.
"""

from __future__ import annotations

import io
import posixpath
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

#: What an object store bills apart: GET, PUT, LIST, HEAD ("look"), DELETE.
KINDS = ("read", "write", "list", "look", "delete")
PAGE = 1000  # names that one LIST request returns

Tree = dict[str, Any]  # name -> bytes, or a folder


class CountedStore(AbstractFileSystem):  # type: ignore[misc]
    """Objects in nested dictionaries, with a count of the requests that a bucket would see.

    An object store knows no folders: a folder is there while it holds an object. A look at what is not there
    counts as "look" and "list", since a client asks whether a folder of that name exists. Removing a folder
    counts the listing and one "delete" per thousand objects.

    Attributes
    ----------
    counts : Counter
        Requests by (kind, label); the label is what `labels` says of the path, "" by default.
    delay_s : float
        How long each request takes; 0.03 is like a bucket.
    labels : callable
        From a path to the group that its requests are counted under.
    """

    protocol = "counted"
    cachable = False
    delay_s: ClassVar[float] = 0.0
    counts: ClassVar[Counter[tuple[str, str]]] = Counter()
    labels: ClassVar[Callable[[str], str]] = staticmethod(lambda path: "")
    trees: ClassVar[Tree] = {}

    @classmethod
    def reset(cls, labels: Callable[[str], str] = lambda path: "") -> None:
        """Forget all counts, and name the groups of the next ones; objects stay."""
        cls.counts.clear()
        cls.labels = staticmethod(labels)

    @classmethod
    def total(cls, kind: str) -> int:
        """Return the requests of one kind over all labels."""
        return sum(n for (known, _), n in cls.counts.items() if known == kind)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return str(path).removeprefix("counted://").strip("/")

    def _count(self, kind: str, path: str, n: int = 1) -> None:
        cls = type(self)
        if n:
            cls.counts[kind, cls.labels(path)] += n
        if cls.delay_s:
            time.sleep(cls.delay_s * n)  # as slow as a bucket; others may go on meanwhile

    # -- the tree --------------------------------------------------------------------------------------------

    def _at(self, path: str) -> Any:
        """Return the bytes or the folder at a path; raises `FileNotFoundError`."""
        place: Any = self.trees
        for part in path.split("/") if path else ():
            if not isinstance(place, dict) or part not in place:
                raise FileNotFoundError(path)
            place = place[part]
        return place

    def _above(self, path: str) -> tuple[Tree, str]:
        """Return the folder that an object is put into, made if need be, and the object's name."""
        place: Any = self.trees
        *folders, name = path.split("/")
        for part in folders:
            place = place.setdefault(part, {})
        return place, name

    def _drop(self, path: str) -> None:
        """Remove a name, and the folders that are empty without it."""
        while path:
            above, name = posixpath.split(path)
            place = self._at(above)
            place.pop(name, None)
            if place:
                return
            path = above

    def _below(self, path: str, place: Any) -> list[tuple[str, int]]:
        """List the paths and sizes of all objects at and below a place."""
        if not isinstance(place, dict):
            return [(path, len(place))]
        return [found for name in sorted(place) for found in self._below(f"{path}/{name}", place[name])]

    # -- what fsspec asks of a file system -------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return an object, or a range of it."""
        path = self._strip_protocol(path)
        self._count("read", path)
        found = self._at(path)
        if isinstance(found, dict):
            raise FileNotFoundError(path)
        return bytes(found[start:end])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Write an object."""
        path = self._strip_protocol(path)
        self._count("write", path)
        place, name = self._above(path)
        place[name] = bytes(value)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describe an object or a folder."""
        path = self._strip_protocol(path)
        self._count("look", path)
        try:
            found = self._at(path)
        except FileNotFoundError:
            self._count("list", path)
            raise
        kind = "directory" if isinstance(found, dict) else "file"
        self._count("list", path, int(kind == "directory"))
        return {"name": path, "size": 0 if kind == "directory" else len(found), "type": kind}

    def exists(self, path: str, **_: Any) -> bool:
        """Whether an object or folder is there."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """List the names directly below."""
        path = self._strip_protocol(path)
        found = self._at(path)
        self._count("list", path, max(1, -(-len(found) // PAGE)) if isinstance(found, dict) else 1)
        entries = sorted(found.items()) if isinstance(found, dict) else [("", found)]
        names = [f"{path}/{name}".strip("/") for name, _ in entries]
        if not detail:
            return names
        return [
            {"name": name, "size": 0, "type": "directory"}
            if isinstance(value, dict)
            else {"name": name, "size": len(value), "type": "file"}
            for name, (_, value) in zip(names, entries, strict=True)
        ]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """List all objects below, as one flat listing."""
        path = self._strip_protocol(path)
        try:
            found = self._below(path, self._at(path))
        except FileNotFoundError:
            found = []
        self._count("list", path, max(1, -(-len(found) // PAGE)))
        if detail:
            return {name: {"name": name, "size": size, "type": "file"} for name, size in found}
        return [name for name, _ in found]

    def du(self, path: str, total: bool = True, **_: Any) -> Any:
        """Add up sizes."""
        return sum(entry["size"] for entry in self.find(path, detail=True).values())

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove an object, or all below a folder."""
        for one in self._strip_protocol(path if isinstance(path, list) else [path]):
            self._count("list", one)
            found = self._at(one)
            count = len(self._below(one, found))
            self._count("list", one, (count - 1) // PAGE)
            self._count("delete", one, max(1, -(-count // PAGE)))
            self._drop(one)

    def rm_file(self, path: str) -> None:
        """Remove one object."""
        path = self._strip_protocol(path)
        self._count("delete", path)
        self._at(path)
        self._drop(path)

    _rm = rm_file

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Do nothing: there are no folders."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: there are no folders."""

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if "r" in mode:
            return io.BytesIO(self.cat_file(path))
        return _Upload(self, path)


class _Upload(io.BytesIO):
    """An object that is written piece by piece and stands when it is closed."""

    def __init__(self, store: CountedStore, path: str) -> None:
        super().__init__()
        self._store, self._path = store, path

    def close(self) -> None:
        if not self.closed:
            self._store.pipe_file(self._path, self.getvalue())
        super().close()


fsspec.register_implementation("counted", CountedStore, clobber=True)
