"""The ledger: what is planned, done, empty, quarantined or sealed, as plain objects under the run.

A unit is one stage of one tomogram (or of the whole data set, `ALL`). Its marks stand under the key of what
they depend on, so a changed parameter finds none of them::

    ledger/<stage>/<unit>/<key>/plan.json            how many blocks, of which plan
    ledger/<stage>/<unit>/<key>/created              the empty artifact stands; of which plan
    ledger/<stage>/<unit>/<key>/marks/<n>.jsonl      a few marks each, written after their data
    ledger/<stage>/<unit>/<key>/sealed.json          the stage is done; the marks are counted and gone
    ledger/<stage>/<unit>/<key>/failed.json          the unit cannot be done, and why

Only the driver writes here; anybody may read at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cryoscale.data.folder import Folder
from cryoscale.data.ledger_index import LedgerIndex, read_many
from cryoscale.data.marks import Mark as Mark
from cryoscale.data.marks import Marks as Marks
from cryoscale.data.marks import Tally

ALL = "_all"


@dataclass(frozen=True)
class UnitState:
    """What the ledger says of one unit, for `status`."""

    stage: str
    unit: str
    key: str
    state: str  # "planned", "running", "done", "empty", "failed"
    planned: int = 0
    done: int = 0
    empty: int = 0
    quarantined: int = 0
    voxels: int = 0
    seconds: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    reason: str = ""
    value: dict[str, Any] = field(default_factory=dict)


class UnitLedger:
    """The marks of one unit under one key.

    Parameters
    ----------
    ledger : Folder
        `RUN/ledger`.
    stage, unit, key : str
        Which unit, and what its artifact depends on.
    """

    def __init__(self, ledger: Folder, stage: str, unit: str, key: str) -> None:
        self.unit_folder = ledger.child(stage, unit)
        self.folder = self.unit_folder.child(key)
        self.stage, self.unit, self.key = stage, unit, key
        self._pending: list[Mark] = []
        self._segment = 0
        self._tally: Tally | None = None  # from `begin` on, while this object alone writes marks
        self._created: bool | None = None
        self._plan = ""

    @property
    def sealed(self) -> dict[str, Any] | None:
        """The record written by `seal`, or None."""
        try:
            record: dict[str, Any] = self.folder.read_json("sealed.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return record

    def begin(self, plan: str, blocks: int, voxels: int, *, present: Sequence[str] | None = None) -> Marks:
        """Claim the artifact for this key and return the marks that already stand.

        Marks under another key, or of another plan of blocks, are deleted before any byte of the artifact
        changes: what stands on storage then belongs to this key alone.

        Parameters
        ----------
        plan : str
            Hash of the cut into blocks.
        blocks, voxels : int
            What is planned.
        present : sequence of str, optional
            What stands of the unit, as `<key>/<object>`, for those that know. It is listed where that is not
            given, or empty: what an earlier listing missed would be wiped, and its marks found later.
        """
        found = list(present or self.unit_folder.files())
        for other in sorted({name.split("/", 1)[0] for name in found} - {self.key}):
            self.unit_folder.delete(other)
        own = {name.split("/", 1)[1] for name in found if name.startswith(f"{self.key}/")}
        for old in own & {"failed.json", "sealed.json"}:
            self.folder.delete(old)
        known = self.folder.read_json("plan.json") if "plan.json" in own else {}
        segments = sorted(name for name in own if name.startswith("marks/") and name.endswith(".jsonl"))
        if known.get("plan") != plan or "created" not in own:
            # Marks without a created artifact: a driver died while it deleted them for another key.
            if "created" in own:
                self.folder.delete("created")
            if found:
                self.folder.delete("marks")
            own, segments = set(), []
        started = known.get("started", time.time()) if known.get("plan") == plan else time.time()
        wanted = {"plan": plan, "blocks": blocks, "voxels": voxels, "started": started}
        if known != wanted:
            self.folder.write_json("plan.json", wanted)
        self._plan, self._created = plan, "created" in own
        self._segment = 1 + max((int(n[6:].split(".")[0]) for n in segments), default=-1)
        return self._take_up(Tally(started, blocks), segments)

    def _take_up(self, tally: Tally, segments: list[str]) -> Marks:
        """Read the marks that stand, and their sums."""
        marks, self._tally = Marks(), tally
        for mark in self._read_segments(segments):
            if mark.block in marks:  # written twice, by a driver of another version: count them once
                self._tally = None
            marks.add(mark)
            tally.add(mark)
        return marks

    @property
    def created(self) -> bool:
        """Whether the empty artifact was made under this key and plan."""
        return self.folder.exists("created") if self._created is None else self._created

    def mark_created(self) -> None:
        """Record that the empty artifact stands, and for which plan: see `cryoscale.data.fence`."""
        self.folder.write_bytes("created", self._plan.encode())
        self._created = True

    def add(self, mark: Mark) -> None:
        """Remember a mark; `flush` writes it. A block without a written mark is simply done again."""
        self._pending.append(mark)
        if self._tally is not None:
            self._tally.add(mark)

    def flush(self) -> None:
        """Write the remembered marks as one object."""
        if not self._pending:
            return
        lines = "".join([json.dumps(mark.__dict__) + "\n" for mark in self._pending])
        self.folder.write_bytes(f"marks/{self._segment:08d}.jsonl", lines.encode())
        self._segment += 1
        self._pending.clear()

    @property
    def pending(self) -> int:
        """Marks not yet written."""
        return len(self._pending)

    def forget(self, blocks: Iterable[int]) -> None:
        """Remove the marks of some blocks, so that they run again."""
        gone = set(blocks)
        kept = [mark for mark in self._read_marks() if mark.block not in gone]
        self.folder.delete("marks")
        self._segment = 0
        self._pending, self._tally = kept, None
        self.flush()

    def forget_quarantined(self) -> int:
        """Remove the marks of quarantined blocks and the failure of the unit; return how many there were."""
        blocks = [mark.block for mark in self._read_marks() if mark.status == "quarantined"]
        if blocks:
            self.forget(blocks)
        failed = self.folder.exists("failed.json")
        if failed:
            self.folder.delete("failed.json")
        return len(blocks) or int(failed)

    def seal(self, value: dict[str, Any], *, empty: bool = False) -> None:
        """Record that the unit is done and drop its single marks.

        Marks that were not written yet are not written any more: the record holds their sums.
        """
        if self._tally is None:
            self.flush()
        state = self._count() if self._tally is None else self._known(self._tally)
        record = {
            **asdict(state),
            "state": "empty" if empty else "done",
            "value": value,
            "finished": time.time(),
        }
        self.folder.write_json("sealed.json", record)
        if self._tally is None or self._segment:
            self.folder.delete("marks")
        if self._tally is None:
            self.folder.delete("failed.json")
        self._pending.clear()

    def _known(self, tally: Tally) -> UnitState:
        return UnitState(stage=self.stage, unit=self.unit, key=self.key, state="running", **asdict(tally))

    def fail(self, reason: str) -> None:
        """Record that the unit cannot be done; marks of its good blocks stay."""
        self.flush()
        self.folder.write_json("failed.json", {"reason": reason, "finished": time.time()})
        self._tally = None

    def failures(self) -> list[dict[str, Any]]:
        """List `block` and `reason` of each quarantined block, or of the whole unit."""
        if not self.folder.exists("failed.json"):
            return []
        marks = [mark for mark in self._read_marks() if mark.status == "quarantined"]
        if marks:
            return [{"block": mark.block, "reason": mark.reason} for mark in marks]
        return [{"block": "", "reason": self.folder.read_json("failed.json")["reason"]}]

    def state(self) -> UnitState:
        """Say how far the unit is."""
        sealed = self.sealed
        return self._count() if sealed is None else state_of(sealed)

    def _count(self) -> UnitState:
        plan = self.folder.read_json("plan.json") if self.folder.exists("plan.json") else {}
        failed = self.folder.read_json("failed.json") if self.folder.exists("failed.json") else None
        marks = self._read_marks()
        by_status: dict[str, Any] = {
            s: sum(m.status == s for m in marks) for s in ("done", "empty", "quarantined")
        }
        return UnitState(
            stage=self.stage,
            unit=self.unit,
            key=self.key,
            state="failed" if failed else ("running" if plan else "planned"),
            planned=plan.get("blocks", 0),
            voxels=sum(m.voxels for m in marks),
            seconds=sum(m.seconds for m in marks),
            started=plan.get("started", 0.0),
            finished=max((m.finished for m in marks), default=0.0),
            reason=failed["reason"] if failed else "",
            **by_status,
        )

    def _read_marks(self) -> list[Mark]:
        names = [f"marks/{name}" for name in self.folder.names("marks") if name.endswith(".jsonl")]
        marks = {mark.block: mark for mark in self._read_segments(names)}
        return [marks[block] for block in sorted(marks)]

    def _read_segments(self, names: Sequence[str]) -> Iterator[Mark]:
        """Yield the marks of some segments, in order; a segment that went meanwhile holds none."""
        for _, data in read_many(self.folder, names):
            for line in (data or b"").splitlines():
                yield Mark(**json.loads(line))


def state_of(sealed: dict[str, Any]) -> UnitState:
    """Return the state that a sealed unit's record holds."""
    return UnitState(**{key: sealed[key] for key in UnitState.__dataclass_fields__})


