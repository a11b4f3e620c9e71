"""Truth and subtomograms on storage."""

from __future__ import annotations

import numpy as np
import pytest

from cryoscale.data.folder import Folder
from cryoscale.data.subtomograms import ROWS_PER_SHARD, Subtomograms
from cryoscale.data.truth import Truth, read_truth, write_truth
from cryoscale.errors import LayoutError, StateError


def some_truth(count: int = 5) -> Truth:
    rng = np.random.default_rng(count)
    return Truth(
        positions_N3=rng.uniform(0, 900, (count, 3)),
        class_N=rng.integers(1, 3, count).astype(np.uint8),
        class_names=("background", "ring", "rod", "membrane"),
        quaternion_N4=rng.normal(size=(count, 4)),
        contrast_N=rng.uniform(0.5, 1, count).astype(np.float32),
        membrane_distance_N=np.where(np.arange(count) % 2, np.inf, 30).astype(np.float32),
        placement_N=np.array(["free", "at", "near", "far", "free"] * count)[:count],
        notes={"particle_classes": 2, "seed": 3},
    )


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("place", ["local", "memory://truth"])
def test_round_trip(count: int, place: str, tmp_path: object) -> None:
    folder = Folder.of(str(tmp_path) if place == "local" else f"{place}{count}")
    truth = some_truth(count)
    write_truth(folder, "a", truth)
    again = read_truth(folder, "a")
    for name in (
        "positions_N3",
        "class_N",
        "quaternion_N4",
        "contrast_N",
        "membrane_distance_N",
        "placement_N",
    ):
        assert np.array_equal(getattr(again, name), getattr(truth, name)), name
    assert again.class_names == truth.class_names
    assert again.notes == truth.notes
    assert again.particle_classes == ("ring", "rod")
    assert again.of_class("rod").sum() == (truth.class_N == 2).sum()


def test_nothing_known_says_so(tmp_path: object) -> None:
    with pytest.raises(StateError, match="nothing is known of 'a'"):
        read_truth(Folder.of(str(tmp_path)), "a")


@pytest.mark.parametrize("count", [3, 20, ROWS_PER_SHARD + 5])
def test_subtomograms_by_shards(count: int, tmp_path: object) -> None:
    boxes = Subtomograms(Folder.of(f"{tmp_path}/s.zarr"))
    boxes.create(count, 4)
    rng = np.random.default_rng(0)
    arrays = {
        "data": rng.normal(size=(count, 4, 4, 4)).astype(np.float32),
        "density": rng.normal(size=(count, 4, 4, 4)).astype(np.float32),
        "mask": rng.integers(0, 2, (count, 4, 4, 4)).astype(np.uint8),
    }
    for first in range(0, count, ROWS_PER_SHARD):
        boxes.write(first, {name: values[first : first + ROWS_PER_SHARD] for name, values in arrays.items()})
    with pytest.raises(StateError, match="does not exist"):
        _ = boxes.table
    boxes.publish({"row": np.arange(count)})
    for name, values in arrays.items():
        assert np.array_equal(boxes.read(name, slice(None)), values)
        assert np.array_equal(boxes.read(name, np.array([0, count - 1])), values[[0, count - 1]])
    assert len(boxes.table["row"]) == count
    with pytest.raises(LayoutError, match="does not begin a shard"):
        boxes.write(1, {})
    with pytest.raises(StateError, match="no array 'other'"):
        boxes.read("other", slice(None))
