"""Pyramids: aligned writes, torn shards, metadata that other programs read."""

from __future__ import annotations

import itertools
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Level, Pyramid, pyramid_levels
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.errors import FormatError, LayoutError, StateError
from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.testing.strategies import shapes


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder.of(tmp_path / "t.ome.zarr")
        return
    made = Folder.of(f"memory://pyramid-{uuid.uuid4().hex}")
    yield made
    made.delete()


def create(folder: Folder, shape: tuple[int, int, int] = (40, 33, 50), *, chunk: int = 8, shard: int = 16):
    pyramid = Pyramid(folder, writable=True)
    pyramid.create(pyramid_levels(shape, 10.0, count=2), np.int16, chunk=chunk, shard=shard, image=True)
    return pyramid


def test_blocks_come_back(folder: Folder) -> None:
    pyramid = create(folder)
    data = np.random.default_rng(0).integers(-99, 99, (40, 33, 50)).astype(np.int16)
    for box in Grid.of(data.shape, (16, 32, 48)).boxes():
        pyramid.write(0, box, data[box.slices])
    assert np.array_equal(Pyramid(folder).read(0, Box.whole(data.shape)), data)
    odd = Box.of((3, 5, 7), (29, 33, 50))
    assert np.array_equal(Pyramid(folder).read(0, odd), data[odd.slices])


@pytest.mark.parametrize(
    "core",
    [
        Box.of((0, 0, 0), (8, 16, 16)),  # half a shard
        Box.of((8, 0, 0), (24, 16, 16)),
        Box.of((0, 0, 0), (16, 16, 51)),  # leaves the volume
        Box.of((0, 0, 0), (0, 16, 16)),
    ],
)
def test_write_that_is_not_whole_shards_is_refused(tmp_path: Path, core: Box) -> None:
    pyramid = create(Folder.of(tmp_path))
    with pytest.raises(LayoutError):
        pyramid.write(0, core, np.zeros(core.shape, np.int16))


@settings(max_examples=25)
@given(shapes(most=40), st.sampled_from([8, 16]), st.sampled_from([1, 2]))
def test_write_unit_is_what_check_aligned_needs(shape: Zyx, chunk: int, factor: int) -> None:
    """Blocks planned by the unit cover the volume and are all accepted, for any shape."""
    folder = Folder.of(f"memory://unit-{uuid.uuid4().hex}")
    pyramid = Pyramid(folder, writable=True)
    pyramid.create([Level(shape, 1.0)], np.uint8, chunk=chunk, shard=chunk * factor, image=False)
    for box in Grid.of(shape, pyramid.write_unit(0)).boxes():
        pyramid.write(0, box, np.ones(box.shape, np.uint8))
    assert pyramid.read(0, Box.whole(shape)).all()
    folder.delete()


@pytest.mark.parametrize("leave", [10, -3])
def test_torn_shard_is_recovered_by_the_next_write(tmp_path: Path, leave: int) -> None:
    folder = Folder.of(tmp_path)
    pyramid = create(folder)
    core = Box.of((0, 0, 0), (16, 16, 16))
    data = np.random.default_rng(0).integers(-99, 99, core.shape).astype(np.int16)
    pyramid.write(0, core, data)
    whole = (tmp_path / "0/c/0/0/0").read_bytes()
    (tmp_path / "0/c/0/0/0").write_bytes(whole[:leave])
    with pytest.raises(FormatError, match="damaged data"):
        Pyramid(folder).read(0, core)
    pyramid.write(0, core, data)
    assert (tmp_path / "0/c/0/0/0").read_bytes() == whole


def test_missing_shard_is_background(tmp_path: Path) -> None:
    pyramid = create(Folder.of(tmp_path))
    assert not pyramid.read(0, Box.of((16, 0, 0), (32, 16, 16))).any()


def test_unpublished_pyramid_is_no_pyramid(folder: Folder) -> None:
    pyramid = create(folder)
    with pytest.raises(StateError, match="unfinished"):
        _ = pyramid.attributes
    pyramid.publish({"version": "0.5"}, {"kind": "test"})
    assert Pyramid(folder).attributes == {"kind": "test"}
    with pytest.raises(StateError, match="no level 7"):
        pyramid.array(7)
    with pytest.raises(StateError, match="does not exist"):
        _ = Pyramid(folder.child("none")).attributes


