"""Scores of a trained network on boxes that it never saw, as the papers measure them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscale.evaluate.segmentation import confusion, mean_iou_by_sample, pooled_scores
from cryoscale.stages.supervised_set import IGNORED, SupervisedSet

if TYPE_CHECKING:
    from torch import nn

AT_ONCE = 16  # boxes


def scores_of(module: nn.Module, test: SupervisedSet) -> dict[str, float]:
    """Score a network, left in evaluation mode on the device of its training.

    Returns
    -------
    scores : dict
        `test_boxes`; for "seg" `test_pixel_accuracy`, `test_miou` (per sample and class, then over samples,
        then over classes) and `test_miou_pooled`; for "cls" `test_object_accuracy`; for "rec"
        `test_recovery_error` (mean square).
    """
    import torch

    device = next(module.parameters()).device
    heads = tuple(test.targets)
    counts, right, error = [], 0, 0.0
    for start in range(0, len(test), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        with torch.inference_mode():
            given: Any = module(torch.from_numpy(np.ascontiguousarray(test.inputs[part])).to(device))
        output = dict(given) if isinstance(given, Mapping) else {heads[0]: given}
        if "seg" in heads:
            logits = output["seg"]
            predicted = logits.argmax(dim=1).cpu().numpy()
            for truth, found in zip(test.targets["seg"][part], predicted, strict=True):
                known = truth != IGNORED
                counts.append(confusion(truth[known], found[known], logits.shape[1]))
        if "cls" in heads:
            right += int((output["cls"].argmax(dim=1).cpu().numpy() == test.targets["cls"][part]).sum())
        if "rec" in heads:
            error += float(
                ((output["rec"].float().cpu().numpy() - test.targets["rec"][part]) ** 2)
                .mean((1, 2, 3, 4))
                .sum()
            )
    scores: dict[str, float] = {"test_boxes": len(test)}
    if "seg" in heads:
        pooled = pooled_scores(counts)
        scores["test_pixel_accuracy"] = pooled.pixel_accuracy
        scores["test_miou"] = mean_iou_by_sample(np.stack(counts))
        scores["test_miou_pooled"] = pooled.mean_iou
    if "cls" in heads:
        scores["test_object_accuracy"] = right / len(test)
    if "rec" in heads:
        scores["test_recovery_error"] = error / len(test)
    return scores
