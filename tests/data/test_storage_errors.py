"""What storage refuses is one sentence; and of several drivers that start at one moment one gets the run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from cryoscale.config import RunConfig
from cryoscale.data import lock as lock_module
from cryoscale.data.folder import Folder
from cryoscale.data.holder import this_kernel
from cryoscale.data.ledger import UnitLedger
from cryoscale.data.lock import LOCK, DriverLock
from cryoscale.data.run import Run
from cryoscale.data.tables import count_rows, write_table
from cryoscale.errors import ConfigurationError, StateError, SurroundingsError


def test_unknown_storage_is_misuse() -> None:
    with pytest.raises(ConfigurationError, match="foo://x cannot be reached"):
        Run.open("foo://x")


def test_what_a_storage_client_says_is_an_error_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("botocore.exceptions")

    def refuse(*_: object, **__: object) -> bytes:
        raise exceptions.NoCredentialsError

    folder = Folder.of(f"memory://{uuid.uuid4().hex}")
    with folder._remote() as (filesystem, _):
        monkeypatch.setattr(type(filesystem), "cat_file", refuse)
    with pytest.raises(SurroundingsError, match=r"Unable to locate credentials\. Check .* credentials"):
        folder.read_bytes("x")


def test_run_toml_that_is_not_utf8_or_cannot_be_read(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    run.folder.write_bytes("run.toml", b"version = 1 # \xe9\n")
    with pytest.raises(ConfigurationError, match=r"run\.toml is not UTF-8 text: .* at byte 14"):
        _ = run.config
    run.folder.delete("run.toml")
    (tmp_path / "run.toml").mkdir()
    with pytest.raises(SurroundingsError, match=r"run\.toml cannot be read: Is a directory"):
        _ = run.config


@pytest.mark.parametrize("data", [b"", b"{", b"\xff"])
def test_damaged_records_are_named(tmp_path: Path, data: bytes) -> None:
    unit = UnitLedger(Folder.of(tmp_path), "pick", "a", "k")
    unit.folder.write_bytes("sealed.json", data)
    with pytest.raises(StateError, match=r"sealed\.json is damaged: .* Remove the file"):
        _ = unit.sealed


def test_rows_of_a_table_that_is_missing_or_damaged(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    with pytest.raises(StateError, match=r"a\.parquet does not exist"):
        count_rows(folder, "a.parquet")
    write_table(folder, "a.parquet", {"x": np.arange(3)})
    assert count_rows(folder, "a.parquet") == 3
    folder.write_bytes("a.parquet", b"no table")
    with pytest.raises(StateError, match=r"a\.parquet is not a readable parquet file"):
        count_rows(folder, "a.parquet")


@pytest.fixture(params=["local", "no links", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no hard links here")

    if request.param == "memory":
        return Folder.of(f"memory://{uuid.uuid4().hex}")
    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)
    return Folder.of(tmp_path)


def test_an_object_is_created_once_and_taken_once(folder: Folder) -> None:
    assert folder.create_bytes("a/b", b"first")
    assert not folder.create_bytes("a/b", b"second")
    assert folder.read_bytes("a/b") == b"first"
    if folder.is_local:
        assert not folder.take("a/b", b"what it held before")
        assert folder.read_bytes("a/b") == b"first"
    assert folder.take("a/b", b"first")
    assert not folder.exists("a/b")
    if folder.is_local:
        assert not folder.take("a/b", b"first")
        assert list(Path(folder.path("a")).iterdir()) == [], "temporary files were left"


RACE = """
import sys
from cryoscale.data.run import Run
from cryoscale.errors import ConfigurationError
run = Run.at(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with run.locked():
        print("mine", flush=True)
        sys.stdin.readline()
except ConfigurationError:
    print("refused", flush=True)
    sys.stdin.readline()
"""


def test_of_drivers_that_start_at_one_moment_one_gets_the_run(tmp_path: Path) -> None:
    run = Run.at(tmp_path)
    run.save_config(RunConfig())
    # and all of them find the lock of one that died
    dead = {"host": socket.gethostname(), "pid": 2**22 + 5, "heartbeat": time.time(), **this_kernel()}
    run.folder.write_json(f"ledger/{LOCK}", dead)
    words = [sys.executable, "-c", RACE, str(tmp_path)]
    drivers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
    said = [driver.stdout.readline().strip() for driver in drivers if driver.stdout]
    for driver in drivers:
        driver.communicate("\n")
    assert sorted(said) == ["mine", "refused", "refused", "refused"]


def test_on_an_object_store_the_last_to_write_has_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "SETTLE_SECONDS", 0.01)
    lock = DriverLock(Folder.of(f"memory://{uuid.uuid4().hex}"))
    real = Folder.create_bytes

    def create_and_be_overwritten(folder: Folder, name: str, data: bytes) -> bool:
        made = real(folder, name, data)
        folder.write_json(name, {"host": "elsewhere", "pid": 1, "heartbeat": time.time()})
        return made

    lock.acquire()
    lock.release()
    monkeypatch.setattr(Folder, "create_bytes", create_and_be_overwritten)
    with pytest.raises(ConfigurationError, match="elsewhere"):
        lock.acquire()


def test_what_cannot_be_compared_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.of(tmp_path)
    folder.write_bytes("lock", b"of another")
    plain, moved = Path.read_bytes, list[str]()

    def read(path: Path) -> bytes:
        moved.append(path.name)
        if path.name != "lock":
            raise OSError(116, "stale")
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert not folder.take("lock", b"of the dead")
    assert moved == ["lock"], "it was moved although it was seen to be another"
    with pytest.raises(OSError, match="stale"):
        folder.take("lock", b"of another")
    assert os.listdir(tmp_path) == ["lock"]
    assert folder.read_bytes("lock") == b"of another"
