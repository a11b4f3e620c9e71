"""The log of a drive: what it holds, how little it takes, where it goes, and what it never holds."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cryoscale.runtime import joblog, log_sinks
from cryoscale.runtime.events import Message, StageSealed, StageStarted, TaskEnded, UnitFailed
from cryoscale.runtime.joblog import FULL, SUM_S, TRACEBACKS, JobLog, records
from cryoscale.runtime.log_sinks import (
    LimitedWriter,
    LocalSink,
    SegmentSink,
    new_run_id,
    segment_name,
    surplus,
)
from cryoscale.runtime.packing import pack, run_packed, unpack_outcome
from cryoscale.runtime.task import Task, WorkCache, run_task
from cryoscale.runtime.worker_log import CHARACTERS, LINES, utc, worker_log

RUN = "20260101-000000-abcdef"
TRACE = 'Traceback (most recent call last):\n  File "/x/pick.py", line 7, in block\nValueError: bad\n'


class Lines:
    """A sink in memory."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.closed = False

    def write(self, line: bytes) -> None:
        self.raw.append(line)

    def close(self) -> None:
        self.closed = True

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.all if line["event"] == event]


def ended(block: int = 0, **fields: Any) -> TaskEnded:
    given = {"stage": "pick", "tomogram": "t1", "worker": "node7:123", "seconds": 0.5, "voxels": 10}
    return TaskEnded(block=block, **{**given, **fields})


def failed(block: int = 0, **fields: Any) -> TaskEnded:
    return ended(
        block, **{"status": "failed", "kind": "data", "message": "bad", "traceback": TRACE, **fields}
    )


@pytest.fixture
def sink() -> Lines:
    return Lines()


def test_every_line_says_when_what_and_of_which_drive(sink: Lines) -> None:
    with JobLog(sink, RUN, {"executor": "serial"}) as log:
        log(StageStarted(stage="pick", tomogram="t1", blocks=2, voxels=20))
        log(ended(0))
        log(ended(1, seconds=1.5, worker="node8:1"))
        log(StageSealed(stage="pick", tomogram="t1"))
        log(UnitFailed(stage="pick", tomogram="t2", reason="broken"))
        log(Message(text="paused", level="warning"))
    names = [line["event"] for line in sink.all]
    assert names == ["DriverStarted", "StageStarted", "BlocksEnded", "StageSealed", "UnitFailed", "Message",
                     "DriverEnded"]  # fmt: skip
    for line in sink.all:
        assert line["run"] == RUN
        assert line["level"] in joblog.LEVELS
        assert line["time"].endswith("Z")
        assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60
    total = sink.of("BlocksEnded")[0]
    assert (total["done"], total["voxels"], total["seconds"], total["workers"]) == (2, 20, 2.0, 2)
    assert total["slowest"] == {"block": 1, "seconds": 1.5, "worker": "node8:1"}
    assert (total["stage"], total["tomogram"]) == ("pick", "t1")
    assert sink.of("DriverStarted")[0]["executor"] == "serial"
    assert sink.closed


def test_a_failure_is_written_in_full(sink: Lines) -> None:
    log = JobLog(sink, RUN)
    log(failed(3, attempt=2, log=("2026 INFO cryoscale.x: looked",)))
    line = sink.of("TaskEnded")[0]
    assert line["traceback"] == TRACE
    assert (line["host"], line["process"], line["block"], line["attempt"]) == ("node7", "123", 3, 2)
    assert (line["status"], line["kind"], line["level"]) == ("failed", "data", "warning")
    assert line["log"] == ["2026 INFO cryoscale.x: looked"]


def test_very_many_failures_of_a_kind_are_counted(sink: Lines) -> None:
    log = JobLog(sink, RUN)
    for block in range(FULL + 50):
        log(failed(block))
    log(failed(0, traceback=TRACE.replace("line 7", "line 8")))
    log(UnitFailed(stage="pick", tomogram="t1", reason="all bad"))
    written = sink.of("TaskEnded")
    assert len(written) == FULL + 1, "another place in the code is another kind"
    assert sum("traceback" in line for line in written) == TRACEBACKS + 1
    assert len({line["same"] for line in written}) == 2
    assert sink.of("BlocksEnded")[0]["unwritten"] == 50


