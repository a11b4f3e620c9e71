"""The encoder of Autoencoder3D with its first convolution written for tensor cores."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

PHASES = tuple(itertools.product((0, 1), repeat=3))  # of a voxel within its pooling window


class PhaseEncoder(nn.Module):
    """What `EncoderOnly` or `EncoderWithInvariants` gives, but for rounding.

    Tensor cores want channels by eights, and the first convolution has one. So the eight voxels of each
    2 x 2 x 2 become channels, and a kernel of 2 x 2 x 2 of these gives the convolution at all eight as 8 C
    channels: the pooling that follows is the largest of eight neighbours in memory. That is 64 products for
    each 27, which cost nothing where seven of eight channels would be padding.

    Parameters
    ----------
    module : EncoderOnly or EncoderWithInvariants
        Of an `Autoencoder3D`; the weights are shared, but for those of the first layer.
    """

    first_OIZYX: Tensor
    first_O: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        net: Any = module.autoencoder
        self.autoencoder = net
        self.invariants: Any = getattr(module, "invariants", None)
        self.gain = getattr(module, "gain", 1.0)
        self.register_buffer("first_OIZYX", by_phases(net.encoder_conv1.weight.detach()))
        self.register_buffer("first_O", net.encoder_conv1.bias.detach().repeat(8))

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Encode."""
        net: Any = self.autoencoder
        count, _, z, y, x = patches_NCZYX.shape
        padded = torch_f.pad(patches_NCZYX[:, 0], (1,) * 6)
        cells = padded.view(count, z // 2 + 1, 2, y // 2 + 1, 2, x // 2 + 1, 2)
        cells = cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(count, z // 2 + 1, y // 2 + 1, x // 2 + 1, 8)
        phases = torch_f.conv3d(cells.permute(0, 4, 1, 2, 3), self.first_OIZYX, self.first_O)
        phases = phases.permute(0, 2, 3, 4, 1).reshape(count, z // 2, y // 2, x // 2, 8, net.channels)
        first = torch.relu(phases.amax(-2)).permute(0, 4, 1, 2, 3)
        second = torch.relu(torch_f.max_pool3d(net.encoder_conv2(first), 2))
        codes_NF: Tensor = net._activate(net.encoder_dense(second.flatten(1)))
        if self.invariants is None:
            return codes_NF
        return torch.cat([codes_NF, self.gain * self.invariants(patches_NCZYX)], dim=1)


def by_phases(weight_OIZYX: Tensor) -> Tensor:
    """Turn a kernel (O, 1, 3, 3, 3) into that of `PhaseEncoder`: (8 O, 8, 2, 2, 2), phase by phase."""
    placed = weight_OIZYX.new_zeros(
        8, len(weight_OIZYX), 2, 2, 2, 2, 2, 2
    )  # phase, O, cell, voxel of the cell
    for number, phase in enumerate(PHASES):
        for taps in itertools.product(range(3), repeat=3):
            at = [start + tap for start, tap in zip(phase, taps, strict=True)]  # 0 to 3 in two cells of 2
            (a, b, c), (d, e, f) = [i % 2 for i in at], [i // 2 for i in at]
            placed[number, :, a, b, c, d, e, f] = weight_OIZYX[:, 0, taps[0], taps[1], taps[2]]
    return placed.flatten(2, 4).flatten(0, 1)
