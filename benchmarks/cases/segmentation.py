"""Segmentation: every voxel of a tomogram labelled, label volume written; and patch by patch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case, Contestant, Setup, Size, Target, installed
from benchmarks.harness.growth import Growth

CLASSES, BOX, OVERLAP, BATCH = 4, 32, 16, 64
SHAPES = {"tiny": (32, 48, 48), "small": (64, 160, 160), "full": (256, 512, 512)}
CHANNELS = {"tiny": 4, "small": 32, "full": 32}
TILES, AS_PEERS = "cryoscale, tiles", "cryoscale, windows"
MONAI, FOLDED = "MONAI", "MONAI, our folded network"


def network(channels: int) -> Any:
    """Make EDSS3D with random weights and classes that are about equally likely."""
    import torch

    from cryoscale.models.edss3d import EDSS3D

    module = EDSS3D(CLASSES, channels=channels, seed=0).eval().requires_grad_(False)
    noise = torch.randn((1, 1, BOX, BOX, BOX), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = module(noise)
    module.classify.weight *= 1 / logits.std()  # few near ties
    module.classify.bias -= logits.mean(dim=(0, 2, 3, 4)) / logits.std()
    return module


def as_written(module: Any) -> Any:
    """Return the network with upsampling and convolution one after the other, as Zeng et al. wrote it.

    EDSS3D here does both in one step, with 2.6 times fewer operations in all; the results are the same.
    """
    import torch
    import torch.nn.functional as torch_f

    class Written(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = module

        def forward(self, x: Any) -> Any:
            net = self.layers
            x = torch_f.max_pool3d(torch_f.relu(net.conv1(x)), 2)
            x = torch_f.max_pool3d(torch_f.relu(net.conv2(x)), 2)
            x = torch_f.relu(net.conv3(x))
            x = torch_f.relu(net.conv4(torch_f.interpolate(x, scale_factor=2.0)))
            x = torch_f.relu(net.conv5(torch_f.interpolate(x, scale_factor=2.0)))
            return net.classify(x)

    return Written().eval()


def noise(shape: tuple[int, ...]) -> Any:
    """Make white noise, float32."""
    import numpy as np

    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# -- from a stored tomogram to a stored label volume --------------------------------------------------------


def stored(place: Path, shape: tuple[int, int, int], channels: int, *words: str) -> tuple[Any, Any]:
    """Make a run with an ingested tomogram and given weights; return what labels it, and its density."""
    from cryoscale.data.access import Access
    from cryoscale.formats.mrc_write import write_mrc
    from cryoscale.geometry import Box
    from cryoscale.pipeline.driver import Options, run_pipeline
    from cryoscale.pipeline.order import steps_for
    from cryoscale.testing.phantoms import small_run

    place.mkdir(parents=True, exist_ok=True)
    write_mrc(place / "noise.mrc", noise(shape), 10.0)
    run = small_run(
        place / "run", [place / "noise.mrc"], "ingest.levels=1", "ingest.chunk=64", "ingest.shard=256",
        f"patch.size_voxels={BOX}", "patch.smooth_sigma_voxels=0", "execution.block_voxels=256",
        f"segment.overlap_voxels={OVERLAP}", "execution.memory_budget=16GB", *words,
    )  # fmt: skip
    result = run_pipeline(run, Options(executor="serial", until="ingest", trace=False))
    assert not result.failures, result.failures
    module = network(channels)
    card = {
        "architecture": module.architecture,
        "voxel_size_angstrom": 10.0,
        "key": "given",
        "classes": {"names": list("abc"), "colors": [[200, 30, 30], [30, 200, 30], [30, 30, 200]]},
    }
    run.model("segmenter").save(module.state_dict(), card, {})
    stage: Any = next(step.stage for step in steps_for(run.config) if step.name == "segment")
    access = Access(
        run=run, config=run.config, tomogram="noise", tomograms=(), key="k", upstream={},
        reads=frozenset({"tomogram", "segmenter"}), writes=stage.writes,
    )  # fmt: skip

    def label() -> Any:
        plan = stage.plan(access)
        stage.create(access)
        with stage.open_worker(access) as function:
            for phase in plan.phases:
                for block in phase:
                    function(block)
        stage.seal(access)
        return access.label_volume(write=True).pyramid

    def read() -> Any:
        pyramid = label()
        return lambda: pyramid.read(0, Box.whole(shape))

    return read, access.open_tomogram().read_canonical(0, Box.whole(shape))


@contextmanager
def dense(size: Size, scratch: Path) -> Iterator[Setup]:
    """Open the case."""
    import numpy as np
    import torch

    shape, channels = SHAPES[size], CHANNELS[size]
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    module = network(channels)
    windows, source = stored(scratch / "windows", shape, channels, 'segment.windows="box"')
    tiles, _ = stored(scratch / "tiles", shape, channels, 'segment.windows="tiles"')
    work = source.size / 1e6
    array_in, array_out = peer_arrays(scratch / "peer", source)
    rows = [
        Contestant(AS_PEERS, windows, work,
                   settings=f"as the peers: windows {BOX}, overlap 0.5, float32, our weights for blending"),
        Contestant(TILES, tiles, work,
                   settings="our best: tiles of 128 with a margin of 8, float32"),
    ]  # fmt: skip

    def write(labels_ZYX: Any) -> Callable[[], Any]:
        array_out[...] = labels_ZYX
        return lambda: array_out[...]

    def read_and_write() -> Any:
        return write(array_in[...] > 0)

    rows.append(Contestant("read and write", read_and_write, work, "baseline"))
    missing = [] if installed("monai") else ["monai"]
    if not missing:
        for name, net, how in ((MONAI, as_written(module), "as written"), (FOLDED, module, "folded by us")):
            predict = sliding_window(net)

            def run(predict: Callable[[Any], Any] = predict) -> Any:
                return write(predict(torch.from_numpy(array_in[...])[None, None]).numpy())

            settings = f"windows {BOX}, overlap 0.5, float32, our weights for blending, network {how}"
            rows.append(Contestant(name, run, work, "peer", settings))

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        found = {name: read() for name, read in results.items() if name != "read and write"}
        shares = {name: float(np.mean(found[name] == found[AS_PEERS])) for name in found if name != AS_PEERS}
        assert len(np.unique(found[AS_PEERS])) == CLASSES
        for name in (MONAI, FOLDED):
            assert shares.get(name, 1.0) > 0.999, shares
        return {f"same labels as {AS_PEERS}: {name}": share for name, share in shares.items()}

    facts = {"voxels": list(shape), "classes": CLASSES, "channels": channels}
    yield Setup(rows, facts=facts, check=check, missing=missing)


def peer_arrays(place: Path, source: Any) -> tuple[Any, Any]:
    """Store the density, and make an empty array for labels, in the layout of `cryoscale.data.pyramid`."""
    import numpy as np
    import zarr

    edge = tuple(min(64, n) for n in source.shape)
    shards = tuple(min(256, -(-n // e) * e) for n, e in zip(source.shape, edge, strict=True))
    codec = zarr.codecs.BloscCodec(cname="lz4", clevel=1, shuffle=zarr.codecs.BloscShuffle.bitshuffle)
    array_in = zarr.create_array(place / "in.zarr", shape=source.shape, dtype=np.float32, chunks=edge,
                                 shards=shards, compressors=codec)  # fmt: skip
    array_in[...] = source
    array_out = zarr.create_array(place / "out.zarr", shape=source.shape, dtype=np.uint8, chunks=edge,
                                  shards=shards, compressors=zarr.codecs.ZstdCodec(level=3))  # fmt: skip
    return array_in, array_out


def sliding_window(module: Any) -> Callable[[Any], Any]:
    """Return MONAI's inference from (1, 1, Z, Y, X) to labels (Z, Y, X), blended as we do.

    On a CPU four windows at a time were as fast as any other number, and channels last was slower.
    """
    import torch
    from monai.inferers.utils import sliding_window_inference

    from cryoscale.ops.blend import weight_window

    weight = torch.from_numpy(weight_window(BOX))

    def predictor(windows: Any) -> Any:
        return torch.softmax(module(windows), dim=1)

    @torch.inference_mode()
    def run(volume: Any) -> Any:
        blended = sliding_window_inference(
            volume,
            BOX,
            4 if volume.device.type == "cpu" else BATCH,
            predictor,
            overlap=OVERLAP / BOX,
            roi_weight_map=weight.to(volume.device),
        )
        return blended[0].argmax(dim=0).to(torch.uint8)

    return run


# -- in memory ----------------------------------------------------------------------------------------------


def tiles_in_memory(module: Any, shape: tuple[int, ...], device: str, threads: int) -> Callable[[Any], Any]:
    """Return what labels a whole volume tile by tile."""
    import numpy as np

    from cryoscale.geometry import Box
    from cryoscale.inference.dense import open_label_engine
    from cryoscale.ops.cells import Cells
    from cryoscale.ops.tiles import reflected

    cells = Cells.fitted(shape, largest=128, margin=8, unit=256)
    engine = open_label_engine(module, window=cells.size, threads=threads, device=device)
    whole = Box.whole(shape)

    def run(volume: Any) -> Any:
        labels = np.empty(shape, np.uint8)
        for cell, window in cells.overlapping(whole):
            found = engine.run(reflected(volume, whole, window, shape)[None, None])[0, 0]
            labels[cell.slices] = found[cell.relative_to(window.start).slices]
        return labels

    return run


def windows_in_memory(module: Any, shape: tuple[int, ...], device: str, threads: int) -> Callable[[Any], Any]:
    """Return what labels a whole volume by blended windows."""
    import numpy as np
    import torch

    from cryoscale.geometry import Box
    from cryoscale.inference.dense import WeightedOf
    from cryoscale.inference.engine import open_engine
    from cryoscale.ops.blend import Windows, weight_window

    windows, whole = Windows.of(shape, BOX, OVERLAP), Box.whole(shape)
    starts = windows.starts_for(whole)
    weighted = WeightedOf(module, torch.from_numpy(weight_window(BOX)))
    engine = open_engine(
        weighted, input_shape=(1, BOX, BOX, BOX), batch=BATCH, device=device, threads=threads
    )

    def predictions(volume: Any) -> Iterator[Any]:
        for first in range(0, len(starts), BATCH):
            batch = [volume[windows.window(start).slices] for start in starts[first : first + BATCH]]
            yield from engine.run(np.stack(batch)[:, None])

    return lambda volume: windows.labels(whole, starts, predictions(volume), CLASSES)


@contextmanager
def on_gpu(size: Size, scratch: Path) -> Iterator[Setup]:
    """Open the case: a volume in host memory to labels in host memory."""
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape, module, threads = SHAPES[size], network(CHANNELS[size]).to(device), torch.get_num_threads()
    volume = noise(shape)
    work = volume.size / 1e6
    rows = [
        Contestant(name, functools.partial(make(module, shape, device, threads), volume), work, settings=how)
        for name, make, how in (
            (AS_PEERS, windows_in_memory, f"as the peers: windows {BOX}, overlap 0.5, float32"),
            (TILES, tiles_in_memory, "our best: tiles of 128 with a margin of 8, float32"),
        )
    ]
    missing = [] if installed("monai") else ["monai"]
    if not missing:
        for name, net, how in ((MONAI, as_written(module), "as written"), (FOLDED, module, "folded by us")):
            predict = sliding_window(net)

            def run(predict: Callable[[Any], Any] = predict) -> Any:
                return predict(torch.from_numpy(volume)[None, None].to(device)).cpu().numpy()

            rows.append(Contestant(name, run, work, "peer", f"the same windows on the device, network {how}"))

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        shares = {name: float(np.mean(found == results[AS_PEERS])) for name, found in results.items()}
        assert all(shares.get(name, 1.0) > 0.999 for name in (MONAI, FOLDED)), shares
        return {"tiles: same labels as windows": shares[TILES]}

    yield Setup(rows, facts={"voxels": list(shape), "device": device}, check=check, missing=missing)


@contextmanager
def patches(size: Size, scratch: Path) -> Iterator[Setup]:
    """Open the case: patches in memory to what is embedded, the paper's 11 ms."""
    import numpy as np
    import torch

    from cryoscale.inference.dense import WeightedOf
    from cryoscale.inference.engine import open_engine
    from cryoscale.ops.blend import weight_window

    count, module = {"tiny": 4, "small": 128, "full": 2048}[size], network(CHANNELS[size])
    items, weight = noise((count, 1, BOX, BOX, BOX)), torch.from_numpy(weight_window(BOX))
    weighted = WeightedOf(module, weight, background_only=True)
    engine = open_engine(weighted, input_shape=items.shape[1:], batch=min(BATCH, count),
                         threads=torch.get_num_threads())  # fmt: skip

    @torch.inference_mode()
    def plain() -> Any:
        parts = torch.from_numpy(items).split(16)
        return torch.cat([torch.softmax(module(part), dim=1)[:, :1] * weight for part in parts]).numpy()

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        worst = float(np.abs(results["cryoscale"] - results["torch"]).max())
        assert worst < 1e-3, worst
        return {"largest difference of a probability": worst}

    yield Setup(
        [
            Contestant("cryoscale", lambda: engine.run(items), count, settings=engine.name),
            Contestant("torch", plain, count, "peer", "float32, 16 patches at a time"),
        ],
        facts={"box": BOX, "classes": CLASSES},
        check=check,
    )
    engine.close()


