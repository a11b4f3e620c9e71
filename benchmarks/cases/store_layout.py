"""Which layout a store should take: codecs on chunks, and chunk and shard where each request waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Contestant, Setup, Size

TILE, HALO = 128, 36
LAYOUTS = ((64, 256), (64, 128), (32, 256), (32, 128), (128, 256))
CODECS = {
    "none": None,
    "lz4, bits": ("lz4", 1, "bitshuffle"),
    "lz4, bytes": ("lz4", 1, "shuffle"),
    "lz4 level 9, bits": ("lz4", 9, "bitshuffle"),
    "zstd, bits": ("zstd", 1, "bitshuffle"),
    "zstd level 3, bits": ("zstd", 3, "bitshuffle"),
    "zstd, no shuffle": ("zstd", 1, "noshuffle"),
}


@contextlib.contextmanager
def codecs(size: Size, scratch: Path) -> Iterator[Setup]:
    """Open the case: encode and decode chunks of noise of three types."""
    import numpy as np

    from cryoscale.data.chunk_codecs import BloscChunkCodec, ChunkCodec, RawCodec

    rng = np.random.default_rng(0)
    edge, count = (16, 2) if size == "tiny" else (64, 64 if size == "small" else 256)
    noise = rng.standard_normal((count, edge, edge, edge), dtype=np.float32)
    data = {"float32": noise, "int16": np.rint(noise * 300).astype(np.int16),
            "int8": np.clip(np.rint(noise * 30), -127, 127).astype(np.int8)}  # fmt: skip
    contestants, facts = [], {}
    for dtype, chunks in data.items():
        for name, settings in CODECS.items():
            codec: ChunkCodec = RawCodec()
            if settings is not None:
                words = dict(zip(("cname", "clevel", "shuffle"), settings, strict=True))
                codec = BloscChunkCodec({**words, "typesize": chunks.itemsize})
            encoded = [np.frombuffer(codec.encode(chunk), np.uint8) for chunk in chunks]
            out = np.empty(chunks[0].nbytes, np.uint8)
            facts[f"{dtype}, {name}: size"] = round(sum(map(len, encoded)) / chunks.nbytes, 3)

            def encode(codec: ChunkCodec = codec, chunks: Any = chunks) -> None:
                for chunk in chunks:
                    codec.encode(chunk)

            def decode(codec: ChunkCodec = codec, encoded: Any = encoded, out: Any = out) -> None:
                for part in encoded:
                    codec.decode(part, out)

            work = chunks.nbytes / 1e9
            contestants.append(Contestant(f"{dtype}, {name}: encode", encode, work, "ceiling"))
            contestants.append(Contestant(f"{dtype}, {name}: decode", decode, work, "ceiling"))
    yield Setup(contestants, facts)


def tiles_of(shape: tuple[int, ...], tile: int, halo: int) -> list[Any]:
    """Cut a volume into boxes of a tile with its halo."""
    from cryoscale.geometry import Grid

    return [block.read for block in Grid.of(shape, tile).blocks(halo)]


def write_volume(folder: Any, volume: Any, chunk: int, shard: int) -> Any:
    """Write a volume as level 0 of a pyramid with our default codec; return it for reading."""
    from cryoscale.data.pyramid import Level, Pyramid
    from cryoscale.geometry import Grid, Zyx

    pyramid = Pyramid(folder, writable=True)
    pyramid.create([Level(Zyx.of(volume.shape), 10.0)], "float32", chunk=chunk, shard=shard, image=True)
    for box in Grid.of(volume.shape, pyramid.write_unit(0)).boxes():
        pyramid.write(0, box, volume[box.slices])
    return Pyramid(folder)


@contextlib.contextmanager
def latency(size: Size, scratch: Path) -> Iterator[Setup]:
    """Open the case: tiles of one volume in each layout, from a bucket that lets every request wait.

    A round begins as a worker does that knows the array's metadata and no index of a shard; where the row
    says that indexes are kept, an earlier read of all tiles has left them.
    """
    import numpy as np
    import zarr

    from benchmarks.cases.store_bucket import Bucket, bucket_url
    from cryoscale.data.folder import Folder
    from cryoscale.data.pyramid import Pyramid, open_store

    shape, tile, halo = ((64, 64, 64), 32, 9) if size == "tiny" else ((128, 256, 256), TILE, HALO)
    volume = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    boxes = tiles_of(shape, tile, halo)
    work = sum(box.voxels for box in boxes) / 1e6

    def read_all(read: Callable[[Any], Any]) -> float:
        return float(sum(float(read(box)[-1, -1, -1]) for box in boxes))

    def make_rows(chunk: int, shard: int, *, with_peer: bool) -> list[Contestant]:
        folder = Folder.of(bucket_url(f"{chunk}-{shard}"))
        Bucket.fast = True
        kept = write_volume(folder, volume, chunk, shard)
        read_all(lambda box: kept.read(0, box))
        opened: dict[str, Any] = {}

        def open_ours() -> None:
            Bucket.fast = True
            opened["ours"] = Pyramid(folder)
            opened["ours"].layout(0)
            Bucket.fast = False

        def open_theirs() -> None:
            Bucket.fast = True
            opened["theirs"] = zarr.open_array(open_store(folder, read_only=True), path="0", mode="r")
            Bucket.fast = False

        def slow() -> None:
            Bucket.fast = False

        def ours() -> float:
            return read_all(lambda box: opened["ours"].read(0, box))

        def ours_kept() -> float:
            return read_all(lambda box: kept.read(0, box))

        def theirs() -> float:
            return read_all(lambda box: opened["theirs"][box.slices])

        words = f"chunk {chunk}, shard {shard}"
        rows = [
            Contestant(f"ours, {words}", ours, work, "ours", "no index read before", open_ours, warm=False),
            Contestant(f"ours, indexes kept, {words}", ours_kept, work, "ours",
                       "all indexes read before", slow, warm=False),
        ]  # fmt: skip
        if with_peer:
            rows.append(Contestant(f"zarr-python, {words}", theirs, work, "peer", "no index read before",
                                   open_theirs, rounds=1, warm=False))  # fmt: skip
        return rows

    layouts = ((16, 32), (32, 64)) if size == "tiny" else LAYOUTS
    contestants = [row for n, layout in enumerate(layouts) for row in make_rows(*layout, with_peer=n == 0)]

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        assert len(set(results.values())) == 1, results
        return {"latency, ms": Bucket.latency_s * 1e3, "MB/s and request": Bucket.bytes_per_s / 1e6}

    try:
        yield Setup(contestants, {"tiles": len(boxes)}, check)
    finally:
        Bucket.objects.clear()
