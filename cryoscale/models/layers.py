"""Layers that start without touching the global random state, and one way to initialise them.

Torch draws first weights from its global generator when a layer is made. Here layers come up empty, and
`initialise` fills them from a seed: the same seed gives the same network, whatever ran before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models import kernels, kernels2d

SEEDS_APART = 0x9E3779B97F4A7C15  # between the dropout layers of a network: seeds of steps never meet


def conv3d(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1) -> nn.Conv3d:
    """Make a 'same'-padded 3D convolution with empty weights; `kernel` is odd.

    With stride 2 a side of n voxels becomes ceil(n / 2).
    """
    device = torch.get_default_device()
    with torch.device("meta"):  # nothing is drawn there
        layer = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    return layer.to_empty(device=device)


def deconv3d(inputs: int, outputs: int) -> nn.ConvTranspose3d:
    """Make a transposed convolution of kernel 3 and stride 2, which doubles each side, with empty weights."""
    device = torch.get_default_device()
    with torch.device("meta"):
        layer = nn.ConvTranspose3d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return layer.to_empty(device=device)


def conv2d(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Make a 'same'-padded 2D convolution with empty weights; `kernel` is odd."""
    device = torch.get_default_device()
    with torch.device("meta"):
        layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return layer.to_empty(device=device)


def normalisation(channels: int, dimensions: int) -> nn.BatchNorm2d | nn.BatchNorm3d:
    """Make a batch normalisation for 2D or 3D with empty weights and running values."""
    device = torch.get_default_device()
    with torch.device("meta"):
        layer = nn.BatchNorm3d(channels) if dimensions == 3 else nn.BatchNorm2d(channels)
    return layer.to_empty(device=device)


def cropped(x_NC: Tensor, like_NC: Tensor) -> Tensor:
    """Cut the far ends of a grid that was doubled so that it lies on another one, such as that of a skip.

    Parameters
    ----------
    x_NC : (N, C, Z, Y, X) or (N, C, Y, X)
        Sides at least those wanted: of a side n that became ceil(n / 2) and was doubled, n or n + 1.
    like_NC : same number of axes
        With the sides that are wanted.
    """
    sides = like_NC.shape[2:]
    if all(type(side) is int for side in sides) and x_NC.shape[2:] == sides:  # traced, sides are symbols
        return x_NC
    return x_NC[(slice(None), slice(None), *(slice(0, side) for side in sides))]


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Make a dense layer with empty weights."""
    device = torch.get_default_device()
    with torch.device("meta"):
        layer = nn.Linear(inputs, outputs)
    return layer.to_empty(device=device)


class Dropout(nn.Module):
    """Set numbers, or whole channels, to zero while the network learns, by a mask that a seed decides.

    Parameters
    ----------
    rate : float
        Share that is set to zero, from 0 to below 1; what is left is divided by 1 - rate.
    whole_channels : bool
        Draw for each channel of each item, not for each number (Tompson et al. 2015, arXiv:1411.4280).

    Notes
    -----
    `torch.nn.Dropout` draws from torch's global generator: a mask depends on whatever was drawn before. Here
    `seed_dropout` says what the next masks are; without it the global generator is taken.
    """

    def __init__(self, rate: float, *, whole_channels: bool = False) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ConfigurationError(f"dropout = {rate} must be at least 0 and below 1.")
        self.rate, self.whole_channels = rate, whole_channels
        self.seed: int | None = None
        self._generator: torch.Generator | None = None

    def forward(self, x_NC: Tensor) -> Tensor:
        """Drop, in training mode alone."""
        if not self.training or self.rate == 0:
            return x_NC
        shape = [*x_NC.shape[:2], *(1 for _ in x_NC.shape[2:])] if self.whole_channels else x_NC.shape
        # Drawn in float32 whatever autocast made of x: a seed has the same mask in every precision.
        drawn = torch.rand(shape, generator=self._generator_on(x_NC.device), device=x_NC.device)
        # 1 / (1 - rate) in bfloat16 would be off by up to 0.4 %, the same way for every number.
        wide = torch.promote_types(x_NC.dtype, torch.float32)
        return (x_NC * (drawn >= self.rate).to(wide).div_(1 - self.rate)).to(x_NC.dtype)

    def _generator_on(self, device: torch.device) -> torch.Generator | None:
        if self.seed is None:
            return None
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return self._generator

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_generator": None}  # generators can neither be copied nor sent to workers

    def extra_repr(self) -> str:
        """Say what it drops, where torch prints the network."""
        return f"{self.rate}{', whole channels' if self.whole_channels else ''}"


def seed_dropout(module: nn.Module, seed: int) -> None:
    """Decide the masks that the dropout layers of a network draw from here on.

    Parameters
    ----------
    module : nn.Module
        Networks without dropout are left as they are.
    seed : int
        At least 0; a training loop gives each of its steps another one. No two layers draw the same numbers.
    """
    number = 0
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.seed = (seed + number * SEEDS_APART) % 2**63
            layer._generator = None
            number += 1


def convolved3d(x_NCZYX: Tensor, layer: nn.Conv3d | nn.ConvTranspose3d, *, relu: bool = False) -> Tensor:
    """Apply a layer of `conv3d` or `deconv3d`, and take the ReLU where it is asked for."""
    if kernels.work_here(x_NCZYX):
        if layer.kernel_size == (1, 1, 1):
            return kernels.pointwise(x_NCZYX, *_parameters(layer), relu=relu)
        transposed = isinstance(layer, nn.ConvTranspose3d)
        padding, extra = int(layer.padding[0]), layer.output_padding[0]
        geometry = kernels.Geometry(layer.stride[0], padding, transposed, extra)
        return kernels.conv(x_NCZYX, *_parameters(layer), geometry, relu=relu)
    y_NCZYX: Tensor = layer(x_NCZYX)
    return torch_f.relu(y_NCZYX) if relu else y_NCZYX


def convolved2d(x_NCYX: Tensor, layer: nn.Conv2d) -> Tensor:
    """Apply a layer of `conv2d` whose kernel is large; with a kernel of 3 the layer itself is as fast."""
    if kernels.work_here(x_NCYX):
        return kernels2d.conv2d(x_NCYX, *_parameters(layer))
    y_NCYX: Tensor = layer(x_NCYX)
    return y_NCYX


def conv_relu3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Convolve and take the ReLU."""
    return convolved3d(x_NCZYX, layer, relu=True)


