"""The losses of several heads together, each with its weight and its own count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cryoscale.errors import ConfigurationError
from cryoscale.learn.losses import ClassificationLoss, Count, RecoveryLoss, SegmentationLoss, Shares
from cryoscale.learn.metrics import mean_iou
from cryoscale.learn.targets import HEADS, Targets, target_of

PAPER_WEIGHTS = {"cls": 1.0, "seg": 10.0, "rec": 1.0}


@dataclass(frozen=True)
class MultiTaskLoss:
    """The weighted sum of the losses of a network's heads.

    Attributes
    ----------
    weights : dict
        By head: "cls" (cross-entropy of the item), "seg" (cross-entropy of its voxels), "rec" (mean squared
        error of the density). Heads that the network has besides are not trained. Of a network that gives one
        tensor, name that head alone.
    class_weights : tuple of float, optional
        Of "seg", background first; see `SegmentationLoss`.
    particle_weights : tuple of float, optional
        Of "cls".

    Notes
    -----
    Each head is averaged over what is known of it: items for "cls" and "rec", voxels for "seg". DSM-Net
    weighs 1 : 10 : 1. Parts of the record: `cls_loss`, `cls_accuracy`, `seg_loss`, `seg_accuracy`, `seg_iou`
    (see `cryoscale.learn.metrics.mean_iou`), `rec_error`; losses there are without their weights.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(PAPER_WEIGHTS))
    class_weights: tuple[float, ...] | None = None
    particle_weights: tuple[float, ...] | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        unknown = [head for head in self.weights if head not in HEADS]
        if unknown or not self.weights:
            raise ConfigurationError(
                f"A loss of {', '.join(unknown) or 'no head'} is not known.",
                remedy=f"Heads are {', '.join(HEADS)}.",
            )
        if any(not weight > 0 for weight in self.weights.values()):
            raise ConfigurationError(f"Loss weights {dict(self.weights)} must be positive.")

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that are trained, in the networks' order."""
        return tuple(head for head in HEADS if head in self.weights)

    def __call__(
        self, output: Any, inputs: Tensor, targets: Targets, shares: Shares | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take what the network gave, a tensor or a dictionary by head, and targets of the same kind."""
        total: Tensor | None = None
        named: dict[str, Tensor] = {}
        for head in self.heads:
            value, parts = self._head(head, self._output_of(output, head), inputs, targets)
            share = 1.0 if shares is None else shares.of[head]
            items = 1.0 if shares is None else shares.of["items"]
            weighted = value * (self.weights[head] * share)
            total = weighted if total is None else total + weighted
            # What is known counts in losses and accuracies, every item in the others.
            named |= {name: part * (items if name == "seg_iou" else share) for name, part in parts.items()}
        assert total is not None  # there is a head
        return total, named

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Count the items."""
        return float(len(inputs))

    def counts(self, inputs: Tensor, targets: Targets) -> dict[str, Count]:
        """Count what each head is averaged over."""
        counts: dict[str, Count] = {"items": float(len(inputs))}
        for head in self.heads:
            loss = self._loss(head)
            wanted = self._target_of(targets, head)
            counts[head] = (
                counts["items"] if isinstance(loss, RecoveryLoss) else (wanted != loss.ignored).sum()
            )
        return counts

    def check(self, output: Any, targets: Targets) -> None:
        """Refuse targets of all items that do not go with what the network gave for one."""
        for head in self.heads:
            self._loss(head).check(self._output_of(output, head), self._target_of(targets, head))

    def _loss(self, head: str) -> ClassificationLoss | SegmentationLoss | RecoveryLoss:
        if head == "cls":
            return ClassificationLoss(self.particle_weights)
        return SegmentationLoss(self.class_weights) if head == "seg" else RecoveryLoss()

    def _head(
        self, head: str, output: Tensor, inputs: Tensor, targets: Targets
    ) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = self._target_of(targets, head)
        value, parts = self._loss(head)(output, inputs, wanted)
        if head == "rec":
            return value, {"rec_error": parts["error"]}
        named = {f"{head}_loss": value.detach(), f"{head}_accuracy": parts["accuracy"]}
        if head == "seg":
            labels = output.detach().argmax(dim=1)
            named["seg_iou"] = mean_iou(labels, wanted, output.shape[1])
        return value, named

    def _output_of(self, output: Any, head: str) -> Tensor:
        if isinstance(output, Tensor) and len(self.weights) == 1:
            return output
        if isinstance(output, Mapping) and head in output:
            found: Tensor = output[head]
            return found
        given = "one tensor" if isinstance(output, Tensor) else ", ".join(output)
        raise ConfigurationError(
            f"The loss wants the heads {', '.join(self.heads)}, the network gives {given}.",
            remedy="Name the network's own heads in the loss weights.",
        )

    def _target_of(self, targets: Targets, head: str) -> Tensor:
        wanted = target_of(targets, head)
        if wanted is None or (isinstance(targets, Tensor) and len(self.weights) > 1):
            raise ConfigurationError(
                f"The loss of {head!r} has no target.", remedy="Give targets as a mapping by head."
            )
        return wanted
