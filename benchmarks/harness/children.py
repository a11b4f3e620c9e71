"""Each case in a process of its own, on as many cores as it may use: nothing leaks from one into the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

POOLS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
MOST_SECONDS = {"tiny": 300, "small": 1200, "full": 7200}


def run_case(
    name: str, size: str, threads: int, checkout: Path, scratch: Path | None = None
) -> dict[str, Any]:
    """Measure a case of a checkout in a child process; a failure comes back as a record that says so.

    Parameters
    ----------
    name, size : str
        The case.
    threads : int
        Cores; the child is pinned to the first so many that this process may use.
    checkout : Path
        Folder that holds `benchmarks` and `cryoscale`.
    scratch : Path, optional
        Where the case's files go while it runs; the system's temporary folder otherwise.
    """
    environment = dict(os.environ)
    environment.update({f"{pool}_NUM_THREADS": str(threads) for pool in POOLS}, PYTHONPATH=str(checkout))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        out = Path(folder) / "record.json"
        work = Path(folder) / "scratch"
        work.mkdir()
        command = [sys.executable, "-m", "benchmarks", "one", name, "--size", size, "--threads", str(threads)]
        try:
            done = subprocess.run(
                [*command, "--record", str(out), "--scratch", str(work)],
                cwd=checkout, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS[size],
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"case": name, "size": size, "failed": f"took longer than {MOST_SECONDS[size]} s"}
        if done.returncode or not out.exists():
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            return {"case": name, "size": size, "failed": last[:500], "words": done.stderr[-4000:]}
        record: dict[str, Any] = json.loads(out.read_text())
        return record


def pin(threads: int) -> None:
    """Keep this process on the first `threads` cores that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
