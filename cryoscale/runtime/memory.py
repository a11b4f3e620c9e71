"""What this machine offers, what a plan promises, and whether the two fit.

Inside a container the kernel's totals are the host's, so limits of control groups (version 1 and 2) and the
CPU affinity are looked at too. Sizes are bytes; "GB" is 1000^3 and "GiB" 1024^3.
"""

from __future__ import annotations

import math
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from cryoscale.errors import ConfigurationError, MemoryBudgetError

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)

# A version 1 group without a limit reports the largest multiple of the page size; no machine has a petabyte.
_UNLIMITED = 1 << 50


def parse_bytes(value: str | int) -> int:
    """Turn "4GB", "512 MiB", "1.5g" or a number into bytes.

    Raises
    ------
    ConfigurationError
        If it is no size, or negative.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ConfigurationError(f"a size cannot be negative, got {value}.")
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None or (match[3] and not match[2]):
        raise ConfigurationError(
            f"{value!r} is not a size.", remedy='Write it like "4GB", "512MiB" or 4000000000.'
        )
    units = _BINARY_UNITS if match[3] else _UNITS
    return round(float(match[1]) * units[match[2].lower()])


def format_bytes(count: float) -> str:
    """Write a size for people, three figures, decimal units: 1530000 is "1.53 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if abs(count) < 999.5 else f"{count:.0f} TB"


def available_bytes(root: str | os.PathLike[str] = "/") -> int:
    """Memory that can still be taken without swapping, bytes.

    The smallest of what the kernel calls available and what each control group above this process has left.

    Parameters
    ----------
    root : path
        Where /proc and /sys are found; only tests change it.
    """
    base = Path(root)
    candidates = [_system_available(base)]
    for limit, used in _group_memory(base):
        if 0 < limit < _UNLIMITED:
            candidates.append(max(0, limit - used))
    return min(candidates)


def _system_available(base: Path) -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = (base / "proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_memory(base: Path) -> list[tuple[int, int]]:
    """Pairs (limit, used) of every control group this process is in, the root included."""
    found = []
    for folder in _group_folders(base, "memory"):
        for limit_name, used_name, stat_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with suppress(OSError, ValueError):  # "max" is no number: no limit
                limit = int((folder / limit_name).read_text())
                used = int((folder / used_name).read_text())
                # Clean file pages count as used, but the kernel gives them back on demand.
                found.append((limit, max(0, used - _stat(folder / "memory.stat", stat_key))))
    return found


def _stat(path: Path, key: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0


def _group_folders(base: Path, controller: str) -> list[Path]:
    """Folders of the control groups of this process for one controller, innermost first."""
    folders: list[Path] = []
    with suppress(OSError):
        for line in (base / "proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            mount = base / "sys/fs/cgroup"
            if names:
                if controller not in names.split(","):
                    continue
                mount = next(
                    (m for m in (mount / names, mount / controller) if m.is_dir()), mount / controller
                )
            parts = [part for part in path.split("/") if part not in ("", "..")]
            folders.extend(mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))
    return folders


def cpu_count(root: str | os.PathLike[str] = "/") -> int:
    """Cores this process may use: the affinity mask and the quotas of its control groups; at least 1."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for folder in _group_folders(Path(root), "cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            cores = min(cores, int(quota) / int(period))  # "max" is no number: no quota
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                cores = min(cores, quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return max(1, math.ceil(cores - 1e-9))


def check_plan(
    stage: str, tomogram: str, bytes_per_worker: int, workers: int, budget: int | None = None
) -> None:
    """Refuse a plan whose workers together would need more than the budget, before anything is submitted.

    Parameters
    ----------
    stage, tomogram : str
        Named in the message; `tomogram` may be empty for a stage over the whole data set.
    bytes_per_worker : int
        What the plan promises that one worker stays under.
    workers : int
        How many run at once on one machine.
    budget : int, optional
        Bytes for all of them; by default what the machine has available.

    Raises
    ------
    MemoryBudgetError
        With the number of workers or the budget that would do.
    """
    limit = available_bytes() if budget is None else budget
    need = bytes_per_worker * max(1, workers)
    if need <= limit:
        return
    fitting = limit // bytes_per_worker
    what = f"{stage} of {tomogram}" if tomogram else stage
    advice = f"use {fitting} workers instead of {workers}, or " if fitting >= 1 else ""
    raise MemoryBudgetError(
        f"{what} needs {format_bytes(bytes_per_worker)} for each of {workers} workers, {format_bytes(need)} "
        f"together, and the memory budget is {format_bytes(limit)}.",
        remedy=f"To make it fit, {advice}choose smaller blocks (execution.block_voxels), or raise "
        f"execution.memory_budget to {format_bytes(need * 1.005)} if the machine has it.",
    )


def reset_peak() -> None:
    """Let `peak_bytes` count from now on, where the kernel can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Largest resident memory of this process since `reset_peak`, or since it began; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:", 1)[1].split(None, 1)[0]) * 1024
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0
