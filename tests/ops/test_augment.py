from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError
from cryoscale.ops.augment import symmetry_count, transform


def test_counts():
    assert symmetry_count(8) == 24
    assert symmetry_count(8, flips=True) == 48
    assert symmetry_count((4, 8, 8)) == 8
    assert symmetry_count((4, 8, 8), flips=True) == 16
    assert symmetry_count((4, 6, 8)) == 4
    assert symmetry_count((4, 6, 8), flips=True) == 8


@pytest.mark.parametrize("size", [(3, 3, 3), (4, 4, 4), (2, 3, 3), (2, 3, 4)])
def test_all_are_different_and_keep_shape_and_voxels(size):
    patch = np.arange(2 * np.prod(size)).reshape(2, *size)
    turned = [transform(patch, i) for i in range(symmetry_count(size, flips=True))]
    np.testing.assert_array_equal(turned[0], patch)
    assert len({t.tobytes() for t in turned}) == len(turned)
    for t in turned:
        assert t.shape == patch.shape
        assert t.dtype == patch.dtype
        assert t.flags.c_contiguous
        np.testing.assert_array_equal(np.sort(t[1].ravel()), patch[1].ravel())


def test_the_first_24_are_the_rotations_of_the_cube():
    """Points of an asymmetric patch must move as the octahedral group of scipy moves them."""
    patch = np.zeros((5, 5, 5))
    points = np.array([(2, 1, 0), (1, 0, 0), (0, 0, 2)])
    for value, p in enumerate(points, start=1):
        patch[tuple(p + 2)] = value
    expected = set()
    for matrix in Rotation.create_group("O").as_matrix():
        moved = np.zeros_like(patch)
        for value, p in enumerate(points, start=1):
            moved[tuple(np.rint(matrix @ p).astype(int) + 2)] = value
        expected.add(moved.tobytes())
    assert {transform(patch, i).tobytes() for i in range(24)} == expected
    assert not {transform(patch, i).tobytes() for i in range(24, 48)} & expected


def test_channels_ride_along():
    patches = np.random.default_rng(0).random((3, 2, 4, 4, 4), dtype=np.float32)
    turned = transform(patches, 7)
    assert turned.shape == patches.shape
    np.testing.assert_array_equal(turned[1, 1], transform(patches[1, 1], 7))


@pytest.mark.parametrize("index", [-1, 48])
def test_an_index_beyond_the_last_is_refused(index):
    with pytest.raises(ConfigurationError, match="0 to 47"):
        transform(np.zeros((1, 4, 4, 4)), index)
