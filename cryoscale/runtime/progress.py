"""Progress for people: a bar per stage on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from cryoscale.runtime.events import Event, Message, StageSealed, StageStarted, TaskEnded, UnitFailed

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_STYLES = {"info": "", "warning": "yellow", "error": "red"}


@dataclass
class StageTally:
    """What is known of one stage over all its tomograms.

    Parameters
    ----------
    name, unit : str
        The stage, and what `voxels` counts.
    blocks, through : int
        Planned blocks, and those done, empty, quarantined or found done.
    voxels, voxels_through : int
        The same in voxels, without those found done.
    failures : int
        Quarantined blocks.
    began : float or None
        Clock reading when the first tomogram entered the stage.
    tomograms, sealed, stopped : set of str
        Those that entered, those complete, and those that stopped here.
    """

    name: str
    unit: str = "voxels"
    blocks: int = 0
    through: int = 0
    voxels: int = 0
    voxels_through: int = 0
    failures: int = 0
    began: float | None = None
    tomograms: set[str] = field(default_factory=set)
    sealed: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)

    def add(self, event: StageStarted, now: float) -> None:
        """Count the plan of one more tomogram."""
        self.began = now if self.began is None else self.began
        self.unit = event.unit
        self.blocks += event.blocks
        self.through += event.already
        self.voxels += event.voxels
        self.tomograms.add(event.tomogram)

    def end(self, event: TaskEnded) -> None:
        """Count one ended attempt; only those that settle a block move the bar."""
        if not event.final:
            return
        self.through += 1
        self.voxels_through += event.voxels
        self.failures += event.status == "quarantined"

    def rate(self, now: float) -> float:
        """Voxels per second since the stage began; 0 when nothing is known yet."""
        elapsed = now - self.began if self.began is not None else 0.0
        return self.voxels_through / elapsed if elapsed > 0 else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Time left at the present rate; None when nothing is known yet."""
        rate = self.rate(now)
        return max(0, self.voxels - self.voxels_through) / rate if rate else None

    def describe(self, now: float) -> str:
        """One line for people, without the name."""
        parts = [
            f"{self.through}/{self.blocks} blocks",
            f"{len(self.sealed)}/{len(self.tomograms)} tomograms",
        ]
        if self.voxels_through:
            parts.append(f"{with_prefix(self.rate(now))}{self.unit}/s")
        left = self.seconds_left(now) if self.through < self.blocks else None
        if left:
            parts.append(f"{clock_time(left)} left")
        if self.failures:
            parts.append(f"{self.failures} blocks failed")
        if self.stopped:
            parts.append(f"{len(self.stopped)} tomograms stopped")
        return ", ".join(parts)


class ProgressDisplay:
    """A listener that shows a run; use it as a context manager.

    Parameters
    ----------
    console : rich Console, optional
        Where to write; standard error by default, so that `--json` output stays clean.
    interval_s : float
        Least time between two lines of one stage when it is no terminal.
    clock : callable
        Monotonic seconds; tests change it.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True)
        self._interval = interval_s
        self._clock = clock
        self._tallies: dict[str, StageTally] = {}
        self._bars: dict[str, int] = {}
        self._said: dict[str, float] = {}
        self._progress: Progress | None = _make_bars(self._console) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Message):
            self._write(event.text, _STYLES[event.level])
        elif isinstance(event, UnitFailed):
            tally = self._tally(event.stage)
            tally.stopped.add(event.tomogram)
            self._write(f"{event.stage} of {event.tomogram} stopped: {event.reason}", "red")
            self._show(tally)
        elif isinstance(event, StageStarted):
            tally = self._tally(event.stage)
            tally.add(event, self._clock())
            self._show(tally)
        elif isinstance(event, TaskEnded):
            tally = self._tally(event.stage)
            tally.end(event)
            self._show(tally)
        elif isinstance(event, StageSealed):
            tally = self._tally(event.stage)
            tally.sealed.add(event.tomogram)
            self._show(tally, whole=tally.sealed | tally.stopped >= tally.tomograms)

    def _tally(self, stage: str) -> StageTally:
        return self._tallies.setdefault(stage, StageTally(stage))

    def _write(self, text: str, style: str) -> None:
        self._console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def _show(self, tally: StageTally, *, whole: bool = False) -> None:
        now = self._clock()
        if self._progress is not None:
            self._move_bar(self._progress, tally, now)
            return
        # In a log file: the first word on a stage, the last, and one now and then.
        if tally.name in self._said and not whole and now - self._said[tally.name] < self._interval:
            return
        self._said[tally.name] = now
        self._write(f"{tally.name}: {tally.describe(now)}", "")

    def _move_bar(self, progress: Progress, tally: StageTally, now: float) -> None:
        from rich.progress import TaskID

        if tally.name not in self._bars:
            self._bars[tally.name] = progress.add_task(tally.name, total=None, details="")
        progress.update(
            TaskID(self._bars[tally.name]),
            total=tally.blocks or None,
            completed=tally.through,
            details=tally.describe(now),
        )


def _make_bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[details]}"),
        console=console,
    )


def with_prefix(value: float) -> str:
    """Write a number with three figures and an SI prefix: 12345678 is "12.3 M"."""
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def clock_time(seconds: float) -> str:
    """Write a duration: "42 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
