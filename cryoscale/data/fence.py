"""Whether what a worker is about to write still belongs to it.

A worker that was cut off, or suspended, may wake when its block was done again by others, when its unit was
sealed, or when the run goes on with other parameters or other blocks. In the first two cases it writes the
bytes that stand there already, each object in one step, so nobody notices. In the last it would spoil the
artifact of another key or cut, and nobody would notice either. So whoever writes an artifact looks right
before each object whether the ledger still knows its unit under its key and cut; beginning under others
removes that before any byte changes.

A training does not write the same bytes twice where a GPU adds up in any order. So what has no blocks is not
written any more once its unit is sealed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cryoscale.data.folder import Folder
from cryoscale.errors import OvertakenError

REMOTE_SECONDS = 1.0  # on an object store one look counts so long: each costs a request

_passed: dict[tuple[str, str], float] = {}  # by object and plan: when it was seen last, in this process


@dataclass(frozen=True)
class Fence:
    """The right of one unit under one key to write its artifact; small and picklable.

    Parameters
    ----------
    unit : Folder
        `RUN/ledger/units/<stage>/<tomogram>/<key>`.
    marker : str
        Object in there that stands as long as the artifact is this key's.
    plan : str
        Hash of the cut into blocks that the marker must hold; an empty one, of an older ledger, is any.
    until : str
        Object in there that ends the right when it stands; empty for none.
    """

    unit: Folder
    marker: str
    plan: str = ""
    until: str = ""

    def check(self, *, anew: bool = False) -> None:
        """Raise `OvertakenError` when the unit is not this key's any more.

        With `anew` an earlier look does not count.
        The object is read, not looked for: that asks the server also where a network file system or a
        client of an object store remembers what it saw earlier.
        """
        seen = self.unit.path(self.marker), self.plan
        recent = not self.unit.is_local and _now() - _passed.get(seen, -REMOTE_SECONDS) < REMOTE_SECONDS
        if recent and not anew:
            return
        if trouble := self._trouble():
            _passed.pop(seen, None)
            raise OvertakenError(trouble, remedy="Nothing was written; the run goes on where it is driven.")
        if len(_passed) > 1000:
            _passed.clear()
        _passed[seen] = _now()

    def _trouble(self) -> str:
        """Say why the right is gone; empty while it stands."""
        # The end is looked for first: a unit that is deleted between two looks has lost its marker by then.
        if self.until and self._content(self.until) is not None:
            return f"{self.unit.path(self.until)} stands: others were through with this before."
        place, content = self.unit.path(self.marker), self._content(self.marker)
        if content is None:
            return (
                f"{place} is gone: another driver began this with other parameters, or somebody removed it."
            )
        if self.plan and content and content != self.plan.encode():
            return f"{place} is of other blocks: another driver cut the same into others."
        return ""

    def _content(self, name: str) -> bytes | None:
        try:
            return self.unit.read_bytes(name)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _now() -> float:
    # counts the time of a suspended machine as well, as `monotonic` does not
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