def test_what_ten_million_blocks_write(sink: Lines) -> None:
    """Lines do not grow with blocks: a tomogram gives as many with ten blocks as with ten thousand."""
    log = JobLog(sink, RUN)

    def bytes_of(blocks: int) -> int:
        before = sum(map(len, sink.raw))
        log(StageStarted(stage="pick", tomogram="t1", blocks=blocks))
        for block in range(blocks):
            log(ended(block))
        log(StageSealed(stage="pick", tomogram="t1"))
        return sum(map(len, sink.raw)) - before

    few, many = bytes_of(10), bytes_of(10_000)
    assert many - few < 40  # longer numbers alone
    assert many < 1500


def test_a_long_stage_is_summed_up_now_and_then(sink: Lines) -> None:
    log = JobLog(sink, RUN)
    for second in range(int(3 * SUM_S)):
        log(ended(second, at=1000.0 + second))
    assert 2 <= len(sink.of("BlocksEnded")) <= 3


def test_a_full_log_keeps_errors(sink: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "LIMIT_BYTES", 2000)
    log = JobLog(sink, RUN)
    for number in range(100):
        log(Message(text=f"word {number}"))
    log(Message(text="ouch", level="error"))
    log.close()
    assert sum(map(len, sink.raw)) < 3000
    assert sink.of("Message")[-1]["text"] == "ouch"
    assert sink.of("DriverEnded")[0]["unwritten"] > 50


def test_secrets_are_not_written(sink: Lines) -> None:
    log = JobLog(sink, RUN, {"ray": "x"}, secrets=["hunter2-hunter2"])
    log(failed(message="s3://AKIAabc:very/secret@bucket/x", traceback=f"{TRACE} hunter2-hunter2"))
    log(UnitFailed(stage="pick", tomogram="t", reason="Authorization: Bearer abcdefgh"))
    log(Message(text="https://host/x?X-Amz-Signature=0123456789abcdef"))
    log(ended(log=("password = tiger",)))
    log.close(RuntimeError("secret='lion'"))
    text = b"".join(sink.raw)
    for word in (b"hunter2", b"very/secret", b"abcdefgh", b"X-Amz", b"tiger", b"lion"):
        assert word not in text
    assert b"bucket/x" in text


def test_how_a_drive_ended_is_written(sink: Lines) -> None:
    def drive() -> None:
        with JobLog(sink, RUN) as log:
            log(ended())
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        drive()
    assert sink.of("BlocksEnded"), "what was summed up is not lost"
    assert sink.of("DriverEnded")[0]["error"] == "OSError: full"


def test_a_disk_that_is_full_at_the_end_hides_no_error(sink: Lines) -> None:
    def refuse() -> None:
        raise OSError("no space")

    sink.close = refuse  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the first"), JobLog(sink, RUN):
        raise ValueError("the first")


# -- where it goes ------------------------------------------------------------------------------------------


def test_files_go_on_in_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_sinks, "SEGMENT_BYTES", 100)
    sink = LocalSink(tmp_path / "logs", RUN)
    lines = [b"%030d\n" % number for number in range(10)]
    for line in lines:
        sink.write(line)
        stored = b"".join(path.read_bytes() for path in sorted((tmp_path / "logs").iterdir()))
        assert stored.endswith(line), "a line is stored when it is written"
    sink.close()
    assert [path.name for path in sorted((tmp_path / "logs").iterdir())] == [
        segment_name(RUN, number) for number in range(4)
    ]
    assert stored == b"".join(lines)


