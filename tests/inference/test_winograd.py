"""Winograd's tiles give what the plain convolution gives."""

from __future__ import annotations

import numpy as np
import pytest

from cryoscale.inference.winograd import tile_of, transform_inputs, transform_outputs, transform_weights


@pytest.mark.parametrize("tile", [2, 4])
def test_a_tile_is_a_convolution_along_z(tile: int) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=tile + 2).astype(np.float32)
    weights = rng.normal(size=(5, 3, 3, 2, 2)).astype(np.float32)
    mixed = transform_weights(weights, tile)
    assert [part.shape for part in mixed] == [(5, 3, 1, 2, 2)] * (tile + 2)
    products = [part[:, :, 0] * d for part, d in zip(mixed, transform_inputs(list(data)), strict=True)]
    expected = [np.tensordot(data[i : i + 3], weights, (0, 2)) for i in range(tile)]
    np.testing.assert_allclose(transform_outputs(products), expected, atol=1e-5)


def test_a_tile_divides_the_axis() -> None:
    assert [tile_of(length) for length in (2, 4, 6, 8, 16, 18)] == [2, 4, 2, 4, 4, 2]
