"""Training: our loop and networks beside a plain torch loop over plain layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.case import Case, Contestant, Role, Setup, Size, Target
from benchmarks.harness.growth import Growth

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from cryoscale.learn.settings import TrainSettings

    Patches = npt.NDArray[np.float32]
    Targets = npt.NDArray[np.uint8] | None

PAPER_SECONDS = 0.013  # per patch and epoch: Zeng et al. 2018, GTX 1080
PAPER_BATCH = {"autoencoder": 8, "edss3d": 128}
OUR_BATCH = {"autoencoder": 32, "edss3d": 128}
CLASSES = 4
BOX = {"tiny": 8, "small": 32, "full": 32}
COUNT = {"tiny": 12, "small": 64, "full": 512}
QUALITY = {"tiny": (24, 8, 2), "small": (320, 16, 12), "full": (2000, 32, 30)}  # patches, box, epochs
GPU_COUNT = {"tiny": 12, "small": 4096, "full": 16384}


def simulated(count: int, box: int, seed: int = 0) -> tuple[Patches, npt.NDArray[np.uint8]]:
    """Make patches of noise around turned particles of three kinds, and their masks; objects are dark.

    A kind is a handful of blobs. Everything is smoothed by one voxel, as the stages do it.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    kinds_KB3 = rng.normal(size=(CLASSES - 1, 8, 3)) * box / 9
    grid_V3 = np.stack(np.meshgrid(*[np.arange(box) - box / 2] * 3, indexing="ij"), axis=-1)
    patches = np.empty((count, 1, box, box, box), np.float32)
    masks = np.zeros((count, box, box, box), np.uint8)
    turns = Rotation.random(count, rng=rng)
    for n, patch in enumerate(patches):
        kind = n % len(kinds_KB3)
        blobs_B3 = turns[n].apply(kinds_KB3[kind])
        distances = ((grid_V3[..., None, :] - blobs_B3) ** 2).sum(-1)
        density = np.exp(-distances / (2 * (box / 14) ** 2)).sum(-1)
        noise = gaussian_filter(rng.normal(size=density.shape), 1.0)
        patch[0] = noise / noise.std() - 3 * density / density.max()
        masks[n][density > 0.3 * density.max()] = kind + 1
    return patches / patches.std(), masks


def plain_network(name: str, box: int) -> nn.Module:
    """Write the network as a textbook would: upsampling, convolution, ReLU, pooling, one after the other."""
    from torch import nn

    def conv(inputs: int, outputs: int, *, relu: bool = True, kernel: int = 3) -> list[nn.Module]:
        layer = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)
        return [layer, nn.ReLU()] if relu else [layer]

    down = [*conv(1, 32), nn.MaxPool3d(2), *conv(32, 32), nn.MaxPool3d(2)]
    up = [nn.Upsample(scale_factor=2), *conv(32, 32), nn.Upsample(scale_factor=2), *conv(32, 32)]
    if name == "edss3d":
        return nn.Sequential(*down, *conv(32, 32), *up, *conv(32, CLASSES, relu=False, kernel=1))
    small = box // 4
    code = [nn.Flatten(), nn.Linear(32 * small**3, 32), nn.Linear(32, 32 * small**3), nn.ReLU()]
    return nn.Sequential(
        *down, *code, nn.Unflatten(1, (32, small, small, small)), *up, *conv(32, 1, relu=False)
    )


def our_network(name: str, box: int) -> nn.Module:
    """Make the network of the package."""
    from cryoscale.models.registry import build

    if name == "edss3d":
        return build({"name": "edss3d", "n_classes": CLASSES})
    return build({"name": "autoencoder3d", "box": [box] * 3, "code": "linear"})


def with_weights_of(plain: nn.Module, ours: nn.Module) -> nn.Module:
    """Give the plain network the weights of ours: the layers come in the same order."""
    import torch

    with torch.no_grad():
        for mine, given in zip(plain.parameters(), ours.parameters(), strict=True):
            mine.copy_(given)
    return plain


