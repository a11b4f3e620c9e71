"""Temporary folders that are swept up by the next run when their owner was killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_LOCK = "owner.lock"
_HELD: dict[Path, int] = {}


def claim_folder(base: Path | None, prefix: str) -> Path:
    """Make a temporary folder, private to this user, and remove those of the prefix whose owner is dead.

    An owner holds a lock on a file inside, which the kernel drops when the process dies; process ids are no
    proof, since containers may share the folder.
    """
    parent = base or Path("/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir())
    for other in parent.glob(f"{prefix}*"):
        if other not in _HELD and _abandoned(other):
            shutil.rmtree(other, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    handle = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    _lock(handle)
    _HELD[folder] = handle
    return folder


def drop_folder(folder: Path) -> None:
    """Remove a folder made by `claim_folder`; safe to call again."""
    handle = _HELD.pop(folder, None)
    if handle is not None:
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    with suppress(OSError):
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _lock(handle)
        finally:
            os.close(handle)
    return False  # another user's, or one that is just being made


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
