"""Encoding: patches to codes from memory and from the store, decoding, and the same on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case, Contestant, Setup, Size, Target, installed
from benchmarks.harness.growth import Growth

BOX, BATCH, THREADS = (32, 32, 32), 64, 2
PATCHES = {"tiny": 64, "small": 512, "full": 8192}
SHAPES = {"tiny": (48, 96, 96), "small": (128, 256, 256), "full": (200, 928, 960)}
OURS_32, OURS_16, PLAIN = "cryoscale, float32", "cryoscale, bfloat16", "torch, plain loop"
STAGE, ONE_BY_ONE = "the stage", "gather all, then encode all"
ON_DEVICE, FROM_HOST = "cryoscale, on the device", "cryoscale, from host memory"
OPERATIONS = 2 * (
    27 * 32**4 + 27 * 32 * 32 * 16**3 + 32 * 32 * 8**3
)  # of the encoder, per patch, multiplied directly


def network() -> Any:
    """Make the paper's autoencoder with a linear code; random weights."""
    from cryoscale.models.autoencoder3d import Autoencoder3D

    return Autoencoder3D(BOX, code="linear").eval().requires_grad_(False)


def as_written(net: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return encoder and decoder in torch's own layers, one after the other, as Zeng et al. wrote them."""
    import torch.nn.functional as torch_f

    def encode(x: Any) -> Any:
        for layer in (net.encoder_conv1, net.encoder_conv2):
            x = torch_f.max_pool3d(torch_f.relu(layer(x)), 2)
        return net.encoder_dense(x.flatten(1))

    def decode(codes: Any) -> Any:
        x = torch_f.relu(net.decoder_dense(codes)).reshape(-1, 32, 8, 8, 8)
        for layer in (net.decoder_conv1, net.decoder_conv2):
            x = torch_f.relu(layer(torch_f.interpolate(x, scale_factor=2.0)))
        return net.decoder_conv3(x)

    return encode, decode


def noise(*shape: int) -> Any:
    """Make white noise, float32."""
    import numpy as np

    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def engine(stack: ExitStack, module: Any, shape: tuple[int, ...], precision: str, **keywords: Any) -> Any:
    """Open an engine until the stack is left."""
    from cryoscale.inference.engine import open_engine

    settings: dict[str, Any] = {"batch": BATCH, "device": "cpu", "threads": THREADS, **keywords}
    return stack.enter_context(open_engine(module, input_shape=shape, precision=precision, **settings))


def torch_loop(function: Callable[[Any], Any], items: Any, *, channels_last: bool = False) -> Any:
    """Compute batch after batch with torch, as one writes it first."""
    import torch

    torch.set_num_threads(THREADS)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(items), BATCH):
            part = torch.from_numpy(items[start : start + BATCH])
            if channels_last:
                part = part.contiguous(memory_format=torch.channels_last_3d)
            parts.append(function(part))
        return torch.cat(parts).numpy()


def openvino_by_batches(module: Any, shape: tuple[int, ...], hint: str) -> Callable[[Any], Any]:
    """Compile the network as it stands, all cores on one batch: OpenVINO's way to low latency."""
    import numpy as np

    from cryoscale.inference.openvino_cpu import convert, import_openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": hint,
    }
    model = import_openvino().Core().compile_model(convert(module, [(BATCH, *shape)]), "CPU", settings)
    request = model.create_infer_request()

    def run(items: Any) -> Any:
        parts = []
        for start in range(0, len(items), BATCH):
            request.get_input_tensor(0).data[:] = items[start : start + BATCH]
            request.infer()
            parts.append(request.get_output_tensor(0).data.copy())
        return np.concatenate(parts)

    return run


def products(dtype: str, operations: float) -> Callable[[], Any]:
    """Multiply matrices with so many operations in all: what the machine can do at most."""
    import torch

    torch.set_num_threads(THREADS)
    side = 1024
    left, right = (torch.ones(side, side, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(left)
    times = max(1, round(operations / (2 * side**3)))

    def run() -> None:
        with torch.inference_mode():
            for _ in range(times):
                torch.mm(left, right, out=out)

    return run


def errors(results: Mapping[str, Any], reference: str) -> dict[str, Any]:
    """Compare with one contestant: rms error over rms; float32 must agree, bfloat16 nearly."""
    import numpy as np

    expected = results[reference]
    facts = {}
    for name, found in results.items():
        if found is None or name == reference:
            continue
        error = float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))
        assert error < (0.02 if "bfloat16" in name else 1e-5), (name, error)
        facts[f"relative error of {name}"] = error
    return facts


