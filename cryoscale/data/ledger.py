"""The ledger: what is planned, done, empty, quarantined or sealed, as plain objects under the run.

A unit is one stage of one tomogram (or of the whole data set, `ALL`). Its marks stand under the key of what
they depend on, so a changed parameter finds none of them::

    ledger/<stage>/<unit>/<key>/plan.json            how many blocks, of which plan
    ledger/<stage>/<unit>/<key>/marks/<n>.jsonl      a few marks each, written after their data
    ledger/<stage>/<unit>/<key>/sealed.json          the stage is done; the marks are counted and gone
    ledger/<stage>/<unit>/<key>/failed.json          the unit cannot be done, and why

Only the driver writes here; anybody may read at any time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from cryoscale.data.folder import Folder

ALL = "_all"


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

    @property
    def sealed(self) -> dict[str, Any] | None:
        """The record written by `seal`, or None."""
        return self.folder.read_json("sealed.json") if self.folder.exists("sealed.json") else None

    def begin(self, plan: str, blocks: int, voxels: int) -> dict[int, Mark]:
        """Claim the artifact for this key and return the marks that already stand.

        Marks under another key, or of another plan of blocks, are deleted before any byte of the artifact
        changes: what stands on storage then belongs to this key alone.
        """
        for other in self.unit_folder.names():
            if other != self.key:
                self.unit_folder.delete(other)
        for old in ("failed.json", "sealed.json"):
            self.folder.delete(old)
        known = self.folder.read_json("plan.json") if self.folder.exists("plan.json") else {}
        if known.get("plan") != plan or not self.created:
            # Marks without a created artifact: a driver died while it deleted them for another key.
            self.folder.delete("created")
            self.folder.delete("marks")
        started = known.get("started", time.time()) if known.get("plan") == plan else time.time()
        self.folder.write_json(
            "plan.json", {"plan": plan, "blocks": blocks, "voxels": voxels, "started": started}
        )
        marks = {mark.block: mark for mark in self._read_marks()}
        self._segment = 1 + max((int(n.split(".")[0]) for n in self.folder.names("marks")), default=-1)
        return marks

    @property
    def created(self) -> bool:
        """Whether the empty artifact was made under this key and plan."""
        return self.folder.exists("created")

    def mark_created(self) -> None:
        """Record that the empty artifact stands."""
        self.folder.write_bytes("created", b"")

    def add(self, mark: Mark) -> None:
        """Remember a mark; `flush` writes it. A block without a written mark is simply done again."""
        self._pending.append(mark)

    def flush(self) -> None:
        """Write the remembered marks as one object."""
        if not self._pending:
            return
        lines = "".join(json.dumps(asdict(mark)) + "\n" for mark in self._pending)
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
        self._pending = kept
        self.flush()

    def forget_quarantined(self) -> int:
        """Remove the marks of quarantined blocks and the failure of the unit; return how many there were."""
        blocks = [mark.block for mark in self._read_marks() if mark.status == "quarantined"]
        if blocks:
            self.forget(blocks)
        failed = self.folder.exists("failed.json")
        self.folder.delete("failed.json")
        return len(blocks) or int(failed)

    def seal(self, value: dict[str, Any], *, empty: bool = False) -> None:
        """Record that the unit is done and drop its single marks."""
        self.flush()
        state = self._count()
        record = {
            **asdict(state),
            "state": "empty" if empty else "done",
            "value": value,
            "finished": time.time(),
        }
        self.folder.write_json("sealed.json", record)
        self.folder.delete("marks")
        self.folder.delete("failed.json")

    def fail(self, reason: str) -> None:
        """Record that the unit cannot be done; marks of its good blocks stay."""
        self.flush()
        self.folder.write_json("failed.json", {"reason": reason, "finished": time.time()})

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
        if sealed is not None:
            return UnitState(**{key: sealed[key] for key in UnitState.__dataclass_fields__})
        return self._count()

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
        marks: dict[int, Mark] = {}
        for name in self.folder.names("marks"):
            if not name.endswith(".jsonl"):
                continue
            for line in self.folder.read_bytes(f"marks/{name}").decode().splitlines():
                mark = Mark(**json.loads(line))
                marks[mark.block] = mark
        return [marks[block] for block in sorted(marks)]


def unit_states(ledger: Folder) -> list[UnitState]:
    """Read the state of every unit that has any record, sorted by stage and unit."""
    states = []
    for stage in ledger.names():
        for unit in ledger.names(stage):
            for key in ledger.names(f"{stage}/{unit}"):
                try:
                    states.append(UnitLedger(ledger, stage, unit, key).state())
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
    for stage in stages:
        for unit in ledger.names(stage):
            if unit != ALL and unit not in tomograms:
                continue
            where = {"stage": stage, "tomogram": "" if unit == ALL else unit}
            for key in ledger.names(f"{stage}/{unit}"):
                rows += [{**where, **row} for row in UnitLedger(ledger, stage, unit, key).failures()]
    return rows
