"""UNet2D: a class for every pixel of a slice, learned from slices that a person has annotated.

Legend of the shape suffixes: N items, C neighbouring slices, L classes (0 is background), Y X pixels.

```
 slice -> double W ------------------------------------ concat -> double W -> Conv L 1x1 = logits
   pool 2 -> double 2W ------------------------ concat -> double 2W -> up 2, Conv W
     pool 2 -> double 4W, drop --------- concat -> double 4W -> up 2, Conv 2W
       pool 2 -> double 8W, drop - concat -> double 8W -> up 2, Conv 4W
         pool 2 -> double 16W -> up 2, Conv 8W
```
"double" is twice Conv 3x3, batch normalisation, ReLU. Up is linear; the Conv 3x3 behind it has no ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.layers import Dropout, check_counts, conv2d, cropped, initialise, normalisation
from cryoscale.models.reach import Reach

PURPOSE = "annotate tomograms slice by slice, trained on slices drawn by hand"
SOURCE = "Ronneberger, Fischer, Brox 2015, arXiv:1505.04597, with batch normalisation and linear upsampling"
EXAMPLE: dict[str, Any] = {"name": "unet2d", "n_classes": 6}

LEVELS = 5
DROPPED = (2, 3)
"""Levels whose maps are dropped in training: those of 4 W and 8 W channels, 256 and 512."""


class DoubleConv2d(nn.Module):
    """Twice: convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv2d(inputs, outputs)
        self.norm1 = normalisation(outputs, 2)
        self.conv2 = conv2d(outputs, outputs)
        self.norm2 = normalisation(outputs, 2)

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Convolve twice."""
        x = torch_f.relu(self.norm1(self.conv1(x_NCYX)))
        return torch_f.relu(self.norm2(self.conv2(x)))


class UNet2D(nn.Module):
    """2D U-Net: 34,524,294 parameters for 6 classes, fully convolutional.

    Parameters
    ----------
    n_classes : int
        Classes L with the background, which is channel 0.
    channels : int
        Width W; 64.
    slices : int
        Neighbouring slices that it sees, an odd number: channels of its input, the labelled one amid them.
    dropout : float
        Share of the maps of 4 W and 8 W channels that is set to zero in training, whole maps at a time.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes, an even number of slices, or a `dropout` outside of [0, 1).

    Notes
    -----
    Upsampling has its samples at the centres of pixels (`align_corners=False`), so that a pixel's result does
    not depend on the size of the tile. In other implementations corners are aligned: there it does.
    """

    dimensions = 2
    heads = ("seg",)
    alignment = 16

    def __init__(
        self, n_classes: int = 6, *, channels: int = 64, slices: int = 1, dropout: float = 0.5, seed: int = 0
    ) -> None:
        super().__init__()
        check_counts("unet2d", n_classes, channels)
        if slices < 1 or slices % 2 == 0:
            raise ConfigurationError(f"unet2d: slices = {slices} must be odd: the labelled one and pairs.")
        self.n_classes, self.channels, self.slices, self.dropout = n_classes, channels, slices, dropout
        widths = [channels * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(map(DoubleConv2d, [slices, *widths], widths))
        self.drop = nn.ModuleList(
            Dropout(dropout, whole_channels=True) if level in DROPPED else nn.Identity()
            for level in range(LEVELS)
        )
        # From the coarsest level up, as they are run.
        self.up = nn.ModuleList(map(conv2d, widths[:0:-1], widths[-2::-1]))
        self.join = nn.ModuleList(map(DoubleConv2d, widths[:0:-1], widths[-2::-1]))
        self.classify = conv2d(channels, n_classes, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "unet2d",
            "n_classes": self.n_classes,
            "channels": self.channels,
            "slices": self.slices,
            "dropout": self.dropout,
        }

    @property
    def halo(self) -> int:
        """How far beyond an aligned tile it looks, pixels."""
        needed = [Reach().conv(times=2)]  # of the joined maps, level by level
        while len(needed) < LEVELS:
            needed.append(needed[-1].conv().linear().conv(times=2))
        below = needed.pop()  # the coarsest has one double convolution
        for here in reversed(needed):
            below = (below.pool() | here).conv(times=2)
        return below.halo

    def forward(self, slices_NCYX: Tensor) -> Tensor:
        """Turn slices (N, C, Y, X) into logits (N, L, Y, X)."""
        x, skips = slices_NCYX, []
        for level, (double, drop) in enumerate(zip(self.down, self.drop, strict=True)):
            if level:
                x = torch_f.max_pool2d(x, 2, ceil_mode=True)
            x = drop(double(x))
            skips.append(x)
        for conv, double, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = torch_f.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = double(torch.cat([skip, cropped(conv(x), skip)], dim=1))
        logits_NLYX: Tensor = self.classify(x)
        return logits_NLYX
