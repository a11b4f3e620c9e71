"""Whole objects from parts, and parts of objects: what a store of shards asks of a folder.

On a local path an object is written under a temporary name and renamed, so a killed writer leaves no torn
shard; parts are read by offset into a buffer that is used again. Elsewhere fsspec does both, with all ranges
of a call asked for at once, since there each request costs a round trip.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryoscale.data.folder import PARTIAL, TEMPORARY, Folder

MERGE_BYTES = 1 << 20
"""Gap between two ranges of a remote object below which one request fetches both: a round trip of 20 ms at
50 MB/s is worth about as many bytes."""

MOST_BYTES = 8 << 20
"""Most bytes of one request: a connection carries only so much, and several work beside each other."""


def write_parts(folder: Folder, name: str, parts: Iterable[bytes]) -> None:
    """Write an object from its parts, in order; readers see the old one or the new one, never a piece.

    Local files are handed to the kernel and not forced to the disk, as zarr does it: a process that dies
    loses nothing, a machine that loses its power may lose the last seconds.
    """
    if not folder.is_local:
        folder.write_bytes(name, b"".join(parts))
        return
    folder.guard()
    target = Path(folder.path(name))
    temporary = target.parent / f"{TEMPORARY}{secrets.token_hex(8)}{PARTIAL}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(temporary, flags, 0o666)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb", buffering=0) as stream:
            for part in parts:
                _write_all(stream.fileno(), part)
        folder.guard()  # parts may have taken long to make
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _write_all(handle: int, part: bytes) -> None:
    done = os.write(handle, part)
    while done < len(part):  # a file system may take less than was offered
        done += os.write(handle, memoryview(part)[done:])


class LocalObject:
    """An open local file, read by offset. Raises `FileNotFoundError` when there is none."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self.size = os.fstat(self.handle).st_size

    def read_into(self, offset: int, into: npt.NDArray[np.uint8]) -> bool:
        """Fill `into` from `offset` on; False where the file ends early."""
        view = into.data
        while view.nbytes:
            count = os.preadv(self.handle, [view], offset)
            if not count:
                return False
            view, offset = view[count:], offset + count
        return True

    def close(self) -> None:
        """Close the file."""
        os.close(self.handle)


def read_tails(folder: Folder, names: Sequence[str], length: int) -> list[bytes | None]:
    """Read the last `length` bytes of remote objects, all at once; None for one that does not exist."""
    with folder._remote() as (filesystem, root):
        paths = [f"{root}/{name}" for name in names]
        found = filesystem.cat_ranges(paths, [-length] * len(paths), [None] * len(paths), on_error="return")
        for value in found:  # here, where errors of the store are told from errors of ours
            if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                raise value
    return [None if isinstance(value, Exception) else bytes(value) for value in found]


def read_ranges(folder: Folder, ranges: Sequence[tuple[str, int, int]]) -> list[memoryview]:
    """Read ranges (name, offset, bytes) of remote objects, all at once, near ones in one request.

    A range that reaches beyond its object comes back shorter.
    """
    order = sorted(range(len(ranges)), key=lambda n: ranges[n])
    groups: list[list[int]] = []
    stop = 0
    for n in order:
        name, offset, length = ranges[n]
        same = bool(groups) and ranges[groups[-1][0]][0] == name
        near = same and offset - stop <= MERGE_BYTES
        if near and offset + length - ranges[groups[-1][0]][1] <= MOST_BYTES:
            groups[-1].append(n)
            stop = max(stop, offset + length)
        else:
            groups.append([n])
            stop = offset + length
    firsts = [ranges[group[0]] for group in groups]
    stops = [max(ranges[n][1] + ranges[n][2] for n in group) for group in groups]
    with folder._remote() as (filesystem, root):
        paths = [f"{root}/{name}" for name, _, _ in firsts]
        found = filesystem.cat_ranges(paths, [start for _, start, _ in firsts], stops, on_error="raise")
    result: list[memoryview] = [memoryview(b"")] * len(ranges)
    for group, (_, start, _), data in zip(groups, firsts, found, strict=True):
        view = memoryview(data)
        for n in group:
            _, offset, length = ranges[n]
            result[n] = view[offset - start : offset - start + length]
    return result