# -- from memory --------------------------------------------------------------------------------------------


@contextmanager
def open_memory(size: Size, _: Path) -> Iterator[Setup]:
    """Encode patches that lie in memory."""
    from cryoscale.inference.wrappers import EncoderOnly

    items, net = noise(PATCHES[size], 1, *BOX), network()
    count, (encode, _decode), shape = len(items), as_written(net), (1, *BOX)
    floating = float(count)
    with ExitStack() as stack:
        fast = {p: engine(stack, EncoderOnly(net), shape, p) for p in ("float32", "bfloat16")}
        contestants = [
            Contestant(OURS_32, lambda: fast["float32"].run(items), floating, settings="as the peers"),
            Contestant(
                OURS_16, lambda: fast["bfloat16"].run(items), floating, settings=fast["bfloat16"].name
            ),
            Contestant(
                PLAIN, lambda: torch_loop(encode, items), floating, "peer", "float32, batch 64", rounds=2
            ),
            Contestant(
                "torch, channels last", functools.partial(torch_loop, encode, items, channels_last=True),
                floating, "peer", "float32, batch 64", rounds=2,
            ),
        ]  # fmt: skip
        missing = []
        if installed("openvino"):
            for name, hint in (("float32", "f32"), ("bfloat16", "bf16")):
                run = openvino_by_batches(EncoderOnly(net), shape, hint)
                contestants.append(
                    Contestant(
                        f"OpenVINO, {name}", functools.partial(run, items), floating, "peer", "batch 64"
                    )
                )
        else:
            missing.append("openvino")
        settings = "as many operations as the layers, multiplied directly"
        contestants.extend(
            Contestant(
                f"products of matrices, {name}",
                products(name, count * OPERATIONS),
                floating,
                "ceiling",
                settings,
            )
            for name in ("float32", "bfloat16")
        )
        yield Setup(contestants, check=lambda results: errors(results, PLAIN), missing=missing)


