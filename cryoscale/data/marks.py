"""Marks: how the blocks of a unit ended, one by one, together, and added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """How a block ended.

    Parameters
    ----------
    block : int
        Index in the plan.
    status : str
        "done", "empty" or "quarantined".
    voxels, seconds, finished
        What it took, and when it ended (seconds since the epoch).
    reason : str
        Why it was quarantined.
    """

    block: int
    status: str
    voxels: int = 0
    seconds: float = 0.0
    finished: float = 0.0
    reason: str = ""


class Marks(Set[int]):
    """The blocks of a unit that have ended, and how: a byte per block, however many there are.

    As a set it holds the indices of the blocks.
    """

    def __init__(self, marks: Iterable[Mark] = ()) -> None:
        self._codes = bytearray()
        self._count = 0
        self._given_up: dict[int, Mark] = {}
        for mark in marks:
            self.add(mark)

    def add(self, mark: Mark) -> None:
        """Note how a block ended; a later mark of the same block counts instead of the earlier one."""
        if mark.block >= len(self._codes):
            self._codes.extend(bytes(max(mark.block + 1 - len(self._codes), len(self._codes))))
        self._count += not self._codes[mark.block]
        self._codes[mark.block] = 1
        self._given_up.pop(mark.block, None)
        if mark.status == "quarantined":
            self._given_up[mark.block] = mark

    @property
    def quarantined(self) -> list[Mark]:
        """Marks of blocks that were given up."""
        return list(self._given_up.values())

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and 0 <= block < len(self._codes) and bool(self._codes[block])

    def __iter__(self) -> Iterator[int]:
        return (block for block, code in enumerate(self._codes) if code)

    def __len__(self) -> int:
        return self._count


@dataclass
class Tally:
    """Sums over the marks of a unit: what `seal` records, without reading them again."""

    started: float
    planned: int
    done: int = 0
    empty: int = 0
    quarantined: int = 0
    voxels: int = 0
    seconds: float = 0.0
    finished: float = 0.0

    def add(self, mark: Mark) -> None:
        """Count one more mark."""
        setattr(self, mark.status, getattr(self, mark.status) + 1)
        self.voxels += mark.voxels
        self.seconds += mark.seconds
        self.finished = max(self.finished, mark.finished)
