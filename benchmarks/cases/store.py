"""The store: how fast MRC becomes sharded OME-Zarr, how fast tiles come back, and which layout to take."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cases.store_layout import HALO, TILE, codecs, latency, tiles_of, write_volume
from benchmarks.cases.store_peers import PLAIN, ZARRS, Layout, halve
from benchmarks.harness.case import Case, Contestant, Role, Setup, Size, Target, installed
from benchmarks.harness.growth import Growth

Read = Callable[[Any], Any]
"""From a box to its voxels."""
SHAPES = {"tiny": (64, 64, 128), "small": (256, 512, 512), "full": (512, 1024, 1024)}


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


def _raw_copy(volume: Any, place: Path, threads: int) -> Callable[[], None]:
    """Write the planes as they are, each thread its share into a file of its own."""

    def some(number: int) -> None:
        with (place / str(number)).open("wb") as stream:
            for plane in volume[len(volume) * number // threads : len(volume) * (number + 1) // threads]:
                stream.write(plane.data)

    def run() -> None:
        place.mkdir(exist_ok=True)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some, range(threads)))

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
    codec, copy = _codec_alone(volume, layout), _raw_copy(volume, scratch / "raw", layout.threads)
    contestants += [
        Contestant("copy", copy, work, "baseline", f"read and written as it is, {layout.threads} threads"),
        Contestant("codec", codec, work, "ceiling", f"encode, decode for levels, {layout.threads} threads"),
        Contestant("codec and copy", _in_turn(codec, copy), work, "ceiling",
                   f"one after the other, each on all {layout.threads} threads"),
    ]  # fmt: skip

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


@contextlib.contextmanager
def _read(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np
    import zarr

    from benchmarks.cases import store_peers as peers
    from cryoscale.data.folder import Folder

    layout = _layout(size, threads=1)
    volume = _source(scratch / "big.mrc", SHAPES[size])
    place = scratch / "volume.zarr"
    pyramid = write_volume(Folder.of(place), volume, layout.chunk, layout.shard)
    boxes = tiles_of(SHAPES[size], *((32, 9) if size == "tiny" else (TILE, HALO)))
    work = sum(box.voxels for box in boxes) / 1e6
    most = max(boxes, key=lambda box: box.voxels)
    buffer = np.empty(most.voxels, np.float32)

    def into(box: Any) -> Any:
        return buffer[: box.voxels].reshape(box.shape)

    @contextlib.contextmanager
    def zarr_array(pipeline: dict[str, str]) -> Iterator[Read]:
        with peers.settings(pipeline, layout.threads):
            array = zarr.open_array(str(place), path="0", mode="r")
            yield lambda box: array[box.slices]

    ways: dict[str, Callable[[], contextlib.AbstractContextManager[Read]]] = {
        "ours, as the peers": _ready(lambda box: pyramid.read(0, box)),
        "ours, best": _ready(lambda box: pyramid.read(0, box, into(box))),
        "zarr-python": functools.partial(zarr_array, PLAIN),
        "memory map": _ready(lambda box: np.ascontiguousarray(volume[box.slices])),
    }
    if installed("zarrs"):
        ways["zarrs"] = functools.partial(zarr_array, ZARRS)
    if installed("tensorstore"):
        stored = peers.tensorstore_open(place, layout, 0)
        ways["tensorstore"] = _ready(lambda box: stored[box.slices].read().result())

    def tiles(name: str) -> float:
        with ways[name]() as read:
            return float(sum(float(read(box)[-1, -1, -1]) for box in boxes))

    words: dict[str, tuple[Role, str, int | None]] = {
        "ours, as the peers": ("ours", "a new array each time", None),
        "ours, best": ("ours", "one buffer", None),
        "zarr-python": ("peer", "", 2),
        "zarrs": ("peer", "zarr-python's arrays", None),
        "tensorstore": ("peer", "", None),
        "memory map": ("baseline", "the MRC file, not compressed", None),
    }
    contestants = [
        Contestant(name, functools.partial(tiles, name), work, role, how, rounds=rounds)
        for name, (role, how, rounds) in words.items() if name in ways
    ]  # fmt: skip
    contestants.append(
        Contestant("codec", _decode_alone(pyramid, boxes), work, "ceiling", "decode the same chunks")
    )

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        sums = {name: value for name, value in results.items() if value is not None}
        assert len(set(sums.values())) == 1, sums
        for name, way in ways.items():
            with way() as read:
                for box in (boxes[0], boxes[len(boxes) // 2], boxes[-1]):
                    np.testing.assert_array_equal(read(box), volume[box.slices], f"{name}, {box}")
        decoded = sum(_chunks_of(box, layout.chunks(0)) for box in boxes) * layout.chunk**3
        return {"voxels decoded for each read": round(decoded / work / 1e6, 2)}

    with _one_thread_each():
        yield Setup(contestants, {"tiles": len(boxes)}, check, [name for name in words if name not in ways])


def _ready(read: Read) -> Callable[[], contextlib.AbstractContextManager[Read]]:
    return lambda: contextlib.nullcontext(read)


def _chunks_of(box: Any, chunk: tuple[int, ...]) -> int:
    number = 1
    for a, b, c in zip(box.start, box.stop, chunk, strict=True):
        number *= -(-b // c) - a // c
    return number


def _decode_alone(pyramid: Any, boxes: list[Any]) -> Callable[[], None]:
    """Decode as many chunks as the boxes touch from memory into one buffer."""
    import numpy as np

    layout = pyramid.layout(0)
    count = sum(_chunks_of(box, layout.chunk) for box in boxes)
    volume = np.random.default_rng(0).standard_normal((16, *layout.chunk), dtype=np.float32)
    encoded = [np.frombuffer(layout.codec.encode(chunk), np.uint8) for chunk in volume]
    out = np.empty(layout.chunk_bytes, np.uint8)

    def run() -> None:
        for number in range(count):
            layout.codec.decode(encoded[number % len(encoded)], out)

    return run


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
    pyramid = write_volume(Folder.of(scratch / "v.zarr"), volume, 32 if size == "tiny" else 64, 128)
    boxes = tiles_of(shape, 32 if size == "tiny" else TILE, 0)

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
    Case("store.codecs", "How fast are codecs on a chunk, and how much do they save?", "GB", codecs),
    Case(
        "store.latency",
        "Which chunk and shard are best where each request takes 30 ms?",
        "Mvoxel",
        latency,
        rounds=2,
    ),
)  # fmt: skip
GROWTH = (
    Growth("store.ingest", "voxels", _ingest_growth),
    Growth("store.read", "voxels", _read_growth),
)
