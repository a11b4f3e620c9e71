"""The suggested kinds: what is deep enough to be an object, by picks and not by clusters."""

from __future__ import annotations

import numpy as np

from cryoscale.ops.shape import ShapeMeasures
from cryoscale.stages.review import classify_shapes


def round_one(depth: float) -> ShapeMeasures:
    return ShapeMeasures(depth, planarity=0.1, linearity=0.1, sphericity=0.8, offset=0.1, fill=0.2)


def test_a_few_dense_beads_do_not_make_background_of_the_rest() -> None:
    measures = [round_one(depth) for depth in (2.0, 1.9, 0.4, 9.0, 8.0, 7.5)]
    counts = np.array([500, 400, 900, 6, 8, 6])
    assert classify_shapes(measures, counts) == [*["globular"] * 2, "background", *["globular"] * 3]


def test_many_dense_ones_set_the_scale() -> None:
    measures = [round_one(depth) for depth in (2.0, 9.0)]
    assert classify_shapes(measures, np.array([500, 500])) == ["background", "globular"]
    assert classify_shapes(measures, np.array([500, 0])) == ["globular", "globular"]


def test_flat_and_distant_objects() -> None:
    flat = ShapeMeasures(2.0, planarity=0.6, linearity=0.2, sphericity=0.2, offset=0.1, fill=0.2)
    off = ShapeMeasures(2.0, planarity=0.1, linearity=0.2, sphericity=0.7, offset=0.6, fill=0.2)
    assert classify_shapes([flat, off], np.array([5, 5])) == ["surface", "background"]
