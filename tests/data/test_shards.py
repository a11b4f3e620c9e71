"""Shards that we encode and decode ourselves, against zarr-python, zarrs and tensorstore."""

from __future__ import annotations

import itertools
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
import zarr.storage
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data import objects, shards, threads
from cryoscale.data.chunk_codecs import chunk_codec
from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Level, Pyramid
from cryoscale.data.shards import ShardLayout
from cryoscale.errors import FormatError, LayoutError, SurroundingsError
from cryoscale.geometry import Box, Grid, Zyx

DTYPES = ["int8", "uint8", "int16", "uint16", "float16", "float32"]
CODECS: dict[str, Any] = {
    "blosc": zarr.codecs.BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
    "blosc zstd": zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
    "blosc shuffle": zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
    "zstd": zarr.codecs.ZstdCodec(level=3),
    "zstd checksum": zarr.codecs.ZstdCodec(level=0, checksum=True),
    "none": None,
}
SHAPE, CHUNK, SHARD = (21, 16, 30), (8, 8, 8), (16, 16, 24)


def memory() -> Folder:
    return Folder.of(f"memory://shards-{uuid.uuid4().hex}")


def make(
    folder: Folder,
    shape: tuple[int, ...] = SHAPE,
    chunk: tuple[int, ...] = CHUNK,
    shard: tuple[int, ...] | None = SHARD,
    **options: Any,
) -> zarr.Array[Any]:
    """Make level 0 of a pyramid with zarr-python."""
    if folder.is_local:
        store: Any = zarr.storage.LocalStore(folder.url)
    else:
        store = zarr.storage.FsspecStore.from_url(folder.url)
    given = {"dtype": "int16", "compressors": CODECS["blosc"], "fill_value": 0} | options
    return zarr.create_array(store, name="0", shape=shape, chunks=chunk, shards=shard, **given)


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Noise with boxes of zeros in it."""
    rng = np.random.default_rng(seed)
    data = (rng.normal(0, 30, shape) + (60 if np.dtype(dtype).kind == "u" else 0)).clip(-120, 250)
    data[tuple(slice(0, n // 2) for n in shape)] = 0
    return np.clip(data, 0 if np.dtype(dtype).kind == "u" else -120, 120).astype(dtype)


def write(folder: Folder, data: np.ndarray) -> Pyramid:
    """Write level 0 shard by shard with our writer."""
    pyramid = Pyramid(folder, writable=True)
    assert pyramid.layout(0) is not None
    for box in Grid.of(data.shape, pyramid.write_unit(0)).boxes():
        pyramid.write(0, box, data[box.slices])
    return pyramid


def stored(folder: Folder) -> dict[str, bytes]:
    """The shards of level 0 by name."""
    paths = [path for path in Path(folder.url, "0/c").rglob("*") if path.is_file()]
    return {path.relative_to(folder.url).as_posix(): path.read_bytes() for path in paths}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Box]:
    shape = [draw(st.integers(1, 26)) for _ in range(3)]
    chunk = [draw(st.integers(1, 9)) for _ in range(3)]
    shard = [c * draw(st.integers(1, 3)) for c in chunk]
    low = [draw(st.integers(0, n - 1)) for n in shape]
    high = [draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True)]
    return tuple(shape), tuple(chunk), tuple(shard), Box.of(low, high)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from(DTYPES), st.sampled_from(list(CODECS)), st.integers(0, 9))
def test_what_we_write_zarr_reads_and_the_reverse(
    drawn: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], Box], dtype: str, codec: str, seed: int
) -> None:
    shape, chunk, shard, box = drawn
    data = noise(shape, dtype, seed)
    ours, theirs = memory(), memory()
    array = make(ours, shape, chunk, shard, dtype=dtype, compressors=CODECS[codec])
    write(ours, data)
    assert np.array_equal(array[:], data)
    make(theirs, shape, chunk, shard, dtype=dtype, compressors=CODECS[codec])[:] = data
    for folder in (ours, theirs):
        assert np.array_equal(Pyramid(folder).read(0, box), data[box.slices])
    ours.delete()
    theirs.delete()


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_are_those_of_zarr_python(tmp_path: Path, codec: str) -> None:
    """Not asked for by the specification, but then nothing can depend on who wrote an array."""
    data = noise(SHAPE, "float32")
    ours, theirs = Folder.of(tmp_path / "ours"), Folder.of(tmp_path / "theirs")
    make(ours, dtype="float32", compressors=CODECS[codec])
    write(ours, data)
    array = make(theirs, dtype="float32", compressors=CODECS[codec])
    for box in Grid.of(SHAPE, SHARD).boxes():
        array[box.slices] = data[box.slices]
    ours_bytes, theirs_bytes = stored(ours), stored(theirs)
    assert ours_bytes.keys() == theirs_bytes.keys()
    for name, content in ours_bytes.items():
        assert len(content) == len(theirs_bytes[name]), name  # chunks may stand in another order


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("codec", ["blosc", "zstd", "none"])
def test_zarrs_and_tensorstore_read_ours(tmp_path: Path, dtype: str, codec: str) -> None:
    zarrs = pytest.importorskip("zarrs")
    tensorstore = pytest.importorskip("tensorstore")
    assert zarrs
    folder = Folder.of(tmp_path)
    make(folder, dtype=dtype, compressors=CODECS[codec])
    data = noise(SHAPE, dtype)
    write(folder, data)
    with warnings.catch_warnings(), zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        warnings.simplefilter("ignore")
        assert np.array_equal(zarr.open_array(folder.url, path="0", mode="r")[:], data)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder.url}/0/"}}
    assert np.array_equal(tensorstore.open(spec).result().read().result(), data)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("local", [True, False])
def test_threads_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, local: bool
) -> None:
    monkeypatch.setenv("BLOSC_NTHREADS", str(count))
    assert threads.threads() == count
    folder = Folder.of(tmp_path) if local else memory()
    make(folder, dtype="float32")
    data = noise(SHAPE, "float32")
    pyramid = write(folder, data)
    box = Box.of((1, 2, 3), (20, 16, 29))
    assert np.array_equal(pyramid.read(0, box), data[box.slices])
    again = folder.read_bytes("0/c/1/0/1")
    monkeypatch.setenv("BLOSC_NTHREADS", "2")
    write(folder, data)
    assert folder.read_bytes("0/c/1/0/1") == again


def test_shard_of_nothing_is_no_object_and_minus_zero_is_something(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    make(folder, dtype="float32")
    data = np.zeros(SHAPE, np.float32)
    data[3, 3, 3] = 1
    pyramid = write(folder, data)
    assert sorted(stored(folder)) == ["0/c/0/0/0"]
    assert np.array_equal(pyramid.read(0, Box.whole(SHAPE)), data)
    data[:] = 0
    data[20, 15, 29] = -0.0
    write(folder, data)  # and what was there is gone
    assert sorted(stored(folder)) == ["0/c/1/0/1"]
    assert np.signbit(pyramid.read(0, Box.of((20, 15, 29), (21, 16, 30)))).all()


def test_other_fill_values(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    array = make(folder, fill_value=7)
    data = np.full(SHAPE, 7, np.int16)
    data[0, 0, 20] = 1
    pyramid = write(folder, data)
    assert sorted(stored(folder)) == ["0/c/0/0/0"]
    assert np.array_equal(pyramid.read(0, Box.whole(SHAPE)), data)
    assert np.array_equal(array[:], data)


FOREIGN: dict[str, dict[str, Any]] = {
    "no shards": {"shard": None},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "two codecs": {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()]},
    "big endian": {"serializer": zarr.codecs.BytesCodec(endian="big"), "compressors": None},
    "transposed": {"filters": [zarr.codecs.TransposeCodec(order=(2, 1, 0))]},
    "bool": {"dtype": "bool"},
    "zarr 2": {"shard": None, "zarr_format": 2, "compressors": None},
    "dots": {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_layouts_that_we_do_not_know_are_left_to_zarr(tmp_path: Path, name: str) -> None:
    folder = Folder.of(tmp_path)
    array = make(folder, **FOREIGN[name])
    data = noise(SHAPE, "int16").astype(array.dtype)
    array[:] = data
    pyramid = Pyramid(folder)
    assert pyramid.layout(0) is None
    box = Box.of((1, 2, 3), (20, 16, 29))
    assert np.array_equal(pyramid.read(0, box), data[box.slices])
    assert ShardLayout.of({}) is None


def test_unknown_layout_is_written_by_zarr(tmp_path: Path) -> None:
    array = make(Folder.of(tmp_path), compressors=zarr.codecs.GzipCodec())
    data = noise(SHAPE, "int16")
    pyramid = Pyramid(Folder.of(tmp_path), writable=True)
    for box in Grid.of(SHAPE, pyramid.write_unit(0)).boxes():
        pyramid.write(0, box, data[box.slices])
    assert np.array_equal(array[:], data)


@pytest.fixture(params=["local", "memory"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Folder, bytes]]:
    """Level 0 and the first of its shards."""
    folder = Folder.of(tmp_path) if request.param == "local" else memory()
    make(folder)
    data = noise(SHAPE, "int16")
    data[data == 0] = 1
    write(folder, data)
    yield folder, folder.read_bytes("0/c/0/0/0")
    folder.delete()


def entry(whole: bytes, number: int) -> tuple[int, int]:
    """Where a chunk of the first shard lies."""
    table = np.frombuffer(whole[-(16 * 12 + 4) : -4], "<u8").reshape(-1, 2)
    return int(table[number, 0]), int(table[number, 1])


def test_every_kind_of_damage_names_the_array_and_the_box(damaged: tuple[Folder, bytes]) -> None:
    folder, whole = damaged
    offset, length = entry(whole, 3)
    torn = {
        "empty": b"",
        "shorter than an index": whole[:50],
        "cut at the end": whole[:-1],
        "cut at the start": whole[1:],
        "index": whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
        "checksum": whole[:-1] + bytes([whole[-1] ^ 1]),
        "header of a chunk": whole[: offset + 4] + b"\xff\xff" + whole[offset + 6 :],
        "chunk": whole[:offset] + bytes(length) + whole[offset + length :],
    }
    box = Box.of((0, 8, 0), (9, 9, 9))
    for name, content in torn.items():
        folder.write_bytes("0/c/0/0/0", content)
        with pytest.raises(FormatError, match="level 0") as caught:
            Pyramid(folder).read(0, box)
        assert str(box) in str(caught.value), name
        assert folder.url in str(caught.value), name


def test_chunk_that_the_index_puts_beyond_the_end(damaged: tuple[Folder, bytes]) -> None:
    import google_crc32c

    folder, whole = damaged
    table = np.frombuffer(whole[-(16 * 12 + 4) : -4], "<u8").copy()
    table[0] = len(whole) - 5
    index = table.tobytes()
    bad = whole[: -len(index) - 4] + index + google_crc32c.value(index).to_bytes(4, "little")
    folder.write_bytes("0/c/0/0/0", bad)
    with pytest.raises(FormatError, match="ends before its chunk 0"):
        Pyramid(folder).read(0, Box.of((0, 0, 0), (1, 1, 1)))


def test_writer_that_dies_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.of(tmp_path)
    objects.write_parts(folder, "a/b", [b"old"])

    def dying() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        objects.write_parts(folder, "a/b", dying())
    assert folder.read_bytes("a/b") == b"old"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_layers_cover_a_block_once_and_are_never_deeper_than_a_chunk(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    make(folder)
    data = noise(SHAPE, "int16")
    asked: list[Box] = []

    def give(box: Box) -> np.ndarray:
        asked.append(box)
        return data[box.slices]

    pyramid = Pyramid(folder, writable=True)
    pyramid.write_layers(0, Box.whole(SHAPE), give)
    seen = np.zeros(SHAPE, int)
    for box in asked:
        assert box.shape.z <= CHUNK[0]
        seen[box.slices] += 1
    assert (seen == 1).all()
    assert np.array_equal(pyramid.read(0, Box.whole(SHAPE)), data)


def test_pieces_cover_a_box_once(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    make(folder)
    data = noise(SHAPE, "int16")
    write(folder, data)
    box = Box.of((1, 2, 3), (20, 16, 29))
    made, seen = np.zeros(box.shape), np.zeros(box.shape, int)

    def take(place: tuple[slice, ...], values: np.ndarray) -> None:
        made[place] = values
        seen[place] += 1

    Pyramid(folder).read_pieces(0, box, take)
    assert (seen == 1).all()
    assert np.array_equal(made, data[box.slices])


def test_reads_into_a_given_array_and_refuses_others(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    make(folder)
    data = noise(SHAPE, "int16")
    write(folder, data)
    box = Box.of((1, 2, 3), (20, 16, 29))
    out = np.empty(box.shape, np.int16)
    assert Pyramid(folder).read(0, box, out) is out
    assert np.array_equal(out, data[box.slices])
    with pytest.raises(LayoutError, match="does not fit"):
        Pyramid(folder).read(0, box, np.empty((1, 1, 1), np.int16))
    with pytest.raises(LayoutError, match="leaves"):
        Pyramid(folder).read(0, Box.of((0, 0, 0), (22, 1, 1)))
    with pytest.raises(LayoutError, match="does not fill"):
        Pyramid(folder, writable=True).write(0, Box.whole(SHAPE), np.empty((1, 1, 1), np.int16))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 90), st.integers(1, 40)), max_size=12))
def test_merged_ranges_are_what_was_asked_for(ranges: list[tuple[str, int, int]]) -> None:
    folder = memory()
    content = {name: np.random.default_rng(ord(name)).bytes(100) for name in "ab"}
    for name, data in content.items():
        folder.write_bytes(name, data)
    before, objects.MERGE_BYTES = objects.MERGE_BYTES, 7
    try:
        found = objects.read_ranges(folder, ranges)
    finally:
        objects.MERGE_BYTES = before
    for (name, offset, length), view in zip(ranges, found, strict=True):
        assert bytes(view) == content[name][offset : offset + length]
    folder.delete()


def test_remote_reads_ask_twice_whatever_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all indexes, once for all chunks: on an object store each request costs a round trip."""
    from fsspec.implementations.memory import MemoryFileSystem

    folder = memory()
    make(folder)
    data = noise(SHAPE, "int16")
    write(folder, data)
    calls: list[int] = []
    whole = MemoryFileSystem.cat_ranges

    def counted(self: Any, paths: list[str], *args: Any, **options: Any) -> Any:
        calls.append(len(paths))
        return whole(self, paths, *args, **options)

    pyramid = Pyramid(folder)
    assert pyramid.layout(0) is not None
    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", counted)
    assert np.array_equal(pyramid.read(0, Box.whole(SHAPE)), data)
    assert len(calls) == 2
    assert calls[0] == len(list(itertools.product(range(2), range(1), range(2))))
    assert np.array_equal(pyramid.read(0, Box.whole(SHAPE)), data)
    assert len(calls) == 3  # a reader keeps the indexes
    folder.delete()


