"""Scores of a trained network on boxes that it never saw, as the papers measure them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscale.evaluate.segmentation import confusion, mean_iou_by_sample, pooled_scores
from cryoscale.stages.supervised_set import IGNORED, SupervisedSet

if TYPE_CHECKING:
    from torch import nn

AT_ONCE_VOXELS = 16 * 40**3  # of the items that go through the network together
BRIGHT = 0.1  # sd by which voxels of a class must be brighter than the background to be worth a word


def classes_of(module: nn.Module, part: SupervisedSet) -> dict[str, dict[str, float]]:
    """Say of each class of voxels how well a network finds it in items that it was not trained on.

    Returns
    -------
    classes : dict
        By name: `iou` (over all voxels together), `found` and `true` (shares of the voxels that someone
        labelled), `brighter` (sd that its voxels are above the background's mean; objects should be dark).
    """
    counts = np.zeros((len(part.class_names) + 1,) * 2, np.int64)
    for truth, output in _answers(module, part):
        found = output["seg"].argmax(dim=1).cpu().numpy()
        known = truth["seg"] != IGNORED
        counts += confusion(truth["seg"][known], found[known], len(counts))
    scores, total = pooled_scores([counts]), max(1, int(counts.sum()))
    labels, middle = part.targets["seg"], part.inputs[:, part.inputs.shape[1] // 2]
    means = [float(middle[labels == value].mean()) if (labels == value).any() else np.nan
             for value in range(len(counts))]  # fmt: skip
    return {
        name: {
            "iou": round(float(np.nan_to_num(scores.iou_C[value])), 4),
            "found": round(float(counts[:, value].sum() / total), 6),
            "true": round(float(counts[value].sum() / total), 6),
            "brighter": round(float(np.nan_to_num(means[value] - means[0])), 3),
        }
        for value, name in enumerate(part.class_names, start=1)
    }


def doubts_about(classes: Mapping[str, Mapping[str, float]]) -> str:
    """Say what a person should know before the network is applied; empty if there is nothing."""
    never = [name for name, of in classes.items() if of["true"] and not of["found"]]
    bright = [name for name, of in classes.items() if of["brighter"] > BRIGHT]
    words = []
    if never:
        words.append(
            f"the network finds nothing of {', '.join(never)} in what was held back: give it more epochs, or "
            'supervised.class_weighting = "sqrt"'
        )
    if bright:
        words.append(
            f"voxels of {', '.join(bright)} are brighter than the background, though objects should be dark: "
            "look at the contrast of those tomograms in the report, and at ingest.contrast"
        )
    return "; ".join(words)


def _answers(module: nn.Module, part: SupervisedSet) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the truth of some items and what a network says of them, by head."""
    import torch

    device = next(module.parameters()).device
    heads = tuple(part.targets)
    step = max(1, AT_ONCE_VOXELS // max(1, part.inputs[0].size)) if len(part) else 1
    for start in range(0, len(part), step):
        rows = slice(start, start + step)
        with torch.inference_mode():
            given: Any = module(torch.from_numpy(np.ascontiguousarray(part.inputs[rows])).to(device))
        output = dict(given) if isinstance(given, Mapping) else {heads[0]: given}
        yield {head: target[rows] for head, target in part.targets.items()}, output


def scores_of(module: nn.Module, test: SupervisedSet) -> dict[str, float]:
    """Score a network, left in evaluation mode on the device of its training.

    Returns
    -------
    scores : dict
        `test_boxes`; for "seg" `test_pixel_accuracy`, `test_miou` (per sample and class, then over samples,
        then over classes) and `test_miou_pooled`; for "cls" `test_object_accuracy`; for "rec"
        `test_recovery_error` (mean square).
    """
    heads = tuple(test.targets)
    counts, right, error = [], 0, 0.0
    for truth, output in _answers(module, test):
        if "seg" in heads:
            logits = output["seg"]
            predicted = logits.argmax(dim=1).cpu().numpy()
            for labels, found in zip(truth["seg"], predicted, strict=True):
                known = labels != IGNORED
                counts.append(confusion(labels[known], found[known], logits.shape[1]))
        if "cls" in heads:
            right += int((output["cls"].argmax(dim=1).cpu().numpy() == truth["cls"]).sum())
        if "rec" in heads:
            squares = (output["rec"].float().cpu().numpy() - truth["rec"]) ** 2
            error += float(squares.mean((1, 2, 3, 4)).sum())
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
