"""Networks with several heads as engines: each face is what plain torch gives, on OpenVINO too."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cryoscale.inference.dense import WeighedBy, open_label_engine, open_window_engine
from cryoscale.inference.engine import Backend, open_engine
from cryoscale.inference.wrappers import (
    HeadOf,
    ParticlesOf,
    RecoveringOf,
    SoftmaxOf,
    Standardised,
    Trimmed,
    narrowed,
)  # fmt: skip
from cryoscale.models.dsm_net import DSMNet
from cryoscale.models.registry import MODELS, build, facts_of

BACKENDS: list[Backend] = ["torch"]
if importlib.util.find_spec("openvino") is not None:
    BACKENDS.append("openvino")

ARCHITECTURES: list[dict[str, Any]] = [
    {"name": "ssn3d-ed", "n_classes": 3, "channels": 4, "batch_norm": True, "upsampling": "trilinear"},
    {"name": "ssn3d-ed", "n_classes": 2, "channels": 4},
    {"name": "ssn3d-fcn", "n_classes": 2, "channels": 4},
    {"name": "dsrf3d-v2", "n_classes": 5, "channels": 2, "box": [20, 20, 20]},
    {"name": "dsm-net", "n_classes": 5, "channels": 4, "features": 16, "batch_norm": True},
    {"name": "unet3d", "n_classes": 2, "channels": 4},
    {"name": "edss3d", "n_classes": 3, "channels": 4},
    {"name": "unet2d", "n_classes": 3, "channels": 4, "slices": 3},
    {"name": "cnn2d-chen", "n_classes": 3, "channels": 4, "kernel": 7},
]


def lively(architecture: dict[str, Any]) -> nn.Module:
    """A network whose normalisations and biases do something."""
    module = build(architecture, seed=1).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            layer.weight.uniform_(0.5, 1.5, generator=generator)
        elif getattr(layer, "bias", None) is not None:
            layer.bias.normal_(0, 0.1, generator=generator)
    return module


def boxes(module: Any, *, side: int = 20) -> np.ndarray:
    """Random items; 20 is pooled to 10, 5 and 3."""
    if module.dimensions == 3:
        shape = (3, 1, side, side, side)
    else:
        shape = (3, getattr(module, "slices", 1), side + 5, side)  # type: ignore[assignment]
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: f"{a['name']}-{len(a)}")
def test_every_head_of_every_network(architecture: dict[str, Any], backend: Backend) -> None:
    module = lively(architecture)
    side = 20 if architecture["name"] != "edss3d" else 24
    items = boxes(module, side=side)
    whole = module(torch.from_numpy(items))
    for head in facts_of(architecture).heads:
        expected = (whole[head] if isinstance(whole, dict) else whole).numpy()
        assert expected.std() > 1e-2
        with open_engine(
            HeadOf(module, head), input_shape=items.shape[1:], batch=2, backend=backend
        ) as engine:
            np.testing.assert_allclose(engine.run(items), expected, atol=1e-4)


def test_all_supervised_networks_are_tried() -> None:
    assert {a["name"] for a in ARCHITECTURES} == set(MODELS) - {"autoencoder3d"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recover", [False, True])
def test_particles_are_packed(backend: Backend, recover: bool) -> None:
    module = lively(ARCHITECTURES[4])
    items = boxes(module)
    whole = module(torch.from_numpy(items))
    shares, objects = torch.softmax(whole["cls"], 1), 1 - torch.softmax(whole["seg"], 1)[:, 0]
    wrapped = ParticlesOf(module, recover=recover)
    with open_engine(wrapped, input_shape=items.shape[1:], batch=2, backend=backend) as engine:
        found = engine.run(items)
    assert found.shape == (3, (1 + recover) * 8000 + 5)
    np.testing.assert_allclose(found[:, :8000].reshape(3, 20, 20, 20), objects, atol=1e-4)
    np.testing.assert_allclose(found[:, -5:], shares, atol=1e-4)
    if recover:
        np.testing.assert_allclose(found[:, 8000:-5].reshape(3, 1, 20, 20, 20), whole["rec"], atol=1e-4)


def test_what_is_not_asked_for_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DSMNet(3, channels=2, features=8).eval()
    items = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = module(items)["cls"]
    part = narrowed(module, ("cls",))
    monkeypatch.setattr(module.trunk, "forward", None)
    torch.testing.assert_close(part(items), expected)
    assert module.heads == ("cls", "seg", "rec")
    assert narrowed(module, ("cls", "seg", "rec")) is module
    single = build({"name": "edss3d", "n_classes": 2})
    assert narrowed(single, ("cls",)) is single


@pytest.mark.parametrize("backend", BACKENDS)
def test_shares_and_density_in_one(backend: Backend) -> None:
    module = lively({"name": "dsm-net", "heads": ["seg", "rec"], "channels": 2})
    items, weight = boxes(module, side=16), torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = module(torch.from_numpy(items))
    expected = torch.cat([torch.softmax(whole["seg"], 1), whole["rec"]], 1) * weight
    wrapped = WeighedBy(RecoveringOf(module), weight)
    with open_engine(wrapped, input_shape=items.shape[1:], batch=2, backend=backend) as engine:
        np.testing.assert_allclose(engine.run(items), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", [ARCHITECTURES[0], ARCHITECTURES[5], ARCHITECTURES[6],
                                          {"name": "dsm-net", "heads": ["seg", "rec"], "channels": 2}],
                         ids=lambda a: a["name"])  # fmt: skip
def test_large_windows(architecture: dict[str, Any]) -> None:
    """Converted from a small example, computed at another size."""
    module = lively(architecture)
    items = np.random.default_rng(1).normal(size=(2, 1, 32, 48, 16)).astype(np.float32)
    whole = module(torch.from_numpy(items))
    logits = whole["seg"] if isinstance(whole, dict) else whole
    shares = torch.softmax(logits, 1).numpy()
    wrapped = SoftmaxOf(HeadOf(module, "seg"))
    with open_window_engine(wrapped, shares.shape[1], window=items.shape[2:], threads=2) as engine:
        np.testing.assert_allclose(engine.run(items), shares, atol=1e-4)
    sure = np.ptp(np.sort(shares, axis=1)[:, -2:], axis=1) > 1e-3
    with open_label_engine(HeadOf(module, "seg"), window=items.shape[2:]) as engine:
        np.testing.assert_array_equal(engine.run(items)[:, 0][sure], shares.argmax(axis=1)[sure])


@pytest.mark.parametrize("backend", BACKENDS)
def test_items_are_scaled_each_by_itself(backend: Backend) -> None:
    items = np.random.default_rng(0).normal(3, [[[[[2]]]], [[[[5]]]]], (2, 1, 6, 6, 6)).astype(np.float32)
    with open_engine(
        Standardised(nn.Identity()), input_shape=(1, 6, 6, 6), batch=2, backend=backend
    ) as engine:
        found = engine.run(items)
        flat = engine.run(np.full((1, 1, 6, 6, 6), 7.0, np.float32))
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3, 4)), 1, atol=1e-5)
    expected = (items[0] - items[0].mean()) / items[0].std()
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert not flat.any()


def test_trimmed() -> None:
    items = torch.arange(36.0).reshape(1, 1, 6, 6)
    torch.testing.assert_close(Trimmed(nn.Identity(), 2)(items), items[..., 2:4, 2:4])
    torch.testing.assert_close(Trimmed(nn.Identity(), 0)(items), items)
