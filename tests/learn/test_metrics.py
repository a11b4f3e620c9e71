"""Metrics of an epoch against those of final scores."""

import numpy as np
import pytest
import torch

from cryoscale.evaluate.segmentation import confusion, mean_iou_by_sample
from cryoscale.learn.metrics import accuracy, iou_by_sample, mean_iou


def test_accuracy_counts_what_is_known():
    wanted = torch.tensor([0, 1, 255, 1])
    assert accuracy(torch.tensor([0, 0, 0, 1]), wanted) == pytest.approx(2 / 3)
    assert accuracy(torch.tensor([0]), torch.tensor([255])) == 0


@pytest.mark.parametrize("classes", [2, 4])
def test_the_miou_is_that_of_the_papers(classes):
    rng = np.random.default_rng(0)
    truth, found = rng.integers(classes, size=(2, 7, 4, 5, 6))
    confusions = [confusion(t, p, classes) for t, p in zip(truth, found, strict=True)]
    mine = mean_iou(torch.from_numpy(found), torch.from_numpy(truth), classes)
    assert float(mine) == pytest.approx(mean_iou_by_sample(confusions))


def test_unknown_voxels_and_absent_classes_count_nowhere():
    truth, found = torch.tensor([[0, 0, 255, 1]]), torch.tensor([[0, 1, 1, 1]])
    iou = iou_by_sample(found, truth, 3)
    assert iou[0, :2].tolist() == [0.5, 0.5]
    assert iou[0, 2].isnan()
    assert mean_iou(found, truth, 3) == 0.5
    assert mean_iou(found, torch.full_like(truth, 255), 3) == 0