def pooled_conv3d(x_NCZYX: Tensor, layer: nn.Conv3d, *, ceil: bool = False) -> Tensor:
    """Convolve, take the largest of 2 x 2 x 2 voxels, and the ReLU of it.

    Parameters
    ----------
    x_NCZYX : (N, C, Z, Y, X) float
        Sides divisible by 2, unless `ceil` is set.
    layer : nn.Conv3d
        A 'same' convolution of kernel 3.
    ceil : bool
        Take odd sides too: their last voxel is pooled alone.

    Returns
    -------
    y_NCZYX : (N, C', Z / 2, Y / 2, X / 2) float
        What pooling the ReLU would give: the two commute.
    """
    if kernels.work_here(x_NCZYX):
        if all(side % 2 == 0 for side in x_NCZYX.shape[2:]):
            return kernels.conv_pool_relu(x_NCZYX, *_parameters(layer))
        y_NCZYX = kernels.conv_relu(x_NCZYX, *_parameters(layer))
        return torch_f.max_pool3d(y_NCZYX, 2, ceil_mode=ceil)
    return torch_f.relu(torch_f.max_pool3d(layer(x_NCZYX), 2, ceil_mode=ceil))


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


def upsampled_conv3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Do what `upsampled_conv_relu3d` does, without the ReLU: for a normalisation in between."""
    kernel_IOZYX, bias = folded_upsampling(layer.weight), _parameters(layer)[1]
    if kernels.work_here(x_NCZYX):
        return kernels.conv(x_NCZYX, kernel_IOZYX, bias, kernels.FOLDED)
    return torch_f.conv_transpose3d(x_NCZYX, kernel_IOZYX, bias, stride=2, padding=1)


def conv_to_one3d(x_NCZYX: Tensor, layer: nn.Conv3d) -> Tensor:
    """Convolve to one channel."""
    if kernels.work_here(x_NCZYX):
        return kernels.conv_to_one(x_NCZYX, *_parameters(layer))
    y_NCZYX: Tensor = layer(x_NCZYX)
    return y_NCZYX


def _parameters(layer: nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d) -> tuple[Tensor, Tensor]:
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

    A batch normalisation starts as one that changes nothing: weight 1, bias 0, running mean 0 and variance 1.

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
        if isinstance(layer, WEIGHTED):
            _glorot_uniform(layer.weight, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d)):
            layer.reset_parameters()  # also the running values and the counter; nothing is drawn
    return module


WEIGHTED = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _glorot_uniform(weight: Tensor, generator: torch.Generator) -> None:
    if weight.is_meta:  # a network without memory, made for its shapes
        return
    outputs, inputs = weight.shape[:2]
    field = math.prod(weight.shape[2:])
    limit = math.sqrt(6.0 / ((inputs + outputs) * field))
    with torch.no_grad():
        drawn = torch.rand(weight.shape, generator=generator, device="cpu", dtype=torch.float32)
        weight.copy_(drawn.mul_(2 * limit).sub_(limit))


def count_parameters(module: nn.Module) -> int:
    """Count the trainable numbers of a network."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def check_counts(what: str, n_classes: int, channels: int) -> None:
    """Raise unless there is the background, a class beside it, and a channel.

    Raises
    ------
    ConfigurationError
        Naming both numbers.
    """
    if n_classes < 2 or channels < 1:
        raise ConfigurationError(
            f"{what}: n_classes = {n_classes}, channels = {channels}:"
            " it needs two classes at least (the background counts), and one channel."
        )


def check_box(what: str, box: Sequence[int], smallest: int) -> tuple[int, ...]:
    """Return the sides of a box, three of them.

    Raises
    ------
    ConfigurationError
        Another number of sides, or one below `smallest`.
    """
    sides = tuple(int(side) for side in box)
    if len(sides) != 3 or min(sides) < smallest:
        raise ConfigurationError(
            f"{what}: box = {list(box)} must be three sides (z, y, x) of at least {smallest} voxels."
        )
    return sides


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