def _against_the_same_network(at_least: float) -> tuple[Target, ...]:
    """What is asked for beside MONAI with the network that we run, so that folding it is not counted."""
    same = f"windows: at least {at_least:g} times MONAI with the same windows and the same network"
    best = (
        f"tiles: at least 2 times MONAI with the same network (windows differ: {BOX} overlapping, for MONAI)"
    )
    return Target(AS_PEERS, at_least, FOLDED, words=same), Target(TILES, 2.0, FOLDED, words=best)


CASES = (
    Case(
        "segmentation.dense",
        "How fast is a stored tomogram labelled voxel by voxel, beside MONAI's sliding windows?",
        "Mvoxel", dense, threads=2, rounds=3,
        targets=_against_the_same_network(2.0),
    ),
    Case(
        "segmentation.patches",
        "How long does a patch of 32^3 take, beside the 11 ms of Zeng et al. 2018 on a GTX 1080?",
        "patch", patches, threads=2, targets=(Target("cryoscale", 1 / 0.011),),
    ),
    Case(
        "segmentation.gpu",
        "How fast is a volume in memory labelled on a GPU, beside MONAI's sliding windows?",
        "Mvoxel", on_gpu, threads=2, device="cuda", rounds=3,
        targets=_against_the_same_network(3.0),
    ),
)  # fmt: skip


