"""SSN3D-ED: a class for every voxel of a subtomogram, an encoder-decoder whose skips are added.

Legend of the shape suffixes: N patches, C channels (1), L classes (0 is background), Z Y X voxels.

```
 patch -> 2 Conv C -> pool 2 = p1 -> 2 Conv 2C -> pool 2 = p2 -> 2 Conv 4C -> pool 2 = p3
 p3 -> Conv 4C 1x1x1 -> up 2, + Conv 4C 1x1x1 (p2) -> Conv 2C 1x1x1 -> up 2, + Conv 2C 1x1x1 (p1)
    -> Conv C 1x1x1 -> up 2 -> Conv L 1x1x1 = logits
```
All convolutions of the way down have kernel 3 and a ReLU; those on skips are linear, the others have a ReLU.
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.blocks import ConvReLU3d
from cryoscale.models.layers import check_counts, conv3d, convolved3d, cropped, initialise
from cryoscale.models.reach import Reach

PURPOSE = "segment the particle of a subtomogram, or whole tomograms, trained on true masks"
SOURCE = "Liu, Zeng, Lin, Liang, Freyberg, Xing, Xu 2018, arXiv:1802.04087"
EXAMPLE: dict[str, Any] = {"name": "ssn3d-ed", "n_classes": 2}

Upsampling = Literal["nearest", "trilinear"]
UPSAMPLINGS: tuple[Upsampling, ...] = ("nearest", "trilinear")


class EncoderVGG(nn.Module):
    """The way down that SSN3D-ED, SSN3D-FCN and DSRF3D-v2 share: three times two convolutions and a pooling.

    Parameters
    ----------
    channels : int
        Width C of the first two; then 2 C, then 4 C.
    norm : bool
        Batch normalisation before each ReLU.
    """

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1a = ConvReLU3d(1, channels, norm=norm)
        self.conv1b = ConvReLU3d(channels, channels, norm=norm)
        self.conv2a = ConvReLU3d(channels, 2 * channels, norm=norm)
        self.conv2b = ConvReLU3d(2 * channels, 2 * channels, norm=norm)
        self.conv3a = ConvReLU3d(2 * channels, 4 * channels, norm=norm)
        self.conv3b = ConvReLU3d(4 * channels, 4 * channels, norm=norm)

    def forward(self, patches_NCZYX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give p1 (N, C, Z/2, Y/2, X/2), p2 (N, 2C, Z/4, ...), p3 (N, 4C, Z/8, ...); sides are rounded up."""
        p1 = self.conv1b.pooled(self.conv1a(patches_NCZYX))
        p2 = self.conv2b.pooled(self.conv2a(p1))
        p3 = self.conv3b.pooled(self.conv3a(p2))
        return p1, p2, p3


class SSN3DED(nn.Module):
    """Encoder-decoder of Liu et al. 2018: 895,746 parameters for 2 classes, fully convolutional.

    Parameters
    ----------
    n_classes : int
        Classes L with the background, which is channel 0.
    channels : int
        Width C; the paper has 32.
    upsampling : {"nearest", "trilinear"}
        "nearest" is the reference's; then each 2 x 2 x 2 voxels of the result are the same. Liu et al. 2019
        (DSM-Net) call it bilinear.
    batch_norm : bool
        The paper has none.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes, or an unknown `upsampling`.
    """

    dimensions = 3
    heads = ("seg",)
    alignment = 8

    def __init__(
        self,
        n_classes: int = 2,
        *,
        channels: int = 32,
        upsampling: Upsampling = "nearest",
        batch_norm: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts("ssn3d-ed", n_classes, channels)
        if upsampling not in UPSAMPLINGS:
            raise ConfigurationError(
                f"ssn3d-ed: upsampling = {upsampling!r} is unknown.",
                remedy=f"Use one of {', '.join(UPSAMPLINGS)}.",
            )
        self.n_classes, self.channels = n_classes, channels
        self.upsampling, self.batch_norm = upsampling, batch_norm
        self.encoder = EncoderVGG(channels, norm=batch_norm)
        self.up1 = ConvReLU3d(4 * channels, 4 * channels, 1, norm=batch_norm)
        self.skip1 = conv3d(2 * channels, 4 * channels, 1)
        self.up2 = ConvReLU3d(4 * channels, 2 * channels, 1, norm=batch_norm)
        self.skip2 = conv3d(channels, 2 * channels, 1)
        self.up3 = ConvReLU3d(2 * channels, channels, 1, norm=batch_norm)
        self.classify = conv3d(channels, n_classes, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "ssn3d-ed",
            "n_classes": self.n_classes,
            "channels": self.channels,
            "upsampling": self.upsampling,
            "batch_norm": self.batch_norm,
        }

    @property
    def halo(self) -> int:
        """How far beyond an aligned tile it looks, voxels."""
        return reach_of_skips(self.upsampling).halo

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into logits (N, L, Z, Y, X)."""
        p1, p2, p3 = self.encoder(patches_NCZYX)
        x = doubled(self.up1(p3), p2, self.upsampling) + convolved3d(p2, self.skip1)
        x = doubled(self.up2(x), p1, self.upsampling) + convolved3d(p1, self.skip2)
        # A 1 x 1 x 1 convolution before the upsampling is the same as behind it, for 8 times fewer voxels.
        return doubled(convolved3d(self.up3(x), self.classify), patches_NCZYX, self.upsampling)


def doubled(x_NCZYX: Tensor, like_NCZYX: Tensor, upsampling: Upsampling) -> Tensor:
    """Double a grid and cut it to the sides of another one."""
    align = None if upsampling == "nearest" else False
    x = torch_f.interpolate(x_NCZYX, scale_factor=2.0, mode=upsampling, align_corners=align)
    return cropped(x, like_NCZYX)


def reach_of_skips(upsampling: Upsampling) -> Reach:
    """Say how far a network looks that goes down by `EncoderVGG` and up three times, adding p2 and p1."""
    back = Reach.nearest if upsampling == "nearest" else Reach.linear
    p1 = back(Reach())
    p2 = back(p1)
    p3 = back(p2)
    p2 |= p3.pool().conv(times=2)
    p1 |= p2.pool().conv(times=2)
    return p1.pool().conv(times=2)
