"""DSM-Net: one network for the class, the mask and the density of a subtomogram's particle.

Legend of the shape suffixes: N patches, C channels (1), K classes of particles, L labels of voxels (0 is
background), F features, Z Y X voxels.

```
 patch -> Conv C -> pool 2 -> block C = S1 -> Conv 2C stride 2 -> block 2C = S2
       -> Conv 4C stride 2 -> block 4C = S3
 "cls":    mean of S3 over the voxels -> dense F = features -> dropout -> dense K = logits
 trunk:    S3 -> deconv 2C, + S2 -> block 2C -> deconv C, + S1 -> block C -> deconv C = T
 "seg":    T -> Conv L 1x1x1 = logits
 "rec":    T -> Conv 1 1x1x1 = density without neighbours, linear
```
A block is two convolutions; its input is added before the last ReLU. Convolutions and deconvolutions have
kernel 3 and a ReLU, except for the last ones of "seg" and "rec". A skip is added behind such a ReLU.

Parameters by part, of the defaults (22 classes):

| part | parameters |
|---|---|
| backbone, patch to S3 | 1,439,232 |
| "cls", two dense layers | 154,646 |
| trunk, shared by "seg" and "rec" | 580,928 |
| "seg", its last convolution | 66 |
| "rec", its last convolution | 33 |
| in all | 2,174,905 |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.models.blocks import ConvReLU3d, Deconv3d, ResBlock3d
from cryoscale.models.layers import Dropout, check_counts, conv3d, convolved3d, initialise, linear
from cryoscale.models.reach import Reach

PURPOSE = "classify subtomograms, segment and recover their particle, at once"
SOURCE = "Liu, Zeng, Wang, Guo, Xu 2018, arXiv:1805.06332"
EXAMPLE: dict[str, Any] = {"name": "dsm-net", "n_classes": 22}

HEADS = ("cls", "seg", "rec")


class Backbone(nn.Module):
    """The way down, which all heads share ("3D ResNet-9")."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = ConvReLU3d(1, channels, norm=norm)
        self.block1 = ResBlock3d(channels, channels, norm=norm)
        self.conv2 = ConvReLU3d(channels, 2 * channels, stride=2, norm=norm)
        self.block2 = ResBlock3d(2 * channels, 2 * channels, norm=norm)
        self.conv3 = ConvReLU3d(2 * channels, 4 * channels, stride=2, norm=norm)
        self.block3 = ResBlock3d(4 * channels, 4 * channels, norm=norm)

    def forward(self, patches_NCZYX: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give S1 (N, C, Z/2, Y/2, X/2), S2 (N, 2C, Z/4, ...), S3 (N, 4C, Z/8, ...); sides are rounded up."""
        s1 = self.block1(self.conv1.pooled(patches_NCZYX))
        s2 = self.block2(self.conv2(s1))
        s3 = self.block3(self.conv3(s2))
        return s1, s2, s3


class Trunk(nn.Module):
    """The way up, which "seg" and "rec" share."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.deconv1 = Deconv3d(4 * channels, 2 * channels, norm=norm)
        self.block1 = ResBlock3d(2 * channels, 2 * channels, norm=norm)
        self.deconv2 = Deconv3d(2 * channels, channels, norm=norm)
        self.block2 = ResBlock3d(channels, channels, norm=norm)
        self.deconv3 = Deconv3d(channels, channels, norm=norm)

    def forward(self, s1: Tensor, s2: Tensor, s3: Tensor, patches_NCZYX: Tensor) -> Tensor:
        """Give T (N, C, Z, Y, X)."""
        x = self.block1(self.deconv1(s3, s2) + s2)
        x = self.block2(self.deconv2(x, s1) + s1)
        top_NCZYX: Tensor = self.deconv3(x, patches_NCZYX)
        return top_NCZYX


class DSMNet(nn.Module):
    """Multi-task network of Liu et al. 2018: 2,174,905 parameters for 22 classes and all heads.

    Parameters
    ----------
    n_classes : int
        Classes of particles K, for "cls".
    heads : sequence of {"cls", "seg", "rec"}
        What it gives; parts that none of them needs are left out. Without "cls" it is fully convolutional.
    channels : int
        Width C; 32.
    features : int
        Length F of the features; the paper has 1024.
    dropout : float
        Share of the features that is set to zero in training; the paper has 0.7.
    batch_norm : bool
        The paper does not speak of any.
    n_labels : int
        Labels of voxels L with the background, for "seg"; the paper has 2.
    seed : int
        Of the first weights.

    Raises
    ------
    ConfigurationError
        No head or an unknown one, fewer than two classes or labels, or a `dropout` outside of [0, 1).
    """

    dimensions = 3
    alignment = 8

    def __init__(
        self,
        n_classes: int = 22,
        *,
        heads: Sequence[str] = HEADS,
        channels: int = 32,
        features: int = 1024,
        dropout: float = 0.7,
        batch_norm: bool = False,
        n_labels: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.heads = _ordered(heads)
        counts = [n for n, head in ((n_classes, "cls"), (n_labels, "seg")) if head in self.heads]
        check_counts("dsm-net", min(counts, default=2), min(channels, features))
        self.n_classes, self.n_labels = n_classes, n_labels
        self.channels, self.n_features = channels, features
        self.dropout, self.batch_norm = dropout, batch_norm
        self.backbone = Backbone(channels, norm=batch_norm)
        if "cls" in self.heads:
            self.dense = linear(4 * channels, features)
            self.drop = Dropout(dropout)
            self.classify = linear(features, n_classes)
        if self.heads != ("cls",):
            self.trunk = Trunk(channels, norm=batch_norm)
        if "seg" in self.heads:
            self.segment = conv3d(channels, n_labels, 1)
        if "rec" in self.heads:
            self.recover = conv3d(channels, 1, 1)
        initialise(self, seed)

    @property
    def architecture(self) -> dict[str, Any]:
        """What `cryoscale.models.registry.build` needs to make this network again."""
        return {
            "name": "dsm-net",
            "n_classes": self.n_classes,
            "heads": list(self.heads),
            "channels": self.channels,
            "features": self.n_features,
            "dropout": self.dropout,
            "batch_norm": self.batch_norm,
            "n_labels": self.n_labels,
        }

    @property
    def halo(self) -> int | None:
        """How far beyond an aligned tile it looks, voxels; with "cls" it looks at all it is given: None."""
        if "cls" in self.heads:
            return None
        s1 = Reach().deconv().conv(times=2)
        s2 = s1.deconv().conv(times=2)
        s3 = s2.deconv()
        s2 |= s3.conv(times=2).strided_conv()
        s1 |= s2.conv(times=2).strided_conv()
        return s1.conv(times=2).pool().conv().halo

    def forward(self, patches_NCZYX: Tensor) -> Tensor | dict[str, Tensor]:
        """Turn patches (N, 1, Z, Y, X) into what the heads give.

        Returns
        -------
        outputs : tensor, or dict of them by the name of the head where there are several
            "cls" logits (N, K), "seg" logits (N, L, Z, Y, X), "rec" density (N, 1, Z, Y, X).
        """
        skips = self.backbone(patches_NCZYX)
        outputs = {}
        if "cls" in self.heads:
            outputs["cls"] = self.classify(self.drop(self._features(skips[-1])))
        if self.heads != ("cls",):
            top_NCZYX = self.trunk(*skips, patches_NCZYX)
        if "seg" in self.heads:
            outputs["seg"] = convolved3d(top_NCZYX, self.segment)
        if "rec" in self.heads:
            outputs["rec"] = convolved3d(top_NCZYX, self.recover)
        return outputs if len(outputs) > 1 else outputs[self.heads[0]]

    def features(self, patches_NCZYX: Tensor) -> Tensor:
        """Turn patches (N, 1, Z, Y, X) into features (N, F), before the dropout: to find unknown structures.

        Raises
        ------
        ConfigurationError
            The network has no head "cls".
        """
        if "cls" not in self.heads:
            raise ConfigurationError(f"This dsm-net has the heads {self.heads}: features come with 'cls'.")
        return self._features(self.backbone(patches_NCZYX)[-1])

    def _features(self, s3_NCZYX: Tensor) -> Tensor:
        return torch_f.relu(self.dense(s3_NCZYX.mean(dim=(2, 3, 4))))


def _ordered(heads: Sequence[str]) -> tuple[str, ...]:
    unknown = [head for head in heads if head not in HEADS]
    if unknown or not heads or isinstance(heads, str):
        raise ConfigurationError(
            f"dsm-net: heads = {heads!r} is not understood.", remedy=f"Use one or more of {', '.join(HEADS)}."
        )
    return tuple(head for head in HEADS if head in heads)
