"""Tables of boxes: which columns count, where files lie, what is refused."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from cryoscale.data import tomogram
from cryoscale.errors import ConfigurationError, FormatError
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.formats.subtomograms import (
    VOXEL_SIZE_TOLERANCE,
    in_order,
    read_box_table,
    read_boxes,
    read_masks,
)
from cryoscale.geometry import Zyx

SHAPE = Zyx(8, 8, 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "boxes").mkdir()
    for number in range(3):
        write_mrc(tmp_path / "boxes" / f"{number}.mrc", np.full(SHAPE, number, np.float32), 5.0)
    return tmp_path


def table(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_columns_are_found_by_any_of_their_names(folder: Path) -> None:
    read = read_box_table(table(folder, "particle,label\nboxes/0.mrc,2\nboxes/1.mrc,10\n\n"))
    assert [file.name for file in read.files] == ["0.mrc", "1.mrc"]
    assert read.class_N is not None
    assert read.class_N.tolist() == ["2", "10"]
    assert in_order(read.class_N) == ("2", "10")
    assert (read.shape, read.voxel_size_angstrom) == (SHAPE, 5.0)
    assert read.masks is read.densities is read.split_N is None


def test_a_star_file_says_the_same(folder: Path) -> None:
    frame = pd.DataFrame({"rlnImageName": ["boxes/0.mrc", "boxes/2.mrc"], "rlnClassNumber": [1, 2]})
    starfile.write({"particles": frame}, folder / "t.star")
    read = read_box_table(folder / "t.star")
    assert [file.name for file in read.files] == ["0.mrc", "2.mrc"]
    assert read.class_N is not None
    assert read.class_N.tolist() == ["1", "2"]
    boxes = read_boxes(read.files, SHAPE)
    assert boxes[:, 0, 0, 0].tolist() == [0, 2]


def test_masks_densities_and_splits(folder: Path) -> None:
    text = "file,mask,density,split\nboxes/0.mrc,boxes/1.mrc,boxes/2.mrc,Training\n"
    read = read_box_table(table(folder, text))
    assert read.masks is not None
    assert read.densities is not None
    assert read.split_N is not None
    assert (read.masks[0].name, read.densities[0].name) == ("1.mrc", "2.mrc")
    assert read.split_N.tolist() == ["train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\nboxes/0.mrc,2\n", "column 'file'"),
        ("file,label\nboxes/9.mrc,2\n", r"9\.mrc"),
        ("file,label\nboxes/0.mrc\n", "as many fields"),
        ("file\nboxes/0.mrc\nboxes/0.mrc\n", "twice"),
        ("file,split\nboxes/0.mrc,maybe\n", "'maybe'"),
        ("file\n1@boxes/0.mrc\n", "stack"),
        ("file\n", "names no box"),
    ],
)
def test_broken_tables_are_refused(folder: Path, text: str, said: str) -> None:
    with pytest.raises((ConfigurationError, FormatError), match=said):
        read_box_table(table(folder, text))


def test_other_files_are_refused(folder: Path) -> None:
    for path in (folder / "nowhere.csv", table(folder, "x", "t.txt")):
        with pytest.raises(ConfigurationError):
            read_box_table(path)


def test_boxes_of_another_shape_or_not_finite_are_named(folder: Path) -> None:
    write_mrc(folder / "boxes" / "1.mrc", np.zeros((8, 8, 4), np.float32), 5.0)
    write_mrc(folder / "boxes" / "2.mrc", np.full(SHAPE, np.nan, np.float32), 5.0)
    for name in ("1.mrc", "2.mrc"):
        with pytest.raises(FormatError, match=name):
            read_boxes([folder / "boxes" / "0.mrc", folder / "boxes" / name], SHAPE)


def test_numbers_in_names_are_in_their_order() -> None:
    assert in_order(np.array(["b10", "b2", "a", "10", "9"])) == ("9", "10", "a", "b2", "b10")


def test_boxes_of_another_voxel_size_are_named_and_unknown_ones_pass(folder: Path) -> None:
    assert VOXEL_SIZE_TOLERANCE == tomogram.VOXEL_SIZE_TOLERANCE
    files = [folder / "boxes" / f"{n}.mrc" for n in range(3)]
    for size in (1.0, 5.2):
        write_mrc(files[1], np.zeros(SHAPE, np.float32), size)
        assert read_boxes(files, SHAPE, 5.0).shape == (3, *SHAPE)
    with mrcfile.open(files[1], "r+") as raw:
        raw.voxel_size = 0
    assert read_boxes(files, SHAPE, 5.0).shape == (3, *SHAPE)
    write_mrc(files[1], np.zeros(SHAPE, np.float32), 6.0)
    for read in (read_boxes, read_masks):
        with pytest.raises(FormatError, match=r"1\.mrc has voxels of 6 Å, .*0\.mrc of 5 Å"):
            read(files, SHAPE)
        with pytest.raises(FormatError, match="of 7 Å"):  # as those of the table
            read(files[:1], SHAPE, 7.0)
    write_mrc(files[0], np.zeros(SHAPE, np.float32), 1.0)
    assert read_box_table(table(folder, "file\nboxes/0.mrc\n")).voxel_size_angstrom is None


def test_masks_are_where_boxes_are_not_0(folder: Path) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[1], values[2] = 0.25, -3
    write_mrc(folder / "boxes" / "0.mrc", values, 5.0)
    assert np.array_equal(read_masks([folder / "boxes" / "0.mrc"], SHAPE)[0], values != 0)
