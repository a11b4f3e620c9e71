"""A disk really full, a file system really read-only, a store that refuses: nothing is condemned."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cryoscale.data.folder import Folder
from cryoscale.data.ledger import unit_states
from cryoscale.data.run import Run
from cryoscale.errors import SurroundingsError
from cryoscale.pipeline import marking
from cryoscale.runtime.events import Event, Paused
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.faults import FullDisk
from tests.pipeline.driving import drive, settle

MOUNTED = """
set -e
mkdir -p "$PLACE"
mount -t tmpfs -o size=3m tmpfs "$PLACE"
cp "$RUN/run.toml" "$PLACE/"
exec "$@"
"""

READ_ONLY = """
set -e
mount --bind "$RUN" "$RUN"
mount -o remount,ro,bind "$RUN"
"$PYTHON" -c 'import sys; open(sys.argv[1] + "/x", "w")' "$RUN" 2>/dev/null && exit 99
exec "$@"
"""

FILL = """
import os, sys
place = sys.argv[1]
with open(place + "/filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
    filler.truncate(max(0, os.fstat(filler.fileno()).st_size - int(sys.argv[2])))
"""

GOES_ON = (
    FILL
    + """
from cryoscale.data.ledger import unit_states
from cryoscale.data.run import Run
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.runtime.events import Paused

said = []
def look(event):
    if isinstance(event, Paused):
        said.append(event.reason)
        if len(said) == 2 and os.path.exists(place + "/filler"):
            os.unlink(place + "/filler")  # somebody makes room

run = Run.at(place)
result = run_pipeline(run, Options(executor="serial", until="ingest"), listeners=(look,))
assert result.exit_code == 0, result
assert len(said) >= 2 and "No space left" in said[0], said
assert not [s for s in unit_states(run.ledger) if s.quarantined or s.state == "failed"]
print("went on")
"""
)

CLI = "from cryoscale.cli import main; main()"


def in_a_mount_space(
    script: str, words: list[str], run: Run, place: Path
) -> subprocess.CompletedProcess[str]:
    """Run words where this test's mounts are, and nowhere else; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    environment = {**os.environ, "RUN": run.folder.url, "PLACE": str(place), "PYTHON": sys.executable}
    trial = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"no mount namespace here: {trial.stderr}")
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *words],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_a_full_disk_is_said_before_anything_begins(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run, place = make_run(), tmp_path / "small"
    code = FILL + "sys.argv[1:] = ['run', place, '--executor', 'serial']\n" + CLI
    ended = in_a_mount_space(MOUNTED, [sys.executable, "-c", code, str(place), "0"], run, place)
    assert ended.returncode == 75, ended
    assert f"cannot write into {place}: No space left on device" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_disk_that_fills_up_pauses_the_run_until_there_is_room(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run, place = make_run("execution.pauses=6"), tmp_path / "small"
    words = [sys.executable, "-c", GOES_ON, str(place), "300000"]
    ended = in_a_mount_space(MOUNTED, words, run, place)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "went on" in ended.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "RUN", "--executor", "serial"], 75, "cannot write into RUN: Read-only file system"),
        (["status", "RUN"], 0, ""),
        (["status", "RUN", "--json"], 0, ""),
        (["run", "RUN", "--dry-run"], 0, ""),
        (["report", "RUN", "--most-tomograms", "0"], 75, "--to FOLDER"),
        (["report", "RUN", "--most-tomograms", "0", "--to", "TO"], 0, ""),
    ],
)
def test_a_run_that_is_read_only_can_be_looked_at(
    copied_run: Run, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    names = {"RUN": copied_run.folder.url, "TO": str(tmp_path / "report")}
    words = [names.get(word, word) for word in words]
    ended = in_a_mount_space(READ_ONLY, [sys.executable, "-c", CLI, *words], copied_run, tmp_path)
    assert ended.returncode == code, ended
    assert said.replace("RUN", copied_run.folder.url) in ended.stderr
    assert "Traceback" not in ended.stderr


# -- what the driver itself writes --------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks are written as soon as a block ends, as they are where blocks take their time."""
    monkeypatch.setattr(marking, "SHORTEST_S", 0.0)
    monkeypatch.setattr(marking, "SHARE", 0.0)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("what", ["/marks/", "/created", "plan.json", "sealed.json", "zarr.json"])
def test_what_the_driver_cannot_write_for_a_while_delays_it(
    make_run: Callable[..., Run], finished_run: Run, what: str
) -> None:
    run = make_run()
    disk = FullDisk(lambda path: disk.refused < 2 and what in path)
    with disk.mounted():
        ended = drive(run, until="pick")
    assert ended.exit_code == 0
    assert not ended.failures
    assert disk.refused == len(pauses(ended.events)) == 2
    mine, whole = artifact_digest(run), artifact_digest(finished_run)
    both = [key for key in mine if key in whole and "labels" not in key]
    assert not differences({k: mine[k] for k in both}, {k: whole[k] for k in both})
    assert not drive(run, until="pick").tasks


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("what", ["plan.json", "sealed.json", "/marks/"])
def test_what_it_cannot_write_for_good_stops_it_with_the_work_kept(
    make_run: Callable[..., Run], what: str
) -> None:
    run = make_run()
    disk = FullDisk(lambda path: what in path)
    with disk.mounted(), pytest.raises(SurroundingsError, match=r"No space left .*work kept") as caught:
        drive(run, until="ingest")
    assert what.strip("/") in str(caught.value)
    assert not run.folder.exists("ledger/driver.json")
    assert not [s for s in unit_states(run.ledger) if s.quarantined or s.state == "failed"]
    assert drive(run, until="ingest").exit_code == 0


def test_a_failure_that_cannot_be_recorded_yet_is_recorded_later(
    make_run: Callable[..., Run], small_sources: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.mrc").write_bytes(small_sources[0].read_bytes()[:5000])
    run = make_run(sources=[small_sources[0], tmp_path / "bad.mrc"])
    disk = FullDisk(lambda path: disk.refused < 2 and "failed.json" in path)
    with disk.mounted():
        ended = drive(run, until="ingest")
    assert disk.refused == 2
    assert ended.sealed["ingest"] == 1
    assert [f["tomogram"] for f in ended.failures] == ["bad"]
    assert [s.unit for s in unit_states(run.ledger) if s.state == "failed"] == ["bad"]


def pauses(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, Paused)]


# -- object stores ------------------------------------------------------------------------------------------


class Refusing:
    """An object store in memory that answers with an error for a while, as its client would raise it."""

    def __init__(self, errors: list[Exception], what: str) -> None:
        self.errors, self.what = errors, what

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        store: Any = fsspec.get_filesystem_class("memory")
        plain = store.pipe_file

        def pipe_file(filesystem: Any, path: str, value: bytes, **words: Any) -> None:
            if self.what in path and self.errors:
                raise self.errors.pop(0)
            plain(filesystem, path, value, **words)

        store.pipe_file = pipe_file
        try:
            yield
        finally:
            store.pipe_file = plain


@pytest.fixture
def remote_run(make_run: Callable[..., Run]) -> Run:
    run = Run.at(f"memory://{uuid.uuid4().hex}")
    run.folder.write_bytes("run.toml", make_run().folder.read_bytes("run.toml"))
    return run


def refusals() -> list[Exception]:
    exceptions = pytest.importorskip("botocore.exceptions")
    slow = {"Error": {"Code": "SlowDown", "Message": "Please reduce your request rate."}}
    return [
        exceptions.ClientError(slow, "PutObject"),
        PermissionError(13, "Access Denied"),
    ]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("what", ["/0/c/", "/marks/", "sealed.json", "picks"])
def test_a_store_that_refuses_for_a_while_delays_the_run(remote_run: Run, what: str) -> None:
    store = Refusing(refusals(), what)
    with store.mounted():
        ended = drive(remote_run, until="pick")
    assert ended.exit_code == 0, ended.failures
    assert not store.errors
    assert len(pauses(ended.events)) == 2
    assert not drive(remote_run, until="pick").tasks


def test_a_store_that_takes_nothing_is_named(remote_run: Run) -> None:
    settle(remote_run)
    with Refusing(refusals(), "ledger").mounted(), pytest.raises(SurroundingsError, match=r"SlowDown.*Check"):
        drive(remote_run, until="ingest")
    with (
        Refusing(refusals()[1:], "ledger").mounted(),
        pytest.raises(SurroundingsError, match=r"cannot write into memory://.*: Access Denied"),
    ):
        drive(remote_run, until="ingest")
    assert remote_run.folder.names("ledger") == []
    assert Folder.of(remote_run.folder.url).exists("run.toml")
