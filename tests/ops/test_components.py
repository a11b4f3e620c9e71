from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box, Grid
from cryoscale.ops.components import BlockComponents, label_block, local_ids, merge


def reference(labels):
    """Rows (value, voxels, centroid, lower, upper, first) of scipy's components, value by value."""
    rows = []
    for value in np.unique(labels[labels != 0]):
        part, count = ndimage.label(labels == value)
        for number in range(1, count + 1):
            places = np.argwhere(part == number)
            rows.append(
                (
                    value,
                    len(places),
                    places.mean(axis=0),
                    places.min(axis=0),
                    places.max(axis=0) + 1,
                    places[0],
                )
            )
    return rows


def random_labels(shape, values, density, seed):
    random = np.random.default_rng(seed)
    labels = random.choice(values, size=shape)
    return np.where(random.random(shape) < density, labels, 0)


def divided(labels, edge):
    blocks = []
    for box in Grid.of(labels.shape, edge).boxes():
        part = label_block(labels[box.slices], box.start)
        blocks.append((box, BlockComponents.from_arrays(part.to_arrays())))
    return blocks


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    edge=st.tuples(*[st.integers(1, 12)] * 3),
    values=st.sampled_from([(1,), (1, 2), (3, 7, 200), (70_000, 5, 2_000_000_000)]),
    density=st.sampled_from([0.1, 0.35, 0.6, 1.0]),
    seed=st.integers(0, 999),
)
def test_blocks_give_what_scipy_gives_on_the_whole(shape, edge, values, density, seed):
    labels = random_labels(shape, values, density, seed)
    blocks = divided(labels, [max(2, e) for e in edge])
    found = merge(blocks)
    rows = reference(labels)
    assert len(found) == len(rows)
    for i, (value, voxels, centroid, lower, upper, first) in enumerate(rows):
        assert found.values_N[i] == value
        assert found.voxels_N[i] == voxels
        np.testing.assert_allclose(found.centroids_N3[i], centroid, rtol=1e-12)
        assert found.lower_N3[i].tolist() == lower.tolist()
        assert found.upper_N3[i].tolist() == upper.tolist()
        assert found.first_N3[i].tolist() == first.tolist()
    # Relabelled blocks together are the instance volume; and the order of blocks does not matter.
    instances = np.zeros(shape, dtype=np.int64)
    for (box, _), ids in zip(blocks, found.block_ids, strict=True):
        instances[box.slices] = np.concatenate([[0], ids])[local_ids(labels[box.slices])[0]]
    whole = merge([(Box.whole(shape), label_block(labels))])
    np.testing.assert_array_equal(instances, local_ids(labels)[0])
    backwards = merge(blocks[::-1])
    for name in ("values_N", "voxels_N", "centroids_N3", "lower_N3", "upper_N3"):
        np.testing.assert_array_equal(getattr(backwards, name), getattr(found, name))
        np.testing.assert_array_equal(getattr(whole, name), getattr(found, name))


def test_blocks_of_unequal_extent_join():
    labels = np.zeros((4, 6, 6), dtype=np.uint8)
    labels[1:3, 1:5, 2] = 2
    boxes = [
        Box.of((0, 0, 0), (2, 6, 6)),
        Box.of((2, 0, 0), (4, 2, 6)),
        Box.of((2, 2, 0), (4, 6, 3)),
        Box.of((2, 2, 3), (4, 6, 6)),
    ]
    found = merge([(box, label_block(labels[box.slices], box.start)) for box in boxes])
    assert found.voxels_N.tolist() == [8]
    assert found.centroids_N3.tolist() == [[1.5, 2.5, 2.0]]


def test_touching_values_and_edges_stay_apart():
    labels = np.zeros((1, 2, 4), dtype=np.uint8)
    labels[0, 0, :2], labels[0, 0, 2:], labels[0, 1, 1] = 1, 2, 2
    found = merge(divided(labels, (1, 1, 2)))
    assert found.values_N.tolist() == [1, 2, 2]
    assert found.voxels_N.tolist() == [2, 2, 1]


def test_nothing_gives_an_empty_table():
    found = merge(divided(np.zeros((4, 4, 4), dtype=np.uint8), 2))
    assert len(found) == 0
    assert found.centroids_N3.shape == (0, 3)
    assert len(merge([])) == 0


def test_mistakes_are_refused():
    with pytest.raises(LayoutError, match="positive"):
        label_block(np.array([[[-1]]]))
    with pytest.raises(LayoutError, match="another shape"):
        merge([(Box.whole((2, 2, 3)), label_block(np.ones((2, 2, 2), dtype=np.uint8)))])
