"""The layers with gradients of their own against torch's."""

import pytest
import torch
import torch.nn.functional as torch_f
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.models import kernels, kernels2d
from cryoscale.models.autoencoder3d import Autoencoder3D
from cryoscale.models.edss3d import EDSS3D


def plain_pool(x, weight, bias):
    return torch_f.relu(torch_f.max_pool3d(torch_f.conv3d(x, weight, bias, padding=1), 2))


def plain_relu(x, weight, bias):
    return torch_f.relu(torch_f.conv3d(x, weight, bias, padding=1))


def plain_transposed(x, weight, bias):
    return torch_f.relu(torch_f.conv_transpose3d(x, weight, bias, stride=2, padding=1))


def transposed(x, weight, bias):
    return kernels.conv_relu(x, weight, bias, stride=2)


def plain_one(x, weight, bias):
    return torch_f.conv3d(x, weight, bias, padding=1)


def strided(x, weight, bias):
    return kernels.conv(x, weight, bias, kernels.Geometry(stride=2), relu=True)


def plain_strided(x, weight, bias):
    return torch_f.relu(torch_f.conv3d(x, weight, bias, stride=2, padding=1))


def deconv(x, weight, bias):
    return kernels.conv(x, weight, bias, kernels.DECONV, relu=True)


def plain_deconv(x, weight, bias):
    return torch_f.relu(torch_f.conv_transpose3d(x, weight, bias, stride=2, padding=1, output_padding=1))


PAIRS = {  # channels in and out, side of the kernel
    "linear": (kernels.conv, plain_one, 3, 4, 3),
    "strided": (strided, plain_strided, 3, 4, 3),
    "deconv": (deconv, plain_deconv, 3, 4, 3),
    "pointwise": (kernels.pointwise, torch_f.conv3d, 3, 4, 1),
    "relu": (kernels.conv_relu, plain_relu, 3, 4, 3),
    "transposed": (transposed, plain_transposed, 3, 4, 4),
    "pool": (kernels.conv_pool_relu, plain_pool, 3, 4, 3),
    "first": (kernels.conv_pool_relu, plain_pool, 1, 4, 3),
    "to one": (kernels.conv_to_one, plain_one, 3, 1, 3),
}
BOXES = st.tuples(*[st.sampled_from([2, 4, 6])] * 3)


def made_of(name, box, seed, *, whole_numbers=False):
    """Input, weight and bias; of whole numbers sums are exact, and equal ones are common."""
    _, _, inputs, outputs, side = PAIRS[name]
    weight = (inputs, outputs) if name in ("transposed", "deconv") else (outputs, inputs)
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, inputs, *box), (*weight, side, side, side), (outputs,))
    if whole_numbers:
        return [torch.randint(-1, 2, shape, generator=generator).double() for shape in shapes]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def outcome(function, name, tensors):
    """Return the values and the gradients; that of the patches is not asked for where there is none."""
    leaves = [tensor.clone() for tensor in tensors]
    wanted = leaves[1:] if name == "first" else leaves
    for leaf in wanted:
        leaf.requires_grad_()
    y = function(*leaves)
    upstream = torch.randint(-3, 4, y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, wanted, upstream)]


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=10, deadline=None)
@given(box=BOXES, seed=st.integers(0, 99))
def test_values_and_gradients_are_those_of_torch(name, box, seed):
    tensors = made_of(name, box, seed)
    ours, plain = (outcome(function, name, tensors) for function in PAIRS[name][:2])
    for found, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["pool", "first"])
@settings(max_examples=10, deadline=None)
@given(box=BOXES, seed=st.integers(0, 99))
def test_of_equal_voxels_the_first_takes_the_gradient_as_in_torch(name, box, seed):
    tensors = made_of(name, box, seed, whole_numbers=True)
    ours, plain = (outcome(function, name, tensors) for function in PAIRS[name][:2])
    for found, wanted in zip(ours, plain, strict=True):
        assert torch.equal(found, wanted)


def test_one_channel_whose_gradient_is_wanted():
    tensors = made_of("first", (4, 4, 4), 0)
    ours, plain = (outcome(function, "pool", tensors) for function in PAIRS["first"][:2])
    for found, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", PAIRS)
def test_bfloat16_is_as_close_as_bfloat16_is(name):
    tensors = [tensor.float() for tensor in made_of(name, (4, 4, 8), 3)]
    exact = outcome(PAIRS[name][1], name, tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = outcome(PAIRS[name][0], name, tensors)
    for found, wanted in zip(rounded[1:], exact[1:], strict=True):
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < 0.2
    assert float((rounded[0].float() - exact[0]).norm() / exact[0].norm()) < 0.02


@pytest.mark.parametrize(
    "network", [Autoencoder3D((8, 4, 4), channels=2, dimension=3), EDSS3D(2, channels=2)]
)
def test_whoever_traces_a_network_sees_plain_layers(network):
    x = torch.randn(1, 1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    # torch announces the end of tracing; the check of sides reads the shape, which is fixed here
    with pytest.warns((DeprecationWarning, torch.jit.TracerWarning)) as _, torch.no_grad():
        traced = torch.jit.trace(network.eval(), x, check_trace=False)
    assert "PythonOp" not in str(traced.graph)
    assert "max_pool3d" in str(traced.inlined_graph)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), network(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("box", [(2, 2, 2), (2, 4, 4), (4, 4, 4)])
def test_gradients_in_bfloat16_take_up_no_memory_that_nobody_wrote(box):
    """The gradient of torch's own convolution does, at a depth of 2."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(22, 16, *box, generator=generator)
    weight, bias = torch.randn(16, 16, 3, 3, 3, generator=generator).requires_grad_(), torch.zeros(16)
    found = []
    for value in (float("nan"), 1e4, -3.0, float("nan")):
        for size in (1000, 5000, 20_000, 100_000, 400_000):  # what the next tensors are made of
            written = [torch.full((size,), value, dtype=kind) for kind in (torch.float32, torch.bfloat16) * 6]
            del written
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = kernels.conv_relu(x, weight, bias)
        found.append(torch.autograd.grad(y.float().sum(), weight)[0])
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize(("inputs", "outputs", "side"), [(1, 4, 5), (4, 3, 7), (3, 1, 15), (2, 2, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_kernels_in_2d_have_the_gradients_of_torch(inputs, outputs, side, layout):
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, inputs, 9, 12), (outputs, inputs, side, side), (outputs,))
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[:2] = [tensor.contiguous(memory_format=layout) for tensor in tensors[:2]]

    def plain(x, weight, bias):
        return torch_f.conv2d(x, weight, bias, padding=side // 2)

    for found, wanted in zip(
        outcome(kernels2d.conv2d, "2d", tensors), outcome(plain, "2d", tensors), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    tensors = [tensor.float() for tensor in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = outcome(kernels2d.conv2d, "2d", tensors)
    for found, wanted in zip(rounded[1:], outcome(plain, "2d", tensors)[1:], strict=True):
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_inference_makes_no_product_whose_bits_depend_on_the_row(monkeypatch):
    tensors = [tensor.float() for tensor in made_of("pointwise", (4, 4, 2), 0)]
    wanted = torch_f.relu(torch_f.conv3d(*tensors))
    monkeypatch.setattr(torch_f, "linear", None)
    with torch.inference_mode():
        assert torch.equal(kernels.pointwise(*tensors, relu=True), wanted)
