"""Picking: difference-of-Gaussians picks from memory and from the store, beside peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case, Contestant, Setup, Size, Target, installed
from benchmarks.harness.growth import Growth

SHAPES = {"tiny": (48, 80, 96), "small": (192, 384, 384), "full": (256, 512, 512)}
STAGE_SHAPES = {"tiny": (64, 96, 96), "small": (256, 512, 512), "full": (512, 1024, 1024)}
GPU_SHAPES = {"tiny": (48, 80, 96), "small": (256, 512, 512), "full": (1024, 1024, 1024)}
SMOOTH, NARROW, WIDE = 2.0, 5.0, 5.5  # the paper's, voxels
DISTANCE, THRESHOLD = 10.0, 5.0  # voxels; twentieths of the range of scores


def scene(shape: tuple[int, int, int], seed: int = 0) -> Any:
    """Make noise of sd 1 with dark blobs of 8 voxels radius, one in 40^3 voxels."""
    import numpy as np

    rng = np.random.default_rng(seed)
    volume = rng.standard_normal(shape, dtype=np.float32)
    grid = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"))
    blob = np.exp(-(grid.astype(np.float32) ** 2).sum(axis=0) / (2 * 4.6**2))
    for _ in range(max(3, math.prod(shape) // 40**3)):
        z, y, x = (int(rng.integers(0, n - 25)) for n in shape)
        volume[z : z + 25, y : y + 25, x : x + 25] -= blob
    return volume


def picks_of(positions_N3: Any, scores_N: Any) -> Any:
    """Threshold and suppress local maxima, as the pick stage does; best first."""
    from cryoscale.ops.peaks import range_threshold, suppress

    good = scores_N >= range_threshold(scores_N, THRESHOLD)
    kept = suppress(positions_N3[good], scores_N[good], DISTANCE)
    return positions_N3[good][kept]


def _dog() -> Any:
    from cryoscale.ops.dog import Dog

    return Dog.of_paper(SMOOTH, NARROW, WIDE / NARROW)


def ours(volume: Any) -> Any:
    """Find the picks of a whole volume as the pick stage does."""
    from cryoscale.geometry import Box
    from cryoscale.ops.dog import dog_candidates

    whole = Box.whole(volume.shape)
    return picks_of(*dog_candidates(volume, whole, whole, volume.shape, _dog()))


def by_fft(volume: Any) -> Any:
    """Find the picks with the same filter in Fourier space, tile by tile."""
    import numpy as np

    from cryoscale.geometry import Box
    from cryoscale.ops.gaussian import filter_tile
    from cryoscale.ops.peaks import local_maxima
    from cryoscale.ops.tiles import filtered_tiles

    dog, whole = _dog(), Box.whole(volume.shape)
    terms = [(-weight, sigma) for weight, sigma in dog.terms]
    places, scores = [], []
    for box, cover, score in filtered_tiles(
        volume, whole, whole, volume.shape, tile=128, halo=dog.halo, margin=1,
        apply=lambda buffer, keep: filter_tile(buffer, terms, keep),
    ):  # fmt: skip
        local = local_maxima(score)
        found = local + np.array(cover.start)
        mine = np.all((found >= box.start) & (found < box.stop), axis=1)
        places.append(found[mine])
        scores.append(score[tuple(local[mine].T)])
    return picks_of(np.concatenate(places), np.concatenate(scores))


def by_scipy(volume: Any, truncate: float = 4.0) -> Any:
    """Find the picks by the paper's recipe: three Gaussians, a maximum filter."""
    import numpy as np
    from scipy.ndimage import gaussian_filter, maximum_filter

    smooth = gaussian_filter(-volume, SMOOTH, truncate=truncate)
    score = gaussian_filter(smooth, NARROW, truncate=truncate)
    score -= gaussian_filter(smooth, WIDE, truncate=truncate)
    found = np.argwhere(maximum_filter(score, 3) == score)
    return picks_of(found, score[tuple(found.T)])


def by_dask_image(volume: Any) -> Any:
    """Find the picks by the paper's recipe with dask-image, chunks of 128, one thread."""
    import dask
    import dask.array as da
    import numpy as np
    from dask_image.ndfilters import gaussian_filter, maximum_filter

    with dask.config.set(scheduler="synchronous"):
        smooth = gaussian_filter(-da.from_array(volume, chunks=128), SMOOTH)
        score = gaussian_filter(smooth, NARROW) - gaussian_filter(smooth, WIDE)
        peak, score = dask.compute(maximum_filter(score, size=3) == score, score)
    found = np.argwhere(peak)
    return picks_of(found, score[tuple(found.T)])


