"""Sharded Zarr arrays, encoded and decoded by ourselves: the fast way through `Pyramid`.

zarr-python passes every chunk of a shard through several layers of buffers and tasks. Here a shard is put
together from chunks that are cut out of one array, and read by the offsets in its index, each chunk decoded
in a buffer that stays in cache and copied once to where it belongs. The bytes are those of the Zarr
specification, so zarr-python, zarrs and tensorstore read them, and what these write is read here.

An array of another layout (another codec, big-endian, without shards, Zarr 2) has no `ShardLayout`: then
zarr-python does the work.

Notes
-----
A shard is its chunks one behind the other, then an index of (offset, bytes) as little-endian uint64, one pair
per chunk in C order, 2**64 - 1 twice for a missing one, then the CRC-32C of that index. Zarr enhancement
proposal 2, https://zarr.dev/zeps/accepted/ZEP0002.html
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from cryoscale.data.chunk_codecs import ChunkCodec, chunk_codec
from cryoscale.data.folder import Folder
from cryoscale.data.objects import LocalObject, read_ranges, read_tails, write_parts
from cryoscale.data.threads import in_order, run_all, scratch

MISSING = np.uint64(2**64 - 1)
OPEN_SHARDS = 64  # local files that a read holds open at a time
BATCH_BYTES = 64 << 20  # encoded bytes of a remote read held at a time
MOST_INDEXES = 4096  # remote indexes kept by a reader: a kilobyte each for 64 chunks
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64")
_INDEX_CODECS = ("bytes", "crc32c")

Take = Callable[[tuple[slice, ...], npt.NDArray[Any]], None]
"""Takes decoded voxels (second), which lie at these slices of the box that is read (first). They are in
cache, in a buffer that is used again: copy them, or what is made of them, to where they belong."""

Give = Callable[[tuple[int, ...], tuple[int, ...]], npt.NDArray[Any]]
"""Gives the voxels of the array from a first corner to a last one (exclusive)."""


class DamagedShardError(ValueError):
    """A shard that is torn, or whose index or chunk is not what it should be."""


class _Piece(NamedTuple):
    """One chunk of a read: its place in the shard's index, and which of its voxels go where."""

    shard: int
    number: int
    source: tuple[slice, ...]
    target: tuple[slice, ...]


