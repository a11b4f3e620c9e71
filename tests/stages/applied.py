"""What tests of applied networks share: networks of random weights, grants, and plain answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cryoscale.config import apply_settings
from cryoscale.data.access import Access
from cryoscale.data.pyramid import Pyramid
from cryoscale.data.volumes import ImageVolume, file_names
from cryoscale.geometry import Box, Zyx
from cryoscale.models.registry import build
from cryoscale.ops.tiles import reflected
from cryoscale.stages.apply import ApplyStage
from cryoscale.stages.applying import applied

if TYPE_CHECKING:
    from torch import nn

    from cryoscale.data.run import Run


def network(**architecture: Any) -> nn.Module:
    """A network of random weights whose answers vary from voxel to voxel."""
    module = build(architecture, seed=3).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.named_parameters():
        if name.endswith("weight") and tensor.ndim > 1:
            tensor *= 1.5
        else:
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    for name, tensor in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            tensor += 0.2 * torch.rand(tensor.shape, generator=generator)
    _balance(module, generator)
    return module


def _balance(module: Any, generator: torch.Generator) -> None:
    """Make the labels of voxels about equally frequent, where a last convolution says them."""
    last = getattr(module, "segment", getattr(module, "classify", None))
    if not isinstance(last, torch.nn.Conv2d | torch.nn.Conv3d):
        return
    items = torch.randn((1, getattr(module, "slices", 1), *[32] * module.dimensions), generator=generator)
    found = module(items)
    logits = found["seg"] if isinstance(found, dict) else found
    axes = (0, *range(2, logits.ndim))
    deviation = logits.std(dim=axes)
    last.weight /= deviation.reshape(-1, *[1] * (last.weight.ndim - 1))
    last.bias[:] = (last.bias - logits.mean(dim=axes)) / deviation


def card_for(module: nn.Module, box: int = 8, sigma: float = 1.0, **card: Any) -> dict[str, Any]:
    """The card of a network whose classes are numbered."""
    architecture: Any = module.architecture
    classes = range(int(architecture["n_classes"]) - 1)
    return {
        "architecture": architecture,
        "voxel_size_angstrom": 10.0,
        "patch": {"size_voxels": box, "smooth_sigma_voxels": sigma},
        "classes": {"names": [f"class {n}" for n in classes], "colors": [[n, 2, 3] for n in classes]},
        **card,
    }


def install(run: Run, module: nn.Module, box: int = 8, sigma: float = 1.0, **card: Any) -> None:
    """Put a network into a run as if it had been trained there."""
    run.model("segmenter").save(module.state_dict(), card_for(module, box, sigma, **card), {})


def access_of(run: Run, *settings: str, tomogram: str = "alpha", writes: str = "labels") -> Access:
    """A grant for the run's network."""
    name = run.model("segmenter").card["architecture"]["name"]
    words = [f'supervised.model="{name}"', 'supervised.weights="given"', *settings]
    return Access(
        run=run, config=apply_settings(run.config, words), tomogram=tomogram, tomograms=(),
        reads=ApplyStage.reads, writes=writes, key="k", upstream={},
    )  # fmt: skip


def apply(access: Access) -> np.ndarray:
    """Do all blocks of the stage, seal, and return the merged labels of the level at work."""
    stage = ApplyStage()
    plan = stage.plan(access)
    stage.create(access)
    with stage.open_worker(access) as function:
        for phase in plan.phases:
            for block in phase:
                function(block)
    stage.seal(access)
    if access.config.segment.volumes == "features":
        return np.empty((0, 0, 0), np.uint8)
    return whole(access.label_volume().pyramid)


def whole(pyramid: Pyramid, level: int = 0) -> np.ndarray:
    """Read a level."""
    return pyramid.read(level, Box.whole(pyramid.shape(level)))


def shares_of(access: Access) -> np.ndarray:
    """The probabilities that were written, background first."""
    tomogram, labels = access.run.tomogram(access.tomogram), access.config.segment.labels
    files = file_names(applied(access).names)
    images = [ImageVolume(tomogram, "probabilities", labels, file) for file in files]
    found = np.stack([whole(image.pyramid) for image in images]).astype(np.float32)
    return np.concatenate([1 - found.sum(axis=0, keepdims=True), found])


def density_of(access: Access, padded: Zyx | None = None) -> np.ndarray:
    """The whole tomogram as the network sees it; reflected to another extent."""
    reader = applied(access).reader(access)
    shape = reader.level.shape
    density = reader.read(Box.whole(shape))
    if padded is None:
        return density
    return np.asarray(reflected(density, Box.whole(shape), Box.whole(padded), shape), np.float32)


def answers(module: nn.Module, items: np.ndarray) -> dict[str, np.ndarray]:
    """What plain torch gives for a batch, by head; "seg" and "cls" as shares."""
    with torch.inference_mode():
        outputs = module(torch.from_numpy(np.ascontiguousarray(items)))
    if not isinstance(outputs, dict):
        outputs = {module.heads[0]: outputs}  # type: ignore[index]
    return {k: (v if k == "rec" else torch.softmax(v, 1)).numpy() for k, v in outputs.items()}


def sure(shares: np.ndarray) -> np.ndarray:
    """Where the likeliest class is not a matter of rounding."""
    top = np.sort(shares, axis=0)
    return np.asarray(top[-1] - top[-2] > 1e-3)


def check_labels(labels: np.ndarray, shares: np.ndarray) -> None:
    """Labels are the likeliest class wherever that is not a matter of rounding."""
    assert sure(shares).mean() > 0.8
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(labels[sure(shares)], shares.argmax(axis=0)[sure(shares)])