def test_create_again_takes_the_old_away_but_for_labels(folder: Folder) -> None:
    pyramid = create(folder)
    pyramid.write(0, Box.of((0, 0, 0), (16, 16, 16)), np.ones((16, 16, 16), np.int16))
    pyramid.publish({"version": "0.5"}, {"kind": "test"})
    folder.write_json("labels/zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    folder.write_bytes("labels/classes/0/c/0/0/0", b"x")
    again = create(folder, chunk=4, shard=8)
    assert folder.read_bytes("labels/classes/0/c/0/0/0") == b"x"
    assert not again.read(0, Box.whole((40, 33, 50))).any()
    with pytest.raises(StateError, match="unfinished"):
        _ = Pyramid(folder).attributes


@given(shapes(most=300), st.none() | st.integers(1, 8))
def test_levels_halve_until_small(shape: Zyx, count: int | None) -> None:
    levels = pyramid_levels(shape, 7.84, count=count)
    assert levels[0].shape == shape
    for below, level in itertools.pairwise(levels):
        assert level.shape == tuple((n + 1) // 2 for n in below.shape)
        assert level.voxel_size_angstrom == pytest.approx(2 * below.voxel_size_angstrom)
    if count is None:
        assert max(levels[-1].shape) <= 64
        assert len(levels) == 1 or max(levels[-2].shape) > 64
    else:
        assert len(levels) == count or max(levels[-1].shape) == 1


@given(st.integers(0, 7), st.integers(0, 500))
def test_level_voxel_lies_in_the_middle_of_those_it_averages(number: int, index: int) -> None:
    level = pyramid_levels((512, 512, 512), 4.0, count=8)[number]
    below = np.arange(index * 2**number, (index + 1) * 2**number) * 4.0
    centre = level.to_angstrom(np.array([[index] * 3]))
    assert centre == pytest.approx(np.full((1, 3), below.mean()))
    assert level.to_voxels(centre).tolist() == [[index] * 3]
    for position in below:  # every voxel of level 0 belongs to the voxel that averages it
        assert abs(position - centre[0, 0]) < level.voxel_size_angstrom / 2 + 1e-6


def test_metadata_passes_ome_zarr_models(finished_run: Run) -> None:
    from ome_zarr_models.v05.image import Image
    from ome_zarr_models.v05.image_label import ImageLabel
    from ome_zarr_models.v05.labels import Labels

    place = finished_run.tomogram("alpha").url
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the validator's own dependencies
        image = Image.from_zarr(zarr.open_group(place, mode="r"))
        labels = Labels.from_zarr(zarr.open_group(f"{place}/labels", mode="r"))
        label = ImageLabel.from_zarr(zarr.open_group(f"{place}/labels/classes", mode="r"))
    (scales,) = image.attributes.ome.multiscales
    assert [axis.name for axis in scales.axes] == ["z", "y", "x"]
    assert {axis.unit for axis in scales.axes} == {"angstrom"}
    assert labels.attributes.ome.labels == ["classes"]
    colours = label.attributes.ome.image_label.colors
    assert [c.label_value for c in colours] == [1, 2]


def test_ome_zarr_reader_opens_image_and_labels(finished_run: Run) -> None:
    reader = pytest.importorskip("ome_zarr.reader")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reader's own dependencies
        from ome_zarr.io import parse_url

        nodes = list(reader.Reader(parse_url(finished_run.tomogram("alpha").url))())
        image = nodes[0]
        shape = (40, 64, 64)
        assert tuple(image.data[0].shape) == shape
        ours = Tomogram(finished_run.tomogram("alpha")).read(0, Box.whole(shape))
        assert np.array_equal(np.asarray(image.data[0]), ours)
        names = {Path(str(node.zarr)).name for node in nodes}
    assert "classes" in " ".join(names) or any(tuple(n.data[0].shape) == shape for n in nodes[1:])


def test_label_facts_name_the_classes(finished_run: Run) -> None:
    facts = LabelVolume(finished_run.tomogram("alpha"), "classes").facts
    assert facts.class_names == ("particle", "other")
    assert len(set(facts.colors)) == 2
