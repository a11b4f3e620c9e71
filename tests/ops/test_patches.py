from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box
from cryoscale.ops.patches import cut, embed_mean, fits, patch_box


def test_patch_covers_centre_minus_half_to_centre_minus_half_plus_size():
    assert patch_box((10, 10, 10), 4) == Box.of((8, 8, 8), (12, 12, 12))
    assert patch_box((10, 11, 12), (3, 4, 5)) == Box.of((9, 9, 10), (12, 13, 15))


@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    centre=st.tuples(*[st.integers(-3, 12)] * 3),
)
def test_fits_means_the_box_lies_inside(size, shape, centre):
    assert fits([centre], size, shape).tolist() == [Box.whole(shape).contains(patch_box(centre, size))]


def test_cut_out_of_a_part_equals_cut_out_of_the_whole():
    volume = np.arange(10 * 11 * 12, dtype=np.int16).reshape(10, 11, 12)
    centres = np.array([(4, 5, 6), (5, 5, 5)])
    patches = cut(volume, centres, (2, 3, 4))
    assert patches.shape == (2, 2, 3, 4)
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches[0], volume[3:5, 4:7, 4:8])
    part = Box.of((2, 3, 2), (8, 9, 10))
    np.testing.assert_array_equal(cut(volume[part.slices], centres, (2, 3, 4), part.start), patches)
    out = np.empty_like(patches)
    assert cut(volume, centres, (2, 3, 4), out=out) is out
    np.testing.assert_array_equal(out, patches)
    assert cut(volume, np.empty((0, 3)), 4).shape == (0, 4, 4, 4)


@pytest.mark.parametrize("centre", [(1, 5, 5), (5, 9, 5), (5, 5, -1)])
def test_a_patch_that_leaves_the_array_is_refused(centre):
    with pytest.raises(LayoutError, match="1 of 2"):
        cut(np.zeros((10, 10, 10)), [(5, 5, 5), centre], 4)


def test_embedding_takes_the_mean_and_clips():
    patches = np.stack([np.full((2, 2, 2), 1.0), np.full((2, 2, 2), 4.0), np.full((2, 2, 2), 9.0)])
    mean, count = embed_mean(patches, [(1, 1, 1), (1, 1, 2), (4, 4, 4)], (4, 4, 4))
    assert mean[0, 0, 0] == 1.0
    assert mean[0, 0, 1] == 2.5
    assert mean[0, 0, 2] == 4.0
    assert mean[3, 3, 3] == 9.0
    assert mean[2, 2, 2] == 0.0
    assert count.sum() == 8 + 8 + 1
    with pytest.raises(LayoutError):
        embed_mean(patches, [(1, 1, 1)], (4, 4, 4))


def test_embedding_what_was_cut_gives_the_volume_back():
    random = np.random.default_rng(0)
    volume = random.standard_normal((12, 13, 14)).astype(np.float32)
    centres = random.integers(0, 14, (60, 3))
    centres = centres[fits(centres, 4, volume.shape)]
    assert len(centres) > 5
    mean, count = embed_mean(cut(volume, centres, 4), centres, (8, 9, 9), origin=(2, 1, 3))
    covered = count > 0
    np.testing.assert_allclose(mean[covered], volume[2:10, 1:10, 3:12][covered], rtol=1e-5, atol=1e-6)
