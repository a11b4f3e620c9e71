from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoscale.geometry import Box
from cryoscale.ops.dog import Dog, difference_of_gaussians, dog_candidates
from cryoscale.ops.dog_torch import DeviceDog


@pytest.mark.parametrize("dog", [Dog(1.2, 1.3), Dog(0.6), Dog.of_paper(), Dog(7.2, 1.2)], ids=str)
@pytest.mark.parametrize("shape", [(90, 110, 130), (30, 70, 90)])
def test_a_device_finds_what_the_processor_finds(dog: Dog, shape: tuple[int, int, int]) -> None:
    volume = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    whole = Box.whole(shape)
    positions, scores = dog_candidates(volume, whole, whole, shape, dog)
    sd = difference_of_gaussians(-volume, dog).std()
    found, values = DeviceDog(shape, dog, "cpu", tile=64)(volume)
    assert {tuple(p) for p in found.tolist()} == {tuple(p) for p in positions.tolist()}
    np.testing.assert_array_equal(found, positions)
    np.testing.assert_allclose(values, scores, atol=1e-5 * sd)
    assert len(found) > 0


def test_precision_is_left_as_it_was_and_tensors_are_taken() -> None:
    shape = (40, 41, 42)
    volume = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        positions, scores = DeviceDog(shape, Dog(2.0))(volume)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert positions.shape == (len(scores), 3)
    assert positions.dtype == np.int64
    assert scores.dtype == np.float32
