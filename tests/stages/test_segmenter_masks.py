"""The masks that the segmenter learns from: shifted with their patches, silent about what nobody chose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cryoscale.data.clusters import Selection
from cryoscale.learn.losses import IGNORED, SegmentationLoss
from cryoscale.ops.patches import cut
from cryoscale.stages.masks import class_level
from cryoscale.stages.train_segmenter import (
    _facts,
    _fill_ignored,
    _fill_masks,
    _levels,
    _shift_masks,
    _weakest_level,
    _without_members,
)


def test_a_shifted_mask_still_lies_on_its_object() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(40, 40, 40)).astype(np.float32)
    centres = rng.integers(16, 24, size=(20, 3))
    offsets = rng.integers(-4, 5, size=(20, 3))
    masks = (cut(volume, centres, 8) < 0).astype(np.uint8)
    _shift_masks(masks, offsets)
    wanted = (cut(volume, centres + offsets, 8) < 0).astype(np.uint8)
    known = masks != IGNORED
    assert np.array_equal(masks[known], wanted[known])
    share = np.prod(8 - np.abs(offsets), axis=1) / 8**3
    assert np.allclose(known.mean(axis=(1, 2, 3)), share)


def test_masks_take_the_class_of_their_patch_and_ignored_voxels_none() -> None:
    decoded = np.array([[[[-2.0, 1.0]]], [[[0.0, -3.0]]]], np.float32)
    masks = np.zeros(decoded.shape, np.uint8)
    levels = np.array([0, -1, -1, -1], np.float32)
    _fill_masks(decoded, np.array([3, 1], np.int32), levels, masks)
    assert masks.ravel().tolist() == [3, 0, 0, 1]
    levels[1] = -4
    _fill_masks(decoded, np.array([3, 1], np.int32), levels, masks)
    assert masks.ravel().tolist() == [3, 0, 0, 0]  # each class has a level of its own
    masks[:] = 0
    _fill_ignored(decoded, -1.0, masks)
    assert masks.ravel().tolist() == [IGNORED, 0, 0, IGNORED]


def test_each_class_gets_otsu_of_its_own_members_unless_a_level_is_given() -> None:
    rng = np.random.default_rng(0)
    decoded = rng.normal(0, 0.1, size=(20, 6, 6, 6)).astype(np.float32)
    values = np.repeat([1, 2], 10).astype(np.int32)
    decoded[:10, 2:4] -= 1
    decoded[10:, 2:4] -= 6
    levels = _levels(decoded, values, 3, None)
    assert -1 < levels[1] < -0.2
    assert -6 < levels[2] < -1.5
    assert levels[[0, 3]].tolist() == [0, 0]  # class 3 has no members, so there is nothing to cut
    assert _weakest_level(levels, values) == max(levels[1:3]) < 0, "and its 0 must not say what is ignored"
    assert _levels(decoded, values, 2, -0.5).tolist() == [0, -0.5, -0.5]


def test_otsu_never_gives_a_level_above_the_median() -> None:
    bright = np.zeros((600, 4, 4, 4), np.float32)
    bright[:, 1:3] = 3
    assert class_level(bright, None) == -1e-3
    assert class_level(bright, -2.0) == -2


def test_a_class_without_members_is_named() -> None:
    selection = Selection("", (("ribosome", (0,)), ("barrel", (1,)), ("ball", (2,))), ((0, 0, 0),) * 3)
    assert _without_members(selection, np.array([3, 1, 3], np.int32)) == ["barrel"]
    assert _without_members(selection, np.array([3, 1, 2], np.int32)) == []
    card: dict[str, Any] = {
        "weights_sha256": "w", "training": {"patches": 3}, "metrics": {"mask_level_sd": [-1, 0, -1]},
        "classes": {"names": ["ribosome", "barrel", "ball"], "without_members": ["barrel"]},
    }  # fmt: skip
    assert "'barrel'" in _facts(card)["warning"]
    del card["classes"]["without_members"]
    assert "warning" not in _facts(card)


def test_ignored_voxels_change_neither_loss_nor_accuracy() -> None:
    logits = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(1))
    loss = SegmentationLoss()
    half = targets.clone()
    half[1] = IGNORED
    whole, parts = loss(logits[:1], logits, targets[:1])
    found, found_parts = loss(logits, logits, half)
    assert torch.allclose(whole, found)
    assert torch.allclose(parts["accuracy"], found_parts["accuracy"])
    silent, _ = loss(logits, logits, torch.full_like(targets, IGNORED))
    assert silent.item() == 0.0
