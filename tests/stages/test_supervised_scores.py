"""What a training says of its network: how each class is found, and what to doubt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cryoscale.stages.supervised_scores import classes_of, doubts_about
from cryoscale.stages.supervised_set import IGNORED, SupervisedSet


class Darker(nn.Module):
    """Finds class 1 where density is below -1, and never class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_NCZYX: torch.Tensor) -> torch.Tensor:
        dark = (x_NCZYX < -1).float()
        return torch.cat([0.5 + 0 * dark, dark, 0 * dark], dim=1)


@pytest.fixture
def held_back() -> SupervisedSet:
    inputs = np.zeros((20, 1, 8, 8, 8), np.float32)
    labels = np.zeros((20, 8, 8, 8), np.uint8)
    labels[:, :2], inputs[:, 0, :2] = 1, -2.0  # class 1 is dark, and half of it is found
    inputs[:, 0, :1] = -0.5
    labels[:, 4], inputs[:, 0, 4] = 2, 1.0  # class 2 is bright
    labels[:, 7], inputs[:, 0, 7] = IGNORED, -9.0  # nobody knows
    return SupervisedSet(inputs, {"seg": labels}, class_names=("dark", "bright"))


def test_classes_are_counted_over_the_voxels_that_someone_knows(held_back: SupervisedSet) -> None:
    found = classes_of(Darker().eval(), held_back)
    assert found["dark"] == {
        "iou": 0.5, "found": pytest.approx(1 / 7, abs=1e-6), "true": pytest.approx(2 / 7, abs=1e-6),
        "brighter": -1.25,
    }  # fmt: skip
    assert found["bright"] == {
        "iou": 0.0,
        "found": 0.0,
        "true": pytest.approx(1 / 7, abs=1e-6),
        "brighter": 1,
    }


def test_what_is_never_found_and_what_is_bright_is_said(held_back: SupervisedSet) -> None:
    said = doubts_about(classes_of(Darker().eval(), held_back))
    assert "nothing of bright in what was held back" in said
    assert "voxels of bright are brighter" in said
    assert "dark," not in said


def test_there_is_nothing_to_doubt_where_all_is_found() -> None:
    assert doubts_about({"a": {"iou": 0.4, "found": 0.1, "true": 0.1, "brighter": -0.5}}) == ""
