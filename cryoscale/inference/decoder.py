"""The decoder of Autoencoder3D, its last convolution written for processors with units of 16 channels."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.inference.wrappers import DecoderOnly
from cryoscale.models.autoencoder3d import Autoencoder3D
from cryoscale.models.layers import upsampled_conv_relu3d

PHASES = (2, 2, 4)  # of neighbouring voxels, 16 in all


def fits_decoder(module: nn.Module) -> TypeGuard[DecoderOnly]:
    """Tell whether a network is one that `ManyVoxelDecoder` computes."""
    return type(module) is DecoderOnly and type(module.autoencoder) is Autoencoder3D


class ManyVoxelDecoder(nn.Module):
    """What `DecoderOnly` gives, but for rounding: encodings (N, F or more) to patches (N, 1, Z, Y, X).

    The last convolution has one output channel, of 16 that the units of a processor compute. Here a window of
    4 x 4 x 6 voxels gives the 2 x 2 x 4 voxels in its middle as 16 channels: 3.6 times as many products for a
    result, of which none is thrown away.

    Parameters
    ----------
    module : DecoderOnly
        Of an `Autoencoder3D`; its weights are shared.
    """

    last_OIZYX: Tensor

    def __init__(self, module: DecoderOnly) -> None:
        super().__init__()
        net: Any = module.autoencoder
        self.autoencoder = net
        self.dimension = module.dimension
        self.register_buffer("last_OIZYX", windows(net.decoder_conv3.weight.detach()))

    def forward(self, codes_NF: Tensor) -> Tensor:
        """Decode."""
        net: Any = self.autoencoder
        code_NF = codes_NF if self.dimension is None else codes_NF[:, : self.dimension]
        z, y, x = (side // 4 for side in net.box)
        coarse = torch_f.relu(net.decoder_dense(code_NF)).reshape(-1, net.channels, z, y, x)
        fine = upsampled_conv_relu3d(upsampled_conv_relu3d(coarse, net.decoder_conv1), net.decoder_conv2)
        bias = net.decoder_conv3.bias.expand(self.last_OIZYX.shape[0])
        phases = torch_f.conv3d(fine, self.last_OIZYX, bias, stride=PHASES, padding=1)
        parts = phases.reshape(-1, *PHASES, 2 * z, 2 * y, x).permute(0, 4, 1, 5, 2, 6, 3)
        return parts.reshape(-1, 1, *net.box)


def windows(weight_OIZYX: Tensor) -> Tensor:
    """Put a kernel (1, I, 3, 3, 3) at its places for each of 16 voxels: (16, I, 4, 4, 6)."""
    placed = weight_OIZYX.new_zeros(*PHASES, weight_OIZYX.shape[1], *(phase + 2 for phase in PHASES))
    for a, b, c in torch.cartesian_prod(*(torch.arange(phase) for phase in PHASES)).tolist():
        placed[a, b, c, :, a : a + 3, b : b + 3, c : c + 3] = weight_OIZYX[0]
    return placed.flatten(0, 2)