@contextmanager
def open_decode(size: Size, _: Path) -> Iterator[Setup]:
    """Decode codes, as for centres and members of clusters."""
    from cryoscale.inference.wrappers import DecoderOnly

    codes, net = noise(max(64, PATCHES[size] // 4), 32), network()
    (_encode, decode), floating = as_written(net), float(len(codes))
    with ExitStack() as stack:
        fast = {p: engine(stack, DecoderOnly(net), (32,), p) for p in ("float32", "bfloat16")}
        yield Setup(
            [
                Contestant(OURS_32, lambda: fast["float32"].run(codes), floating, settings="as the peers"),
                Contestant(OURS_16, lambda: fast["bfloat16"].run(codes), floating, settings="our best"),
                Contestant(
                    PLAIN, lambda: torch_loop(decode, codes), floating, "peer", "float32, batch 64", rounds=2
                ),
            ],
            check=lambda results: errors(results, PLAIN),
        )


# -- from the store ------------------------------------------------------------------------------------------


def picked_run(place: Path, shape: tuple[int, ...], precision: str) -> Any:
    """Make a run with picks as dense as in a cell (one in about 17^3 voxels) and a given encoder."""
    from cryoscale.data.access import Access
    from cryoscale.formats.mrc_write import write_mrc
    from cryoscale.pipeline.driver import Options, run_pipeline
    from cryoscale.pipeline.order import steps_for
    from cryoscale.testing.phantoms import small_run

    place.mkdir(parents=True, exist_ok=True)
    write_mrc(place / "noise.mrc", noise(*shape), 10.0)
    run = small_run(
        place / "run", [place / "noise.mrc"], "ingest.levels=1", "ingest.chunk=64", "ingest.shard=256",
        "pick.radius_angstrom=60", "pick.min_distance_angstrom=100", "patch.size_voxels=32",
        "execution.block_voxels=256", f"encoder.inference_precision={precision}",
        "execution.memory_budget=16GB",
    )  # fmt: skip
    result = run_pipeline(run, Options(executor="serial", until="pick", trace=False))
    assert not result.failures, result.failures
    net = network()
    card = {"architecture": net.architecture, "voxel_size_angstrom": 10.0, "key": "given"}
    run.model("encoder").save(net.state_dict(), card, {})
    stage: Any = next(step.stage for step in steps_for(run.config) if step.name == "encode")
    return stage, Access(
        run=run, config=run.config, tomogram="noise", tomograms=(), key="k", upstream={},
        reads=stage.reads, writes=stage.writes,
    )  # fmt: skip


def through_the_stage(stage: Any, access: Any) -> Any:
    """Run every block of the stage."""
    plan = stage.plan(access)
    stage.create(access)
    with stage.open_worker(access) as function:
        for phase in plan.phases:
            for block in phase:
                function(block)
    return access.encodings().read()


def in_turn(access: Any, *, gather: bool, encode: bool) -> Any:
    """Gather all patches a part at a time, then encode as many; never both at once."""
    import numpy as np

    from cryoscale.stages.encode import ROWS_AT_A_TIME
    from cryoscale.stages.networks import open_encoder
    from cryoscale.stages.patching import PatchReader

    reader = PatchReader.for_access(access)
    centres = reader.voxels(access.picks().positions_N3)
    patches = np.zeros((ROWS_AT_A_TIME, *BOX), np.float32)
    results = []
    with open_encoder(access) as network:
        for start in range(0, len(centres), ROWS_AT_A_TIME):
            part = centres[start : start + ROWS_AT_A_TIME]
            if gather:
                reader.gather(part, out=patches[: len(part)])
            if encode:
                results.append(network.run(patches[: len(part), None]))
    return np.concatenate(results) if gather and encode else None


@contextmanager
def open_stage(size: Size, scratch: Path) -> Iterator[Setup]:
    """Encode the picks of a stored tomogram."""
    import numpy as np

    from cryoscale.stages.networks import CACHE

    stage, access = picked_run(scratch / "encode", SHAPES[size], "bfloat16")
    count, both = float(access.pick_count()), {"gather": True, "encode": True}

    def check(results: Mapping[str, Any]) -> Mapping[str, Any]:
        assert np.array_equal(results[STAGE], results[ONE_BY_ONE])
        voxels = int(np.prod(SHAPES[size]))
        return {"picks": int(count), "patch voxels per voxel": count * 32**3 / voxels}

    yield Setup(
        [
            Contestant(STAGE, lambda: through_the_stage(stage, access), count, settings="bfloat16"),
            Contestant(
                ONE_BY_ONE, lambda: in_turn(access, **both), count, "baseline", "the combined rate, bfloat16"
            ),
            Contestant(
                "gather alone",
                lambda: in_turn(access, gather=True, encode=False),
                count,
                "baseline",
                "one thread",
            ),
            Contestant(
                "encode alone",
                lambda: in_turn(access, gather=False, encode=True),
                count,
                "ceiling",
                "bfloat16",
            ),
        ],
        check=check,
    )
    CACHE.close()


# -- on a GPU ------------------------------------------------------------------------------------------------


@contextmanager
def open_gpu(size: Size, _: Path) -> Iterator[Setup]:
    """Encode on a device, from its own memory and from the host's; the tests run the same on a CPU."""
    import torch

    from cryoscale.inference.encoder_gpu import PhaseEncoder
    from cryoscale.inference.wrappers import EncoderOnly

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = {"tiny": 8, "small": 512, "full": 1024}[size]
    count = {"tiny": 16, "small": 16 * 512, "full": 64 * 1024}[size]
    items, net = noise(min(count, 4096), 1, *BOX), network()
    encode, _decode = as_written(net.to(device))
    there = torch.from_numpy(items[:batch]).to(device)
    fast = PhaseEncoder(EncoderOnly(net)).to(device)

    def on_device(function: Callable[[Any], Any], dtype: Any) -> Any:
        cuda = device == "cuda"
        with torch.inference_mode(), torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            for _ in range(max(1, count // batch)):
                result = function(there.contiguous(memory_format=torch.channels_last_3d))
        if cuda:
            torch.cuda.synchronize()
        return result.float().cpu().numpy()

    with ExitStack() as stack:
        opened = engine(
            stack, EncoderOnly(net), (1, *BOX), "bfloat16", batch=batch, device=device, backend="torch"
        )
        rounds = max(1, count // len(items))

        def from_host() -> Any:
            for _ in range(rounds):
                result = opened.run(items)
            return result[:batch]

        done = float(max(1, count // batch) * batch)
        yield Setup(
            [
                Contestant(ON_DEVICE, lambda: on_device(fast, torch.bfloat16), done, settings="bfloat16"),
                Contestant(
                    "cryoscale, on the device, float32", lambda: on_device(fast, torch.float32), done,
                    settings="as the peers",
                ),
                Contestant(
                    FROM_HOST, from_host, float(rounds * len(items)), settings="bfloat16"
                ),
                Contestant(PLAIN, lambda: on_device(encode, torch.float32), done, "peer", "float32"),
                Contestant(
                    "torch, plain loop, bfloat16", lambda: on_device(encode, torch.bfloat16), done, "peer",
                    "autocast, on the device",
                ),
            ],
            check=lambda results: gpu_errors(results),
        )  # fmt: skip


def gpu_errors(results: Mapping[str, Any]) -> dict[str, Any]:
    """Compare with torch's float32; all but the float32 row are bfloat16."""
    names = {name: name if name == PLAIN or "float32" in name else f"{name}, bfloat16" for name in results}
    return errors({names[name]: found for name, found in results.items()}, PLAIN)


CASES = (
    Case(
        "encoding.memory", "How fast do 32^3 patches in memory become codes?", "patch", open_memory,
        threads=THREADS,
        targets=(
            Target(OURS_16, 1 / 1.2e-3, aim=1 / 0.6e-3, words="below 1.2 ms per patch, aim at 0.6"),
            Target(OURS_16, 5, of=PLAIN, words="at least 5 times plain torch float32"),
            Target(OURS_32, 5, of=PLAIN, words="the same in float32"),
        ),
    ),
    Case(
        "encoding.stage", "What do reading, smoothing and cutting cost beside the network?", "patch",
        open_stage, threads=THREADS,
        targets=(Target(STAGE, 0.8, of=ONE_BY_ONE, words="0.8 of 1 / (1 / gather + 1 / network)"),),
    ),
    Case(
        "encoding.decode", "How fast do codes become patches again?", "patch", open_decode, threads=THREADS,
        targets=(Target(OURS_16, 1 / 2.3e-3, words="the paper's 2.3 ms per patch"),),
    ),
    Case(
        "encoding.gpu", "How fast are patches encoded on a GPU?", "patch", open_gpu, device="cuda",
        targets=(
            Target(ON_DEVICE, 1e5, aim=3e5, words="100,000 patches per second in memory, aim at 300,000"),
        ),
    ),
)  # fmt: skip


# -- growth --------------------------------------------------------------------------------------------------


@contextmanager
def grow_encode(size: Size, factor: int, _: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    """Encode more and more patches."""
    from cryoscale.inference.wrappers import EncoderOnly

    items = noise(factor * (16 if size == "tiny" else 128), 1, *BOX)
    with ExitStack() as stack:
        opened = engine(stack, EncoderOnly(network()), (1, *BOX), "bfloat16", threads=1)
        opened.run(items[:16])
        yield lambda: opened.run(items), float(len(items))


@contextmanager
def grow_gather(size: Size, factor: int, scratch: Path) -> Iterator[tuple[Callable[[], Any], float]]:
    """Cut more and more patches, from a tomogram that grows as they do."""
    side = 64 if size == "tiny" else 128
    _, access = picked_run(scratch / f"gather{factor}", (48, side, side * factor), "float32")
    yield functools.partial(in_turn, access, gather=True, encode=False), float(access.pick_count())


GROWTH = (
    Growth("encoding.encode", "patches", grow_encode),
    Growth("encoding.gather", "picks", grow_gather),
)
