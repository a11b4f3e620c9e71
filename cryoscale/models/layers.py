"""Layers that start without touching the global random state, and one way to initialise them.

Torch draws first weights from its global generator when a layer is made. Here layers come up empty, and
`initialise` fills them from a seed: the same seed gives the same network, whatever ran before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError


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
