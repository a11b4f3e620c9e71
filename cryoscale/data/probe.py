"""Whether a worker sees the same folder: the driver leaves a small object in the run, workers read it.

::

    driver: RUN/ledger/probe/<time>-<token>         removed at the end
    worker: reads it, writes <name>-<worker>.answer beside it, deletes that again

A folder of the same path on another machine may be another folder (a mount that is missing, a local copy).
Marks would then speak of results that nobody else finds, so this is looked at before any work.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryoscale.data.folder import Folder
from cryoscale.errors import CryoscaleError

FOLDER = "ledger/probe"
STALE_SECONDS = 3600.0  # a probe older than this when another is placed belongs to a driver that was killed


@dataclass(frozen=True)
class RunProbe:
    """A callable that says what is wrong with how this machine sees a run; small and picklable.

    Parameters
    ----------
    run : Folder
        Folder of the run.
    name, content : str
        Object below `ledger/probe`, and what stands in it.
    """

    run: Folder
    name: str
    content: str

    def __call__(self, worker: str) -> str:
        """Read the probe, write an answer, delete it; return what went wrong, or an empty text."""
        place = self.run.child(FOLDER)
        try:
            found = place.read_bytes(self.name).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return self._other()
        except Exception as error:
            return f"it cannot read {self.run.url} ({_words(error)}). {_remedy(error)}"
        if found != self.content:
            return self._other()
        answer = f"{self.name}-{worker}.answer"
        try:
            place.write_bytes(answer, self.content.encode())
            place.delete(answer)
        except Exception as error:
            return f"it reads {self.run.url} but cannot write there ({_words(error)}). {_remedy(error)}"
        return ""

    def _other(self) -> str:
        try:
            there = self.run.exists("run.toml")
        except Exception:
            there = False
        if there:
            return (
                f"{self.run.url} is not the same folder there: a file that this run has just written is "
                "missing. Mount the same storage at the same path on all machines."
            )
        return (
            f"it does not see {self.run.url}: there is no run.toml. "
            "Mount the storage of the run at the same path on all machines."
        )


def _words(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"


def _remedy(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Mount it there with permission to write."
    return "That is its storage, which may mend: it is asked again after a while."


@contextlib.contextmanager
def placed_probe(run: Folder) -> Iterator[RunProbe]:
    """Leave a probe in a run for as long as the context lasts; yield the callable that looks for it.

    Probes that killed drivers left are removed as well, when they are an hour old.
    """
    place = run.child(FOLDER)
    _sweep(place)
    token = secrets.token_hex(16)
    probe = RunProbe(run, f"{int(time.time())}-{token}", token)
    place.write_bytes(probe.name, token.encode())
    try:
        yield probe
    finally:
        with contextlib.suppress(OSError, CryoscaleError):  # what is left goes with a later drive's sweep
            place.delete(probe.name)
            for name in place.names():
                if name.startswith(probe.name):  # an answer of a worker that died over it
                    place.delete(name)
        if run.is_local:
            with contextlib.suppress(OSError):  # not empty: another one looks right now
                os.rmdir(Path(place.url))


def _sweep(place: Folder) -> None:
    with contextlib.suppress(OSError, CryoscaleError):
        for name in place.names():
            begun = name.partition("-")[0]
            if begun.isdigit() and time.time() - int(begun) > STALE_SECONDS:
                place.delete(name)