def by_skimage(volume: Any) -> Any:
    """Find blobs with scikit-image: two Gaussians of the whole filter's widths, no overlap test."""
    import numpy as np
    from skimage.feature import blob_dog

    dog = _dog()
    found = blob_dog(
        -volume, min_sigma=dog.narrow, max_sigma=dog.narrow, sigma_ratio=dog.wide / dog.narrow,
        threshold=None, threshold_rel=0.3, overlap=1.0,
    )  # fmt: skip
    return np.asarray(found[:, :3], dtype=np.int64)


def common(found_N3: Any, wanted_N3: Any, within: float = 0.0) -> float:
    """Return which part of the wanted picks was found, within so many voxels."""
    from scipy.spatial import cKDTree

    if not len(found_N3) or not len(wanted_N3):
        return float(len(found_N3) == len(wanted_N3))
    gap, _ = cKDTree(found_N3).query(wanted_N3)
    return float((gap <= within).mean())


@contextmanager
def _open_kernel(size: Size, scratch: Path) -> Iterator[Setup]:
    volume = scene(SHAPES[size])
    work = volume.size / 1e6
    rows = [
        Contestant("ours", lambda: ours(volume), work, "ours", "same recipe, exact Gaussians, coarse grid"),
        Contestant("tile by tile FFT", lambda: by_fft(volume), work, "ours", "whole band, tiles of 128"),
        Contestant("scipy", lambda: by_scipy(volume), work, "peer", "Gaussians cut at 4 sigma", rounds=2),
    ]  # fmt: skip
    missing = []
    if installed("dask", "dask_image"):
        words = "the same with chunks of 128, synchronous"
        rows.append(Contestant("dask-image", lambda: by_dask_image(volume), work, "peer", words, rounds=2))
    else:
        missing.append("dask-image")
    if installed("skimage"):
        words = "blob_dog: two Gaussians of the composed widths, 81 neighbours, no suppression"
        rows.append(Contestant("scikit-image", lambda: by_skimage(volume), work, "peer", words, rounds=1))
    else:
        missing.append("scikit-image")

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        mine = results["ours"]
        facts = {"picks": len(mine), **_against_exact()}
        for name in ("tile by tile FFT", "scipy", "dask-image"):
            if name in results:
                within_one = common(results[name], mine, 3**0.5)
                assert within_one >= 0.97, f"{name}: only {within_one:.3f} of our picks, within one voxel"
                facts[f"our picks that {name} has, exactly"] = common(results[name], mine)
                facts[f"our picks that {name} has, within a voxel"] = within_one
        if "scikit-image" in results:
            facts["our picks among scikit-image's blobs, within a voxel"] = common(
                results["scikit-image"], mine, 3**0.5
            )
        return facts

    yield Setup(rows, {"shape": list(volume.shape)}, check, missing)


