"""What a benchmark case is: a question, and contestants that do the same work in the same run.

Only the standard library is imported here, so that cases for a GPU need torch, numpy and scipy and no more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Size = Literal["tiny", "small", "full"]
"""tiny: seconds, in the tests; small: minutes of two cores; full: a workstation or a GPU."""
Role = Literal["ours", "peer", "baseline", "ceiling"]
"""baseline: reads and writes and does nothing else; ceiling: what the machine can do at most."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work of a case.

    Parameters
    ----------
    name : str
        Short, unique in its case.
    run : callable
        What is timed; it returns what `Setup.check` wants to see. It is called once to warm up, untimed.
    work : float
        How much one call does, in the case's unit.
    role : {"ours", "peer", "baseline", "ceiling"}
    settings : str
        What differs from the other rows: "as the peers", "our best: tile 192, bfloat16".
    before : callable, optional
        Called untimed before each call, for example to remove what the last one wrote.
    rounds : int, optional
        How often it is timed at most, where it is very slow; otherwise as often as the case says.
    warm : bool
        Whether it is called once, untimed, before the rounds; not where that would take minutes.
    """

    name: str
    run: Callable[[], Any]
    work: float
    role: Role = "ours"
    settings: str = ""
    before: Callable[[], None] | None = None
    rounds: int | None = None
    warm: bool = True


@dataclass
class Setup:
    """What a case made ready: contestants, facts found on the way, and a check of what they return.

    `check` gets the last result of each contestant by name. It raises AssertionError when two that should
    agree do not, and returns facts worth a line in the report (an error, an inertia).
    """

    contestants: list[Contestant]
    facts: dict[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    missing: list[str] = field(default_factory=list)  # peers that are not installed here


@dataclass(frozen=True)
class Target:
    """What an issue asks for: a ratio between two contestants' rates, or a rate.

    Parameters
    ----------
    ours : str
        A contestant.
    at_least : float
        For a ratio: the rate of `ours` over that of `of`; without `of`, a rate in units per second.
    of : str or tuple of str, optional
        Another contestant; of several the fastest counts.
    aim : float, optional
        What would be better still.
    words : str
        What stands in the report; made up from the numbers otherwise.
    sizes : tuple of sizes
        Where it is looked at.
    """

    ours: str
    at_least: float
    of: str | tuple[str, ...] | None = None
    aim: float | None = None
    words: str = ""
    sizes: tuple[Size, ...] = ("small", "full")


@dataclass(frozen=True)
class Case:
    """A named question, and how to make ready the contestants that answer it.

    Parameters
    ----------
    name : str
        "picking.kernel": module and question.
    question : str
        One sentence.
    unit : str
        Of the work: "Mvoxel", "patch", "row x iteration", "GB".
    open : callable
        (size, scratch folder) to a context manager that yields a `Setup`.
    threads : int
        Cores that the case may use; the process is pinned to so many, and all thread pools set so.
    device : {"cpu", "cuda"}
    targets : tuple of Target
    rounds : int
        How often each contestant is timed, in turns: A B C, A B C, …
    """

    name: str
    question: str
    unit: str
    open: Callable[[Size, Path], AbstractContextManager[Setup]]
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    targets: tuple[Target, ...] = ()
    rounds: int = 5


MODULES = ("ceilings", "store", "picking", "encoding", "segmentation", "training", "kmeans", "growth")
"""Modules of `benchmarks.cases`, in the order of the report; each has a tuple `CASES`."""


def all_cases() -> Iterator[Case]:
    """Yield every case, in the order of the report."""
    import importlib

    for module in MODULES:
        yield from importlib.import_module(f"benchmarks.cases.{module}").CASES


def installed(*packages: str) -> bool:
    """Tell whether all of these packages can be imported, without importing them."""
    return all(importlib.util.find_spec(package) is not None for package in packages)
