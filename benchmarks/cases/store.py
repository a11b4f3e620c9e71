"""The store: how fast MRC becomes sharded OME-Zarr, how fast tiles come back, and which layout to take."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases.store_peers import PLAIN, ZARRS, Layout, halve
from benchmarks.harness.case import Case, Contestant, Setup, Size, Target, installed
from benchmarks.harness.growth import Growth

SHAPES = {"tiny": (64, 64, 128), "small": (256, 512, 512), "full": (512, 1024, 1024)}
TILE, HALO = 128, 36


def _layout(size: Size, threads: int) -> Layout:
    chunk, shard = (32, 64) if size == "tiny" else (64, 256)
    levels = tuple(tuple(n >> k for n in SHAPES[size]) for k in range(2 if size == "tiny" else 3))
    return Layout(levels, chunk, shard, threads=threads)


def _source(path: Path, shape: tuple[int, ...]) -> Any:
    """Write noise in float32 as an MRC file and return it as a memory map; noise is the worst for a codec."""
    import numpy as np

    from cryoscale.formats.mrc_write import MrcWriter

    rng = np.random.default_rng(0)
    with MrcWriter(path, shape, np.float32, 10.0) as writer:
        for z in range(0, shape[0], 32):
            writer.write(rng.standard_normal((min(32, shape[0] - z), *shape[1:]), dtype=np.float32))
    return np.memmap(path, dtype="<f4", mode="r", offset=1024, shape=shape)


class OurIngest:
    """The stage `ingest` of a run over one file, without driver and executor: what their workers do."""

    def __init__(self, folder: Path, source: Path, layout: Layout) -> None:
        from cryoscale.data.run import Run
        from cryoscale.pipeline.order import steps_for
        from cryoscale.pipeline.units import UnitGraph
        from cryoscale.testing.phantoms import small_run

        words = [f"ingest.chunk={layout.chunk}", f"ingest.shard={layout.shard}", "ingest.contrast=auto",
                 f"ingest.levels={len(layout.levels)}", f"execution.block_voxels={layout.shard}"]  # fmt: skip
        self.run: Run = small_run(folder, [source], *words)
        graph = UnitGraph(self.run, self.run.config, steps_for(self.run.config), {})
        for step in ("identify", "ingest"):
            graph.units[step, source.stem].state = "sealed"
            graph.units[step, source.stem].identity = "x"
        unit = graph.units["ingest", source.stem]
        unit.key = "benchmark"
        self.stage: Any = unit.step.stage
        self.access = graph.access_for(unit)
        self.place = Path(self.run.tomogram(source.stem).url)
        self.threads = layout.threads

    def blocks(self) -> Path:
        """Arrays and pyramid, each thread a worker with one block at a time."""
        plan = self.stage.plan(self.access)
        self.stage.create(self.access)
        with self.stage.open_worker(self.access) as function, ThreadPoolExecutor(self.threads) as pool:
            for phase in plan.phases:
                list(pool.map(function, phase))
        return self.place

    def whole(self) -> Path:
        """The same, then statistics of each level, contrast, the slab of the sample, metadata."""
        self.blocks()
        self.stage.seal(self.access)
        return self.place


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """As in a worker: the store takes one thread, and there are as many workers as cores."""
    before = os.environ.get("BLOSC_NTHREADS")
    os.environ["BLOSC_NTHREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["BLOSC_NTHREADS"]
        else:
            os.environ["BLOSC_NTHREADS"] = before


def _codec_alone(volume: Any, layout: Layout) -> Callable[[], Any]:
    """Encode every chunk of all levels, and decode those that the pyramid needs: nothing else."""
    import numpy as np

    from cryoscale.data.chunk_codecs import BloscChunkCodec

    codec = BloscChunkCodec(
        {"cname": layout.cname, "clevel": layout.clevel, "shuffle": "bitshuffle", "typesize": 4}
    )
    edge = layout.chunk
    parts = [np.ascontiguousarray(volume[z : z + edge, y : y + edge, x : x + edge])
             for z in range(0, volume.shape[0], edge)
             for y in range(0, volume.shape[1], edge) for x in range(0, volume.shape[2], edge)]  # fmt: skip

    def some(part: list[Any]) -> None:
        out = np.empty(edge**3 * 4, np.uint8)
        for number, chunk in enumerate(part):
            encoded = codec.encode(chunk)
            codec.decode(np.frombuffer(encoded, np.uint8), out)
            if number % 7 == 6:  # the levels above: a seventh of the voxels
                codec.encode(chunk)

    def run() -> None:
        with ThreadPoolExecutor(layout.threads) as pool:
            list(pool.map(some, [parts[n :: layout.threads] for n in range(layout.threads)]))

    return run


def _in_turn(*runs: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for one in runs:
            one()

    return run


def _raw_copy(volume: Any, place: Path) -> Callable[[], None]:
    def run() -> None:
        with place.open("wb") as stream:
            for plane in volume:
                stream.write(plane.data)

    return run


@contextlib.contextmanager
def _ingest(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np

    from benchmarks.cases import store_peers as peers

    layout = _layout(size, threads=2)
    source = scratch / "big.mrc"
    volume = _source(source, SHAPES[size])
    ours = OurIngest(scratch / "run", source, layout)
    work = volume.nbytes / 1e9
    places = {name: scratch / name.replace(" ", "-")
              for name in ("zarr-python", "zarrs", "tensorstore", "ome-zarr", "ngff-zarr")}  # fmt: skip
    same = f"chunk {layout.chunk}, shard {layout.shard}, blosc lz4 with bit shuffling"
    contestants = [
        Contestant("ours, as the peers", ours.blocks, work, "ours", f"arrays and pyramid; {same}"),
        Contestant(
            "ours, best", ours.whole, work, "ours", "the whole stage: with statistics, contrast, slab"
        ),
    ]

    ways: dict[str, tuple[str, Callable[[Any, Path, Layout], None], str]] = {
        "zarr-python": ("zarr", lambda *given: peers.zarr_loop(*given, PLAIN), "loop over shards"),
        "zarrs": ("zarrs", lambda *given: peers.zarr_loop(*given, ZARRS), "zarr-python's loop"),
        "tensorstore": ("tensorstore", peers.tensorstore_loop, "loop over shards"),
        "ome-zarr": ("ome_zarr", peers.ome_zarr_write, "write_image, local mean, dask threads"),
        "ngff-zarr": ("ngff_zarr", peers.ngff_zarr_write, "to_ome_zarr, bin shrink, dask threads"),
    }
    missing = [name for name, (package, *_) in ways.items() if not installed(package)]
    for name, (_, write, words) in ways.items():
        if name not in missing:
            run = functools.partial(write, volume, places[name], layout)
            contestants.append(Contestant(name, run, work, "peer", words))
    contestants += [
        Contestant("copy", _raw_copy(volume, scratch / "raw"), work, "baseline", "read and written as it is"),
        Contestant("codec", _codec_alone(volume, layout), work, "ceiling", "encode, and decode for levels"),
    ]  # fmt: skip
    both = _in_turn(_codec_alone(volume, layout), _raw_copy(volume, scratch / "raw"))
    words = "one after the other: both take the same cores"
    contestants.append(Contestant("codec and copy", both, work, "ceiling", words))

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        import zarr

        expected = [np.asarray(volume)]
        while len(expected) < len(layout.levels):
            expected.append(halve(expected[-1]))
        sizes = {}
        for name, place in {"ours": ours.place, **places}.items():
            if not place.exists():
                continue
            for number, (path, level) in enumerate(zip(_arrays(place), expected, strict=True)):
                array = zarr.open_array(str(path), mode="r")
                assert array.chunks == layout.chunks(number), f"{name}: {array.chunks}"
                assert array.shards == layout.shards(number), f"{name}: {array.shards}"
                box = tuple(slice(0, n // 2 + 3) for n in level.shape)
                np.testing.assert_allclose(array[box], level[box], rtol=1e-5, atol=1e-5, err_msg=name)
            sizes[name] = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        return {f"{name}: GB stored": round(size / 1e9, 4) for name, size in sizes.items()}

    yield Setup(contestants, {"GB of source": work}, check, missing)


def _arrays(place: Path) -> list[Path]:
    """Where the levels of a pyramid lie, the largest first; packages name them as they like."""
    import json

    found = []
    for file in place.rglob("zarr.json"):
        metadata = json.loads(file.read_text())
        if metadata["node_type"] == "array":
            found.append((-int(metadata["shape"][-1]), file.parent))
    return [path for _, path in sorted(found)]


def _tiles(shape: tuple[int, ...], tile: int, halo: int) -> list[Any]:
    from cryoscale.geometry import Grid

    return [block.read for block in Grid.of(shape, tile).blocks(halo)]


@contextlib.contextmanager
def _read(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np
    import zarr

    from benchmarks.cases import store_peers as peers
    from cryoscale.data.folder import Folder

    layout = _layout(size, threads=1)
    volume = _source(scratch / "big.mrc", SHAPES[size])
    place = scratch / "volume.zarr"
    pyramid = _write_volume(Folder.of(place), volume, layout.chunk, layout.shard)
    boxes = _tiles(SHAPES[size], *((32, 9) if size == "tiny" else (TILE, HALO)))
    work = sum(box.voxels for box in boxes) / 1e6
    most = max(boxes, key=lambda box: box.voxels)
    buffer = np.empty(most.voxels, np.float32)

    def into(box: Any) -> Any:
        return buffer[: box.voxels].reshape(box.shape)

    def tiles(read: Callable[[Any], Any]) -> Callable[[], float]:
        def run() -> float:
            return float(sum(float(read(box)[-1, -1, -1]) for box in boxes))

        return run

    def zarr_tiles(pipeline: dict[str, str]) -> Callable[[], float]:
        def run() -> float:
            with peers.settings(pipeline, layout.threads):
                array = zarr.open_array(str(place), path="0", mode="r")
                return tiles(lambda box: array[box.slices])()

        return run

    fresh, reused = (
        tiles(lambda box: pyramid.read(0, box)),
        tiles(lambda box: pyramid.read(0, box, into(box))),
    )
    contestants = [
        Contestant("ours, as the peers", fresh, work, "ours", "a new array each time"),
        Contestant("ours, best", reused, work, "ours", "one buffer"),
        Contestant("zarr-python", zarr_tiles(PLAIN), work, "peer", rounds=2),
    ]  # fmt: skip
    missing = []
    if installed("zarrs"):
        contestants.append(Contestant("zarrs", zarr_tiles(ZARRS), work, "peer", "zarr-python's arrays"))
    else:
        missing.append("zarrs")
    if installed("tensorstore"):
        stored = peers.tensorstore_open(place, layout, 0)
        run = tiles(lambda box: stored[box.slices].read().result())
        contestants.append(Contestant("tensorstore", run, work, "peer"))
    else:
        missing.append("tensorstore")
    raw = tiles(lambda box: np.ascontiguousarray(volume[box.slices]))
    contestants.append(Contestant("memory map", raw, work, "baseline", "the MRC file, not compressed"))
    contestants.append(
        Contestant("codec", _decode_alone(pyramid, boxes), work, "ceiling", "decode the same chunks")
    )

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        sums = {name: value for name, value in results.items() if value is not None}
        assert len(set(sums.values())) == 1, sums
        decoded = sum(_chunks_of(box, layout) for box in boxes) * layout.chunk**3
        return {"voxels decoded for each read": round(decoded / work / 1e6, 2)}

    with _one_thread_each():
        yield Setup(contestants, {"tiles": len(boxes)}, check, missing)


def _chunks_of(box: Any, layout: Layout) -> int:
    number = 1
    for a, b, c in zip(box.start, box.stop, layout.chunks(0), strict=True):
        number *= -(-b // c) - a // c
    return number


def _decode_alone(pyramid: Any, boxes: list[Any]) -> Callable[[], None]:
    """Decode as many chunks as the boxes touch from memory into one buffer."""
    import numpy as np

    layout = pyramid.layout(0)
    count = 0
    for box in boxes:
        number = 1
        for a, b, c in zip(box.start, box.stop, layout.chunk, strict=True):
            number *= -(-b // c) - a // c
        count += number
    volume = np.random.default_rng(0).standard_normal((16, *layout.chunk), dtype=np.float32)
    encoded = [np.frombuffer(layout.codec.encode(chunk), np.uint8) for chunk in volume]
    out = np.empty(layout.chunk_bytes, np.uint8)

    def run() -> None:
        for number in range(count):
            layout.codec.decode(encoded[number % len(encoded)], out)

    return run


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
def _codecs(size: Size, scratch: Path) -> Iterator[Setup]:
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


def _write_volume(folder: Any, volume: Any, chunk: int, shard: int) -> Any:
    """Write a volume as level 0 of a pyramid with our default codec; return it for reading."""
    from cryoscale.data.pyramid import Level, Pyramid
    from cryoscale.geometry import Grid, Zyx

    pyramid = Pyramid(folder, writable=True)
    pyramid.create([Level(Zyx.of(volume.shape), 10.0)], "float32", chunk=chunk, shard=shard, image=True)
    for box in Grid.of(volume.shape, pyramid.write_unit(0)).boxes():
        pyramid.write(0, box, volume[box.slices])
    return Pyramid(folder)


@contextlib.contextmanager
def _latency(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np
    import zarr

    from benchmarks.cases.store_bucket import Bucket, bucket_url
    from cryoscale.data.folder import Folder
    from cryoscale.data.pyramid import open_store

    shape, tile, halo = ((64, 64, 64), 32, 9) if size == "tiny" else ((128, 256, 256), TILE, HALO)
    volume = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    boxes = _tiles(shape, tile, halo)
    work = sum(box.voxels for box in boxes) / 1e6
    contestants = []
    layouts = ((64, 256), (64, 128), (32, 256), (32, 128), (128, 256))
    if size == "tiny":
        layouts = ((16, 32), (32, 64))
    for chunk, shard in layouts:
        folder = Folder.of(bucket_url(f"{chunk}-{shard}"))
        Bucket.fast = True
        pyramid = _write_volume(folder, volume, chunk, shard)
        pyramid.read(0, boxes[0])  # the array's metadata is read once for a worker

        def ours(pyramid: Any = pyramid) -> float:
            Bucket.fast = False
            return float(sum(float(pyramid.read(0, box)[-1, -1, -1]) for box in boxes))

        def theirs(folder: Any = folder) -> float:
            Bucket.fast = True
            array = zarr.open_array(open_store(folder, read_only=True), path="0", mode="r")
            Bucket.fast = False
            return float(sum(float(array[box.slices][-1, -1, -1]) for box in boxes))

        layout = f"chunk {chunk}, shard {shard}"
        contestants.append(Contestant(f"ours, {layout}", ours, work, "ours", warm=False))
        if chunk == layouts[0][0] and shard == layouts[0][1]:
            contestants.append(
                Contestant(f"zarr-python, {layout}", theirs, work, "peer", rounds=1, warm=False)
            )

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        assert len(set(results.values())) == 1, results
        return {"latency, ms": Bucket.latency_s * 1e3, "MB/s and request": Bucket.bytes_per_s / 1e6}

    try:
        yield Setup(contestants, {"tiles": len(boxes)}, check)
    finally:
        Bucket.objects.clear()


def _grown(size: Size, factor: int) -> tuple[int, ...]:
    edge = 32 if size == "tiny" else 128
    return (edge * factor, 2 * edge, 2 * edge)


@contextlib.contextmanager
def _ingest_growth(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    shape = _grown(size, factor)
    layout = Layout((shape, tuple(n // 2 for n in shape)), 32 if size == "tiny" else 64, 128)
    _source(scratch / "big.mrc", shape)
    ours = OurIngest(scratch / "run", scratch / "big.mrc", layout)
    ours.blocks()
    yield ours.blocks, float(shape[0] * shape[1] * shape[2])


@contextlib.contextmanager
def _read_growth(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    import numpy as np

    from cryoscale.data.folder import Folder

    shape = _grown(size, factor)
    volume = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    pyramid = _write_volume(Folder.of(scratch / "v.zarr"), volume, 32 if size == "tiny" else 64, 128)
    boxes = _tiles(shape, 32 if size == "tiny" else TILE, 0)

    def run() -> None:
        for box in boxes:
            pyramid.read(0, box)

    run()
    yield run, float(volume.size)


CASES = (
    Case(
        "store.ingest",
        "How fast does an MRC file become sharded OME-Zarr with a pyramid?",
        "GB",
        _ingest,
        threads=2,
        targets=(
            Target("ours, as the peers", 3.0, ("ome-zarr", "ngff-zarr", "zarr-python"),
                   words="at least 3 times the best of ome-zarr, ngff-zarr and a zarr-python loop"),
            Target("ours, as the peers", 1 / 1.3, "codec and copy",
                   words="or within 1.3 of what the codec and the disk allow"),
        ),
    ),
    Case(
        "store.read",
        "How fast are tiles of 128 voxels with a halo of 36 read, on one core?",
        "Mvoxel",
        _read,
        targets=(
            Target("ours, as the peers", 3.0, "zarr-python", words="at least 3 times a zarr-python loop"),
            Target("ours, as the peers", 1 / 1.3, "codec", words="or within 1.3 of what the codec allows"),
        ),
    ),
    Case("store.codecs", "How fast are codecs on a chunk, and how much do they save?", "GB", _codecs),
    Case(
        "store.latency",
        "Which chunk and shard are best where each request takes 30 ms?",
        "Mvoxel",
        _latency,
        rounds=2,
    ),
)  # fmt: skip
GROWTH = (
    Growth("store.ingest", "voxels", _ingest_growth),
    Growth("store.read", "voxels", _read_growth),
)