class Store:
    """An object store that may refuse."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refuses = False
        self.tried = threading.Event()

    def write(self, name: str, data: bytes) -> None:
        self.tried.set()
        if self.refuses:
            raise OSError("no answer")
        assert name not in self.objects, "an object is never written twice"
        self.objects[name] = data

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for name in sorted(self.objects) for line in self.objects[name].splitlines()]


def test_an_object_store_gets_segments() -> None:
    store = Store()
    sink = SegmentSink(store.write, RUN, every_s=3600.0)
    sink.write(b'{"level": "info", "n": 1}\n')
    sink.write(b'{"level": "error", "n": 2}\n')
    assert store.tried.wait(30), "errors do not wait"
    sink.write(b'{"level": "info", "n": 3}\n')
    sink.close()
    assert [line["n"] for line in store.lines] == [1, 2, 3]
    assert sorted(store.objects)[0] == segment_name(RUN, 0)


def test_a_store_that_does_not_answer_costs_lines_and_no_memory() -> None:
    store = Store()
    store.refuses = True
    sink = SegmentSink(store.write, RUN, every_s=0.01, limit_bytes=1000)
    for number in range(500):
        sink.write(b'{"n": %d}\n' % number)
    assert store.tried.wait(30)
    assert sink._waiting <= 1000
    store.refuses = False
    sink.close()
    kept = [line for line in store.lines if "n" in line]
    dropped = sum(line["lines"] for line in store.lines if line.get("event") == "Dropped")
    assert len(kept) + dropped == 500
    assert sum(map(len, store.objects.values())) < 1500


def test_old_drives_go_and_other_files_stay() -> None:
    ids = [f"2026010{day}-000000-abcdef" for day in range(1, 6)]
    names = [segment_name(i, n) for i in ids for n in (0, 1)] + [f"trace-{ids[0]}.json", "notes.txt"]
    gone = surplus(names, keep=3)
    assert set(gone) == {n for n in names if ids[0] in n or ids[1] in n}
    assert surplus(names, keep=9) == []


def test_ids_sort_by_time() -> None:
    assert new_run_id(1e9) < new_run_id(1.1e9)
    assert log_sinks.NAME.fullmatch(segment_name(new_run_id(), 3))


def test_a_trace_ends_at_its_limit() -> None:
    taken: list[bytes] = []
    write = LimitedWriter(taken.append, 10)
    for data in (b"12345", b"1234", b"12", b"1"):
        write(data)
    assert taken == [b"12345", b"1234"], "nothing after the first that did not fit"


def test_lines_are_asked_for_by_stage_tomogram_and_level() -> None:
    lines = [
        json.dumps({"level": level, "stage": stage, "tomogram": tomogram}).encode()
        for level in joblog.LEVELS
        for stage in ("pick", "encode")
        for tomogram in ("t1", "t2")
    ]
    lines += [b'{"level": "info", "event": "Message"}', b'{"torn', b"[]"]
    assert len(list(records(lines))) == 13
    assert len(list(records(lines, stage="pick"))) == 6
    assert len(list(records(lines, stage="pick", tomogram="t1", level="warning"))) == 2


# -- what workers say ---------------------------------------------------------------------------------------


class Saying:
    """A work whose function logs."""

    key = "saying"

    @contextmanager
    def open(self) -> Iterator[Callable[[int], int]]:
        logging.getLogger("cryoscale.stages.pick").info("opened")

        def say(times: int) -> int:
            for number in range(times):
                logging.getLogger("cryoscale.stages.pick").info("word %d", number)
            logging.getLogger("elsewhere").error("not ours")
            if times == 3:
                raise ValueError("token=abcdefgh")
            return times

        yield say


def test_what_a_worker_logs_comes_back() -> None:
    task = Task("pick/t1/3#1", Saying(), 2)
    outcome = unpack_outcome(task, run_packed(pack(task), WorkCache()))
    assert outcome.value == 2
    assert [line.partition(": ")[2] for line in outcome.log] == ["opened", "word 0", "word 1"]
    assert " INFO cryoscale.stages.pick: " in outcome.log[0]
    assert pickle.loads(pickle.dumps(outcome)).log == outcome.log


def test_only_the_last_lines_come_back_and_the_level_is_put_back() -> None:
    level = logging.getLogger("cryoscale").level
    outcome = run_task(Task("x", Saying(), 100), WorkCache())
    assert len(outcome.log) == LINES
    assert outcome.log[-1].endswith("word 99")
    assert logging.getLogger("cryoscale").level == level
    with worker_log("x") as lines:
        logging.getLogger("cryoscale").warning("s3://key:%s@bucket", "a" * 2 * CHARACTERS)
        logging.getLogger("cryoscale").warning("b" * 2 * CHARACTERS)
    assert "aaa" not in lines[0], "cut after the secrets are out, not before"
    assert len(lines[1]) == CHARACTERS


def test_a_failed_task_tells_what_it_logged_and_no_secret() -> None:
    outcome = run_task(Task("x", Saying(), 3), WorkCache())
    assert outcome.failure is not None
    assert len(outcome.log) == 4
    assert "ValueError" in outcome.failure.traceback
    assert "abcdefgh" not in outcome.failure.traceback + outcome.failure.message


def test_standard_error_gets_json_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_task(Task("pick/t1/3#1", Saying(), 1), WorkCache())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("CRYOSCALE_LOG", "json")
    run_task(Task("pick/t1/3#1", Saying(), 1), WorkCache())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == ["opened", "word 0"]
    assert {line["task"] for line in lines} == {"pick/t1/3#1"}
    assert set(lines[0]) == {"time", "level", "logger", "host", "process", "task", "message"}


def test_times_are_utc() -> None:
    assert utc(0.0) == "1970-01-01T00:00:00.000Z"
