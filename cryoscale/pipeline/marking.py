"""Marks on their way to the ledger: several of a unit to an object, soon enough that a crash loses little."""

from __future__ import annotations

from collections.abc import Callable

from cryoscale.data.ledger import Mark
from cryoscale.pipeline.pausing import Pausing
from cryoscale.pipeline.unit import Unit

FLUSH_MARKS = 1024  # of one unit are written at once, however young they are
SHORTEST_S, LONGEST_S = 1.0, 15.0
SHARE = 0.25  # marks wait for a quarter of a block's time: a crash loses twice as much in blocks in flight


class MarkWriter:
    """Units with marks that were not written yet.

    Parameters
    ----------
    pause : Pausing
        Through which the driver touches storage.
    clock : callable
        Seconds that go on.
    """

    def __init__(self, pause: Pausing, clock: Callable[[], float]) -> None:
        self._pause, self._clock = pause, clock
        self._unwritten: dict[tuple[str, str], Unit] = {}
        self._written_at = clock()
        self._block_seconds = 0.0  # of late

    def add(self, unit: Unit, mark: Mark) -> None:
        """Take a mark of a unit that is open."""
        assert unit.ledger is not None
        assert unit.marks is not None
        unit.marks.add(mark)
        unit.ledger.add(mark)
        self._block_seconds += 0.05 * (mark.seconds - self._block_seconds)
        self._unwritten[unit.name] = unit
        if unit.ledger.pending >= FLUSH_MARKS:
            self._pause.keep(unit.ledger.flush)

    def drop(self, unit: Unit) -> None:
        """Forget a unit whose record holds its marks."""
        self._unwritten.pop(unit.name, None)

    def flush(self, *, force: bool = False) -> bool:
        """Write the marks of late, if it is time.

        Returns
        -------
        written : bool
            False when storage refused them: then the run is paused, and they wait for the next call.
        """
        if self._pause.stuck and self._pause.going_on:
            return False
        patience = min(LONGEST_S, max(SHORTEST_S, SHARE * self._block_seconds))
        if not force and self._clock() - self._written_at < patience:
            return True
        self._written_at = self._clock()
        return self._pause.attempt(self.write)

    def write(self) -> None:
        """Write all there are."""
        while self._unwritten:
            unit = next(iter(self._unwritten.values()))
            if unit.ledger is not None:
                unit.ledger.flush()
            del self._unwritten[unit.name]
