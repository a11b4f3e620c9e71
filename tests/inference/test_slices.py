"""Networks of slices behind the door of those that see boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cryoscale.errors import ConfigurationError
from cryoscale.inference.dense import LabelsOf
from cryoscale.inference.engine import open_engine
from cryoscale.inference.slices import AXES, InSlices
from cryoscale.models.registry import build
from cryoscale.ops.slices import SliceFilter


def network(slices: int) -> nn.Module:
    module = build({"name": "unet2d", "n_classes": 3, "channels": 2, "slices": slices}, seed=1)
    return module.eval().requires_grad_(False)


def windows(
    axis: str, planes: int, *, count: int = 3, sides: tuple[int, int] = (32, 48)
) -> np.ndarray[Any, Any]:
    shape = list(sides)
    shape.insert(AXES.index(axis), planes)
    return np.random.default_rng(2).normal(size=(count, 1, *shape)).astype(np.float32)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_window_gives_what_the_network_says_of_its_middle_plane(axis: str, neighbours: int) -> None:
    module = network(2 * neighbours + 1)
    items = windows(axis, 2 * neighbours + 1)
    found = InSlices(module, axis, neighbours)(torch.from_numpy(items))  # type: ignore[arg-type]
    for item, logits in zip(items, found, strict=True):
        planes_CUV = np.stack([item[0].take(n, axis=AXES.index(axis)) for n in range(2 * neighbours + 1)])
        expected_LUV = module(torch.from_numpy(planes_CUV)[None])[0]
        assert logits.shape[1 + AXES.index(axis)] == 1
        torch.testing.assert_close(logits.select(1 + AXES.index(axis), 0), expected_LUV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("filtered", [False, True])
def test_engines_agree_with_the_module(axis: str, backend: Any, filtered: bool) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    preprocess = SliceFilter(0.6, 3.0, 0.1, 0.5) if filtered else None
    module = InSlices(network(3), axis, 1, preprocess).eval()  # type: ignore[arg-type]
    items = windows(axis, 3)
    expected = module(torch.from_numpy(items)).numpy()
    with open_engine(module, input_shape=items.shape[1:], batch=2, device="cpu", backend=backend) as engine:
        np.testing.assert_allclose(engine.run(items), expected, rtol=1e-4, atol=1e-5)


def test_the_small_network_and_labels_run_in_an_engine() -> None:
    small = build({"name": "cnn2d-chen", "n_classes": 3, "channels": 2, "kernel": 5}, seed=0).eval()
    module = LabelsOf(InSlices(small, "z", 0, SliceFilter(0.6, 3.0))).eval()
    items = windows("z", 1)
    expected = module(torch.from_numpy(items)).detach().numpy()
    with open_engine(module, input_shape=items.shape[1:], batch=2, device="cpu") as engine:
        assert (engine.run(items) == expected).mean() > 0.999


def test_windows_of_another_form_are_refused() -> None:
    module = InSlices(network(1), "y")
    with pytest.raises(ConfigurationError, match="1 planes along y"):
        module(torch.zeros(1, 1, 16, 3, 16))
    with pytest.raises(ConfigurationError, match="cannot be"):
        InSlices(network(1), "w")  # type: ignore[arg-type]
