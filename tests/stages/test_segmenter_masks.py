"""The masks that the segmenter learns from: shifted with their patches, silent about what nobody chose."""

from __future__ import annotations

import numpy as np
import torch

from cryoscale.learn.losses import IGNORED, SegmentationLoss
from cryoscale.ops.patches import cut
from cryoscale.stages.train_segmenter import _fill_ignored, _fill_masks, _levels, _shift_masks


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
    assert levels[[0, 3]].tolist() == [0, 0]  # nobody's level is asked for
    assert _levels(decoded, values, 2, -0.5).tolist() == [0, -0.5, -0.5]


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
