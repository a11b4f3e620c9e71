"""Layers that start without touching the global random state, and one way to initialise them.

Torch draws first weights from its global generator when a layer is made. Here layers come up empty, and
`initialise` fills them from a seed: the same seed gives the same network, whatever ran before.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models import kernels


def conv3d(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv3d:
    """Make a 'same'-padded 3D convolution with empty weights; `kernel` is odd."""
    device = torch.get_default_device()
    with torch.device("meta"):  # nothing is drawn there
        layer = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)
    return layer.to_empty(device=device)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Make a dense layer with empty weights."""
    device = torch.get_default_device()
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs)
    return layer.to_empty(device=device)


def conv_relu3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Convolve and take the ReLU."""
    if kernels.work_here(x_NCZYX):
        return kernels.conv_relu(x_NCZYX, *_parameters(layer))
    return torch_f.relu(layer(x_NCZYX))


def pooled_conv3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Convolve, take the largest of 2 x 2 x 2 voxels, and the ReLU of it.

    Parameters
    ----------
    x_NCZYX : (N, C, Z, Y, X) float
        Sides divisible by 2.
    layer : nn.Conv3d
        A 'same' convolution of kernel 3.

    Returns
    -------
    y_NCZYX : (N, C', Z / 2, Y / 2, X / 2) float
        What pooling the ReLU would give: the two commute.
    """
    if kernels.work_here(x_NCZYX):
        return kernels.conv_pool_relu(x_NCZYX, *_parameters(layer))
    return torch_f.relu(torch_f.max_pool3d(layer(x_NCZYX), 2))


def upsampled_conv_relu3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Double the grid by nearest neighbours, convolve, and take the ReLU.

    Parameters
    ----------
    x_NCZYX : (N, C, Z, Y, X) float
    layer : nn.Conv3d
        A 'same' convolution of kernel 3; it keeps its weights.

    Returns
    -------
    y_NCZYX : (N, C', 2 Z, 2 Y, 2 X) float
        What `layer` and the ReLU give for the upsampled grid, borders included, but for rounding.

    Notes
    -----
    Of the 27 neighbours of a fine voxel many are copies of one coarse voxel, so their weights can be added
    beforehand. What is left is a transposed convolution of kernel 4 and stride 2: 64 products for each coarse
    voxel in place of 216. docs/design/011-training.md has what it gains.
    """
    kernel_IOZYX, bias = folded_upsampling(layer.weight), _parameters(layer)[1]
    if kernels.work_here(x_NCZYX):
        return kernels.conv_relu(x_NCZYX, kernel_IOZYX, bias, stride=2)
    if x_NCZYX.is_cuda:  # from a dense layer it comes in another layout than cuDNN is fast in
        x_NCZYX = x_NCZYX.contiguous(memory_format=torch.channels_last_3d)
    return torch_f.relu(torch_f.conv_transpose3d(x_NCZYX, kernel_IOZYX, bias, stride=2, padding=1))


def conv_to_one3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Convolve to one channel."""
    if kernels.work_here(x_NCZYX):
        return kernels.conv_to_one(x_NCZYX, *_parameters(layer))
    y_NCZYX: Tensor = layer(x_NCZYX)
    return y_NCZYX


def _parameters(layer: nn.Conv3d) -> tuple[Tensor, Tensor]:
    if layer.bias is None:
        raise ConfigurationError(f"{layer} has no bias.")
    return layer.weight, layer.bias


def folded_upsampling(weight_OIZYX: Tensor) -> Tensor:
    """Fold nearest upsampling by 2 into the kernel of the convolution behind it.

    Parameters
    ----------
    weight_OIZYX : (C', C, 3, 3, 3) float
        Of a convolution.

    Returns
    -------
    kernel_IOZYX : (C, C', 4, 4, 4) float
        Of a transposed convolution of stride 2 and padding 1; a linear function of `weight`.

    Notes
    -----
    Along an axis the fine voxel 2 i sees w0 x[i-1] + (w1 + w2) x[i], and 2 i + 1 sees (w0 + w1) x[i] +
    w2 x[i+1]. A transposed convolution wants these as (w2, w1 + w2, w0 + w1, w0): the mirrored kernel,
    convolved with (1, 1).
    """
    kernel = weight_OIZYX.flip(2, 3, 4)
    for before, after in (
        ((1, 0), (0, 1)),
        ((0, 0, 1, 0), (0, 0, 0, 1)),
        ((0,) * 4 + (1, 0), (0,) * 4 + (0, 1)),
    ):
        kernel = torch_f.pad(kernel, before) + torch_f.pad(kernel, after)
    return kernel.transpose(0, 1)


def initialise(module: nn.Module, seed: int) -> nn.Module:
    """Fill every convolution and dense layer: Glorot uniform weights, zero bias.

    Parameters
    ----------
    module : nn.Module
        Changed in place. Layers are visited in the order of `module.modules()`.
    seed : int
        Of a generator on the CPU, so that the weights do not depend on the device.

    Returns
    -------
    module : nn.Module
        The same object.

    Notes
    -----
    Limit sqrt(6 / (fan in + fan out)), where a convolution's fans count its receptive field.
    Glorot and Bengio 2010, proceedings.mlr.press/v9/glorot10a.html.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            _glorot_uniform(layer.weight, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def _glorot_uniform(weight: Tensor, generator: torch.Generator) -> None:
    outputs, inputs = weight.shape[:2]
    field = math.prod(weight.shape[2:])
    limit = math.sqrt(6.0 / ((inputs + outputs) * field))
    with torch.no_grad():
        drawn = torch.rand(weight.shape, generator=generator, device="cpu", dtype=torch.float32)
        weight.copy_(drawn.mul_(2 * limit).sub_(limit))


def count_parameters(module: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def check_sides(sides: tuple[int, ...], divisor: int, what: str) -> None:
    """Raise unless every side is a positive multiple of `divisor`.

    Raises
    ------
    ConfigurationError
        Naming the sides and the nearest sizes that would do.
    """
    if len(sides) == 3 and all(side > 0 and side % divisor == 0 for side in sides):
        return
    near = " x ".join(str(max(divisor, round(side / divisor) * divisor)) for side in sides)
    raise ConfigurationError(
        f"{what}: a box of {' x '.join(map(str, sides))} voxels does not fit,"
        f" it needs three sides (z, y, x) divisible by {divisor}.",
        remedy=f"The nearest box is {near}." if len(sides) == 3 else "",
    )
