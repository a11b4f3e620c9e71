"""CNN2D: one small network for each feature of a slice, each learned apart from the others.

Legend of the shape suffixes: N slices, C channels (1), K features, L classes (K + 1, 0 is background), Y X.

```
 slice -> Conv W 15x15 -> pool 2 -> ReLU -> Conv W 15x15 -> ReLU -> Conv 1 15x15 = response, half resolution
 background 0.8, response 1, response 2 ..., up 2 = scores: the largest is the class
```
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.layers import check_counts, conv2d, convolved2d, cropped, initialise
from cryoscale.models.reach import Reach

PURPOSE = "annotate tomograms slice by slice, one small network for each feature, trained on few tiles"
SOURCE = "Chen, Dai, Sun, Jonasch, He, Schmid, Chiu, Ludtke 2017, doi:10.1038/nmeth.4405"
EXAMPLE: dict[str, Any] = {"name": "cnn2d-chen", "n_classes": 2}

BACKGROUND = 0.8
"""Score of "no feature": responses are compared with it (read off the reference)."""

FIRST = 0.1
"""Scale of the last layer's first weights."""


class FeatureNet(nn.Module):
    """The network of one feature: 378,081 parameters."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = conv2d(1, channels, kernel)
        self.conv2 = conv2d(channels, channels, kernel)
        self.conv3 = conv2d(channels, 1, kernel)

    def forward(self, slices_NCYX: Tensor) -> Tensor:
        """Turn slices (N, 1, Y, X) into responses (N, 1, Y/2, X/2); sides are rounded up."""
        x = torch_f.relu(torch_f.max_pool2d(convolved2d(slices_NCYX, self.conv1), 2, ceil_mode=True))
        x = torch_f.relu(convolved2d(x, self.conv2))
        return convolved2d(x, self.conv3)


class CNN2D(nn.Module):
    """The networks of Chen et al. 2017, one for each feature: 378,081 parameters for each.

    Parameters
    ----------
    n_classes : int
        Classes L: the background and the features.
    channels : int
        Width W; the paper has 40.
    kernel : int
        Side of the convolutions, odd; the paper has 15.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        Fewer than two classes, or an even kernel.
    """

    dimensions = 2
    heads = ("seg",)
    alignment = 2

    def __init__(self, n_classes: int = 2, *, channels: int = 40, kernel: int = 15, seed: int = 0) -> None:
        super().__init__()
        check_counts("cnn2d-chen", n_classes, channels)
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigurationError(f"cnn2d-chen: kernel = {kernel} must be odd.")
        self.n_classes, self.channels, self.kernel = n_classes, channels, kernel
        self.networks = nn.ModuleList(FeatureNet(channels, kernel) for _ in range(n_classes - 1))
        initialise(self, seed)
        self._quieten()

    def _quieten(self) -> None:
        """Make the first responses small.

        Three layers of 15 x 15 answer far beyond 1 with plain Glorot weights, on features and elsewhere
        alike, and the loss takes such answers for 1: they have no gradient, and the network never learns. The
        paper does not say what it starts from.
        """
        with torch.no_grad():
            for network in self.networks:
                network.conv3.weight.mul_(FIRST)  # type: ignore[operator, union-attr]

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "cnn2d-chen",
            "n_classes": self.n_classes,
            "channels": self.channels,
            "kernel": self.kernel,
        }

    @property
    def halo(self) -> int:
        """How far beyond an aligned tile it looks, pixels."""
        return Reach().linear().conv(self.kernel, times=2).pool().conv(self.kernel).halo

    def responses(self, slices_NCYX: Tensor) -> Tensor:
        """Turn slices (N, 1, Y, X) into responses (N, K, Y/2, X/2), about 1 at a feature and 0 elsewhere."""
        return torch.cat([network(slices_NCYX) for network in self.networks], dim=1)

    def forward(self, slices_NCYX: Tensor) -> Tensor:
        """Turn slices (N, 1, Y, X) into scores (N, L, Y, X); the largest of a pixel is its class."""
        responses_NKYX = self.responses(slices_NCYX)
        fine = torch_f.interpolate(responses_NKYX, scale_factor=2.0, mode="bilinear", align_corners=False)
        fine = cropped(fine, slices_NCYX)
        return torch.cat([torch.full_like(fine[:, :1], BACKGROUND), fine], dim=1)
