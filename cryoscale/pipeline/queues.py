"""What waits: tasks of one engine, most urgent first, and units to be looked at.

A unit's blocks stand in the queue as one entry and become tasks one by one, as they are taken: a unit of a
million blocks takes no more room here than one of ten.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cryoscale.geometry import Block
from cryoscale.pipeline.attempts import Attempt
from cryoscale.pipeline.unit import Unit

Rank = tuple[int, ...]


@dataclass(eq=False)
class _Entry:
    """Tasks of one unit that are equally urgent: blocks not yet made tasks, or one attempt."""

    unit: Unit
    blocks: deque[Block]
    make: Callable[[Block], Attempt]

    def __len__(self) -> int:
        return len(self.blocks)


class TaskQueue:
    """Tasks that wait for one engine.

    Parameters
    ----------
    rank : callable
        From a unit to how urgent its tasks are; the smallest comes first, and of equal ones the earliest.
    """

    def __init__(self, rank: Callable[[Unit], Rank]) -> None:
        self._rank = rank
        self._tie = itertools.count()
        self._heap: list[tuple[Rank, int, _Entry | Attempt]] = []
        self._waiting = 0

    def __len__(self) -> int:
        """Tasks that wait."""
        return self._waiting

    def push(self, attempt: Attempt) -> None:
        """Add one task."""
        self._add(attempt.unit, attempt, 1)

    def push_blocks(self, unit: Unit, blocks: Iterable[Block], make: Callable[[Block], Attempt]) -> None:
        """Add blocks of a unit, which `make` turns into tasks when their turn comes."""
        entry = _Entry(unit, deque(blocks), make)
        if entry.blocks:
            self._add(unit, entry, len(entry))

    def _add(self, unit: Unit, entry: _Entry | Attempt, tasks: int) -> None:
        heapq.heappush(self._heap, (self._rank(unit), next(self._tie), entry))
        self._waiting += tasks

    def pop(self) -> Attempt | None:
        """Take the most urgent task of a unit that has not failed; None when there is none."""
        while self._heap:
            entry = self._heap[0][2]
            if entry.unit.state == "failed":
                heapq.heappop(self._heap)
                self._waiting -= 1 if isinstance(entry, Attempt) else len(entry)
                continue
            self._waiting -= 1
            if isinstance(entry, Attempt):
                heapq.heappop(self._heap)
                return entry
            attempt = entry.make(entry.blocks.popleft())
            if not entry.blocks:
                heapq.heappop(self._heap)
            return attempt
        return None

    def rank_again(self) -> None:
        """Ask anew how urgent each unit is."""
        self._heap = [(self._rank(entry.unit), tie, entry) for _, tie, entry in self._heap]
        heapq.heapify(self._heap)


class DueUnits:
    """Pending units of one engine whose inputs have changed since they were looked at; each stands here once.

    Parameters
    ----------
    rank : callable
        From a unit to a rank that no other unit has.
    """

    def __init__(self, rank: Callable[[Unit], Rank]) -> None:
        self._rank = rank
        self._heap: list[tuple[Rank, Any]] = []
        self._listed: set[Rank] = set()

    def __len__(self) -> int:
        """Units that wait."""
        return len(self._heap)

    def push(self, unit: Unit) -> None:
        """Add a unit unless it is here."""
        rank = self._rank(unit)
        if rank not in self._listed:
            self._listed.add(rank)
            heapq.heappush(self._heap, (rank, unit))

    def pop(self) -> Unit:
        """Take the first by rank."""
        rank, unit = heapq.heappop(self._heap)
        self._listed.discard(rank)
        found: Unit = unit
        return found
