"""The folded upsampling against the plain one: upsample, then convolve."""

import pytest
import torch
import torch.nn.functional as torch_f
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.models.autoencoder3d import Autoencoder3D
from cryoscale.models.edss3d import EDSS3D
from cryoscale.models.layers import conv3d, folded_upsampling, initialise, upsampled_conv_relu3d


def plain(x_NCZYX, layer):
    return torch_f.relu(layer(torch_f.interpolate(x_NCZYX, scale_factor=2.0, mode="nearest")))


def layer_and_input(box, inputs, outputs, seed, dtype=torch.float32):
    layer = initialise(conv3d(inputs, outputs), seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(outputs, generator=generator))
    return layer, torch.randn(2, inputs, *box, generator=generator, dtype=dtype)


def relative(one, other):
    one, other = one.detach(), other.detach()
    tiny = torch.finfo(other.dtype).tiny  # a ReLU may leave nothing but zeros
    return float((one - other).abs().max() / other.abs().max().clamp(min=tiny))


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
        assert relative(found, wanted) < 1e-13


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_folding_is_exact_but_for_rounding_in_float32(layout):
    layer, x = layer_and_input((4, 6, 8), 32, 32, 3)
    x, layer = x.contiguous(memory_format=layout), layer.to(memory_format=layout)
    with torch.no_grad():
        assert relative(upsampled_conv_relu3d(x, layer), plain(x, layer)) < 2e-6


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
    "network", [Autoencoder3D((8, 12, 4), channels=3, dimension=4), EDSS3D(3, channels=3)]
)
def test_the_networks_give_what_they_give_with_plain_layers(network, monkeypatch):
    x = torch.randn(2, 1, 8, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = network.double()

    def outcome():
        network.zero_grad()
        output = network(x)
        y = output[0] if isinstance(output, tuple) else output
        (y**2).mean().backward()
        return [y.detach(), *(parameter.grad.clone() for parameter in network.parameters())]

    fast = outcome()
    monkeypatch.setattr(f"{type(network).__module__}.upsampled_conv_relu3d", plain)
    monkeypatch.setattr("cryoscale.models.kernels.work_here", lambda x: False)
    for found, wanted in zip(fast, outcome(), strict=True):
        assert relative(found, wanted) < 1e-12
