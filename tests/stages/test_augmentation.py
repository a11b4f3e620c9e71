"""What `augment = true` asks for: rotations and flips, of patches and masks alike."""

from __future__ import annotations

import numpy as np
import torch

from cryoscale.stages.training import turns_and_flips


def test_all_rotations_and_flips_of_a_cube_occur_and_masks_follow() -> None:
    patch = torch.arange(64.0).reshape(1, 1, 4, 4, 4)
    mask = patch[:, 0].to(torch.uint8)
    seen = set()
    for seed in range(600):
        turned, target = turns_and_flips(patch, mask, np.random.default_rng(seed))
        assert target is not None
        assert torch.equal(turned[:, 0].to(torch.uint8), target)
        seen.add(turned.numpy().tobytes())
    assert len(seen) == 48  # 24 rotations, and as many with a flip
