"""One input, one output: the faces of a network that an engine can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cryoscale.models.autoencoder3d import Autoencoder3D


class EncoderOnly(nn.Module):
    """The encoding half of an autoencoder: patches (N, 1, Z, Y, X) to codes (N, F)."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Encode."""
        codes_NF: Tensor = self.autoencoder.encode(patches_NCZYX)
        return codes_NF


class EncoderWithInvariants(nn.Module):
    """The encoding half of an autoencoder and invariants of the patch: patches (N, 1, Z, Y, X) to (N, F + I).

    Parameters
    ----------
    autoencoder : nn.Module
        Its code comes first.
    invariants : nn.Module
        From patches to (N, I).
    gain : float
        Factor on the invariants.
    """

    def __init__(self, autoencoder: nn.Module, invariants: nn.Module, gain: float) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.invariants = invariants
        self.gain = gain

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Encode."""
        codes_NF: Tensor = self.autoencoder.encode(patches_NCZYX)
        return torch.cat([codes_NF, self.gain * self.invariants(patches_NCZYX)], dim=1)


def fits_encoder(module: nn.Module) -> bool:
    """Tell whether a network is an encoder of Autoencoder3D, for which there are faster forms."""
    return type(module) in (EncoderOnly, EncoderWithInvariants) and type(module.autoencoder) is Autoencoder3D


class DecoderOnly(nn.Module):
    """The decoding half of an autoencoder: encodings (N, F or more) to patches (N, 1, Z, Y, X).

    Parameters
    ----------
    autoencoder : nn.Module
        The network.
    dimension : int, optional
        F: the first so many numbers are the code; all of them by default.
    """

    def __init__(self, autoencoder: nn.Module, dimension: int | None = None) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.dimension = dimension

    def forward(self, codes_NF: Tensor) -> Tensor:
        """Decode."""
        code_NF = codes_NF if self.dimension is None else codes_NF[:, : self.dimension]
        patches_NCZYX: Tensor = self.autoencoder.decode(code_NF)
        return patches_NCZYX


class ReconstructionOf(nn.Module):
    """An autoencoder without its codes: patches (N, 1, Z, Y, X) to the same, reconstructed."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Encode and decode."""
        reconstruction_NCZYX: Tensor = self.autoencoder.decode(self.autoencoder.encode(patches_NCZYX))
        return reconstruction_NCZYX


class SoftmaxOf(nn.Module):
    """A segmenter with probabilities: logits (N, L, ...) become shares of 1 along L."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Segment."""
        return torch.softmax(self.segmenter(patches_NCZYX), dim=1)
