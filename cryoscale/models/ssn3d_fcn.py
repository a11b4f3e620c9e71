"""SSN3D-FCN: the sibling of SSN3D-ED after FCN-8s, which adds up the votes of three grids.

Legend of the shape suffixes: N patches, C channels (1), L classes (0 is background), Z Y X voxels.

```
 patch -> 2 Conv C -> pool 2 = p1 -> 2 Conv 2C -> pool 2 = p2 -> 2 Conv 4C -> pool 2 = p3
 p3 -> Conv 1024 1x1x1 -> dropout -> Conv 1024 1x1x1 -> dropout -> Conv L 1x1x1 -> up 2, + Conv L 1x1x1 (p2)
    -> up 2, + Conv L 1x1x1 (p1) -> up 2 = logits
```
The layers are inferred: the paper's baseline has FCN-8s as its pattern (Long et al. 2015, arXiv:1411.4038).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cryoscale.models.blocks import ConvReLU3d
from cryoscale.models.layers import Dropout, check_counts, conv3d, convolved3d, initialise
from cryoscale.models.ssn3d import EncoderVGG, doubled, reach_of_skips

PURPOSE = "segment subtomograms with true masks: the baseline of SSN3D-ED"
SOURCE = "Liu, Zeng, Lin, Liang, Freyberg, Xing, Xu 2018, arXiv:1802.04087"
EXAMPLE: dict[str, Any] = {"name": "ssn3d-fcn", "n_classes": 2}

FEATURES = 1024
"""Width of the two 1 x 1 x 1 convolutions on the coarsest grid."""


class SSN3DFCN(nn.Module):
    """Fully convolutional network after FCN-8s: 2,042,342 parameters for 2 classes.

    Parameters
    ----------
    n_classes : int
        Classes L with the background, which is channel 0.
    channels : int
        Width C; the paper has 32.
    dropout : float
        Share of the 1024 numbers of a voxel that is set to zero in training.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes, or a `dropout` outside of [0, 1).
    """

    dimensions = 3
    heads = ("seg",)
    alignment = 8

    def __init__(
        self, n_classes: int = 2, *, channels: int = 32, dropout: float = 0.7, seed: int = 0
    ) -> None:
        super().__init__()
        check_counts("ssn3d-fcn", n_classes, channels)
        self.n_classes, self.channels, self.dropout = n_classes, channels, dropout
        self.encoder = EncoderVGG(channels, norm=False)
        self.wide1 = ConvReLU3d(4 * channels, FEATURES, 1)
        self.drop1 = Dropout(dropout)
        self.wide2 = ConvReLU3d(FEATURES, FEATURES, 1)
        self.drop2 = Dropout(dropout)
        self.vote3 = conv3d(FEATURES, n_classes, 1)
        self.vote2 = conv3d(2 * channels, n_classes, 1)
        self.vote1 = conv3d(channels, n_classes, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "ssn3d-fcn",
            "n_classes": self.n_classes,
            "channels": self.channels,
            "dropout": self.dropout,
        }

    @property
    def halo(self) -> int:
        """How far beyond an aligned tile it looks, voxels."""
        return reach_of_skips("nearest").halo

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into logits (N, L, Z, Y, X)."""
        p1, p2, p3 = self.encoder(patches_NCZYX)
        x = self.drop1(self.wide1(p3))
        x = convolved3d(self.drop2(self.wide2(x)), self.vote3)
        x = doubled(x, p2, "nearest") + convolved3d(p2, self.vote2)
        x = doubled(x, p1, "nearest") + convolved3d(p1, self.vote1)
        return doubled(x, patches_NCZYX, "nearest")
