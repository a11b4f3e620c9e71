"""Picks, encodings, assignments, named arrays: what is written comes back, with the same bytes each time."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cryoscale.data import rows
from cryoscale.data.arrays import read_arrays, write_arrays
from cryoscale.data.folder import Folder
from cryoscale.data.rows import (
    Encodings,
    Picks,
    count_picks,
    read_assignments,
    read_picks,
    write_assignments,
    write_picks,
)
from cryoscale.data.tables import concatenate, count_rows, read_table, write_table
from cryoscale.errors import FormatError, LayoutError, StateError


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder.of(tmp_path)
        return
    made = Folder.of(f"memory://tables-{uuid.uuid4().hex}")
    yield made
    made.delete()


def columns(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    names = np.array(["background", "ribosome", "Å"])[rng.integers(0, 3, count)]
    return {"z": rng.normal(size=count), "id": rng.integers(0, 9, count).astype(np.int32), "name": names}


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_table_comes_back_with_its_types(folder: Folder, count: int) -> None:
    written = columns(count)
    write_table(folder, "t.parquet", written, notes={"unit": "angstrom"})
    table = read_table(folder, "t.parquet")
    assert list(table) == list(written)
    for key, value in written.items():
        assert table[key].tolist() == value.tolist()
    assert table["id"].dtype == np.int32
    assert count_rows(folder, "t.parquet") == count


def test_same_columns_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_table(Folder.of(tmp_path), name, columns(500), notes={"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = columns(500)
    other["z"][17] += 1
    write_table(Folder.of(tmp_path), "c", other, notes={"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_missing_or_broken_table_is_named(folder: Folder) -> None:
    with pytest.raises(StateError, match=r"none\.parquet does not exist"):
        read_table(folder, "none.parquet")
    folder.write_bytes("bad.parquet", b"PAR1 not really")
    with pytest.raises(StateError, match=r"bad\.parquet is not a readable parquet"):
        read_table(folder, "bad.parquet")


def test_concatenate() -> None:
    joined = concatenate([columns(3), columns(0), columns(2)])
    assert len(joined["z"]) == len(joined["name"]) == 5
    assert concatenate([]) == {}


@pytest.mark.parametrize("count", [0, 7])
def test_picks_come_back(folder: Folder, count: int) -> None:
    rng = np.random.default_rng(0)
    picks = Picks(rng.normal(size=(count, 3)) * 1e4, rng.normal(size=count).astype(np.float32))
    write_picks(folder, "alpha", picks)
    again = read_picks(folder, "alpha")
    assert np.array_equal(again.positions_N3, picks.positions_N3)
    assert np.array_equal(again.scores_N, picks.scores_N)
    assert len(again) == count_picks(folder, "alpha") == count


def test_assignments_come_back(folder: Folder) -> None:
    write_assignments(folder, "alpha", np.array([3, 0], np.int32), np.array([0.5, 2], np.float32))
    ids, distances = read_assignments(folder, "alpha")
    assert ids.tolist() == [3, 0]
    assert distances.tolist() == [0.5, 2]


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS_PER_BLOCK", 16)


@pytest.mark.usefixtures("few_rows")
def test_encodings_are_written_by_whole_blocks(folder: Folder) -> None:
    encodings = Encodings(folder.child("alpha.zarr"))
    with pytest.raises(StateError, match="does not exist"):
        _ = encodings.shape
    encodings.create(40, 3)
    assert encodings.shape == (40, 3)
    data = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    encodings.write(32, data[32:])
    encodings.write(0, data[:32])
    assert np.array_equal(encodings.read(), data)
    assert np.array_equal(encodings.read(5, 35), data[5:35])
    for start, count in ((8, 16), (0, 15), (32, 7)):
        with pytest.raises(LayoutError):
            encodings.write(start, data[:count])


@pytest.mark.usefixtures("few_rows")
def test_torn_block_of_encodings_is_recovered(tmp_path: Path) -> None:
    encodings = Encodings(Folder.of(tmp_path / "alpha.zarr"))
    encodings.create(20, 3)
    data = np.ones((16, 3), np.float32)
    encodings.write(0, data)
    (tmp_path / "alpha.zarr/c/0/0").write_bytes(b"torn")
    encodings.write(0, data)
    assert np.array_equal(encodings.read(0, 16), data)


def test_no_picks_no_encodings(folder: Folder) -> None:
    encodings = Encodings(folder.child("alpha.zarr"))
    encodings.create(0, 8)
    assert encodings.shape == (0, 8)
    assert encodings.read().shape == (0, 8)


def test_named_arrays_come_back_with_the_same_bytes(folder: Folder) -> None:
    arrays = {"b": np.arange(6).reshape(2, 3)[:, ::2], "a": np.float32([1.5])}
    write_arrays(folder, "x.safetensors", arrays)
    write_arrays(folder, "y.safetensors", dict(reversed(arrays.items())))
    assert folder.read_bytes("x.safetensors") == folder.read_bytes("y.safetensors")
    again = read_arrays(folder, "x.safetensors")
    assert again["b"].tolist() == [[0, 2], [3, 5]]
    with pytest.raises(StateError, match="none does not exist"):
        read_arrays(folder, "none")
    folder.write_bytes("bad", b"\x05")
    with pytest.raises(FormatError, match="bad is not a readable safetensors"):
        read_arrays(folder, "bad")