# -- growth -------------------------------------------------------------------------------------------------


@contextmanager
def growing_volume(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    """Label volumes of 1, 2, 4, 8 times the voxels, tile by tile."""
    import torch

    side = {"tiny": 24, "small": 128, "full": 256}[size]
    shape = [side // (1 if size == "full" else 2), side, side]
    for doubled in range(factor.bit_length() - 1):
        shape[doubled % 3] *= 2
    run = tiles_in_memory(network(CHANNELS[size]), tuple(shape), "cpu", torch.get_num_threads())
    volume = noise(tuple(shape))
    run(volume)
    yield lambda: run(volume), volume.size / 1e6


@contextmanager
def growing_picks(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    """Predict 1, 2, 4, 8 times the patches."""
    import torch

    from cryoscale.inference.dense import WeightedOf
    from cryoscale.inference.engine import open_engine
    from cryoscale.ops.blend import weight_window

    count = {"tiny": 4, "small": 64, "full": 512}[size] * factor
    module = WeightedOf(network(CHANNELS[size]), torch.from_numpy(weight_window(BOX)), background_only=True)
    items = noise((count, 1, BOX, BOX, BOX))
    batch = {"tiny": 4}.get(size, BATCH)
    with open_engine(
        module, input_shape=items.shape[1:], batch=batch, device="cpu", threads=torch.get_num_threads()
    ) as engine:
        engine.run(items[:batch])
        yield lambda: engine.run(items), count


GROWTH = (
    Growth("segmentation.tiles", "voxels", growing_volume),
    Growth("segmentation.patches", "picks", growing_picks),
)
