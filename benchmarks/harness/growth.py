"""How cost grows: one kernel or stage at 1, 2, 4 and 8 times the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Size

FACTORS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Growth:
    """A kernel or stage whose time is measured at growing work.

    Parameters
    ----------
    name : str
        "picking.kernel".
    against : str
        What grows: "voxels", "picks", "rows x iterations".
    open : callable
        (size, factor, scratch folder) to a context manager that yields what is timed and how much it does.
        Inputs are made, and kernels warmed up, before the yield.
    threads : int
        Cores that it may use.
    """

    name: str
    against: str
    open: Callable[[Size, int, Path], AbstractContextManager[tuple[Callable[[], Any], float]]]
    threads: int = 1
