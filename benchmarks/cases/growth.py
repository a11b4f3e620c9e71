"""How cost grows: every kernel and stage that has a `GROWTH` entry, at 1, 2, 4 and 8 times the work."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.harness.case import MODULES, Case, Contestant, Setup, Size
from benchmarks.harness.growth import FACTORS, Growth


def _open(growth: Growth) -> Callable[[Size, Path], contextlib.AbstractContextManager[Setup]]:
    @contextlib.contextmanager
    def opened(size: Size, scratch: Path) -> Iterator[Setup]:
        with contextlib.ExitStack() as stack:
            contestants = []
            for factor in FACTORS[:2] if size == "tiny" else FACTORS:
                folder = scratch / f"x{factor}"
                folder.mkdir()
                run, work = stack.enter_context(growth.open(size, factor, folder))
                contestants.append(Contestant(f"x{factor}", run, work, warm=False))
            yield Setup(contestants, {"against": growth.against})

    return opened


def _cases() -> Iterator[Case]:
    for module in MODULES:
        if module != "growth":
            for growth in importlib.import_module(f"benchmarks.cases.{module}").GROWTH:
                yield Case(
                    f"growth.{growth.name}", f"How does the time grow with {growth.against}?", growth.against,
                    _open(growth), threads=growth.threads, rounds=5,
                )  # fmt: skip


CASES = tuple(_cases())
GROWTH: tuple[Growth, ...] = ()
