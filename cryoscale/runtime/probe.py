"""What a worker proves before its first task: its versions, that it sees the run's folder, its clock.

A guard travels with every task as plain types, so that a worker of another version of the package can still
say what it runs. A process examines itself once per guard; only then is the rest of the guard unpacked.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import platform
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import cryoscale
from cryoscale.runtime.packing import run_packed

#: Packages whose version decides bytes of a result.
DECISIVE = ("numpy", "scipy", "torch", "zarr", "openvino", "scikit-learn", "pyarrow")
#: Packages that both ends of a connection must agree on.
ENGINES = {"dask": ("dask", "distributed"), "ray": ("ray",)}
#: A clock that is off by more than this is told, seconds. Nothing depends on it but the times in the logs.
CLOCK_S = 5.0
_REMEDY = "Install the same versions in the workers' image and here."

_UNFIT = b"unfit\0"  # never the beginning of a pickle
_proved: set[str] = set()  # guards that this process has passed


def describe_worker() -> dict[str, str]:
    """Versions on this side that must agree between driver and workers."""
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "cryoscale": cryoscale.__version__}


def versions(engine: str = "") -> dict[str, str]:
    """Versions of everything that decides bytes, and of one engine; empty where it is not installed.

    Local parts are left out: torch 2.13.0+cpu and 2.13.0+cu130 are one version on two kinds of device.
    """
    packages = (*DECISIVE, *ENGINES.get(engine, ()))
    return {**describe_worker(), **{name: _version(name) for name in packages}}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def differences(theirs: Mapping[str, str], mine: Mapping[str, str]) -> list[str]:
    """Say in words what differs, one phrase per package, of packages that both name."""
    return [
        f"{name} {theirs[name] or 'none'} instead of {mine[name] or 'none'}"
        for name in mine
        if name in theirs and theirs[name] != mine[name]
    ]


@dataclass(frozen=True)
class Guard:
    """What a worker must prove.

    Parameters
    ----------
    key : str
        A process that passed a guard of this key is not examined again.
    versions : dict of str to str
        Package (or "Python", "cryoscale") to the version that the driver runs.
    look : callable or None
        Picklable; takes the worker's name and returns what is wrong with what it sees, or an empty text.
    """

    key: str
    versions: Mapping[str, str] = field(default_factory=dict)
    look: Callable[[str], str] | None = None

    @classmethod
    def of(cls, engine: str, look: Callable[[str], str] | None = None) -> Guard:
        """Make the guard of this process for the workers of one engine."""
        return cls(f"{engine}-{os.getpid()}-{time.time_ns()}", versions(engine), look)

    def packed(self) -> bytes:
        """Return what travels: plain types, and inside them what needs the package."""
        return pickle.dumps((self.key, dict(self.versions), pickle.dumps(self.look)))


class Finding(NamedTuple):
    """What a worker found out about itself.

    Parameters
    ----------
    problem : str
        Why it must not be used; empty if it may.
    host : str
        Name of its machine.
    process : int
        Its process id.
    now : float
        Its clock, seconds since the epoch.
    """

    problem: str
    host: str
    process: int
    now: float


def examine(packed: bytes) -> tuple[str, str, int, float]:
    """Examine this process; return the fields of a `Finding`. Never raises because of what it finds."""
    key, expected, look = pickle.loads(packed)  # from our own driver
    host = socket.gethostname()
    problem = "" if key in _proved else _problem(expected, look, f"{host}-{os.getpid()}")
    if not problem:
        _proved.add(key)
    return problem, host, os.getpid(), time.time()


def _problem(expected: Mapping[str, str], packed_look: bytes, name: str) -> str:
    mine = {package: _mine(package) for package in expected}
    if found := differences(mine, expected):
        return f"it runs {', '.join(found)}, as the driver does. {_REMEDY}"
    try:
        look = pickle.loads(packed_look)
        return "" if look is None else str(look(name))
    except Exception as error:
        return f"it could not be examined ({type(error).__name__}: {error})."


def _mine(package: str) -> str:
    return describe_worker()[package] if package in ("Python", "cryoscale") else _version(package)


def run_guarded(guard: bytes, payload: bytes, *how: object) -> bytes:
    """Run a packed task like `run_packed(payload, *how)`, unless this worker is unfit: then say so."""
    if pickle.loads(guard)[0] not in _proved:
        finding = examine(guard)
        if finding[0]:
            return _UNFIT + pickle.dumps(finding)
    return run_packed(payload, *how)  # type: ignore[arg-type]


def unfit(reply: bytes) -> Finding | None:
    """Return what a worker found wrong with itself; None if the reply is that of a task."""
    return Finding(*pickle.loads(reply[len(_UNFIT) :])) if reply.startswith(_UNFIT) else None


def clock_problem(finding: Finding, asked: float, answered: float) -> str:
    """Say if a worker's clock is off; it was read between `asked` and `answered` of this clock."""
    early, late = asked - finding.now, finding.now - answered
    if max(early, late) <= CLOCK_S:
        return ""
    way = f"{early:.0f} s behind" if early > 0 else f"{late:.0f} s ahead of"
    return (
        f"the clock of {finding.host} is at least {way} this machine's; times in logs are wrong by as much. "
        "Let both ask a time server (chrony, ntpd)."
    )