def plain_loop(
    module: nn.Module, patches: Patches, targets: Targets, settings: TrainSettings, device: str = "cpu"
) -> list[float]:
    """Train as a short script would; returns the validation loss of each epoch."""
    import numpy as np
    import torch
    import torch.nn.functional as torch_f

    from cryoscale.learn.training import split_rows

    torch.set_num_threads(settings.threads)
    train, validation = split_rows(len(patches), settings)
    inputs = torch.from_numpy(patches)
    wanted = inputs if targets is None else torch.from_numpy(targets)
    module = module.to(device)
    optimiser = torch.optim.Adam(module.parameters(), lr=settings.learning_rate, betas=settings.betas)

    def loss_of(rows: Any) -> torch.Tensor:
        output, goal = module(inputs[rows].to(device)), wanted[rows].to(device)
        if targets is None:
            return torch_f.mse_loss(output, goal)
        return torch_f.cross_entropy(output, goal.long())

    losses = []
    for epoch in range(1, settings.epochs + 1):
        order = np.random.default_rng([settings.seed, epoch, 1]).permutation(train)
        for start in range(0, len(order), settings.batch_size):
            loss = loss_of(order[start : start + settings.batch_size])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            parts = [
                validation[s : s + settings.batch_size]
                for s in range(0, len(validation), settings.batch_size)
            ]
            losses.append(sum(float(loss_of(part)) * len(part) for part in parts) / len(validation))
    return losses


def our_loop(name: str, box: int, patches: Patches, targets: Targets, settings: TrainSettings) -> list[float]:
    """Train as the stages do; returns the validation loss of each epoch."""
    from cryoscale.learn.losses import AutoencoderLoss, SegmentationLoss
    from cryoscale.learn.training import fit

    loss = AutoencoderLoss(l1=0.0) if name == "autoencoder" else SegmentationLoss()
    result = fit(our_network(name, box), patches, targets, loss, settings)
    return [record.validation_loss for record in result.history]


def _settings(name: str, *, threads: int, **changes: Any) -> TrainSettings:
    from cryoscale.learn.settings import TrainSettings

    return TrainSettings(**{"epochs": 1, "batch_size": OUR_BATCH[name], "threads": threads, **changes})


def _contestants(
    name: str, box: int, patches: Patches, targets: Targets, threads: int, device: str
) -> list[Contestant]:
    def plain(batch: int) -> Callable[[], Any]:
        settings = _settings(name, threads=threads, batch_size=batch)
        return lambda: plain_loop(
            with_weights_of(plain_network(name, box), our_network(name, box)),
            patches,
            targets,
            settings,
            device,
        )

    def ours(**changes: Any) -> Callable[[], Any]:
        settings = _settings(name, threads=threads, device=device, **changes)
        return lambda: our_loop(name, box, patches, targets, settings)

    count, paper, batch = len(patches), PAPER_BATCH[name], OUR_BATCH[name]

    def path() -> None:
        _data_path(patches, targets, batch, device)

    auto = f"batch {batch}, bfloat16 where it is fast"
    rows = [
        Contestant("plain loop", plain(paper), count, "peer", f"batch {paper} (the paper's), float32"),
        Contestant("ours, as the peers", ours(batch_size=paper), count, "ours", f"batch {paper}, float32"),
        Contestant("ours, float32", ours(), count, "ours", f"batch {batch}, float32"),
        Contestant("ours, best", ours(precision="auto"), count, "ours", auto),
        Contestant("ours, turned", ours(precision="auto", augment=True), count, "ours", f"{auto}, turned"),
        Contestant("data path", path, count, "baseline", "batches, turned"),
    ]
    if batch != paper:
        row = Contestant(
            "plain loop, our batch", plain(batch), count, "peer", f"batch {batch}, float32", rounds=1
        )
        rows.insert(1, row)
    return rows


def _data_path(patches: Patches, targets: Targets, batch: int, device: str) -> None:
    """Make the batches of an epoch, and do nothing with them."""
    import numpy as np
    import torch

    from cryoscale.learn.augmentation import random_turns
    from cryoscale.learn.loop import Batches

    wanted = None if targets is None else torch.from_numpy(targets)
    batches = Batches(torch.from_numpy(patches), wanted, torch.device(device), random_turns)
    order = np.random.default_rng(0).permutation(len(patches))
    for start in range(0, len(order), batch):
        batches.take(np.sort(order[start : start + batch]), np.random.default_rng(start))
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _open_epoch(name: str, size: Size, threads: int) -> Iterator[Setup]:
    box, count = BOX[size], COUNT[size]
    patches, masks = simulated(count, box)
    targets = None if name == "autoencoder" else masks
    yield Setup(
        _contestants(name, box, patches, targets, threads, "cpu"),
        {"patches": count, "box": box},
        check=_same_loss_after_one_epoch,
    )


