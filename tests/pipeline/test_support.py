"""Support bundles of runs in any state; what is never in them: `test_support_secrets`."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cryoscale.config import load_config
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.pipeline import support
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.support import make_bundle
from cryoscale.runtime.events import Event, TaskEnded
from cryoscale.runtime.log_sinks import segment_name
from tests.pipeline.driving import bare_run

RUN_ID = "20260101-000000-abcdef"


@pytest.fixture(autouse=True)
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at devices, which takes seconds; `test_verbs` asks the real one."""
    monkeypatch.setattr(
        support, "_doctor", lambda: {"cryoscale": "x", "executable": "/home/alice/bin/python"}
    )


def parts_of(place: Path) -> dict[str, str]:
    with zipfile.ZipFile(place) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


# -- what is in it ------------------------------------------------------------------------------------------


def test_a_bundle_of_a_finished_run(finished_run: Run, tmp_path: Path) -> None:
    bundle = make_bundle(finished_run.folder.url, tmp_path / "b.zip")
    assert bundle.left_out == []
    parts = parts_of(tmp_path / "b.zip")
    assert set(parts) >= {
        "README.txt", "doctor.json", "environment.json", "run.toml", "status.json", "plan.json",
        "ledger.json", "engines.json", "files.txt", "models/encoder/model.toml",
        "models/segmenter/model.toml",
    }  # fmt: skip
    assert sum(name.startswith("logs/") for name in parts) == 2, "two drives made this run"
    status = json.loads(parts["status.json"])
    assert status["complete"]
    assert json.loads(parts["plan.json"])["stages"]["pick"]["tomograms"] == 2
    assert json.loads(parts["engines.json"])["drives"][0]["executor"] == "serial"
    assert "models/encoder/weights.safetensors" in parts["files.txt"]
    assert load_config(parts["run.toml"]).pick == finished_run.config.pick
    assert all(name in parts["README.txt"] for name in bundle.parts)
    assert (tmp_path / "b.zip").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["b.zip"]


def test_logs_of_the_last_drives(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    ids = [f"2026010{day}-000000-abcdef" for day in range(1, 5)]
    for run_id in ids:
        line = json.dumps({"event": "DriverStarted", "run": run_id, "level": "info"}).encode() + b"\n"
        run.folder.write_bytes(f"logs/{segment_name(run_id, 0)}", line)
        run.folder.write_bytes(f"logs/{segment_name(run_id, 1)}", b'{"event": "Message"}\n{"torn')
    make_bundle(run.folder.url, tmp_path / "b.zip", last=2)
    parts = parts_of(tmp_path / "b.zip")
    assert [n for n in parts if n.startswith("logs/")] == [f"logs/events-{i}.jsonl" for i in ids[2:]]
    lines = [json.loads(line)["event"] for line in parts[f"logs/events-{ids[3]}.jsonl"].splitlines()]
    assert lines == ["DriverStarted", "Message", "TornLine"]
    make_bundle(run.folder.url, tmp_path / "none.zip", last=0)
    assert not [n for n in parts_of(tmp_path / "none.zip") if n.startswith("logs/")]


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "LOG_BYTES", 1000)
    run = bare_run(tmp_path / "run")
    for segment in range(5):
        lines = "".join(json.dumps({"n": 100 * segment + n, "dask": "x"}) + "\n" for n in range(100))
        run.folder.write_bytes(f"logs/{segment_name(RUN_ID, segment)}", lines.encode())
    make_bundle(run.folder.url, tmp_path / "b.zip")
    lines = [json.loads(x) for x in parts_of(tmp_path / "b.zip")[f"logs/events-{RUN_ID}.jsonl"].splitlines()]
    assert lines[0]["n"] == 0
    assert lines[1]["event"] == "LinesLeftOut"
    assert [x["n"] for x in lines[2:]] == list(range(500 - len(lines) + 2, 500))


