"""Turns of whole batches against turns of single patches."""

import numpy as np
import pytest
import torch

from cryoscale.learn.augmentation import random_turns, turned, turns_of


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("box", [(4, 4, 4), (4, 6, 4), (2, 4, 6)])
def test_a_batch_is_turned_patch_by_patch(box, mirror):
    inputs = torch.randn(60, 1, *box, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).to(torch.uint8)
    turns = turns_of(box, mirror=mirror)
    drawn = np.random.default_rng(5).integers(len(turns), size=60)
    assert len(set(drawn)) > len(turns) // 2
    found, masks = random_turns(inputs, targets, np.random.default_rng(5), mirror=mirror)
    for n, k in enumerate(drawn):
        assert torch.equal(found[n], turned(inputs[n], turns[k]))
        assert torch.equal(masks[n], turned(targets[n], turns[k]))
    alone, none = random_turns(inputs, None, np.random.default_rng(5), mirror=mirror)
    assert none is None
    assert torch.equal(alone, found)
