from __future__ import annotations

import errno
import io
import json
import logging

import pytest
from rich.console import Console

from cryoscale.runtime.events import (
    EventBus,
    MemoryWarning,
    Message,
    StageSealed,
    StageStarted,
    TaskEnded,
    UnitFailed,
    as_record,
)
from cryoscale.runtime.progress import ProgressDisplay, StageTally, clock_time, with_prefix
from cryoscale.runtime.trace import TraceWriter


def ended(block=0, **fields):
    given = {
        "stage": "pick",
        "tomogram": "t1",
        "voxels": 1000,
        "seconds": 0.5,
        "worker": "node7:42",
        "started": 100.0,
    }
    return TaskEnded(block=block, **{**given, **fields})


def test_a_broken_listener_is_logged_once_and_the_rest_hear_everything(caplog):
    bus, heard = EventBus(), []

    def broken(event):
        raise RuntimeError("no more paper")

    bus.listen(broken)
    leave = bus.listen(heard.append)
    with caplog.at_level(logging.ERROR, "cryoscale.runtime.events"):
        bus.emit(Message(text="one"))
        bus.emit(Message(text="two"))
    assert [event.text for event in heard] == ["one", "two"]
    assert len(caplog.records) == 1
    assert "no more paper" in caplog.text
    leave()
    leave()
    bus.emit(Message(text="three"))
    assert len(heard) == 2


def test_a_listener_on_a_full_disk_costs_one_sentence(caplog):
    bus = EventBus()

    def full(data):
        raise OSError(errno.ENOSPC, "No space left on device")

    bus.listen(TraceWriter(full))
    with caplog.at_level(logging.ERROR, "cryoscale.runtime.events"):
        bus.emit(ended(0))
        bus.emit(ended(1))
    assert [record.message for record in caplog.records] == [
        "TraceWriter cannot write, so lines may be missing: [Errno 28] No space left on device"
    ]
    assert "Traceback" not in caplog.text


def test_records_are_plain_values_with_a_name():
    record = as_record(ended(3))
    assert record["event"] == "TaskEnded"
    assert json.loads(json.dumps(record))["block"] == 3


def test_memory_above_the_promise_is_told_once_per_stage():
    told = []
    watch = MemoryWarning(told.append)
    for block in range(3):
        watch(ended(block, peak_bytes=2_000_000_000, promised_bytes=1_000_000_000))
    watch(ended(9, peak_bytes=5, promised_bytes=10, stage="encode"))
    watch(Message(text="x"))
    assert [event.text for event in told] == [
        "pick: a worker used 2.00 GB, the plan promised 1.00 GB (t1, block 0)."
    ]


def test_a_block_that_is_tried_again_counts_once():
    tally = StageTally("pick")
    tally.add(StageStarted(stage="pick", tomogram="t1", blocks=4, already=1, voxels=3000), now=10.0)
    for status in ("failed", "lost", "done"):
        tally.end(ended(0, status=status))
    tally.end(ended(1, status="empty"))
    tally.end(ended(2, status="quarantined", voxels=0))
    assert (tally.through, tally.blocks, tally.failures) == (4, 4, 1)
    assert tally.rate(20.0) == 200.0  # 2000 voxels in 10 s
    assert tally.seconds_left(20.0) == 5.0
    assert tally.describe(20.0) == "4/4 blocks, 0/1 tomograms, 200 voxels/s, 1 blocks failed"


def shown(terminal, events, **options):
    text = io.StringIO()
    now = [0.0]
    console = Console(file=text, force_terminal=terminal, width=120, _environ={})
    with ProgressDisplay(console, clock=lambda: now[0], **options) as display:
        for at, event in events:
            now[0] = at
            display(event)
    return text.getvalue()


EVENTS = [
    (0.0, StageStarted(stage="pick", tomogram="t1", blocks=3, voxels=3000)),
    (1.0, ended(0)),
    (2.0, ended(1)),
    (40.0, ended(2, status="quarantined", voxels=0)),
    (41.0, UnitFailed(stage="pick", tomogram="t1", reason="[t1.mrc] holds NaN")),
    (42.0, Message(text="paused: no space left", level="warning")),
    (43.0, StageSealed(stage="pick", tomogram="t1")),
]


def test_away_from_a_terminal_lines_are_few_and_plain():
    lines = shown(False, EVENTS, interval_s=30.0).splitlines()
    assert lines == [
        "pick: 0/3 blocks, 0/1 tomograms",
        "pick: 3/3 blocks, 0/1 tomograms, 50 voxels/s, 1 blocks failed",
        "pick of t1 stopped: [t1.mrc] holds NaN",
        "paused: no space left",
        "pick: 3/3 blocks, 1/1 tomograms, 46.5 voxels/s, 1 blocks failed, 1 tomograms stopped",
    ]


def test_on_a_terminal_there_is_a_bar():
    text = shown(True, EVENTS)
    assert "━" in text
    assert "3/3 blocks" in text
    assert "[t1.mrc] holds NaN" in text


@pytest.mark.parametrize(
    ("value", "text"), [(12_345_678, "12.3 M"), (999, "999 "), (2.5e9, "2.5 G"), (0, "0 ")]
)
def test_prefixes(value, text):
    assert with_prefix(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")]
)
def test_durations(value, text):
    assert clock_time(value) == text


def test_a_trace_opens_also_when_the_run_was_killed():
    lines = []
    trace = TraceWriter(lines.append)
    trace(ended(0))
    trace(ended(1, started=101.0, worker="node8:7", status="failed", message="no"))
    trace(StageSealed(stage="pick", tomogram="t1", at=102.0))
    trace(Message(text="not shown"))
    text = b"".join(lines).decode()
    records = json.loads(text.rstrip(",\n") + "]")
    bars = [record for record in records if record["ph"] == "X"]
    assert [(bar["ts"], bar["dur"], bar["tid"]) for bar in bars] == [
        (0, 500_000, 42),
        (1_000_000, 500_000, 7),
    ]
    assert [r["args"]["name"] for r in records if r["ph"] == "M"] == ["node7", "node8"]
    assert bars[0]["pid"] != bars[1]["pid"]
    assert bars[1]["args"]["message"] == "no"
    assert records[-1]["name"] == "pick t1 sealed"
    assert records[-1]["ts"] == 2_000_000
