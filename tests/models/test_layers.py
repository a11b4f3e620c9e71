"""The folded upsampling against the plain one: upsample, then convolve."""

import pytest
import torch
import torch.nn.functional as torch_f
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.models import registry
from cryoscale.models.layers import (
    conv3d,
    cropped,
    folded_upsampling,
    initialise,
    pooled_conv3d,
    upsampled_conv_relu3d,
)


def plain(x_NCZYX, layer):
    return torch_f.relu(plain_linear(x_NCZYX, layer))


def plain_linear(x_NCZYX, layer):
    return layer(torch_f.interpolate(x_NCZYX, scale_factor=2.0, mode="nearest"))


def layer_and_input(box, inputs, outputs, seed, dtype=torch.float32):
    layer = initialise(conv3d(inputs, outputs), seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer, torch.randn(2, inputs, *box, generator=generator, dtype=dtype)


@settings(max_examples=25, deadline=None)
@given(
    box=st.tuples(*[st.integers(1, 5)] * 3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_folding_changes_neither_values_nor_gradients(box, inputs, outputs, seed):
    layer, x = layer_and_input(box, inputs, outputs, seed, torch.float64)
    made = []
    for function in (plain, upsampled_conv_relu3d):
        leaf = x.clone().requires_grad_()
        y = function(leaf, layer)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
        made.append((y, *torch.autograd.grad(y, (leaf, layer.weight, layer.bias), upstream)))
    for wanted, found in zip(*made, strict=True):
        assert found.shape == wanted.shape
        # Values are sums of numbers near 1, which may nearly cancel: they err by those, not by themselves.
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_folding_is_exact_but_for_rounding_in_float32(layout):
    layer, x = layer_and_input((4, 6, 8), 32, 32, 3)
    x, layer = x.contiguous(memory_format=layout), layer.to(memory_format=layout)
    with torch.no_grad():
        found, wanted = upsampled_conv_relu3d(x, layer), plain(x, layer)
    assert float(wanted.max()) > 1
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6 * float(wanted.max()))


def test_the_folded_kernel_is_the_mirrored_one_convolved_with_a_box():
    line = torch.tensor([1.0, 10.0, 100.0])
    weight = line[:, None, None] * line[:, None] * line
    wanted = torch.tensor([100.0, 110.0, 11.0, 1.0])
    expected = wanted[:, None, None] * wanted[:, None] * wanted
    assert torch.equal(folded_upsampling(weight[None, None])[0, 0], expected)


def test_folding_sums_in_float32_under_autocast():
    layer, _ = layer_and_input((2, 2, 2), 3, 3, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert folded_upsampling(layer.weight).dtype == torch.float32


@pytest.mark.parametrize(
    ("architecture", "sides"),
    [
        ({"name": "autoencoder3d", "box": [8, 12, 4], "channels": 3, "dimension": 4}, (8, 12, 4)),
        ({"name": "edss3d", "n_classes": 3, "channels": 3}, (8, 12, 4)),
        ({"name": "ssn3d-ed", "channels": 3}, (16, 8, 24)),
        ({"name": "ssn3d-ed", "channels": 3, "batch_norm": True}, (9, 20, 13)),
        ({"name": "ssn3d-fcn", "channels": 3, "dropout": 0.0}, (20, 8, 15)),
        ({"name": "dsrf3d-v2", "n_classes": 3, "box": [20, 8, 9], "channels": 2, "dropout": 0.0}, (20, 8, 9)),
        ({"name": "dsm-net", "channels": 3, "features": 8, "dropout": 0.0}, (16, 8, 13)),
        ({"name": "dsm-net", "channels": 3, "heads": ["seg"], "batch_norm": True}, (16, 8, 24)),
        ({"name": "unet3d", "channels": 2}, (16, 8, 24)),
        ({"name": "unet3d", "channels": 2, "batch_norm": False}, (9, 20, 13)),
    ],
    ids=str,
)
def test_the_networks_give_what_they_give_with_plain_layers(architecture, sides, monkeypatch):
    x = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = registry.build(architecture).double()

    def outcome():
        network.zero_grad()
        output = network(x)
        y = output[0] if isinstance(output, tuple) else output
        ys = list(y.values()) if isinstance(y, dict) else [y]
        sum((y**2).mean() for y in ys).backward()
        return [*(y.detach() for y in ys), *(parameter.grad.clone() for parameter in network.parameters())]

    fast = outcome()
    for module in ("autoencoder3d", "edss3d", "blocks"):
        monkeypatch.setattr(f"cryoscale.models.{module}.upsampled_conv_relu3d", plain)
    monkeypatch.setattr("cryoscale.models.blocks.upsampled_conv3d", plain_linear)
    monkeypatch.setattr("cryoscale.models.kernels.work_here", lambda x: False)
    for found, wanted in zip(fast, outcome(), strict=True):
        # The gradient of a bias before a normalisation is zero but for rounding.
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("sides", [(4, 6, 2), (5, 6, 3), (1, 1, 7)])
def test_poolings_that_round_up_pool_the_last_voxel_alone(sides, monkeypatch):
    layer, x = layer_and_input(sides, 2, 3, 0, torch.float64)
    padded = torch_f.relu(
        torch_f.pad(layer(x), [n for side in sides[::-1] for n in (0, side % 2)], value=-1e9)
    )
    wanted = torch_f.max_pool3d(padded, 2)
    torch.testing.assert_close(pooled_conv3d(x, layer, ceil=True), wanted, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("cryoscale.models.kernels.work_here", lambda x: False)
    torch.testing.assert_close(pooled_conv3d(x, layer, ceil=True), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sides", [(5, 6, 7), (3, 1, 2), (4, 4, 4)])
def test_a_grid_that_was_halved_and_doubled_is_cut_to_where_it_was(sides):
    x = torch.arange(float(sides[0] * sides[1] * sides[2])).reshape(1, 1, *sides)
    halved = torch_f.max_pool3d(x, 2, ceil_mode=True)
    doubled = torch_f.interpolate(halved, scale_factor=2.0)
    assert torch.equal(cropped(doubled, x), torch_f.interpolate(halved, size=sides))