def test_many_files_are_counted(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    (tmp_path / "run" / "picks").mkdir()
    for number in range(100):
        (tmp_path / "run" / "picks" / f"{number:03}.parquet").write_bytes(b"12345")
    make_bundle(run.folder.url, tmp_path / "b.zip")
    text = parts_of(tmp_path / "b.zip")["files.txt"]
    assert "picks/  100 files, 500 bytes" in text
    assert "picks/039.parquet" in text
    assert "picks/040.parquet" not in text
    assert "and 60 more" in text


def test_units_that_are_done_are_counted_only(finished_run: Run) -> None:
    status = support._trimmed(support._status(finished_run))
    assert all(stage["units"] == [] for stage in status["stages"])
    assert all(stage["units_left_out"] for stage in status["stages"])


# -- runs in any state --------------------------------------------------------------------------------------


def test_a_broken_run(copied_run: Run, tmp_path: Path) -> None:
    place = Path(copied_run.folder.url)
    (place / "run.toml").write_text("[pick\nthreshold = 3 # hunter2-hunter2\n")
    (place / "models" / "encoder" / "model.toml").write_bytes(b"\xff\xfe")
    (place / "ledger" / "driver.json").write_text("{torn")
    bundle = make_bundle(str(place), tmp_path / "b.zip")
    parts = parts_of(tmp_path / "b.zip")
    assert "no valid TOML" in parts["run.toml"]
    assert "files.txt" in parts
    assert {text.partition(":")[0] for text in bundle.left_out} >= {
        "status.json",
        "models/encoder/model.toml",
    }
    assert all(text in parts["README.txt"] for text in bundle.left_out)


def test_a_run_without_run_toml(tmp_path: Path) -> None:
    (tmp_path / "run" / "logs").mkdir(parents=True)
    bundle = make_bundle(str(tmp_path / "run"), tmp_path / "b.zip")
    assert any(text.startswith("run.toml: FileNotFoundError") for text in bundle.left_out)


def test_a_run_that_is_going_on(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    made: list[support.Bundle] = []

    def look(event: Event) -> None:
        if isinstance(event, TaskEnded) and event.stage == "pick" and not made:
            made.append(make_bundle(run.folder.url, tmp_path / "b.zip"))

    run_pipeline(run, Options(executor="serial", until="pick"), listeners=(look,))
    assert made[0].left_out == []
    parts = parts_of(tmp_path / "b.zip")
    assert json.loads(parts["status.json"])["driver"]["alive"]
    assert json.loads(parts["engines.json"])["lock"]["pid"] == os.getpid()


def test_nothing_in_the_run_changes(copied_run: Run, tmp_path: Path) -> None:
    place = Path(copied_run.folder.url)

    def tree() -> dict[str, Any]:
        return {str(p): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in place.rglob("*")}

    before = tree()
    make_bundle(str(place), tmp_path / "b.zip")
    assert tree() == before


@pytest.fixture
def bucket() -> Iterator[str]:
    """A place in an object store that lives in memory."""
    store = fsspec.filesystem("memory")
    yield "memory://bucket"
    if store.exists("/bucket"):
        store.rm("/bucket", recursive=True)


def test_a_run_on_an_object_store(finished_run: Run, bucket: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(finished_run.folder.url + "/", "/bucket/run/", recursive=True)
    bundle = make_bundle(f"{bucket}/run", tmp_path / "b.zip")
    assert bundle.left_out == []
    parts = parts_of(tmp_path / "b.zip")
    assert json.loads(parts["status.json"])["complete"]
    assert "models/encoder/weights.safetensors" in parts["files.txt"]
    assert sum(name.startswith("logs/") for name in parts) == 2


def test_a_target_that_is_there_or_cannot_be(tmp_path: Path) -> None:
    run = bare_run(tmp_path / "run")
    (tmp_path / "b.zip").write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match="exists"):
        make_bundle(run.folder.url, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == b"mine"
    with pytest.raises(ConfigurationError, match="cannot be written"):
        make_bundle(run.folder.url, tmp_path / "nowhere" / "b.zip")
    with pytest.raises(StateError, match="nothing at"):
        make_bundle(str(tmp_path / "no-run"), tmp_path / "c.zip")
