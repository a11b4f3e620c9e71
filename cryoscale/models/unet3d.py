"""UNet3D: a class for every voxel, from a residual U-Net of our own, the alternative to those of papers.

Legend of the shape suffixes: N patches, C channels (1), L classes (0 is background), Z Y X voxels.

```
 patch -> unit W ---------------------------------- concat -> Conv W -> Conv L 1x1x1 = logits
   pool 2 -> unit 2W --------------------- concat -> Conv 2W -> up 2, Conv W
     pool 2 -> unit 4W ----------- concat -> Conv 4W -> up 2, Conv 2W
       pool 2 -> unit 8W -> up 2, Conv 4W
```
A unit is two convolutions; its input, by way of a Conv 1x1x1, is added before the last ReLU. Each Conv has
kernel 3, batch normalisation and a ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.blocks import ConvReLU3d, ResBlock3d, UpConv3d
from cryoscale.models.layers import Dropout, check_counts, conv3d, convolved3d, initialise
from cryoscale.models.reach import Reach

PURPOSE = "segment patches or whole tomograms with sharp borders, trained on true or drawn labels"
SOURCE = "after Cicek et al. 2016, arXiv:1606.06650, and He et al. 2016, arXiv:1512.03385; layers are ours"
EXAMPLE: dict[str, Any] = {"name": "unet3d", "n_classes": 2}


class UNet3D(nn.Module):
    """Residual 3D U-Net: 5,882,402 parameters for 2 classes, fully convolutional.

    Parameters
    ----------
    n_classes : int
        Classes L with the background, which is channel 0.
    channels : int
        Width W of the finest grid; it doubles from grid to grid. 16 takes a quarter of the time of 32.
    levels : int
        Grids, each twice as coarse as the one before; 2 to 6. The halo is 22 with 3 and 46 with 4.
    batch_norm : bool
        Normalise before each ReLU.
    dropout : float
        Share of the coarsest grid's maps that is set to zero in training, whole maps at a time.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes, `levels` or `dropout` out of range.
    """

    dimensions = 3
    heads = ("seg",)

    def __init__(
        self,
        n_classes: int = 2,
        *,
        channels: int = 32,
        levels: int = 4,
        batch_norm: bool = True,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts("unet3d", n_classes, channels)
        if not 2 <= levels <= 6:
            raise ConfigurationError(f"unet3d: levels = {levels} must be 2 to 6.")
        self.n_classes, self.channels, self.levels = n_classes, channels, levels
        self.batch_norm, self.dropout = batch_norm, dropout
        widths = [channels * 2**level for level in range(levels)]
        ins, outs = widths[:0:-1], widths[-2::-1]  # from the coarsest grid up, as they are run
        self.down = nn.ModuleList(
            ResBlock3d(i, o, norm=batch_norm) for i, o in zip([1, *widths], widths, strict=False)
        )
        self.drop = Dropout(dropout, whole_channels=True)
        self.up = nn.ModuleList(UpConv3d(i, o, norm=batch_norm) for i, o in zip(ins, outs, strict=True))
        self.join = nn.ModuleList(ConvReLU3d(2 * o, o, norm=batch_norm) for o in outs)
        self.classify = conv3d(channels, n_classes, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "unet3d",
            "n_classes": self.n_classes,
            "channels": self.channels,
            "levels": self.levels,
            "batch_norm": self.batch_norm,
            "dropout": self.dropout,
        }

    @property
    def alignment(self) -> int:
        """What the sides of inputs divide by in dense use."""
        return int(2 ** (self.levels - 1))

    @property
    def halo(self) -> int:
        """How far beyond an aligned tile it looks, voxels."""
        needed = [Reach().conv()]  # of the joined maps, level by level
        while len(needed) < self.levels:
            needed.append(needed[-1].conv().nearest().conv())
        needed[-1] = needed[-2].conv().nearest()  # the coarsest joins nothing
        below = needed.pop().conv(times=2)
        for here in reversed(needed):
            below = (below.pool() | here).conv(times=2)
        return below.halo

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into logits (N, L, Z, Y, X)."""
        x, skips = patches_NCZYX, []
        for level, unit in enumerate(self.down):
            if level:
                x = torch_f.max_pool3d(x, 2, ceil_mode=True)
            x = unit(x)
            skips.append(x)
        x = self.drop(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x, skip)], dim=1))
        return convolved3d(x, self.classify)
