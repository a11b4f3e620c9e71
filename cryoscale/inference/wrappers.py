"""One input, one output: the faces of a network that an engine can run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from cryoscale.models.autoencoder3d import Autoencoder3D

LEAST_SD = 1e-6  # of an item in the units of the density; below it there is nothing in it


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


class HeadOf(nn.Module):
    """One head of a network that may have several: patches (N, C, ...) to what that head gives.

    Parameters
    ----------
    module : nn.Module
        With one head or several; see `cryoscale.models.registry.ModelFacts`.
    head : {"cls", "seg", "rec"}
        Which one.
    """

    def __init__(self, module: nn.Module, head: str) -> None:
        super().__init__()
        self.module, self.head = narrowed(module, (head,)), head

    def forward(self, patches_NC: Tensor) -> Tensor:
        """Compute the head."""
        return outputs_of(self.module, patches_NC)[self.head]


class RecoveringOf(nn.Module):
    """A segmenter that recovers densities too: patches (N, 1, Z, Y, X) to (N, L + 1, Z, Y, X).

    The first L channels are the shares of the classes, the last one is the density without neighbours.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = narrowed(module, ("seg", "rec"))

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Segment and recover."""
        outputs = outputs_of(self.module, patches_NCZYX)
        return torch.cat([torch.softmax(outputs["seg"], dim=1), outputs["rec"]], dim=1)


class ParticlesOf(nn.Module):
    """What a network says of the particle in a box, one vector each: patches (N, 1, Z, Y, X) to (N, V + K).

    The first V = Z Y X numbers say for each voxel how sure the network is that it is the particle's: 1 minus
    the share of the background. With `recover` V more are the density without neighbours. The last K are the
    shares of the classes. An engine has one result, and K + 1 volumes would be many times as much.
    """

    def __init__(self, module: nn.Module, *, recover: bool = False) -> None:
        super().__init__()
        self.module = narrowed(module, ("cls", "seg", "rec") if recover else ("cls", "seg"))
        self.recover = recover

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Classify, segment and recover."""
        outputs = outputs_of(self.module, patches_NCZYX)
        parts = [1 - torch.softmax(outputs["seg"], dim=1)[:, 0].flatten(1)]
        if self.recover:
            parts.append(outputs["rec"].flatten(1))
        return torch.cat([*parts, torch.softmax(outputs["cls"], dim=1)], dim=1)


class Standardised(nn.Module):
    """A network whose items are each scaled to zero mean and unit sd first: (N, C, ...) to what it gives.

    For networks that learned from boxes without a tomogram around them, whose noise nobody knows.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, items_NC: Tensor) -> Tensor:
        """Scale and compute."""
        axes = tuple(range(1, items_NC.dim()))
        centred = items_NC - items_NC.mean(dim=axes, keepdim=True)
        sd = centred.square().mean(dim=axes, keepdim=True).sqrt()
        result: Tensor = self.module(centred / sd.clamp(min=LEAST_SD))
        return result


class Trimmed(nn.Module):
    """What a filter makes of slices, but for the margin that it leans on.

    From (N, C, U + 2 m, V + 2 m) to (N, C, U, V).

    Parameters
    ----------
    module : nn.Module
        From slices to slices of the same shape.
    margin : int
        m, pixels.
    """

    def __init__(self, module: nn.Module, margin: int) -> None:
        super().__init__()
        self.module, self.margin = module, margin

    def forward(self, slices_NCUV: Tensor) -> Tensor:
        """Filter and cut."""
        result_NCUV: Tensor = self.module(slices_NCUV)
        m = self.margin
        return result_NCUV[..., m:-m, m:-m] if m else result_NCUV


def narrowed(module: nn.Module, heads: tuple[str, ...]) -> nn.Module:
    """Return a network with the same weights that computes some of its heads only.

    Networks with one head, or with no more than these, are returned as they are.
    """
    had = tuple(getattr(module, "heads", ()))
    kept = tuple(head for head in had if head in heads)
    if len(had) < 2 or kept == had:
        return module
    part: Any = copy.copy(module)  # its parameters are the same objects
    part.heads = kept
    return part  # type: ignore[no-any-return]


def outputs_of(module: nn.Module, inputs_NC: Tensor) -> dict[str, Tensor]:
    """Compute a network and name what each head gives, also where it has one head alone."""
    result = module(inputs_NC)
    if isinstance(result, dict):
        return result
    (head,) = getattr(module, "heads", ("seg",))
    return {head: result}
