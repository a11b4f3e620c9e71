"""Label volumes as other programs write them: MRC of every mode, OME-Zarr 0.4 and 0.5, any order of axes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import zarr

from cryoscale.errors import ConfigurationError, DataError, FormatError
from cryoscale.formats.labels import labels_stamp, open_labels
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box

SHAPE = (5, 6, 7)
BOX = Box.of((1, 2, 3), (4, 6, 7))


@pytest.fixture
def values() -> np.ndarray:
    drawn = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    drawn[0, 0, 0] = 255
    return drawn


def zarr_image(
    place: Path, data: np.ndarray, axes: str, *, version: str, scale: float = 10.0, unit: str = "angstrom",
    label: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write an OME-Zarr image as 0.4 (Zarr v2) or 0.5 (Zarr v3) with zarr itself."""
    group = zarr.open_group(place, mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=data, chunks=tuple(min(4, n) for n in data.shape))
    entries: list[dict[str, Any]] = [
        {"name": axis, "type": "space", "unit": unit} if axis in "zyx" else {"name": axis} for axis in axes
    ]
    scales = [scale if axis in "zyx" else 1.0 for axis in axes]
    ome: dict[str, Any] = {
        "version": version,
        "multiscales": [
            {
                "axes": entries,
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scales}]}
                ],
            }
        ],
    }
    if label is not None:
        ome["image-label"] = label
    group.attrs.update(ome if version == "0.4" else {"ome": ome})
    return place


# -- MRC -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float32, np.float16])
def test_mrc_of_every_mode_is_read(tmp_path: Path, dtype: Any) -> None:
    drawn = np.random.default_rng(2).integers(0, 100, SHAPE)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(drawn.astype(dtype))
        mrc.voxel_size = 13.5
    with open_labels(tmp_path / "a.mrc") as labels:
        assert labels.shape == SHAPE
        assert labels.voxel_sizes == pytest.approx((13.5,) * 3)
        read = labels.read(BOX)
        assert read.dtype == np.uint8
        assert np.array_equal(read, drawn[BOX.slices])
        assert labels.names == {}


def test_an_unset_voxel_size_is_unknown(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(np.zeros(SHAPE, np.int8))
    assert open_labels(tmp_path / "a.mrc").voxel_sizes is None


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (0.5, np.float32, "0.5"),
        (np.nan, np.float32, "nan"),
        (-1, np.int8, "the label -1"),
        (256, np.int16, "the label 256"),
        (1e6, np.float32, "the label 1e\\+06"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path: Path, value: float, dtype: Any, said: str) -> None:
    drawn = np.zeros(SHAPE, dtype)
    drawn[2, 3, 4] = value
    write_mrc(tmp_path / "a.mrc", drawn, 10.0)
    with open_labels(tmp_path / "a.mrc") as labels:
        assert not labels.read(Box.of((0, 0, 0), (1, 1, 1))).any()
        with pytest.raises(DataError, match=said):
            labels.read(BOX)


# -- OME-Zarr ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "xyz", "tczyx", "cyxz"])
def test_axes_in_any_order_come_out_as_zyx(
    tmp_path: Path, values: np.ndarray, version: str, axes: str
) -> None:
    where = ["zyx".index(axis) for axis in axes if axis in "zyx"]
    data = values.transpose(where).reshape([1 if a not in "zyx" else SHAPE["zyx".index(a)] for a in axes])
    with open_labels(zarr_image(tmp_path / "a.zarr", data, axes, version=version)) as labels:
        assert labels.shape == SHAPE
        assert labels.voxel_sizes == pytest.approx((10.0,) * 3)
        assert np.array_equal(labels.read(BOX), values[BOX.slices])
        assert labels.read(Box.of((0, 0, 0), (1, 1, 1))).item() == 255


@pytest.mark.parametrize(
    ("unit", "size"), [("nanometer", 100.0), ("angstrom", 10.0), ("parsec", None), ("micrometer", 1e5)]
)
def test_units_become_angstrom(tmp_path: Path, values: np.ndarray, unit: str, size: float | None) -> None:
    labels = open_labels(zarr_image(tmp_path / "a.zarr", values, "zyx", version="0.5", unit=unit))
    assert labels.voxel_sizes == (None if size is None else pytest.approx((size,) * 3))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_names_and_colours_are_read(tmp_path: Path, values: np.ndarray, version: str) -> None:
    label = {
        "properties": [{"label-value": 1, "name": "ribosome"}, {"label-value": 3, "name": "actin"}],
        "colors": [{"label-value": 1, "rgba": [255, 0, 7, 128]}, {"label-value": 2}],
    }
    labels = open_labels(zarr_image(tmp_path / "a.zarr", values, "zyx", version=version, label=label))
    assert labels.names == {1: "ribosome", 3: "actin"}
    assert labels.colors == {1: (255, 0, 7)}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_one_label_image_of_an_image_is_found(tmp_path: Path, values: np.ndarray, version: str) -> None:
    place = zarr_image(tmp_path / "i.zarr", np.zeros(SHAPE, np.float32), "zyx", version=version)
    zarr_image(place / "labels" / "mine", values, "zyx", version=version, label={})
    parent = zarr.open_group(place / "labels", mode="a", zarr_format=2 if version == "0.4" else 3)
    parent.attrs.update({"labels": ["mine"]} if version == "0.4" else {"ome": {"labels": ["mine"]}})
    for path in (place, place / "labels" / "mine"):
        assert np.array_equal(open_labels(path).read(BOX), values[BOX.slices])
    names = ["mine", "other"]
    parent.attrs.update({"labels": names} if version == "0.4" else {"ome": {"labels": names}})
    with pytest.raises(ConfigurationError, match="mine, other"):
        open_labels(place)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_array_is_zyx(tmp_path: Path, values: np.ndarray, zarr_format: Any) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=values, zarr_format=zarr_format)
    labels = open_labels(tmp_path / "a.zarr")
    assert np.array_equal(labels.read(BOX), values[BOX.slices])
    assert labels.voxel_sizes is None


