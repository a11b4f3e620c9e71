"""What a trained network is worth on boxes that it has not seen: the papers' measures, and some others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.dsm_net.data import DataSet
from cryoscale.learn.metrics import iou_by_sample

BATCH = 32


def predict(module: Any, heads: tuple[str, ...], inputs: Any, device: str) -> dict[str, Any]:
    """Apply a network in float32: "cls" (N,) classes, "seg" (N, Z, Y, X) labels, "rec" (N, 1, Z, Y, X)."""
    found: dict[str, list[Any]] = {head: [] for head in heads}
    module.eval()
    with torch.inference_mode():
        for start in range(0, len(inputs), BATCH):
            output = module(torch.as_tensor(inputs[start : start + BATCH], device=device))
            by_head = output if isinstance(output, dict) else {heads[0]: output}
            for head in heads:
                values = by_head[head] if head == "rec" else by_head[head].argmax(dim=1)
                found[head].append(values.float().cpu().numpy())
    joined = {head: np.concatenate(parts) for head, parts in found.items()}
    return {head: v if head == "rec" else v.astype(np.int64) for head, v in joined.items()}


def score(predicted: dict[str, Any], data: DataSet, rows: Any) -> dict[str, Any]:
    """Return the scores of all heads on some boxes.

    `pixel`, `miou` (per sample and class first, as the papers do), `miou_pooled` and `miou_by_class` of
    particles for "seg"; `object` and `object_by_class` for "cls"; `recovery`, the mean correlation of a box's
    recovered density with its truth, for "rec".
    """
    scores: dict[str, Any] = {}
    classes_N = data.classes[rows]
    if "seg" in predicted:
        scores |= of_masks(predicted["seg"], data.mask[rows])
        scores["miou_by_class"] = {
            data.names[k]: mean_iou(predicted["seg"][its], data.mask[rows][its])
            for k in np.unique(classes_N)
            for its in [classes_N == k]
        }
    if "cls" in predicted:
        right_N = predicted["cls"] == classes_N
        scores["object"] = float(right_N.mean())
        scores["object_by_class"] = {
            data.names[k]: float(right_N[classes_N == k].mean()) for k in np.unique(classes_N)
        }
    if "rec" in predicted:
        pairs = zip(predicted["rec"], data.density[rows], strict=True)
        scores["recovery"] = float(np.mean([_correlation(*pair) for pair in pairs]))
    return scores


def of_masks(predicted_NZYX: Any, truth_NZYX: Any) -> dict[str, float]:
    """Return pixel accuracy, the papers' mIoU and the pooled one, of masks of 0 and 1."""
    pooled = mean_iou(predicted_NZYX.reshape(1, -1), truth_NZYX.reshape(1, -1))
    return {
        "pixel": float((predicted_NZYX == truth_NZYX).mean()),
        "miou": mean_iou(predicted_NZYX, truth_NZYX), "miou_pooled": pooled,
    }  # fmt: skip


def mean_iou(predicted_N: Any, truth_N: Any) -> float:
    """Return the mIoU of masks as the papers take it: over the samples of each label, then over labels."""
    iou_NL = iou_by_sample(torch.as_tensor(predicted_N), torch.as_tensor(truth_N), 2)
    return float(iou_NL.double().nanmean(0).nanmean())


def by_chance(data: DataSet, rows: Any) -> dict[str, float]:
    """Return what one gets without looking: background everywhere, and the most frequent class."""
    masks = data.mask[rows]
    trained = data.classes[data.split == "train"]
    return {
        **of_masks(np.zeros_like(masks), masks),
        "object": float((data.classes[rows] == np.bincount(trained).argmax()).mean()),
        "boxes": len(rows),
    }


def _correlation(one: Any, other: Any) -> float:
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0
