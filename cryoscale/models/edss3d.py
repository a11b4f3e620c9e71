"""EDSS3D: a class for every voxel of a patch, learned from masks that the clusters gave.

Legend of the shape suffixes: N patches, C channels (1), L classes (0 is background), Z Y X voxels.

```
 patch -> Conv C -> pool 2 -> Conv C -> pool 2 -> Conv C
       -> up 2 -> Conv C -> up 2 -> Conv C -> Conv L 1x1x1 = logits
```
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.layers import (
    check_sides,
    conv3d,
    conv_relu3d,
    initialise,
    pooled_conv3d,
    upsampled_conv_relu3d,
)

PURPOSE = "segment patches or whole tomograms, trained on masks of decoded cluster members"
SOURCE = "Zeng, Leung, Zeev-Ben-Mordehai, Xu 2018, doi:10.1016/j.jsb.2017.12.015"
EXAMPLE: dict[str, Any] = {"name": "edss3d", "n_classes": 3}

ALIGNMENT = 4  # two poolings: tiles start at multiples of 4 voxels, and their sides divide by 4
HALO = 11  # see halo_voxels


def halo_voxels() -> int:
    """Give how far beyond an aligned tile, in voxels, the network looks: the halo that makes tiles seamless.

    Notes
    -----
    Counted backwards from a tile of [0, n), n divisible by 4: 1 for the last convolution, rounded to whole
    half-resolution voxels; 1 of those more, rounded to whole quarter-resolution voxels; 1 of those (now 8
    full ones); then 1 at half (10), and 1 at full resolution (11). Round up to a multiple of 4 to keep
    halos aligned.
    """
    return HALO


class EDSS3D(nn.Module):
    """Encoder-decoder of Zeng et al. 2018, no skips, fully convolutional: 111,715 parameters for 3 classes.

    Parameters
    ----------
    n_classes : int
        Classes with the background, which is channel 0.
    channels : int
        Width of the convolutions; the paper has 32.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes; when called, a box whose sides do not divide by 4.
    """

    dimensions = 3
    heads = ("seg",)
    alignment = sides_divide_by = ALIGNMENT
    halo = HALO

    def __init__(self, n_classes: int, *, channels: int = 32, seed: int = 0) -> None:
        super().__init__()
        if n_classes < 2 or channels < 1:
            raise ConfigurationError(
                f"edss3d: n_classes = {n_classes}, channels = {channels}:"
                " it needs the background and at least one class, and one channel."
            )
        self.n_classes, self.channels = n_classes, channels
        self.conv1 = conv3d(1, channels)
        self.conv2 = conv3d(channels, channels)
        self.conv3 = conv3d(channels, channels)
        self.conv4 = conv3d(channels, channels)
        self.conv5 = conv3d(channels, channels)
        self.classify = conv3d(channels, n_classes, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {"name": "edss3d", "n_classes": self.n_classes, "channels": self.channels}

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into logits (N, L, Z, Y, X); loss or engine add the softmax."""
        sides = tuple(patches_NCZYX.shape[2:])
        if all(type(side) is int for side in sides):  # while the network is traced they are symbols
            check_sides(sides, ALIGNMENT, "edss3d")
        x = pooled_conv3d(patches_NCZYX, self.conv1)
        x = pooled_conv3d(x, self.conv2)
        x = conv_relu3d(x, self.conv3)
        x = upsampled_conv_relu3d(x, self.conv4)
        x = upsampled_conv_relu3d(x, self.conv5)
        logits_NLZYX: Tensor = self.classify(x)
        return logits_NLZYX
