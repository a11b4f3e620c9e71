"""Folders: whole objects, atomic writes, the same on a path and on an fsspec URL."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryoscale.data.folder import Folder
from cryoscale.errors import StateError


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder.of(tmp_path / "place")
        return
    made = Folder.of(f"memory://test-{uuid.uuid4().hex}")
    yield made
    made.delete()


def test_objects_come_back(folder: Folder) -> None:
    assert not folder.exists()
    assert folder.names() == []
    assert folder.size_bytes() == 0
    folder.write_bytes("a/b.bin", b"one")
    folder.write_bytes("a/b.bin", b"three")
    folder.write_json("c.json", {"y": 1, "x": [2]})
    folder.write_toml("d.toml", {"t": {"k": 1.5}})
    assert folder.read_bytes("a/b.bin") == b"three"
    assert folder.read_json("c.json") == {"x": [2], "y": 1}
    assert folder.read_toml("d.toml") == {"t": {"k": 1.5}}
    assert folder.names() == ["a", "c.json", "d.toml"]
    assert folder.names("a") == folder.child("a").names() == ["b.bin"]
    assert folder.exists("a")
    assert folder.exists("a/b.bin")
    assert folder.size_bytes() == sum(len(folder.read_bytes(n)) for n in ("a/b.bin", "c.json", "d.toml"))
    with folder.open_read("a/b.bin") as stream:
        stream.seek(2)
        assert stream.read() == b"ree"


def test_missing_objects(folder: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("none")
    folder.delete("none")
    folder.delete()
    assert folder.names("none/below") == []


def test_delete_objects_and_whole_folders(folder: Folder) -> None:
    for name in ("a/b", "a/c", "d"):
        folder.write_bytes(name, b"x")
    folder.delete("a/b")
    assert folder.names("a") == ["c"]
    folder.delete("a")
    assert folder.names() == ["d"]
    folder.delete()
    assert not folder.exists()


def test_folders_travel(folder: Folder) -> None:
    folder.write_bytes("a", b"x")
    assert pickle.loads(pickle.dumps(folder)).read_bytes("a") == b"x"


def test_broken_toml_is_named(folder: Folder) -> None:
    for data in (b"a = [", b"\xff\xfe"):
        folder.write_bytes("run.toml", data)
        with pytest.raises(StateError, match=r"run\.toml is not valid TOML"):
            folder.read_toml("run.toml")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder.of("run").url == str(tmp_path / "run")
    assert Folder.of(f"file://{tmp_path}/run").is_local
    assert not Folder.of("s3://bucket/run/").is_local
    assert Folder.of("s3://bucket/run/").url == "s3://bucket/run"


def test_readers_see_whole_objects_only(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    versions = [bytes([v]) * 300_000 for v in range(2)]
    folder.write_bytes("object", versions[0])
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            data = folder.read_bytes("object")
            if data not in versions:
                torn.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        folder.write_bytes("object", versions[turn % 2])
    stop.set()
    reader.join()
    assert not torn


def test_failed_write_leaves_the_old_object_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.of(tmp_path)
    folder.write_bytes("object", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_bytes("object", b"new")
    assert folder.read_bytes("object") == b"old"
    assert os.listdir(tmp_path) == ["object"]


def test_leavings_of_a_killed_write_are_not_listed(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    (tmp_path / ".tmp-abc.partial").write_bytes(b"half")
    folder.write_bytes("object", b"whole")
    assert folder.names() == ["object"]


def test_written_objects_are_readable_by_the_group(tmp_path: Path) -> None:
    """`mkstemp` makes files of mode 600; a run on a shared file system is read by colleagues."""
    before = os.umask(0o022)
    try:
        Folder.of(tmp_path).write_bytes("object", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "object").stat().st_mode) == 0o644


def test_free_bytes_of_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    assert (Folder.of(tmp_path / "a/b").free_bytes() or 0) > 0
    assert Folder.of("memory://x").free_bytes() is None


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = Folder.of(tmp_path / "place"), os.scandir
    assert folder.files() == []
    for name in ("a/x", "b/x"):
        folder.write_bytes(name, b"")
    code = errno.ENOENT

    def scandir(place: str) -> Iterator[os.DirEntry[str]]:
        if str(place).endswith("/b"):
            raise OSError(code, os.strerror(code), place)
        return plain(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert folder.files() == ["a/x"], "it went meanwhile"
    code = errno.ESTALE
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        folder.files()