def test_a_series_and_text_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    series = zarr_image(tmp_path / "a.zarr", np.stack([values, values]), "tzyx", version="0.5")
    with pytest.raises(FormatError, match="not a series"):
        open_labels(series)
    complex_values = zarr_image(tmp_path / "b.zarr", values.astype(np.complex64), "zyx", version="0.5")
    with pytest.raises(FormatError, match="no labels"):
        open_labels(complex_values)


def test_a_path_may_not_leave_its_store(tmp_path: Path, values: np.ndarray) -> None:
    zarr_image(tmp_path / "secret.zarr", values, "zyx", version="0.5")
    place = zarr_image(tmp_path / "a.zarr", values, "zyx", version="0.5")
    group = zarr.open_group(place, mode="a")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"][0]["path"] = "../secret.zarr/0"
    group.attrs["ome"] = ome
    with pytest.raises(FormatError, match="leaves the store"):
        open_labels(place)


def test_damaged_data_is_named(tmp_path: Path, values: np.ndarray) -> None:
    place = zarr_image(tmp_path / "a.zarr", values, "zyx", version="0.5")
    for chunk in (place / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"nonsense")
    with pytest.raises(FormatError, match=r"a\.zarr"):
        open_labels(place).read(BOX)


def test_what_is_not_there_or_of_no_kind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.tif").write_bytes(b"II")
    for name, said in (("a.mrc", "no label file"), ("empty", "no Zarr group"), ("a.tif", "MRC")):
        with pytest.raises(ConfigurationError, match=said):
            open_labels(tmp_path / name)


# -- stamps --------------------------------------------------------------------------------------------------


def test_a_stamp_changes_with_any_file_of_a_folder(tmp_path: Path, values: np.ndarray) -> None:
    place = zarr_image(tmp_path / "a.zarr", values, "zyx", version="0.5")
    first = labels_stamp(place)
    assert first == labels_stamp(place)
    zarr.open_group(place, mode="a")["0"][0, 0, 0] = 7
    assert labels_stamp(place) != first
    shutil.rmtree(place)
    assert labels_stamp(place) is None