def test_large_remote_reads_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)
    folder = memory()
    make(folder, compressors=None)
    data = noise(SHAPE, "int16")
    write(folder, data)
    assert np.array_equal(Pyramid(folder).read(0, Box.whole(SHAPE)), data)
    folder.delete()


def test_label_volumes_and_tomograms_have_a_layout(tmp_path: Path) -> None:
    for image in (True, False):
        pyramid = Pyramid(Folder.of(tmp_path / str(image)), writable=True)
        pyramid.create([Level(Zyx(20, 30, 40), 1.0)], np.uint8, chunk=8, shard=16, image=image)
        assert pyramid.layout(0) is not None


def test_a_zstd_chunk_that_is_too_short_is_damage() -> None:
    codec = chunk_codec([{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}], np.dtype("u1"))
    assert codec is not None
    short = np.frombuffer(codec.encode(np.ones(32, np.uint8)), np.uint8)
    with pytest.raises(ValueError, match="32 decoded bytes"):
        codec.decode(short, np.zeros(64, np.uint8))


def test_a_box_of_many_shards_holds_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise((16, 16, 16), "float32")
    pyramid = Pyramid(Folder.of(tmp_path), writable=True)
    pyramid.create([Level(Zyx(16, 16, 16), 1.0)], np.float32, chunk=4, shard=4, image=True)
    pyramid.write(0, Box.whole(data.shape), data)
    monkeypatch.setattr(shards, "OPEN_SHARDS", 3)
    most, held = 0, set()
    opened, closed = objects.LocalObject.__init__, objects.LocalObject.close

    def count(self: objects.LocalObject, path: str) -> None:
        nonlocal most
        opened(self, path)
        held.add(self.handle)
        most = max(most, len(held))

    def forget(self: objects.LocalObject) -> None:
        held.discard(self.handle)
        closed(self)

    monkeypatch.setattr(objects.LocalObject, "__init__", count)
    monkeypatch.setattr(objects.LocalObject, "close", forget)
    np.testing.assert_array_equal(pyramid.read(0, Box.whole(data.shape)), data)
    assert most == 3
    assert not held


@pytest.mark.parametrize(
    "error", [TimeoutError("slow"), ConnectionError("gone"), ValueError("of the caller")]
)
def test_what_is_not_damage_is_not_called_so(tmp_path: Path, error: Exception) -> None:
    data = noise(SHAPE, "int16")
    make(Folder.of(tmp_path))
    pyramid = write(Folder.of(tmp_path), data)

    def take(place: Any, stored: Any) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)) as raised:
        pyramid.read_pieces(0, Box.whole(data.shape), take)
    assert not isinstance(raised.value, FormatError)


def test_what_a_store_says_of_credentials_is_of_the_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class ClientError(Exception):
        """As clients of object stores raise it."""

    folder = memory()
    monkeypatch.setattr("cryoscale.data.folder._client_errors", lambda: (ClientError,))
    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", lambda *_, **__: [ClientError("expired")])
    with pytest.raises(SurroundingsError, match="expired"):
        objects.read_tails(folder, ["a"], 8)
