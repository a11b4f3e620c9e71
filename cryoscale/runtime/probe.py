"""What a worker says about itself when an executor starts: the first proof that it can import the package."""

from __future__ import annotations

import platform

import cryoscale
from cryoscale.errors import SurroundingsError


def describe_worker() -> dict[str, str]:
    """Versions on this side that must agree between driver and workers."""
    return {"Python": ".".join(platform.python_version_tuple()[:2]), "cryoscale": cryoscale.__version__}


def require_agreement(worker: dict[str, str], where: str) -> None:
    """Refuse workers that run other versions than this process.

    Raises
    ------
    SurroundingsError
        Naming both versions.
    """
    mine = describe_worker()
    for name, version_here in mine.items():
        version_there = worker.get(name, "")
        if version_here and version_there and version_here != version_there:
            raise SurroundingsError(
                f"the workers at {where} run {name} {version_there}, this process runs {version_here}.",
                remedy="Install the same versions in the workers' image and here.",
            )