@dataclass(frozen=True)
class ShardLayout:
    """How a sharded array lies on storage; made by `of` from its metadata.

    Parameters
    ----------
    shape, chunk, shard : tuple of int
        Extent of the array, of a chunk and of a shard, voxels.
    dtype : numpy dtype
        Native byte order.
    fill : numpy scalar
        Value of missing chunks.
    codec : ChunkCodec
        From the voxels of a chunk to bytes and back.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: Any
    codec: ChunkCodec

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ShardLayout | None:
        """Understand the metadata of an array (the content of its `zarr.json`), or return None."""
        try:
            if metadata["zarr_format"] != 3 or metadata["data_type"] not in DTYPES:
                return None
            (outer,) = metadata["codecs"]
            inner = outer["configuration"]
            names = tuple(codec["name"] for codec in inner["index_codecs"])
            plain = (
                outer["name"] == "sharding_indexed"
                and inner.get("index_location", "end") == "end"
                and names == _INDEX_CODECS
                and inner["index_codecs"][0]["configuration"]["endian"] == "little"
                and metadata["chunk_grid"]["name"] == "regular"
                and metadata["chunk_key_encoding"]["name"] == "default"
                and _separator(metadata["chunk_key_encoding"]) == "/"
                and not metadata.get("storage_transformers")
            )
            dtype = np.dtype(metadata["data_type"])
            codec = chunk_codec(inner["codecs"], dtype) if plain else None
            if codec is None:
                return None
            fill = dtype.type(metadata["fill_value"])
            shard = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            return cls(tuple(metadata["shape"]), tuple(inner["chunk_shape"]), shard, dtype, fill, codec)
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def index_bytes(self) -> int:
        """Length of a shard's index with its checksum."""
        return 16 * math.prod(self.counts) + 4

    @property
    def chunk_bytes(self) -> int:
        """Length of a decoded chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize

    def write(self, folder: Folder, path: str, start: Sequence[int], stop: Sequence[int], give: Give) -> None:
        """Write whole shards, layer by layer; those that hold nothing but the fill value are removed.

        Parameters
        ----------
        folder, path
            The array is the folder's child of this name.
        start, stop : tuple of int
            The box to write, half open: multiples of the shard, or the array's far face.
        give : callable
            Asked for one layer of chunks of one shard after the other.
        """
        for place in _grid(start, stop, self.shard):
            low = tuple(p * s for p, s in zip(place, self.shard, strict=True))
            high = tuple(min(a + s, b) for a, s, b in zip(low, self.shard, stop, strict=True))
            with contextlib.closing(self._encoded(low, high, give)) as chunks:
                self._write_shard(folder, _key(path, place), chunks)

    def _encoded(self, low: tuple[int, ...], high: tuple[int, ...], give: Give) -> Generator[bytes | None]:
        """Yield the chunks of one shard; None for one of nothing but the fill value."""
        for first in range(low[0], low[0] + self.shard[0], self.chunk[0]):
            depth = min(self.chunk[0], high[0] - first)
            places = itertools.product(*map(range, self.counts[1:]))
            if depth < 1:  # beyond the far face of the array
                yield from (None for _ in places)
                continue
            layer = np.asarray(give((first, *low[1:]), (first + depth, *high[1:])), self.dtype)
            yield from in_order([functools.partial(self._encode, layer, (0, *place)) for place in places])

    def _encode(self, layer: npt.NDArray[Any], place: Sequence[int]) -> bytes | None:
        part = layer[tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, self.chunk, strict=True))]
        if not part.size:
            return None
        buffer = scratch("encode", self.chunk_bytes).view(self.dtype).reshape(self.chunk)
        if part.shape != self.chunk:  # a chunk at a far face of the array is filled up
            buffer.fill(self.fill)
        buffer[tuple(slice(0, n) for n in part.shape)] = part
        return None if _is_fill(buffer, self.fill) else self.codec.encode(buffer)

    def _write_shard(self, folder: Folder, key: str, chunks: Iterator[bytes | None]) -> None:
        numbered = enumerate(chunks)
        first = next(((number, chunk) for number, chunk in numbered if chunk is not None), None)
        if first is None:
            folder.delete(key)
        else:
            write_parts(folder, key, self._parts(itertools.chain([first], numbered)))

    def _parts(self, numbered: Iterable[tuple[int, bytes | None]]) -> Iterator[bytes]:
        """Yield the chunks that are there, then the index."""
        index = np.full((math.prod(self.counts), 2), MISSING, "<u8")
        offset = 0
        for number, chunk in numbered:
            if chunk is None:
                continue
            index[number] = offset, len(chunk)
            offset += len(chunk)
            yield chunk
        table = index.tobytes()
        yield table + google_crc32c.value(table).to_bytes(4, "little")

    def read(
        self,
        folder: Folder,
        path: str,
        start: Sequence[int],
        stop: Sequence[int],
        take: Take,
        known: dict[str, bytes] | None = None,
    ) -> None:
        """Read a box, one chunk after the other, on several threads if there are.

        Parameters
        ----------
        folder, path
            The array is the folder's child of this name.
        start, stop : tuple of int
            The box, half open, inside the array.
        take : callable
            Called once for each chunk with the part of it that lies in the box; with an array of shape ()
            where voxels are not stored.
        known : dict, optional
            Indexes of remote shards that were read before, by name; those that are read are added. Only for
            arrays that nobody writes any more.

        Raises
        ------
        DamagedShardError
            A shard is torn, or its index or a chunk is damaged.
        """
        shards, pieces = self._pieces(start, stop)
        keys = [_key(path, shard) for shard in shards]
        if folder.is_local:
            self._read_local(folder, keys, pieces, take)
        else:
            self._read_remote(folder, keys, pieces, take, {} if known is None else known)

    def _pieces(
        self, start: Sequence[int], stop: Sequence[int]
    ) -> tuple[list[tuple[int, ...]], list[_Piece]]:
        """List the shards that a box touches, and their chunks in the order of storage."""
        numbers: dict[tuple[int, ...], int] = {}
        pieces = []
        for chunk in _grid(start, stop, self.chunk):
            shard = tuple(p // n for p, n in zip(chunk, self.counts, strict=True))
            inner = [p % n for p, n in zip(chunk, self.counts, strict=True)]
            number = 0
            for p, n in zip(inner, self.counts, strict=True):
                number = number * n + p
            source, target = [], []
            for p, c, a, b in zip(chunk, self.chunk, start, stop, strict=True):
                low, high = max(p * c, a), min((p + 1) * c, b)
                source.append(slice(low - p * c, high - p * c))
                target.append(slice(low - a, high - a))
            pieces.append(
                _Piece(numbers.setdefault(shard, len(numbers)), number, tuple(source), tuple(target))
            )
        return list(numbers), sorted(pieces, key=lambda piece: piece[:2])

    def _index(self, tail: bytes | npt.NDArray[np.uint8], key: str) -> npt.NDArray[np.uint64]:
        table, checksum = bytes(tail[:-4]), bytes(tail[-4:])
        if len(tail) != self.index_bytes or google_crc32c.value(table).to_bytes(4, "little") != checksum:
            raise DamagedShardError(f"the index of {key} does not match its checksum")
        return np.frombuffer(table, "<u8").reshape(-1, 2)

    def _read_local(
        self,
        folder: Folder,
        keys: Sequence[str],
        pieces: Sequence[_Piece],
        take: Take,
    ) -> None:
        # A few shards at a time: a process may hold only so many files open.
        for first in range(0, len(keys), OPEN_SHARDS):
            some = range(first, min(first + OPEN_SHARDS, len(keys)))
            self._read_some(folder, keys, some, [p for p in pieces if p.shard in some], take)

    def _read_some(
        self, folder: Folder, keys: Sequence[str], some: range, pieces: Sequence[_Piece], take: Take
    ) -> None:
        """Read the pieces that lie in some of the shards."""
        with contextlib.ExitStack() as stack:
            files = {n: _opened(folder.path(keys[n]), stack) for n in some}
            tables = {n: self._local_index(file, keys[n]) for n, file in files.items()}

            def one(piece: _Piece) -> None:
                file, table = files[piece.shard], tables[piece.shard]
                if file is None or table is None or table[piece.number, 0] == MISSING:
                    take(piece.target, np.asarray(self.fill))
                    return
                offset, length = (int(n) for n in table[piece.number])
                if offset + length > file.size:
                    raise DamagedShardError(f"{keys[piece.shard]} ends before its chunk {piece.number}")
                encoded = scratch("read", max(length, self.chunk_bytes))[:length]
                if not file.read_into(offset, encoded):
                    raise DamagedShardError(f"{keys[piece.shard]} ends before its chunk {piece.number}")
                self._decode(encoded, piece, keys[piece.shard], take)

            run_all(one, pieces)

    def _local_index(self, file: LocalObject | None, key: str) -> npt.NDArray[np.uint64] | None:
        if file is None:
            return None
        tail = np.empty(self.index_bytes, np.uint8)
        if file.size < len(tail) or not file.read_into(file.size - len(tail), tail):
            raise DamagedShardError(f"{key} is shorter than its index")
        return self._index(tail, key)

    def _read_remote(
        self,
        folder: Folder,
        keys: Sequence[str],
        pieces: Sequence[_Piece],
        take: Take,
        known: dict[str, bytes],
    ) -> None:
        asked = [key for key in keys if key not in known]
        tails = dict(zip(asked, read_tails(folder, asked, self.index_bytes) if asked else [], strict=True))
        tables = []
        for key in keys:
            tail = known[key] if key in known else tails[key]
            tables.append(None if tail is None else self._index(tail, key))
            if tail is not None and len(known) < MOST_INDEXES:
                known[key] = tail
        wanted: list[tuple[_Piece, tuple[str, int, int]]] = []
        for piece in pieces:
            table = tables[piece.shard]
            if table is None or table[piece.number, 0] == MISSING:
                take(piece.target, np.asarray(self.fill))
            else:
                offset, length = (int(n) for n in table[piece.number])
                wanted.append((piece, (keys[piece.shard], offset, length)))
        for batch in _batches(wanted):
            found = read_ranges(folder, [part for _, part in batch])

            def one(item: tuple[_Piece, tuple[str, int, int], memoryview]) -> None:
                piece, (key, _, length), data = item
                if len(data) != length:
                    raise DamagedShardError(f"{key} ends before its chunk {piece.number}")
                self._decode(np.frombuffer(data, np.uint8), piece, key, take)

            run_all(one, [(*item, data) for item, data in zip(batch, found, strict=True)])

    def _decode(self, encoded: npt.NDArray[np.uint8], piece: _Piece, key: str, take: Take) -> None:
        buffer = scratch("decode", self.chunk_bytes)
        try:
            self.codec.decode(encoded, buffer)
        except (ValueError, RuntimeError) as error:
            raise DamagedShardError(f"{key}, chunk {piece.number}: {error}") from error
        take(piece.target, buffer.view(self.dtype).reshape(self.chunk)[piece.source])


def _separator(encoding: Mapping[str, Any]) -> str:
    return str(encoding.get("configuration", {}).get("separator", "/"))


def _key(path: str, place: Sequence[int]) -> str:
    return "/".join([*([path] if path else []), "c", *(str(p) for p in place)])


def _grid(start: Sequence[int], stop: Sequence[int], cell: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Return the positions of the grid cells between two corners, in C order."""
    ranges = (range(a // c, -(-b // c)) for a, b, c in zip(start, stop, cell, strict=True))
    return itertools.product(*ranges)


def _is_fill(chunk: npt.NDArray[Any], fill: Any) -> bool:
    """Whether all voxels are the fill value, bit by bit (so that -0 is kept)."""
    bits = chunk.reshape(-1).view(f"u{chunk.dtype.itemsize}")
    wanted = np.asarray(fill, chunk.dtype).view(bits.dtype)
    return bool(bits[0] == wanted and bits[-1] == wanted and (bits == wanted).all())


def _opened(path: str, stack: contextlib.ExitStack) -> LocalObject | None:
    try:
        file = LocalObject(path)
    except FileNotFoundError:
        return None
    stack.callback(file.close)
    return file


def _batches(
    wanted: Sequence[tuple[_Piece, tuple[str, int, int]]],
) -> Iterator[list[tuple[_Piece, tuple[str, int, int]]]]:
    batch: list[tuple[_Piece, tuple[str, int, int]]] = []
    total = 0
    for item in wanted:
        if batch and total + item[1][2] > BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += item[1][2]
    if batch:
        yield batch
