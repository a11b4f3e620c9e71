"""Who may not write any more writes nothing; shards are replaced in one step, and never missing."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from cryoscale.data import fence as fence_module
from cryoscale.data.fence import REMOTE_SECONDS, Fence
from cryoscale.data.folder import Folder
from cryoscale.data.objects import write_parts
from cryoscale.data.pyramid import Pyramid, open_store, pyramid_levels
from cryoscale.data.rows import ROWS_PER_BLOCK, Encodings
from cryoscale.data.subtomograms import ROWS_PER_SHARD, Subtomograms
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import OvertakenError
from cryoscale.geometry import Box
from cryoscale.runtime.task import classify


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder.of(f"memory://{uuid.uuid4().hex}" if request.param == "memory" else tmp_path)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time as the fence sees it."""
    now = [0.0]
    monkeypatch.setattr(fence_module, "_now", lambda: now[0])
    monkeypatch.setattr(fence_module, "_passed", {})
    return now


def fenced(run: Folder) -> tuple[Folder, Folder]:
    """A folder with a fence, and the unit that it asks for."""
    unit = run.child("ledger", "pick", "a", "key")
    unit.write_bytes("created", b"")
    return Folder(run.child("parts").url, Fence(unit, "created")), unit


def test_what_belongs_to_somebody_else_meanwhile_is_not_written(run: Folder, seconds: list[float]) -> None:
    folder, unit = fenced(run)
    folder.write_bytes("x", b"old")
    folder.child("below").write_bytes("y", b"old")
    unit.delete()
    seconds[0] += REMOTE_SECONDS
    for refused in (
        lambda: folder.write_bytes("x", b"new"),
        lambda: folder.child("below").write_bytes("y", b"new"),
        lambda: write_parts(folder, "x", [b"new"]),
        lambda: folder.delete("x"),
        lambda: open_store(folder, read_only=False),
    ):
        with pytest.raises(OvertakenError, match="created is gone: another driver began this with other"):
            refused()
    assert folder.read_bytes("x") == folder.read_bytes("below/y") == b"old"
    assert folder.names() == ["below", "x"]


def test_it_looks_again_when_making_the_bytes_took_long(tmp_path: Path) -> None:
    folder, unit = fenced(Folder.of(tmp_path))
    folder.write_bytes("x", b"old")

    def parts() -> Iterator[bytes]:
        yield b"ne"
        unit.delete("created")
        yield b"w"

    with pytest.raises(OvertakenError):
        write_parts(folder, "x", parts())
    assert folder.read_bytes("x") == b"old"
    assert [p.name for p in Path(folder.url).iterdir()] == ["x"]


