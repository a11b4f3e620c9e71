"""The loss of Chen et al. for networks that each find one feature, at half the resolution of their inputs.

Shape suffixes: N tiles, K features (networks), Y X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError
from cryoscale.learn.losses import Count, Shares
from cryoscale.learn.targets import IGNORED, Targets, check_labels, target_of

BACKGROUND = 0.8  # what features are merged against


@dataclass(frozen=True)
class ChenLoss:
    """log(mean((y - min(1, answer))^2)) + 1e-6 sum |W|, added up over the features.

    Attributes
    ----------
    l1 : float
        Weight of the sum of the absolute weights, biases left out.
    ignored : int
        Target value of pixels that nobody knows the class of.

    Notes
    -----
    Chen et al. 2017, doi:10.1038/nmeth.4405. Answers come at half resolution; y is 1 where any of the four
    pixels that an answer stands for is of the feature. The mean of the four would be less than the 0.8 that
    answers are merged against along everything as thin as a pixel, membranes first of all. Where one of the
    four is unknown, the answer counts for nothing.

    The logarithm of a mean is no mean: one process takes a batch whole, and several add up their means before
    they take the logarithm, so that they do what one does.
    """

    l1: float = 1e-6
    ignored: int = IGNORED
    whole: bool = True

    def forward(self, module: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the networks for their raw answers (N, K, Y / 2, X / 2), and add up their absolute weights."""
        answers = module.responses(inputs)  # type: ignore[operator]
        sizes = [weight.float().abs().sum() for weight in module.parameters() if weight.ndim > 1]
        return answers, torch.stack(sizes).sum()

    def __call__(
        self, output: Any, inputs: Tensor, targets: Targets, shares: Shares | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take what `forward` gave, and label images (N, Y, X): 0 background, k + 1 feature k."""
        answers_NKYX, size = output
        masks_NKYX, known_NYX = self._masks(answers_NKYX, targets)
        share = 1.0 if shares is None else shares.of["seg"]
        squares = (masks_NKYX - answers_NKYX.float().clamp(max=1)).square() * known_NYX[:, None]
        count = known_NYX.sum().clamp(min=1)
        mine_K = squares.sum(dim=(0, 2, 3)) / count * share
        mean_K = mine_K.detach() if shares is None else shares.summed(mine_K.detach())
        mean_K = mean_K.clamp(min=1e-12)
        # The value is this share of the logarithm of the whole mean; the gradient is that of its own items.
        logs = ((mine_K - mine_K.detach()) / mean_K).sum() + mean_K.log().sum() * share
        sparsity = self.l1 * size * share
        right = _right(answers_NKYX, masks_NKYX)[known_NYX].sum() / count * share
        parts = {"seg_loss": logs.detach(), "sparsity": sparsity.detach(), "seg_accuracy": right}
        return logs + sparsity, parts

    def weight(self, inputs: Tensor, targets: Targets) -> float:
        """Count the items."""
        return float(len(inputs))

    def counts(self, inputs: Tensor, targets: Targets) -> dict[str, Count]:
        """Count the answers that somebody knows the right ones of."""
        return {"seg": self._known(_labels(targets)).sum()}

    def check(self, output: Any, targets: Targets) -> None:
        """Refuse targets of all items that do not go with what the network gave for one."""
        labels_NYX = _labels(targets)
        check_labels("seg", labels_NYX, output[0].shape[1] + 1, tuple(labels_NYX.shape[1:]))
        self._masks(output[0], labels_NYX[:1])

    def _known(self, labels_NYX: Tensor) -> Tensor:
        """Say for which answers all pixels are known; at a last odd row or column these are two, or one."""
        unknown = (labels_NYX == self.ignored).float()
        return torch_f.max_pool2d(unknown[:, None], 2, ceil_mode=True)[:, 0] == 0

    def _masks(self, answers_NKYX: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        labels_NYX = _labels(targets)
        features = answers_NKYX.shape[1]
        values = torch.arange(1, features + 1, device=labels_NYX.device)
        masks = (labels_NYX[:, None] == values[None, :, None, None]).float()
        masks_NKYX = torch_f.max_pool2d(masks, 2, ceil_mode=True)
        if masks_NKYX.shape != answers_NKYX.shape:
            raise ConfigurationError(
                f"Label images {tuple(labels_NYX.shape)} do not have twice the size of the network's answers"
                f" {tuple(answers_NKYX.shape)}."
            )
        return masks_NKYX, self._known(labels_NYX)


def _labels(targets: Targets) -> Tensor:
    labels = target_of(targets, "seg")
    if labels is None:
        raise ConfigurationError("The loss of cnn2d-chen needs targets of 'seg'.")
    return labels


def _right(answers_NKYX: Tensor, masks_NKYX: Tensor) -> Tensor:
    """Say where the strongest answer is of a feature that is there, or none beats the background's."""
    best, feature = answers_NKYX.detach().float().max(dim=1)
    hit = masks_NKYX.gather(1, feature[:, None])[:, 0] > 0
    return torch.where(best > BACKGROUND, hit, masks_NKYX.amax(dim=1) == 0)