def _against_exact() -> dict[str, Any]:
    """Compare with the exact filter of a whole small volume of noise."""
    from cryoscale.geometry import Box
    from cryoscale.ops.dog import difference_of_gaussians, dog_candidates
    from cryoscale.ops.peaks import local_maxima

    volume = scene((64, 112, 120), seed=1)
    whole = Box.whole(volume.shape)
    positions, scores = dog_candidates(volume, whole, whole, volume.shape, _dog())
    exact = difference_of_gaussians(-volume, _dog())
    error = float(abs(scores - exact[tuple(positions.T)]).max() / exact.std())
    assert error < 2e-5, f"scores differ from the exact filter by {error:.1e} sd"
    places, wanted = ({tuple(p) for p in found.tolist()} for found in (positions, local_maxima(exact)))
    assert len(places ^ wanted) <= max(2, len(wanted) // 50)
    return {
        "largest error of a score, sd": error,
        "maxima that differ from the exact filter": len(places ^ wanted),
    }


class PickRun:
    """A run with one ingested tomogram, and its pick stage without driver and executor."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], *, chunk: int, shard: int) -> None:
        from cryoscale.data.run import Run
        from cryoscale.formats.mrc_write import write_mrc
        from cryoscale.pipeline.order import steps_for
        from cryoscale.pipeline.units import UnitGraph
        from cryoscale.testing.phantoms import small_run

        source = folder / "t.mrc"
        write_mrc(source, scene(shape), 10.0)
        words = [f"ingest.chunk={chunk}", f"ingest.shard={shard}", "ingest.levels=1", "ingest.contrast=dark",
                 f"execution.block_voxels={shard}", "pick.radius_angstrom=none", "pick.smooth_sigma_voxels=2",
                 "pick.sigma_voxels=5", "pick.min_distance_angstrom=100", "pick.threshold=5"]  # fmt: skip
        self.run: Run = small_run(folder / "run", [source], *words)
        self._graph = UnitGraph(self.run, self.run.config, steps_for(self.run.config), {})
        self._drive("ingest", "identify")
        self.stage, self.access = self._unit("pick", "ingest")
        self.plan = self.stage.plan(self.access)
        source.unlink()

    def _unit(self, step: str, *before: str) -> tuple[Any, Any]:
        for name in before:
            self._graph.units[name, "t"].state = "sealed"
            self._graph.units[name, "t"].identity = "x"
        unit = self._graph.units[step, "t"]
        unit.key = "benchmark"
        return unit.step.stage, self._graph.access_for(unit)

    def _drive(self, step: str, *before: str) -> None:
        stage, access = self._unit(step, *before)
        stage.create(access)
        with stage.open_worker(access) as function:
            for phase in stage.plan(access).phases:
                for block in phase:
                    function(block)
        stage.seal(access)

    def whole(self) -> int:
        """Do every block and seal: how many picks."""
        self.stage.create(self.access)
        with self.stage.open_worker(self.access) as function:
            for block in self.plan.phases[0]:
                function(block)
        return int(self.stage.seal(self.access)["picks"])

    def volume(self) -> Any:
        """Return the whole tomogram as it is stored."""
        from cryoscale.geometry import Box

        tomogram = self.access.open_tomogram()
        return tomogram.pyramid.read(0, Box.whole(tomogram.facts.levels[0].shape))

    def read(self) -> None:
        """Read what the blocks read, halo included, and do nothing with it."""
        tomogram = self.access.open_tomogram()
        for block in self.plan.phases[0]:
            tomogram.pyramid.read(0, block.read)


@contextmanager
def _open_stage(size: Size, scratch: Path) -> Iterator[Setup]:
    shape = STAGE_SHAPES[size]
    run = PickRun(
        scratch, shape, **({"chunk": 32, "shard": 64} if size == "tiny" else {"chunk": 64, "shard": 256})
    )
    work, blocks, volume = math.prod(shape) / 1e6, run.plan.phases[0], run.volume()

    def find() -> int:
        return len(ours(volume))

    def read_then_find() -> int:
        run.read()
        return find()

    rows = [
        Contestant("ours: Zarr to parquet", run.whole, work, "ours", "one process, sealed"),
        Contestant("read, then find", read_then_find, work, "ceiling", "1 / (1 / read + 1 / kernel)"),
        Contestant("read the blocks", run.read, work, "baseline", "with their halo, and nothing else"),
        Contestant("find in memory", find, work, "baseline", "the kernel, the whole volume in one call"),
    ]
    read = sum(block.read.voxels for block in blocks)

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        staged, whole = results["ours: Zarr to parquet"], results["find in memory"]
        assert abs(staged - whole) <= max(1, whole // 50), f"{staged} picks of the stage, {whole} in memory"
        return {"picks": staged, "picks in memory": whole}

    facts = {
        "shape": list(shape),
        "blocks": len(blocks),
        "voxels read for each voxel": read / math.prod(shape),
    }
    yield Setup(rows, facts, check)


def by_torch_convolutions(volume: Any) -> Any:
    """Find the picks by the paper's recipe with torch: nine convolutions along an axis, max pooling."""
    import numpy as np
    import torch
    from torch.nn.functional import conv3d, max_pool3d, pad

    def smooth(part: torch.Tensor, sigma: float) -> torch.Tensor:
        reach = int(4 * sigma + 0.5)
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        kernel = torch.as_tensor(taps / taps.sum(), dtype=torch.float32, device=part.device)
        for axis in range(3):
            sides = [reach if i // 2 == 2 - axis else 0 for i in range(6)]
            extent = [-1 if i == axis else 1 for i in range(3)]
            part = conv3d(pad(part, sides, mode="replicate"), kernel.reshape(1, 1, *extent))
        return part

    with torch.inference_mode():
        first = smooth(-volume[None, None], SMOOTH)
        score = smooth(first, NARROW) - smooth(first, WIDE)
        found = torch.nonzero((max_pool3d(score, 3, 1, 1) == score)[0, 0])
        values = score[0, 0][tuple(found.T)]
        return picks_of(found.cpu().numpy(), values.cpu().numpy())


def by_cupy(volume: Any) -> Any:
    """Find the picks by the paper's recipe with CuPy."""
    import cupy
    from cupyx.scipy.ndimage import gaussian_filter, maximum_filter

    smooth = gaussian_filter(-volume, SMOOTH)
    score = gaussian_filter(smooth, NARROW) - gaussian_filter(smooth, WIDE)
    found = cupy.argwhere(maximum_filter(score, 3) == score)
    return picks_of(cupy.asnumpy(found), cupy.asnumpy(score[tuple(found.T)]))


@contextmanager
def _open_gpu(size: Size, scratch: Path) -> Iterator[Setup]:
    import torch

    from cryoscale.ops.dog_torch import DeviceDog

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = GPU_SHAPES[size]
    generator = torch.Generator(device).manual_seed(0)
    volume = torch.randn(shape, generator=generator, device=device)
    work = volume.numel() / 1e6
    filters = {tile: DeviceDog(shape, _dog(), device, tile=tile) for tile in (256, 512)}

    def find(tile: int) -> Callable[[], Any]:
        return lambda: filters[tile](volume)

    rows = [
        Contestant("ours", find(512), work, "ours", "maxima in memory, float32, tiles of at most 512"),
        Contestant("ours, small tiles", find(256), work, "ours", "tiles of at most 256"),
        Contestant(
            "ours, with picks", lambda: picks_of(*filters[512](volume)), work, "ours", "suppressed on the CPU"
        ),
    ]
    if size != "full":  # the convolutions need many times the volume
        words = "convolutions, max pooling, suppressed on the CPU"
        rows.append(Contestant("torch", lambda: by_torch_convolutions(volume), work, "peer", words))
    missing = []
    if installed("cupy") and device == "cuda":
        import cupy

        array = cupy.asarray(volume)
        rows.append(Contestant("CuPy", lambda: by_cupy(array), work, "peer", "cut at 4 sigma"))
    else:
        missing.append("CuPy")

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        import numpy as np

        same = common(results["ours"][0], results["ours, small tiles"][0])
        assert same > 0.99, f"{same:.4f} of the maxima are the same for both tiles"
        facts = {"maxima": len(results["ours"][0]), "the same for both tiles": same, "device": device}
        part = tuple(min(n, 160) for n in shape)
        small = np.ascontiguousarray(volume[: part[0], : part[1], : part[2]].cpu().numpy())
        from cryoscale.geometry import Box
        from cryoscale.ops.dog import dog_candidates

        whole = Box.whole(small.shape)
        wanted, scores = dog_candidates(small, whole, whole, small.shape, _dog())
        found, values = DeviceDog(part, _dog(), device)(small)
        facts["maxima as on the CPU"] = common(found, wanted)
        assert facts["maxima as on the CPU"] > 0.99
        if len(values) == len(scores) and (found == wanted).all():
            facts["largest difference of scores / largest score"] = float(
                abs(values - scores).max() / scores.max()
            )
        return facts

    yield Setup(rows, {"shape": list(shape), "device": device}, check, missing)


@contextmanager
def _grow_kernel(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    z, y, x = (40, 60, 60) if size == "tiny" else (144, 288, 288)
    volume = scene((z * factor, y, x))
    ours(volume)
    yield lambda: ours(volume), volume.size / 1e6


@contextmanager
def _grow_stage(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    shape = ((48 if size == "tiny" else 288) * factor, *((64, 64) if size == "tiny" else (288, 288)))
    run = PickRun(scratch, shape, chunk=32 if size == "tiny" else 64, shard=64 if size == "tiny" else 256)
    run.whole()
    yield run.whole, math.prod(shape) / 1e6


@contextmanager
def _grow_suppression(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    import numpy as np

    from cryoscale.ops.peaks import suppress

    count = (500 if size == "tiny" else 20_000) * factor
    rng = np.random.default_rng(0)
    extent = (count * 5400) ** (1 / 3)  # as dense as maxima in noise
    positions, scores = rng.uniform(0, extent, (count, 3)), rng.standard_normal(count)
    yield lambda: suppress(positions, scores, DISTANCE), count


CASES = (
    Case(
        "picking.kernel",
        "How fast are picks found in a volume in memory, beside the paper's recipe in scipy, on one core?",
        "Mvoxel",
        _open_kernel,
        targets=(
            Target("ours", 10.0, "scipy", aim=20.0, words="10 times the paper's recipe in scipy, aim 20"),
            Target("ours", 10.0, ("scikit-image", "dask-image"), words="10 times the others"),
        ),
        rounds=3,
    ),
    Case(
        "picking.stage",
        "How much of reading and finding is left from Zarr to parquet?",
        "Mvoxel",
        _open_stage,
        targets=(
            Target(
                "ours: Zarr to parquet", 0.8, "read, then find", words="0.8 of 1 / (1 / read + 1 / kernel)"
            ),
        ),
        rounds=3,
    ),
    Case(
        "picking.gpu",
        "How fast are maxima found in a volume in a GPU's memory?",
        "Mvoxel",
        _open_gpu,
        device="cuda",
        targets=(Target("ours", 5000.0, words="5 Gvoxel per second on an H200", sizes=("full",)),),
    ),
)

GROWTH = (
    Growth("picking.kernel", "voxels", _grow_kernel),
    Growth("picking.stage", "voxels", _grow_stage),
    Growth("picking.suppression", "maxima", _grow_suppression),
)