def test_on_an_object_store_it_asks_once_a_second(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = fenced(Folder.of(f"memory://{uuid.uuid4().hex}"))
    asked: list[str] = []
    plain = Folder.read_bytes

    def read(where: Folder, name: str) -> bytes:
        asked.append(name)
        return plain(where, name)

    monkeypatch.setattr(Folder, "read_bytes", read)
    for _ in range(5):
        folder.write_bytes("x", b"1")
    seconds[0] += REMOTE_SECONDS
    folder.write_bytes("x", b"1")
    assert asked == ["created"] * 2


def test_it_is_a_fault_of_the_surroundings_that_travels(run: Folder) -> None:
    folder, unit = fenced(run)
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.fence == folder.fence
    assert folder == Folder(folder.url), "where a folder is does not depend on who may write"
    unit.delete()
    fence_module._passed.clear()
    with pytest.raises(OvertakenError) as caught:
        copy.write_bytes("x", b"")
    assert classify(caught.value) == "surroundings"


def test_another_cut_of_the_same_key_is_somebody_elses(run: Folder, seconds: list[float]) -> None:
    unit = run.child("ledger", "pick", "a", "key")
    old, new = (Folder(run.child("parts").url, Fence(unit, "created", plan)) for plan in ("old", "new"))
    unit.write_bytes("created", b"")
    old.write_bytes("x", b"1")  # a ledger from before cuts were named
    seconds[0] += REMOTE_SECONDS
    unit.write_bytes("created", b"new")
    new.write_bytes("x", b"2")
    with pytest.raises(OvertakenError, match="created is of other blocks"):  # within the same second, too
        old.write_bytes("x", b"3")
    assert run.read_bytes("parts/x") == b"2"


def test_what_is_sealed_may_not_be_written_again_where_that_ends_the_right(
    run: Folder, seconds: list[float]
) -> None:
    _, unit = fenced(run)
    folder = Folder(run.child("models").url, Fence(unit, "created", until="sealed.json"))
    folder.write_bytes("x", b"1")
    unit.write_bytes("sealed.json", b"{}")
    seconds[0] += REMOTE_SECONDS
    with pytest.raises(OvertakenError, match=r"sealed\.json stands"):
        folder.write_bytes("x", b"2")


def test_weights_are_not_written_on_an_earlier_look(run: Folder, seconds: list[float]) -> None:
    """On an object store one look counts for a second; before hours of work are replaced it is not enough."""
    _, unit = fenced(run)
    model = ModelFolder(Folder(run.child("models").url, Fence(unit, "created", until="sealed.json")))
    model.write_progress({"epoch": 1})
    state, history = {"w": torch.zeros(2)}, {"epoch": np.array([1])}
    model.save(state, {}, history)
    before = model.folder.read_bytes("model.toml")
    model.write_progress({"epoch": 2})
    unit.write_bytes("sealed.json", b"{}")
    with pytest.raises(OvertakenError):
        model.save({"w": torch.ones(2)}, {}, history)
    assert model.folder.read_bytes("model.toml") == before
    assert model.load()["w"].tolist() == [0, 0]


class Watching:
    """Sees whether a key was deleted before it was written again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deleted: list[str] = []
        plain = Folder.delete

        def delete(folder: Folder, name: str = "") -> None:
            self.deleted.append(name)
            plain(folder, name)

        monkeypatch.setattr(Folder, "delete", delete)


def test_shards_are_replaced_and_never_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyramid = Pyramid(Folder.of(tmp_path / "a"), writable=True)
    pyramid.create(pyramid_levels((20, 20, 20), 10.0, count=1), np.float32, chunk=8, shard=16, image=True)
    encodings, boxes = Encodings(Folder.of(tmp_path / "b")), Subtomograms(Folder.of(tmp_path / "c"))
    encodings.create(ROWS_PER_BLOCK + 5, 3)
    boxes.create(ROWS_PER_SHARD + 5, 4)
    watching = Watching(monkeypatch)
    rng = np.random.default_rng(0)
    for _ in range(2):
        volume = rng.normal(size=(20, 20, 20)).astype(np.float32)
        pyramid.write(0, Box.whole((20, 20, 20)), volume)
        codes = rng.normal(size=(ROWS_PER_BLOCK + 5, 3)).astype(np.float32)
        encodings.write(0, codes)
        cut = rng.normal(size=(5, 4, 4, 4)).astype(np.float32)
        boxes.write(ROWS_PER_SHARD, {"data": cut})
        assert (pyramid.read(0, Box.whole((20, 20, 20))) == volume).all()
        assert (encodings.read() == codes).all()
        assert (boxes.read("data", slice(ROWS_PER_SHARD, None)) == cut).all()
    assert watching.deleted == []


@pytest.mark.parametrize("empty", [False, True])
def test_rows_are_the_bytes_that_zarr_writes(tmp_path: Path, empty: bool) -> None:
    count = 2 * ROWS_PER_BLOCK + 7
    codes = np.random.default_rng(1).normal(size=(count, 5)).astype(np.float32)
    codes[ROWS_PER_BLOCK : 2 * ROWS_PER_BLOCK] *= not empty
    ours, theirs = (Encodings(Folder.of(tmp_path / name)) for name in "ab")
    for encodings in (ours, theirs):
        encodings.create(count, 5)
    ours.write(0, codes[: 2 * ROWS_PER_BLOCK])
    ours.write(2 * ROWS_PER_BLOCK, codes[2 * ROWS_PER_BLOCK :])
    zarr.open_array(zarr.storage.LocalStore(tmp_path / "b"), mode="r+")[:] = codes
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "a" / "c" / "1").exists() or empty


def test_boxes_are_the_bytes_that_zarr_writes(tmp_path: Path) -> None:
    count = ROWS_PER_SHARD + 20
    rng = np.random.default_rng(2)
    values = {
        "data": rng.normal(size=(count, 4, 4, 4)).astype(np.float32),
        "density": np.zeros((count, 4, 4, 4), np.float32),
        "mask": (rng.random((count, 4, 4, 4)) > 0.5).astype(np.uint8),
    }
    for name in "ab":
        Subtomograms(Folder.of(tmp_path / name)).create(count, 4)
    for first in (0, ROWS_PER_SHARD):
        some = {name: array[first : first + ROWS_PER_SHARD] for name, array in values.items()}
        Subtomograms(Folder.of(tmp_path / "a")).write(first, some)
    for name, array in values.items():
        zarr.open_array(zarr.storage.LocalStore(tmp_path / "b"), path=name, mode="r+")[:] = array
    assert files(tmp_path / "a") == files(tmp_path / "b")


def files(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
