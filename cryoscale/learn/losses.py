"""What the trainings minimise, and the measure of a code that has died.

A loss takes what a network gave, its inputs and its targets, and returns the number to minimise with its
parts. Each is a mean over the items of a batch, so that batches of unequal size average properly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as torch_f
from torch import Tensor

from cryoscale.errors import ConfigurationError

PAPER_BATCH = 8


class Loss(Protocol):
    """The loss of one batch: the total, and named parts to be recorded (detached from the graph)."""

    def __call__(
        self, output: Any, inputs: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the network's output with the inputs or the targets."""
        ...

    def weight(self, inputs: Tensor, targets: Tensor | None) -> float:
        """Give what these items count in the mean over a batch that is worked through in parts."""
        ...


@dataclass(frozen=True)
class AutoencoderLoss:
    """Mean squared error of the reconstruction, plus an L1 norm of the code that keeps it sparse.

    Attributes
    ----------
    l1 : float
        Weight of the L1 term; the original has 1e-4.
    reference_batch : int
        The original sums |z| over the whole batch, so its weight against the mean squared error grows with
        the batch size. Here the sum is taken per item, averaged over the items, and multiplied by this
        number: at `reference_batch` items it is the original's term, and other batch sizes keep its strength.

    Notes
    -----
    Zeng et al. 2018, doi:10.1016/j.jsb.2017.12.015, with batches of 8.
    """

    l1: float = 1e-4
    reference_batch: int = PAPER_BATCH

    def __call__(
        self, output: Any, inputs: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take (reconstruction, codes) and the patches; `targets`, if any, replace the patches."""
        reconstruction_NCZYX, codes_NF = output
        wanted_NCZYX = inputs if targets is None else targets
        error = torch_f.mse_loss(reconstruction_NCZYX.float(), wanted_NCZYX.float())
        size = codes_NF.float().abs().sum(dim=1).mean()
        sparsity = self.l1 * self.reference_batch * size
        return error + sparsity, {"reconstruction": error.detach(), "sparsity": sparsity.detach()}

    def weight(self, inputs: Tensor, targets: Tensor | None) -> float:
        """Count the items."""
        return float(len(inputs))


IGNORED = 255  # the target value of voxels that count for nothing


@dataclass(frozen=True)
class SegmentationLoss:
    """Cross-entropy per voxel, averaged over the voxels of the batch.

    Attributes
    ----------
    class_weights : tuple of float, optional
        One per class, background first. The weighted mean is divided by the number of voxels, not by the sum
        of the weights, so a batch's loss does not depend on its mixture of classes in two ways.
    ignored : int
        Target value of voxels that nobody knows the class of; they count neither in the loss nor in the
        accuracy.
    """

    class_weights: tuple[float, ...] | None = None
    ignored: int = IGNORED

    def __call__(
        self, output: Any, inputs: Tensor, targets: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take logits (N, L, Z, Y, X) and integer targets (N, Z, Y, X)."""
        if targets is None:
            raise ConfigurationError("A segmentation loss needs targets.")
        weight = None
        if self.class_weights is not None:
            weight = torch.tensor(self.class_weights, dtype=torch.float32, device=output.device)
            if len(weight) != output.shape[1]:
                raise ConfigurationError(
                    f"{len(weight)} class weights for {output.shape[1]} classes, background included."
                )
        wanted = targets.long()
        known = (wanted != self.ignored).sum().clamp(min=1)
        per_voxel = torch_f.cross_entropy(
            output.float(), wanted, weight=weight, ignore_index=self.ignored, reduction="none"
        )
        right = (output.detach().argmax(dim=1) == wanted).sum() / known
        return per_voxel.sum() / known, {"accuracy": right}

    def weight(self, inputs: Tensor, targets: Tensor | None) -> float:
        """Count the voxels that somebody knows the class of."""
        return 0.0 if targets is None else float((targets != self.ignored).sum())


def class_weights_of(targets: npt.NDArray[Any], n_classes: int, *, power: float = 0.5) -> tuple[float, ...]:
    """Weigh rare classes up: (1 / share of the class) ** power, scaled to a mean of 1 over the voxels.

    Parameters
    ----------
    targets : integer array
        Class of each voxel.
    n_classes : int
        Classes with the background. A class without voxels gets weight 0.
    power : float
        0 is no weighting, 1 gives every class the same total.

    Returns
    -------
    weights : tuple of float
        For `SegmentationLoss`.
    """
    counts = np.bincount(np.asarray(targets).ravel(), minlength=n_classes).astype(np.float64)
    if len(counts) > n_classes:
        raise ConfigurationError(f"Targets go up to class {len(counts) - 1}, there are {n_classes} classes.")
    shares = counts / counts.sum()
    weights = np.where(shares > 0, np.maximum(shares, 1e-12) ** -power, 0.0)
    return tuple(float(w) for w in weights / (weights * shares).sum())


def dead_units(codes_NF: npt.NDArray[np.floating[Any]], *, tolerance: float = 1e-3) -> npt.NDArray[np.bool_]:
    """Say which units of a code carry nothing: the same value, nearly, for every item.

    Parameters
    ----------
    codes_NF : (N, F) float
        At least one row.
    tolerance : float
        A unit is dead when its standard deviation is at most this share of the largest one.

    Returns
    -------
    dead_F : (F,) bool
        All true when no unit varies at all.
    """
    spread_F = np.asarray(codes_NF, dtype=np.float64).std(axis=0)
    dead_F: npt.NDArray[np.bool_] = spread_F <= tolerance * spread_F.max(initial=0.0)
    return dead_F


def dead_share(codes_NF: npt.NDArray[np.floating[Any]], *, tolerance: float = 1e-3) -> float:
    """Give the share of dead units of a code, 0 to 1; see `dead_units`."""
    return float(dead_units(codes_NF, tolerance=tolerance).mean())
