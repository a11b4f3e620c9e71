"""Autoencoder3D: a patch to a short code and back, without labels.

Legend of the shape suffixes: N patches, C channels (1), Z Y X voxels, F numbers of the code.

```
 patch -> Conv C -> pool 2 -> Conv C -> pool 2 -> dense F = code
 code -> dense -> up 2 -> Conv C -> up 2 -> Conv C -> Conv 1 = reconstruction
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.layers import (
    check_sides,
    conv3d,
    conv_to_one3d,
    initialise,
    linear,
    pooled_conv3d,
    upsampled_conv_relu3d,
)

PURPOSE = "encode patches without labels, decode centres and members of clusters"
SOURCE = "Zeng, Leung, Zeev-Ben-Mordehai, Xu 2018, doi:10.1016/j.jsb.2017.12.015"
EXAMPLE: dict[str, Any] = {"name": "autoencoder3d", "box": [32, 32, 32]}

Code = Literal["relu", "linear", "leaky_relu", "softplus"]
CODES: tuple[Code, ...] = ("relu", "linear", "leaky_relu", "softplus")
LEAK = 0.1  # slope of the leaky ReLU below zero


class Autoencoder3D(nn.Module):
    """Encoder and decoder of 3D patches (Zeng et al. 2018): 1,149,793 parameters for 32^3.

    Parameters
    ----------
    box : sequence of three int
        Sides (z, y, x) of a patch, voxels, each divisible by 4; not necessarily cubic.
    channels : int
        Width of the convolutions; the paper has 32.
    dimension : int
        Length F of the code; the paper has 32.
    code : {"relu", "linear", "leaky_relu", "softplus"}
        Activation of the code. "relu" is the paper's: with the L1 term units can die and stay dead, see
        `cryoscale.learn.losses.dead_share`. "leaky_relu" has slope 0.1 below zero.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        A side that does not divide by 4, or an unknown activation.
    """

    dimensions = 3
    heads = ()
    alignment = sides_divide_by = 4
    halo = None

    def __init__(
        self,
        box: Sequence[int],
        *,
        channels: int = 32,
        dimension: int = 32,
        code: Code = "relu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        sides = tuple(int(side) for side in box)
        check_sides(sides, 4, "autoencoder3d")
        if code not in CODES:
            raise ConfigurationError(
                f"autoencoder3d: code = {code!r} is unknown.", remedy=f"Use one of {', '.join(CODES)}."
            )
        if channels < 1 or dimension < 1:
            raise ConfigurationError(
                f"autoencoder3d: channels = {channels} and dimension = {dimension} must be at least 1."
            )
        self.box, self.channels, self.dimension, self.code = sides, channels, dimension, code
        self._small = tuple(side // 4 for side in sides)
        features = channels * self._small[0] * self._small[1] * self._small[2]
        self.encoder_conv1 = conv3d(1, channels)
        self.encoder_conv2 = conv3d(channels, channels)
        self.encoder_dense = linear(features, dimension)
        self.decoder_dense = linear(dimension, features)
        self.decoder_conv1 = conv3d(channels, channels)
        self.decoder_conv2 = conv3d(channels, channels)
        self.decoder_conv3 = conv3d(channels, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "autoencoder3d",
            "box": list(self.box),
            "channels": self.channels,
            "dimension": self.dimension,
            "code": self.code,
        }

    def encode(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into codes (N, F)."""
        x = pooled_conv3d(patches_NCZYX, self.encoder_conv1)
        x = pooled_conv3d(x, self.encoder_conv2)
        return self._activate(self.encoder_dense(x.flatten(1)))

    def decode(self, codes_NF: Tensor) -> Tensor:
        """Turn codes (N, F) into patches (N, 1, Z, Y, X)."""
        x = torch_f.relu(self.decoder_dense(codes_NF))
        x = x.reshape(-1, self.channels, *self._small)
        x = upsampled_conv_relu3d(x, self.decoder_conv1)
        x = upsampled_conv_relu3d(x, self.decoder_conv2)
        return conv_to_one3d(x, self.decoder_conv3)

    def forward(self, patches_NCZYX: Tensor) -> tuple[Tensor, Tensor]:
        """Give the reconstruction (N, 1, Z, Y, X) and the codes (N, F)."""
        codes_NF = self.encode(patches_NCZYX)
        return self.decode(codes_NF), codes_NF

    def _activate(self, codes_NF: Tensor) -> Tensor:
        if self.code == "relu":
            return torch_f.relu(codes_NF)
        if self.code == "leaky_relu":
            return torch_f.leaky_relu(codes_NF, LEAK)
        if self.code == "softplus":
            return torch_f.softplus(codes_NF)
        return codes_NF
