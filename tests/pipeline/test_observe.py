"""What drives log and tell, and who follows their logs."""

from __future__ import annotations

import contextlib
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
from cryoscale.pipeline import logs, observe
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.logs import Question, follow, in_words, log_lines
from cryoscale.runtime import log_sinks
from cryoscale.runtime import metrics as metrics_module
from cryoscale.runtime.events import Event, TaskEnded
from cryoscale.runtime.log_sinks import segment_name
from tests.pipeline.driving import bare_run, drive

RUN_ID = "20260101-000000-abcdef"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A place in an object store that lives in memory."""
    store = fsspec.filesystem("memory")
    yield "memory://bucket"
    if store.exists("/bucket"):
        store.rm("/bucket", recursive=True)


def test_a_drive_logs_its_stages(finished_run: Run) -> None:
    lines = list(log_lines(finished_run, Question()))
    assert {line["event"] for line in lines} >= {
        "DriverStarted",
        "StageStarted",
        "BlocksEnded",
        "DriverEnded",
    }
    assert len({line["run"] for line in lines}) == 2
    picked = list(log_lines(finished_run, Question("pick", "alpha")))
    assert [line["event"] for line in picked] == ["StageStarted", "BlocksEnded", "StageSealed"]
    assert picked[1]["done"] + picked[1]["empty"] == picked[0]["blocks"]
    assert list(log_lines(finished_run, Question(), last=0)) == []


def test_a_failure_is_logged_with_its_traceback(make_run: Callable[..., Run], tmp_path: Path) -> None:
    broken = tmp_path / "broken.mrc"
    broken.write_bytes(b"no MRC file")
    run = make_run(sources=[broken])
    assert drive(run, until="ingest").failures
    found = list(log_lines(run, Question(level="warning")))
    assert found[0]["event"] == "TaskEnded"
    assert found[0]["kind"] == "data"
    assert "Traceback" in found[0]["traceback"]
    assert found[-1]["event"] == "UnitFailed"
    assert "Traceback" in in_words(found[0])


def test_what_is_logged_later_is_followed(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    (tmp_path / "run" / "logs").mkdir()
    first, second, later = (
        tmp_path / "run" / "logs" / name
        for name in (
            segment_name(RUN_ID, 0),
            segment_name(RUN_ID, 1),
            segment_name("20260102-000000-abcdef", 0),
        )
    )

    def line(number: int) -> bytes:
        return json.dumps({"level": "info", "n": number}).encode() + b"\n"

    first.write_bytes(line(1) + line(2)[:5])
    steps: list[Callable[[], object]] = [
        lambda: first.write_bytes(line(1) + line(2)),
        lambda: (first.write_bytes(line(1) + line(2) + line(3)), second.write_bytes(line(4))),
        lambda: (second.write_bytes(line(4) + line(5)), later.write_bytes(line(6))),
    ]

    def pause(seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    seen: list[int] = []
    lines = follow(run, Question(), pause=pause)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            seen.append(next(lines)["n"])
    assert seen == [1, 2, 3, 4, 5, 6]


def test_logs_of_drives_that_ended_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bare_run(tmp_path / "run")
    names = [segment_name(f"2026010{day}-000000-abcdef", 0) for day in range(1, 5)]
    for number, name in enumerate(names):
        line = json.dumps({"level": "info", "n": number}).encode() + b"\n"
        run.folder.write_bytes(f"logs/{name}", line)
    asked: list[str] = []
    read_bytes = type(run.folder).read_bytes

    def count(self: Any, name: str) -> bytes:
        asked.append(name)
        return read_bytes(self, name)

    monkeypatch.setattr(type(run.folder), "read_bytes", count)
    left = iter(range(5))

    def pause(seconds: float) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        list(follow(run, Question(), last=3, pause=pause))
    assert [asked.count(f"logs/{name}") for name in names] == [0, 1, 1, 6]


def test_a_trace_and_a_log_on_a_full_disk_cost_one_sentence_each(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    monkeypatch.setattr(observe, "new_run_id", lambda: RUN_ID)
    monkeypatch.setattr(log_sinks, "SEGMENT_BYTES", 2000)
    place = Path(run.folder.url) / "logs"
    place.mkdir()
    for name in (f"trace-{RUN_ID}.json", segment_name(RUN_ID, 1)):
        (place / name).symlink_to("/dev/full")
    assert not drive(run, until="pick").failures
    told = [record for record in caplog.records if "cannot write" in record.message]
    assert {record.message.partition(" ")[0] for record in told} <= {"TraceWriter", "JobLog"}
    assert [record.message.partition(" ")[0] for record in told].count("JobLog") == 1
    assert all("No space left" in record.message and not record.exc_info for record in told)
    assert "Traceback" not in caplog.text


def test_a_drive_on_an_object_store_logs_too(bucket: str, small_sources: list[Path]) -> None:
    from cryoscale.testing.phantoms import small_run

    run = small_run(Path("run"), small_sources)
    config = run.config
    shutil.rmtree("run")
    remote = Run.at(f"{bucket}/run")
    remote.save_config(config)
    assert not drive(remote, until="identify").failures
    lines = list(log_lines(remote, Question()))
    assert lines[0]["event"] == "DriverStarted"
    assert lines[-1]["event"] == "DriverEnded"
    assert len(logs.drives(remote, 5)) == 1


def test_a_drive_tells_prometheus(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "LOOK_S", 0.0)
    run = make_run()
    told: list[str] = []

    def ask(event: Event) -> None:
        text = getattr(event, "text", "")
        if text.startswith("metrics for Prometheus at "):
            told.append(text.rpartition(" ")[2])
        if isinstance(event, TaskEnded) and event.stage == "pick" and len(told) == 1:
            with urllib.request.urlopen(told[0], timeout=10) as answer:
                told.append(answer.read().decode())

    result = run_pipeline(run, Options(executor="serial", metrics="0", until="pick"), listeners=(ask,))
    assert not result.failures
    text = told[1]
    assert 'cryoscale_blocks_total{stage="ingest",status="done"}' in text
    assert 'cryoscale_tomograms{stage="pick",state="pending"}' in text
    assert 'cryoscale_workers{executor="serial"} 1.0' in text
    assert 'cryoscale_tasks_in_flight{engine="cpu"}' in text
    assert "alpha" not in text


def test_a_place_for_metrics_that_cannot_be_stops_before_any_work(make_run: Callable[..., Run]) -> None:
    run = make_run()
    for place in ("0.0.0.0:0", "nonsense"):
        with pytest.raises(ConfigurationError, match="--metrics"):
            drive(run, metrics=place)
    assert not run.folder.exists("ledger")
