"""How others write and read sharded OME-Zarr, each by its fastest sensible way: same layout, codec, cores.

All take the source as a memory map and leave levels `0`, `1`, … under a folder.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
PLAIN = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}


@dataclass(frozen=True)
class Layout:
    """What all contestants write: extent of levels, chunk and shard in voxels, codec."""

    levels: tuple[tuple[int, ...], ...]
    chunk: int
    shard: int
    cname: str = "lz4"
    clevel: int = 1
    threads: int = 1

    def chunks(self, level: int) -> tuple[int, ...]:
        return tuple(min(self.chunk, n) for n in self.levels[level])

    def shards(self, level: int) -> tuple[int, ...]:
        pairs = zip(self.chunks(level), self.levels[level], strict=True)
        return tuple(min(self.shard // c * c, -(-n // c) * c) for c, n in pairs)

    def codec(self) -> Any:
        import zarr.codecs

        return zarr.codecs.BloscCodec(cname=self.cname, clevel=self.clevel, shuffle="bitshuffle")

    def boxes(self, level: int) -> list[tuple[slice, ...]]:
        """Cut a level into shards."""
        sides = zip(self.levels[level], self.shards(level), strict=True)
        cuts = [[slice(a, min(a + s, n)) for a in range(0, n, s)] for n, s in sides]
        return list(itertools.product(*cuts))


def halve(volume: Any) -> Any:
    """Mean of 2x2x2 voxels of a volume of even sides."""
    import numpy as np

    volume = volume[0::2] + volume[1::2]
    volume = volume[:, 0::2] + volume[:, 1::2]
    volume = volume[:, :, 0::2] + volume[:, :, 1::2]
    volume *= np.float32(0.125)
    return volume


def fine(box: Sequence[slice]) -> tuple[slice, ...]:
    """The voxels of the level below that lie in a box."""
    return tuple(slice(2 * cut.start, 2 * cut.stop) for cut in box)


@contextlib.contextmanager
def settings(pipeline: dict[str, str], threads: int) -> Iterator[None]:
    """Choose zarr's codec pipeline, and as many threads as there are cores."""
    import zarr

    extra: dict[str, Any] = {"threading.max_workers": threads, "async.concurrency": 10}
    if pipeline is ZARRS:
        import zarrs  # noqa: F401  (registers itself)

        extra["codec_pipeline.validate_checksums"] = True
    with warnings.catch_warnings(), zarr.config.set({**pipeline, **extra}):
        warnings.simplefilter("ignore")
        yield


def create(place: Path, layout: Layout) -> list[Any]:
    """Make the empty arrays with zarr-python, in place of what was there."""
    import zarr

    shutil.rmtree(place, ignore_errors=True)
    zarr.create_group(str(place))
    return [
        zarr.create_array(
            str(place), name=str(n), shape=shape, chunks=layout.chunks(n), shards=layout.shards(n),
            dtype="float32", compressors=layout.codec(), fill_value=0, dimension_names=("z", "y", "x"),
        )
        for n, shape in enumerate(layout.levels)
    ]  # fmt: skip


def by_shards(write: Callable[[int, tuple[slice, ...]], None], layout: Layout) -> None:
    """Call a function for each shard, level after level, on all cores."""
    with ThreadPoolExecutor(layout.threads) as pool:
        for level in range(len(layout.levels)):
            list(pool.map(lambda box, level=level: write(level, box), layout.boxes(level)))


def zarr_loop(source: Any, place: Path, layout: Layout, pipeline: dict[str, str]) -> None:
    """Loop over shards with zarr-python, with its own codec pipeline or that of zarrs."""
    with settings(pipeline, layout.threads):
        arrays = create(place, layout)

        def write(level: int, box: tuple[slice, ...]) -> None:
            arrays[level][box] = halve(arrays[level - 1][fine(box)]) if level else source[box]

        by_shards(write, layout)


def tensorstore_open(place: Path, layout: Layout, level: int, *, new: bool = False) -> Any:
    import tensorstore as ts

    context = {
        "data_copy_concurrency": {"limit": layout.threads},
        "file_io_concurrency": {"limit": max(2, layout.threads)},
        "cache_pool": {"total_bytes_limit": 0},
    }
    spec: dict[str, Any] = {"driver": "zarr3", "context": context,
                            "kvstore": {"driver": "file", "path": f"{place}/{level}/"}}  # fmt: skip
    if new:
        blosc = {"cname": layout.cname, "clevel": layout.clevel, "shuffle": "bitshuffle", "typesize": 4}
        inner = [{"name": "bytes", "configuration": {"endian": "little"}},
                 {"name": "blosc", "configuration": blosc}]  # fmt: skip
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {"chunk_shape": list(layout.chunks(level)), "codecs": inner, "index_codecs": index}
        shards = {"chunk_shape": list(layout.shards(level))}
        spec["metadata"] = {
            "shape": list(layout.levels[level]), "data_type": "float32", "fill_value": 0.0,
            "chunk_grid": {"name": "regular", "configuration": shards},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        }  # fmt: skip
        return ts.open(spec, create=True).result()
    return ts.open(spec, open=True).result()


def tensorstore_loop(source: Any, place: Path, layout: Layout) -> None:
    """Loop over shards with tensorstore."""
    import numpy as np

    shutil.rmtree(place, ignore_errors=True)
    arrays = [tensorstore_open(place, layout, n, new=True) for n in range(len(layout.levels))]

    def write(level: int, box: tuple[slice, ...]) -> None:
        made = halve(arrays[level - 1][fine(box)].read().result()) if level else np.asarray(source[box])
        arrays[level][box].write(made).result()

    by_shards(write, layout)


def _factors(layout: Layout) -> list[dict[str, int]]:
    return [dict.fromkeys("zyx", 2**n) for n in range(1, len(layout.levels))]


def ome_zarr_write(source: Any, place: Path, layout: Layout) -> None:
    """`ome_zarr.writer.write_image` over dask."""
    import dask
    import dask.array as da
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image

    shutil.rmtree(place, ignore_errors=True)
    with settings(PLAIN, layout.threads), dask.config.set(scheduler="threads", num_workers=layout.threads):
        image = da.from_array(source, chunks=layout.shards(0), name=False)
        options = [
            {"chunks": layout.chunks(n), "shards": layout.shards(n), "compressors": layout.codec()}
            for n in range(len(layout.levels))
        ]
        write_image(
            image, str(place), axes="zyx", scale_factors=_factors(layout), method=Methods.LOCAL_MEAN,
            scale=dict.fromkeys("zyx", 10.0), storage_options=options,
        )  # fmt: skip


def ngff_zarr_write(source: Any, place: Path, layout: Layout) -> None:
    """`ngff_zarr.to_ome_zarr` over dask, with its compiled writer."""
    import dask
    import dask.array as da
    import ngff_zarr

    shutil.rmtree(place, ignore_errors=True)
    with settings(PLAIN, layout.threads), dask.config.set(scheduler="threads", num_workers=layout.threads):
        image = ngff_zarr.to_ngff_image(
            da.from_array(source, chunks=layout.shards(0), name=False),
            dims=list("zyx"), scale=dict.fromkeys("zyx", 10.0),
        )  # fmt: skip
        scales = ngff_zarr.to_multiscales(
            image,
            _factors(layout),
            method=ngff_zarr.Methods.DASK_BIN_SHRINK,
            chunks=layout.chunk,
            cache=False,
        )
        per_shard = layout.shard // layout.chunk
        ngff_zarr.to_ome_zarr(str(place), scales, chunks_per_shard=per_shard, compressors=layout.codec())
