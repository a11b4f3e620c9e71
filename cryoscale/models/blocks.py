"""What 3D networks are put together from: a convolution with what follows it, residual blocks, ways up.

Each takes (N, C, Z, Y, X) and has `norm`: batch normalisation before the ReLU. A convolution has a bias also
then, so that a network with normalisation has the same convolutions as one without.
"""

from __future__ import annotations

import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.models.layers import (
    conv3d,
    conv_relu3d,
    convolved3d,
    cropped,
    deconv3d,
    normalisation,
    pooled_conv3d,
    upsampled_conv3d,
    upsampled_conv_relu3d,
)


class ConvReLU3d(nn.Module):
    """Convolution, batch normalisation where asked for, ReLU; on request the pooling by 2 of it.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    kernel, stride : int
        Of the 'same' convolution.
    norm : bool
        Normalise before the ReLU.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, norm: bool = False
    ) -> None:
        super().__init__()
        self.conv = conv3d(inputs, outputs, kernel, stride=stride)
        self.norm = normalisation(outputs, 3) if norm else None

    def forward(self, x_NCZYX: Tensor) -> Tensor:
        """Convolve and take the ReLU."""
        if self.norm is None:
            return conv_relu3d(x_NCZYX, self.conv)
        return torch_f.relu(self.norm(convolved3d(x_NCZYX, self.conv)))

    def pooled(self, x_NCZYX: Tensor) -> Tensor:
        """Do the same, then take the largest of 2 x 2 x 2 voxels; a side of n becomes ceil(n / 2)."""
        if self.norm is None:
            return pooled_conv3d(x_NCZYX, self.conv, ceil=True)
        return torch_f.max_pool3d(self(x_NCZYX), 2, ceil_mode=True)


class ResBlock3d(nn.Module):
    """Two convolutions whose input is added before the last ReLU (He et al. 2016, arXiv:1512.03385).

    Parameters
    ----------
    inputs, outputs : int
        Channels. Where they differ, the input is added by way of a 1 x 1 x 1 convolution, otherwise as it is.
    norm : bool
        Normalise behind each of the two.
    """

    def __init__(self, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.first = ConvReLU3d(inputs, outputs, norm=norm)
        self.conv = conv3d(outputs, outputs)
        self.norm = normalisation(outputs, 3) if norm else None
        self.shortcut = conv3d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x_NCZYX: Tensor) -> Tensor:
        """Add what two convolutions make of it."""
        y = convolved3d(self.first(x_NCZYX), self.conv)
        if self.norm is not None:
            y = self.norm(y)
        x = x_NCZYX if self.shortcut is None else convolved3d(x_NCZYX, self.shortcut)
        return torch_f.relu(x + y)


class Deconv3d(nn.Module):
    """Deconvolution of kernel 3 and stride 2, ReLU; cut to the sides of another grid."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.deconv = deconv3d(inputs, outputs)
        self.norm = normalisation(outputs, 3) if norm else None

    def forward(self, x_NCZYX: Tensor, like_NCZYX: Tensor) -> Tensor:
        """Double the grid."""
        if self.norm is None:
            return cropped(convolved3d(x_NCZYX, self.deconv, relu=True), like_NCZYX)
        x = cropped(convolved3d(x_NCZYX, self.deconv), like_NCZYX)  # what is cut off counts in no mean
        return torch_f.relu(self.norm(x))


class UpConv3d(nn.Module):
    """Doubling by nearest neighbours, convolution, ReLU; cut to the sides of another grid."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool) -> None:
        super().__init__()
        self.conv = conv3d(inputs, outputs)
        self.norm = normalisation(outputs, 3) if norm else None

    def forward(self, x_NCZYX: Tensor, like_NCZYX: Tensor) -> Tensor:
        """Double the grid and convolve."""
        if self.norm is None:
            return cropped(upsampled_conv_relu3d(x_NCZYX, self.conv), like_NCZYX)
        x = cropped(upsampled_conv3d(x_NCZYX, self.conv), like_NCZYX)
        return torch_f.relu(self.norm(x))
