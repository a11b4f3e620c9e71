"""The whole ledger by one listing: what stands of each unit, and the records of the sealed ones.

A driver that takes up a run of 10,000 tomograms would otherwise ask the storage several times for each of
150,000 units, one after the other. An index is of one moment: only the run's driver, which knows what it
changes, may go on using it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cryoscale.data.folder import Folder

READERS = 32  # requests at a time: a bucket answers each after some 30 ms, a network file system after 1
BATCH = 4096


def read_many(folder: Folder, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
    """Yield objects of a folder in order, several being read at a time; None for those that are gone."""

    def read(name: str) -> bytes | None:
        try:
            return folder.read_bytes(name)
        except FileNotFoundError:
            return None

    wanted = list(names)
    if len(wanted) < 2:
        yield from ((name, read(name)) for name in wanted)
        return
    with ThreadPoolExecutor(min(READERS, len(wanted)), "ledger") as pool:
        for start in range(0, len(wanted), BATCH):  # a bound on what was read and not yet looked at
            batch = wanted[start : start + BATCH]
            yield from zip(batch, pool.map(read, batch), strict=True)


class LedgerIndex:
    """What stands in the ledger: asked of the storage each time, or, once listed, as it stood then.

    Parameters
    ----------
    ledger : Folder
        `RUN/ledger/units`.
    """

    def __init__(self, ledger: Folder) -> None:
        self.ledger = ledger
        self._names: dict[tuple[str, str], Sequence[str] | None] | None = None
        self._sealed: dict[str, bytes] = {}

    def list(self, *, records: bool = True) -> LedgerIndex:
        """Take all names, and with `records` what is recorded of sealed units; later changes are not seen."""
        names: dict[tuple[str, str], list[str]] = {}
        sealed = []
        for name in self.ledger.files():
            stage, _, below = name.partition("/")
            unit, _, rest = below.partition("/")
            if "/" not in rest:  # `<stage>/<unit>/<key>/<object>`; else somebody's stray file
                continue
            names.setdefault((stage, unit), []).append(rest)
            if records and rest.endswith("/sealed.json"):
                sealed.append(name)
        self._names = dict(names)
        self._sealed = {name: data for name, data in read_many(self.ledger, sealed) if data is not None}
        return self

    def units(self) -> Iterable[tuple[str, str]]:
        """Return stage and unit of all that stood when it was listed, sorted."""
        return sorted(self._names or ())

    def names(self, stage: str, unit: str) -> Sequence[str] | None:
        """Return what stood of a unit, as `<key>/<object>`; None where that is not known."""
        return None if self._names is None else self._names.get((stage, unit), [])

    def sealed(self, stage: str, unit: str, key: str) -> dict[str, Any] | None:
        """Return the record of a unit that is sealed under a key; None for all others."""
        name = f"{stage}/{unit}/{key}/sealed.json"
        try:
            if self.names(stage, unit) is None:
                record: dict[str, Any] = self.ledger.read_json(name)
                return record
            if name not in self._sealed:
                return None
            record = json.loads(self._sealed[name])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (json.JSONDecodeError, UnicodeDecodeError):  # reading it again says so by name
            record = self.ledger.read_json(name)
        return record

    def drop(self, stage: str, unit: str) -> None:
        """Forget what stood of a unit: it was taken over, or deleted, or is the driver's own from now on."""
        for name in (self._names or {}).pop((stage, unit), None) or ():
            self._sealed.pop(f"{stage}/{unit}/{name}", None)

    def doubt(self, stage: str, unit: str) -> None:
        """Forget a unit whose records were half changed: what stands of it is not known any more."""
        self.drop(stage, unit)
        if self._names is not None:
            self._names[stage, unit] = None