def unit_states(ledger: Folder) -> list[UnitState]:
    """Read the state of every unit that has any record, sorted by stage and unit."""
    states = []
    index = LedgerIndex(ledger).list()
    for stage, unit in index.units():
        for key in sorted({name.split("/", 1)[0] for name in index.names(stage, unit) or ()}):
            try:
                sealed = index.sealed(stage, unit, key)
                states.append(
                    UnitLedger(ledger, stage, unit, key).state() if sealed is None else state_of(sealed)
                )
            except FileNotFoundError:  # the driver moved on between our two looks
                continue
    return states


def recorded_failures(
    ledger: Folder, stages: Iterable[str], tomograms: Collection[str]
) -> list[dict[str, Any]]:
    """List the failures that the ledger holds of some stages, for those that a driver does not look at.

    Parameters
    ----------
    ledger : Folder
        `RUN/ledger/units`.
    stages : iterable of str
        Their names; the rows come in this order.
    tomograms : collection of str
        Names of the run's tomograms; units of others are left out.

    Returns
    -------
    rows : list of dict
        stage, tomogram (empty for the whole data set), block (empty for the whole unit), reason.
    """
    rows: list[dict[str, Any]] = []
    place = {stage: number for number, stage in enumerate(stages)}
    failed = [unit for unit in _with_trouble(ledger) if unit.stage in place] if place else []
    for unit in sorted(failed, key=lambda unit: (place[unit.stage], unit.unit, unit.key)):
        if unit.unit == ALL or unit.unit in tomograms:
            where = {"stage": unit.stage, "tomogram": "" if unit.unit == ALL else unit.unit}
            rows += [{**where, **row} for row in unit.failures()]
    return rows


def forget_all_quarantined(ledger: Folder) -> None:
    """Remove the marks of quarantined blocks, and the failures, of all units: they are tried again.

    Parameters
    ----------
    ledger : Folder
        `RUN/ledger/units`.
    """
    for unit in _with_trouble(ledger):
        unit.forget_quarantined()


def _with_trouble(ledger: Folder) -> Iterator[UnitLedger]:
    """Yield the units that failed or are not through, by one listing: most are sealed and have no trouble."""
    index = LedgerIndex(ledger).list(records=False)
    for stage, unit in index.units():
        by_key: dict[str, set[str]] = {}
        for name in index.names(stage, unit) or ():
            key, _, rest = name.partition("/")
            by_key.setdefault(key, set()).add(rest)
        for key in sorted(by_key):
            marked = any(name.startswith("marks/") for name in by_key[key])
            if "failed.json" in by_key[key] or (marked and "sealed.json" not in by_key[key]):
                yield UnitLedger(ledger, stage, unit, key)