def _same_loss_after_one_epoch(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask for the same validation loss where only the way to compute differs."""
    pairs = [("ours, as the peers", "plain loop", 1e-3), ("ours, best", "ours, float32", 0.05)]
    facts = {}
    for one, other, most in pairs:
        found, wanted = results[one][-1], results[other][-1]
        assert abs(found / wanted - 1) < most, f"{one}: {found}, {other}: {wanted}"
        facts[f"validation loss, {one} / {other} - 1"] = found / wanted - 1
    return facts


def _learn(
    name: str, precision: str, box: int, patches: Patches, targets: Targets, epochs: int
) -> list[float]:
    """Train by the plain loop or by ours; the validation loss of each epoch."""
    # Few patches: batches of 128 would be a few steps in all.
    settings = _settings(name, threads=2, epochs=epochs, batch_size=32)
    if precision == "plain":
        module = with_weights_of(plain_network(name, box), our_network(name, box))
        return plain_loop(module, patches, targets, settings)
    return our_loop(name, box, patches, targets, replace(settings, precision=precision))


@contextmanager
def _open_quality(size: Size, scratch: Path) -> Iterator[Setup]:
    count, box, epochs = QUALITY[size]
    patches, masks = simulated(count, box)
    contestants = []
    for name, targets in (("autoencoder", None), ("edss3d", masks)):
        for precision in ("plain", "float32", "bfloat16"):
            run = partial(_learn, name, precision, box, patches, targets, epochs)
            role: Role = "peer" if precision == "plain" else "ours"
            contestants.append(Contestant(f"{name}, {precision}", run, count * epochs, role, rounds=1))
    yield Setup(contestants, {"patches": count, "box": box, "epochs": epochs}, check=_losses_reached)


def _losses_reached(results: Mapping[str, Any]) -> Mapping[str, Any]:
    return {f"best validation loss, {name}": min(losses) for name, losses in results.items()}


@contextmanager
def _open_gpu(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    box, count = BOX[size], GPU_COUNT[size]
    patches, _ = simulated(min(count, 256), box)
    patches = np.resize(patches, (count, *patches.shape[1:]))  # over and over: only the time counts
    contestants = _contestants("autoencoder", box, patches, None, 1, device)
    large = _settings("autoencoder", threads=1, device=device, batch_size=256, precision="auto")
    contestants.append(
        Contestant(
            "ours, batch 256",
            lambda: our_loop("autoencoder", box, patches, None, large),
            count, "ours", "batch 256, bfloat16",
        )
    )  # fmt: skip
    yield Setup(contestants, {"patches": count, "box": box, "device": device})


@contextmanager
def _open_growth(name: str, size: Size, factor: int) -> Iterator[tuple[Callable[[], Any], float]]:
    box, count = (8, 16) if size == "tiny" else (16, 128)
    patches, masks = simulated(count * factor, box)
    targets = None if name == "autoencoder" else masks
    settings = _settings(name, threads=1, precision="auto", augment=True, batch_size=32)

    def run() -> Any:
        return our_loop(name, box, patches, targets, settings)

    run()
    yield run, count * factor


_EPOCH = (
    Target(
        "ours, best", 3.0, ("plain loop",), words="at least 3 times the plain loop with the paper's batch"
    ),
    Target("data path", 20.0, ("ours, best",), words="the data path is not the limit: 20 times as fast"),
)

CASES = (
    Case(
        "training.autoencoder",
        "How long does an epoch of the autoencoder take for each patch, beside a plain torch loop?",
        "patch",
        lambda size, scratch: _open_epoch("autoencoder", size, 2),
        threads=2,
        targets=_EPOCH,
        rounds=3,
    ),
    Case(
        "training.edss3d",
        "How long does an epoch of the segmenter take for each patch, beside a plain torch loop?",
        "patch",
        lambda size, scratch: _open_epoch("edss3d", size, 2),
        threads=2,
        targets=_EPOCH,
        rounds=3,
    ),
    Case(
        "training.quality",
        "Do float32, bfloat16 and the plain loop reach the same validation loss in as many epochs?",
        "patch x epoch",
        _open_quality,
        threads=2,
        rounds=1,
    ),
    Case(
        "training.gpu",
        "How long does an epoch of the autoencoder take for each patch on a GPU, beside the paper's 0.013 s?",
        "patch",
        _open_gpu,
        device="cuda",
        targets=(
            Target(
                "ours, best", 50 / PAPER_SECONDS, aim=200 / PAPER_SECONDS,
                words="the paper's 0.013 s beaten 50-fold, aim 200-fold",
            ),
        ),
        rounds=3,
    ),
)  # fmt: skip

GROWTH = (
    Growth(
        "training.autoencoder",
        "patches",
        lambda size, factor, scratch: _open_growth("autoencoder", size, factor),
    ),
    Growth("training.edss3d", "patches", lambda size, factor, scratch: _open_growth("edss3d", size, factor)),
)
