"""What a training tells of an epoch besides its losses; final scores are made in `cryoscale.evaluate`."""

from __future__ import annotations

import torch
from torch import Tensor

from cryoscale.learn.targets import IGNORED


def accuracy(predicted: Tensor, wanted: Tensor, *, ignored: int = IGNORED) -> Tensor:
    """Give the share of known items, or voxels, whose class is right; 0 where nothing is known."""
    right = (predicted == wanted).sum()
    return right / (wanted != ignored).sum().clamp(min=1)


def iou_by_sample(predicted_N: Tensor, wanted_N: Tensor, n_classes: int, *, ignored: int = IGNORED) -> Tensor:
    """Give the intersection over union of each class in each sample.

    Parameters
    ----------
    predicted_N, wanted_N : (N, ...) integer
        Classes of the voxels of N samples. Voxels that are `ignored` in `wanted_N` count nowhere.
    n_classes : int
        L, background included.

    Returns
    -------
    iou_NL : (N, L) float32
        NaN for a class that is in neither.
    """
    known_NV = (wanted_N != ignored).flatten(1)
    predicted_NV, wanted_NV = predicted_N.flatten(1), wanted_N.flatten(1)
    found = []
    for label in range(n_classes):
        one, other = (predicted_NV == label) & known_NV, wanted_NV == label
        found.append((one & other).sum(1) / (one | other).sum(1))  # 0 / 0 is NaN
    return torch.stack(found, dim=1)


def mean_iou(predicted_N: Tensor, wanted_N: Tensor, n_classes: int, *, ignored: int = IGNORED) -> Tensor:
    """Give the mIoU of a batch: by class in each sample, averaged there, then over the samples.

    Where every sample shows every class this is the SSN3D-ED papers' mIoU, which averages over the samples
    before it does over the classes; averaged in this order, batches of an epoch add up by their items.
    `cryoscale.evaluate.segmentation.mean_iou_by_sample` is the papers' order, for final scores.
    """
    return iou_by_sample(predicted_N, wanted_N, n_classes, ignored=ignored).nanmean(1).nan_to_num().mean()
