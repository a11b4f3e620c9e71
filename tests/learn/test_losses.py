import numpy as np
import pytest
import torch

from cryoscale.errors import ConfigurationError
from cryoscale.learn.augmentation import random_turns, turned, turns_of
from cryoscale.learn.losses import (
    AutoencoderLoss,
    SegmentationLoss,
    class_weights_of,
    dead_share,
    dead_units,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_autoencoder_loss_is_the_papers_at_its_batch_size():
    patches, reconstruction, codes = drawn(8, 1, 4, 4, 4), drawn(8, 1, 4, 4, 4, seed=1), drawn(8, 32, seed=2)
    total, parts = AutoencoderLoss()((reconstruction, codes), patches, None)
    papers = ((reconstruction - patches) ** 2).mean() + 1e-4 * codes.abs().sum()
    torch.testing.assert_close(total, papers)
    torch.testing.assert_close(total, parts["reconstruction"] + parts["sparsity"])


def test_the_autoencoder_loss_does_not_grow_with_the_batch():
    patches, reconstruction, codes = drawn(3, 1, 4, 4, 4), drawn(3, 1, 4, 4, 4, seed=1), drawn(3, 5, seed=2)
    once, _ = AutoencoderLoss()((reconstruction, codes), patches, None)
    thrice, _ = AutoencoderLoss()(
        (reconstruction.repeat(3, 1, 1, 1, 1), codes.repeat(3, 1)), patches.repeat(3, 1, 1, 1, 1), None
    )
    torch.testing.assert_close(once, thrice)


def test_targets_replace_the_patches():
    patches, codes = drawn(2, 1, 4, 4, 4), torch.zeros(2, 3)
    assert AutoencoderLoss()((patches, codes), torch.zeros_like(patches), patches)[0] == 0


def test_segmentation_loss_is_minus_the_log_of_the_right_probability():
    logits, targets = drawn(2, 3, 4, 4, 4), torch.randint(3, (2, 4, 4, 4), generator=torch.Generator())
    probabilities = logits.softmax(dim=1).gather(1, targets[:, None])
    total, parts = SegmentationLoss()(logits, logits, targets)
    torch.testing.assert_close(total, -probabilities.log().mean())
    assert parts["accuracy"] == (logits.argmax(1) == targets).float().mean()


def test_class_weights_scale_each_voxel():
    logits, targets = drawn(1, 2, 2, 2, 2), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]).reshape(1, 2, 2, 2)
    plain = -logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    total, _ = SegmentationLoss((0.5, 4.0))(logits, logits, targets)
    torch.testing.assert_close(total, (plain * torch.where(targets == 1, 4.0, 0.5)).mean())


def test_wrong_weights_and_missing_targets_are_named():
    logits = drawn(1, 2, 2, 2, 2)
    with pytest.raises(ConfigurationError, match="3 class weights for 2 classes"):
        SegmentationLoss((1.0, 1.0, 1.0))(logits, logits, torch.zeros(1, 2, 2, 2))
    with pytest.raises(ConfigurationError, match="needs targets"):
        SegmentationLoss()(logits, logits, None)


def test_class_weights_of_a_count():
    targets = np.repeat([0, 1, 2], [90, 9, 1])
    weights = np.array(class_weights_of(targets, 4))
    assert weights[3] == 0
    assert (weights[targets]).mean() == pytest.approx(1)
    assert weights[2] / weights[1] == pytest.approx(3)
    assert class_weights_of(targets, 3, power=0) == pytest.approx((1, 1, 1))
    totals = np.array(class_weights_of(targets, 3, power=1)) * [90, 9, 1]
    assert totals == pytest.approx(totals[0])
    with pytest.raises(ConfigurationError, match="class 2"):
        class_weights_of(targets, 2)


def test_dead_units_are_those_that_never_vary():
    codes_NF = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    codes_NF[:, 1] = 0
    codes_NF[:, 3] = 7 + codes_NF[:, 3] * 1e-5
    assert dead_units(codes_NF).tolist() == [False, True, False, True, False]
    assert dead_share(codes_NF) == pytest.approx(0.4)
    assert dead_share(np.zeros((4, 8))) == 1.0


@pytest.mark.parametrize(
    ("box", "plain", "mirrored"), [((4, 4, 4), 24, 48), ((4, 4, 8), 8, 16), ((4, 8, 12), 4, 8)]
)
def test_turns_keep_the_box_and_are_all_different(box, plain, mirrored):
    volume = drawn(*box)
    for mirror, count in ((False, plain), (True, mirrored)):
        results = [turned(volume, turn) for turn in turns_of(box, mirror=mirror)]
        assert {tuple(result.shape) for result in results} == {box}
        assert len({tuple(result.flatten().tolist()) for result in results}) == count == len(results)
    assert torch.equal(turned(volume, turns_of(box)[0]), volume)


def test_turns_without_mirroring_are_rotations():
    corner = torch.zeros(3, 3, 3)
    for place, value in (((1, 1, 1), 0.0), ((2, 1, 1), 1.0), ((1, 2, 1), 2.0), ((1, 1, 2), 3.0)):
        corner[place] = value  # three axes leave the centre
    for turn in turns_of((3, 3, 3)):
        moved = turned(corner, turn)
        axes = np.array([(torch.nonzero(moved == value)[0] - 1).tolist() for value in (1.0, 2.0, 3.0)])
        assert np.linalg.det(axes) == pytest.approx(1)


def test_targets_turn_with_their_patches_and_each_patch_by_itself():
    patches = drawn(1, 1, 4, 4, 4).repeat(40, 1, 1, 1, 1)
    turned_patches, turned_targets = random_turns(patches, patches[:, 0] * 2, np.random.default_rng(0))
    torch.testing.assert_close(turned_patches[:, 0] * 2, turned_targets)
    assert len({tuple(item.flatten().tolist()) for item in turned_patches}) > 10
    alone, none = random_turns(patches, None, np.random.default_rng(0))
    assert none is None
    assert torch.equal(alone, turned_patches)
