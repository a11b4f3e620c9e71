"""What the trainings minimise, and the measure of a code that has died.

A loss takes what a network gave, its inputs and its targets, and returns the number to minimise with its
parts. Each is a mean over the items of a batch, so that batches of unequal size average properly.

A batch may be worked through in parts, one after the other or by several processes. A loss of one term says
by `weight` what a part counts. One of several terms, each with a count of its own, is a `SharedLoss`: it is
told which share of each term the part has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as torch_f
from torch import Tensor

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.targets import IGNORED, Targets, check_labels, target_of

__all__ = [
    "IGNORED", "AutoencoderLoss", "ClassificationLoss", "Count", "Loss", "RecoveryLoss", "SegmentationLoss",
    "SharedLoss", "Shares", "class_weights_of", "dead_share", "dead_units",
]  # fmt: skip

PAPER_BATCH = 8


class Loss(Protocol):
    """The loss of one batch: the total, and named parts to be recorded (detached from the graph).

    A loss may have `check(output, targets)` besides: given what the network makes of one item and the targets
    of all, it refuses before the training what could not be learned.
    """

    def __call__(self, output: Any, inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare the network's output with the inputs or the targets."""
        ...

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Give what these items count in the mean over a batch that is worked through in parts."""
        ...


Count = float | Tensor  # a number, or a tensor of one, which stays on the device


def _plain(targets: Targets, head: str) -> Tensor:
    wanted = target_of(targets, head)
    if wanted is None:
        what = {"cls": "classification", "seg": "segmentation", "rec": "recovery"}[head]
        raise ConfigurationError(f"A {what} loss needs targets.")
    return wanted


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class Shares:
    """Which share of a batch a part of it has.

    Attributes
    ----------
    of : dict
        By term of the loss, as `SharedLoss.counts` names them: the part's count over that of the batch.
    summed : callable
        Adds a tensor without gradient over all parts that other processes work on meanwhile.
    """

    of: Mapping[str, Count]
    summed: Callable[[Tensor], Tensor] = _alone


@runtime_checkable
class SharedLoss(Protocol):
    """A loss whose parts of a batch add up to that of the batch, term by term.

    `whole` says that one process cannot cut its batch, since the loss is no mean over items. A loss that
    needs more of the network than what calling it gives has besides `forward(module, inputs)`, whose result
    it takes as `output`.
    """

    whole: bool

    def __call__(
        self, output: Any, inputs: Tensor, targets: Targets, shares: Shares | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the part's share of the loss and of its parts; without `shares` the part is the batch."""
        ...

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Give what these items count, as for any loss."""
        ...

    def counts(self, inputs: Tensor, targets: Targets) -> dict[str, Count]:
        """Give what each term of the loss is divided by."""
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

    def __call__(self, output: Any, inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Take (reconstruction, codes) and the patches; `targets`, if any, replace the patches."""
        reconstruction_NCZYX, codes_NF = output
        wanted_NCZYX = inputs if targets is None else _plain(targets, "rec")
        error = torch_f.mse_loss(reconstruction_NCZYX.float(), wanted_NCZYX.float())
        size = codes_NF.float().abs().sum(dim=1).mean()
        sparsity = self.l1 * self.reference_batch * size
        return error + sparsity, {"reconstruction": error.detach(), "sparsity": sparsity.detach()}

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Count the items."""
        return float(len(inputs))


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

    def __call__(self, output: Any, inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Take logits (N, L, Z, Y, X) and integer targets (N, Z, Y, X)."""
        wanted = _plain(targets, "seg").long()
        weight = None
        if self.class_weights is not None:
            weight = torch.tensor(self.class_weights, dtype=torch.float32, device=output.device)
            if len(weight) != output.shape[1]:
                raise ConfigurationError(
                    f"{len(weight)} class weights for {output.shape[1]} classes, background included."
                )
        known = (wanted != self.ignored).sum().clamp(min=1)
        per_voxel = torch_f.cross_entropy(
            output.float(), wanted, weight=weight, ignore_index=self.ignored, reduction="none"
        )
        right = (output.detach().argmax(dim=1) == wanted).sum() / known
        return per_voxel.sum() / known, {"accuracy": right}

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Count the voxels that somebody knows the class of."""
        return 0.0 if targets is None else float((_plain(targets, "seg") != self.ignored).sum())

    def check(self, output: Any, targets: Targets) -> None:
        """Refuse targets of all items that do not go with what the network gave for one."""
        check_labels("seg", _plain(targets, "seg"), output.shape[1], tuple(output.shape[2:]))


@dataclass(frozen=True)
class ClassificationLoss:
    """Cross-entropy of one class for each item, averaged over the items whose class is known.

    Attributes
    ----------
    class_weights : tuple of float, optional
        One per class; the weighted sum is divided by the number of items.
    ignored : int
        Target value of items that nobody knows the class of.
    """

    class_weights: tuple[float, ...] | None = None
    ignored: int = IGNORED

    def __call__(self, output: Any, inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Take logits (N, K) and integer targets (N,)."""
        # The same sum over known entries; only what the entries are differs.
        per_voxel = SegmentationLoss(self.class_weights, self.ignored)
        return per_voxel(output, inputs, _plain(targets, "cls"))

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Count the items that somebody knows the class of."""
        return 0.0 if targets is None else float((_plain(targets, "cls") != self.ignored).sum())

    def check(self, output: Any, targets: Targets) -> None:
        """Refuse targets of all items that do not go with what the network gave for one."""
        check_labels("cls", _plain(targets, "cls"), output.shape[1], ())


@dataclass(frozen=True)
class RecoveryLoss:
    """Mean squared error of a recovered density."""

    def __call__(self, output: Any, inputs: Tensor, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Take (N, 1, Z, Y, X), and targets of the same shape."""
        error = torch_f.mse_loss(output.float(), _plain(targets, "rec").float())
        return error, {"error": error.detach()}

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Count the items."""
        return float(len(inputs))

    def check(self, output: Any, targets: Targets) -> None:
        """Refuse targets of all items that do not go with what the network gave for one."""
        wanted = _plain(targets, "rec")
        if wanted.shape[1:] != output.shape[1:]:
            raise DataError(
                f"Densities to recover are {tuple(wanted.shape[1:])} per item, the network gives"
                f" {tuple(output.shape[1:])}."
            )
        bad = [n for n, item in enumerate(wanted) if not torch.isfinite(item).all()]
        if bad:
            raise DataError(
                f"{len(bad)} densities to recover hold NaN or infinity, the first is number {bad[0]}."
            )


def class_weights_of(targets: npt.NDArray[Any], n_classes: int, *, power: float = 0.5) -> tuple[float, ...]:
    """Weigh rare classes up: (1 / share of the class) ** power, scaled to a mean of 1 over the voxels.

    Parameters
    ----------
    targets : integer array
        Class of each voxel; `IGNORED` ones are left out.
    n_classes : int
        Classes with the background. A class without voxels gets weight 0.
    power : float
        0 is no weighting, 1 gives every class the same total.

    Returns
    -------
    weights : tuple of float
        For `SegmentationLoss`.
    """
    values = np.asarray(targets).ravel()
    counts = np.bincount(values[values != IGNORED], minlength=n_classes).astype(np.float64)
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
