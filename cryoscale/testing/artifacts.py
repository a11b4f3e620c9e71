"""What the artifacts of a run are, byte by byte: to ask whether two runs made the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryoscale.data.run import Run

NOT_ARTIFACTS = frozenset({"ledger", "logs", "reports", "parts", "run.toml", "failures.csv"})
"""Top-level names of a run that say how the artifacts came to be and may differ between equal runs."""


def artifact_digest(run: Run) -> dict[str, str]:
    """Return the SHA-256 of every artifact file of a local run, by path relative to the run.

    Everything counts except `NOT_ARTIFACTS` and temporary files that a killed process left (`*.partial`),
    which no reader looks at.
    """
    root = Path(run.folder.url)
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.relative_to(root).parts[0] not in NOT_ARTIFACTS
        and not path.name.endswith(".partial")
    }


def differences(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """List the paths that differ, or that only one of the two has; empty when all is equal."""
    return sorted(path for path in {*first, *second} if first.get(path) != second.get(path))
