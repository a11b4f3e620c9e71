"""DSRF3D-v2: the class of the particle in a subtomogram, from a plain stack of convolutions.

Legend of the shape suffixes: N patches, C channels (1), K classes of particles, Z Y X voxels.

```
 patch -> 2 Conv C -> pool 2 -> 2 Conv 2C -> pool 2 -> 2 Conv 4C -> pool 2
       -> dense 1024 -> dropout -> dense 1024 -> dropout -> dense K = logits
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.layers import Dropout, check_box, check_counts, initialise, linear
from cryoscale.models.ssn3d import EncoderVGG

PURPOSE = "classify subtomograms: the baseline of DSM-Net"
SOURCE = "Che, Lin, Zeng, Elmaaroufi, Galeotti, Xu 2017, arXiv:1707.04885"
EXAMPLE: dict[str, Any] = {"name": "dsrf3d-v2", "n_classes": 22, "box": [40, 40, 40]}

FEATURES = 1024
"""Width of the two dense layers."""
SMALLEST_SIDE = 8


class DSRF3D(nn.Module):
    """Classifier of Che et al. 2017, version 2, for boxes of one size.

    Parameters
    ----------
    n_classes : int
        Classes of particles K.
    box : sequence of three int
        Sides (z, y, x) of a patch, voxels, each at least 8.
    channels : int
        Width C; the paper has 32.
    dropout : float
        Share of the 1024 numbers that is set to zero in training.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes, a side below 8, or a `dropout` outside of [0, 1).
    """

    dimensions = 3
    heads = ("cls",)
    alignment = 1
    halo = None

    def __init__(
        self, n_classes: int, box: Sequence[int], *, channels: int = 32, dropout: float = 0.7, seed: int = 0
    ) -> None:
        super().__init__()
        check_counts("dsrf3d-v2", n_classes, channels)
        self.box = check_box("dsrf3d-v2", box, SMALLEST_SIDE)
        self.n_classes, self.channels, self.dropout = n_classes, channels, dropout
        voxels = math.prod(-(-side // 8) for side in self.box)  # after three poolings that round up
        self.encoder = EncoderVGG(channels, norm=False)
        self.dense1 = linear(4 * channels * voxels, FEATURES)
        self.drop1 = Dropout(dropout)
        self.dense2 = linear(FEATURES, FEATURES)
        self.drop2 = Dropout(dropout)
        self.classify = linear(FEATURES, n_classes)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "dsrf3d-v2",
            "n_classes": self.n_classes,
            "box": list(self.box),
            "channels": self.channels,
            "dropout": self.dropout,
        }

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into logits (N, K)."""
        sides = patches_NCZYX.shape[2:]
        if all(type(side) is int for side in sides) and tuple(sides) != self.box:  # traced, sides are symbols
            raise ConfigurationError(f"dsrf3d-v2 was made for boxes of {self.box}, got {tuple(sides)}.")
        x = self.encoder(patches_NCZYX)[-1].flatten(1)
        x = self.drop1(torch_f.relu(self.dense1(x)))
        x = self.drop2(torch_f.relu(self.dense2(x)))
        logits_NK: Tensor = self.classify(x)
        return logits_NK
