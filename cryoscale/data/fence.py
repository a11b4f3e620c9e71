"""Whether what a worker is about to write still belongs to it.

A worker that was cut off, or suspended, may wake when its block was done again by others, when its unit was
sealed, or when the run goes on with other parameters. In the first two cases it writes the bytes that stand
there already, each object in one step, so nobody notices. In the last it would spoil the artifact of another
key, and nobody would notice either. So whoever writes an artifact looks right before each object whether the
ledger still knows its unit under its key; beginning under another key removes that before any byte changes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cryoscale.data.folder import Folder
from cryoscale.errors import OvertakenError

REMOTE_SECONDS = 1.0  # on an object store one look counts so long: each costs a request

_passed: dict[str, float] = {}  # by object: when it was seen last, here in this process


@dataclass(frozen=True)
class Fence:
    """The right of one unit under one key to write its artifact; small and picklable.

    Parameters
    ----------
    unit : Folder
        `RUN/ledger/units/<stage>/<tomogram>/<key>`.
    marker : str
        Object in there that stands as long as the artifact is this key's.
    """

    unit: Folder
    marker: str

    def check(self) -> None:
        """Raise `OvertakenError` when the unit is not this key's any more.

        The object is read, not looked for: that asks the server also where a network file system or a
        client of an object store remembers what it saw earlier.
        """
        place = self.unit.path(self.marker)
        if not self.unit.is_local and _now() - _passed.get(place, -REMOTE_SECONDS) < REMOTE_SECONDS:
            return
        try:
            self.unit.read_bytes(self.marker)
        except (FileNotFoundError, NotADirectoryError):
            _passed.pop(place, None)
            raise OvertakenError(
                f"{place} is gone: another driver began this with other parameters, or somebody removed it.",
                remedy="Nothing was written; the run goes on where it is driven.",
            ) from None
        if len(_passed) > 1000:
            _passed.clear()
        _passed[place] = _now()


def _now() -> float:
    # counts the time of a suspended machine as well, as `monotonic` does not
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
