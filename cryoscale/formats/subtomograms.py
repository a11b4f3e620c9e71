"""Tables of boxes: a CSV or STAR file that names one MRC file per particle, with its truth.

===========  =====================================================  ========================================
what         columns (the first that is there)                      meaning
===========  =====================================================  ========================================
file         ``file``, ``particle``, ``path``, ``rlnImageName``     the box, any MRC mode
class        ``class``, ``label``, ``class_name``,                  a name or a number
             ``rlnClassNumber``
mask         ``mask``                                               a box: not 0 where the particle is
density      ``density``                                            the particle alone, objects positive
split        ``split``, ``set``                                     train, validation or test
===========  =====================================================  ========================================

Paths are relative to the table. All boxes of a table have one shape and, where their headers say it, one
voxel size.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, FormatError, SurroundingsError
from cryoscale.formats.mrc import MrcVolume
from cryoscale.formats.points_star import star_blocks
from cryoscale.formats.points_table import Table
from cryoscale.geometry import Box, Zyx

if TYPE_CHECKING:
    import os

FILES = ("file", "particle", "path", "image", "rlnImageName")
CLASSES = ("class", "label", "class_name", "kind", "rlnClassNumber")
SPLITS = {
    "train": "train", "training": "train", "validation": "validation",
    "valid": "validation", "val": "validation", "test": "test", "testing": "test",
}  # fmt: skip
VOXEL_SIZE_TOLERANCE = 0.05  # as in `cryoscale.data.tomogram`


@dataclass(frozen=True)
class BoxTable:
    """What a table of boxes says; no voxel was read.

    Parameters
    ----------
    path : Path
    files : tuple of Path
        One box each.
    class_N : (N,) str or None
    masks, densities : tuple of Path, or None
    split_N : (N,) str or None
        "train", "validation" or "test".
    shape : Zyx
        Of the first box, voxels.
    voxel_size_angstrom : float or None
        Of the first box; None where its header leaves it unset (0 or 1 Å).
    """

    path: Path
    files: tuple[Path, ...]
    class_N: npt.NDArray[np.str_] | None
    masks: tuple[Path, ...] | None
    densities: tuple[Path, ...] | None
    split_N: npt.NDArray[np.str_] | None
    shape: Zyx
    voxel_size_angstrom: float | None

    def __len__(self) -> int:
        return len(self.files)


def read_box_table(path: str | os.PathLike[str]) -> BoxTable:
    """Read a table of boxes, and the header of the first one.

    Raises
    ------
    ConfigurationError
        There is no such file, or it is neither CSV nor STAR; or a box that it names is not there.
    FormatError
        No column names the boxes, no rows, a file twice, or an unknown split.
    """
    path = Path(path)
    table = _table(path)
    files = _paths(path, table, FILES)
    if files is None:
        raise FormatError(
            f"{path} has no column that names the boxes; it has {', '.join(table.columns)}.",
            remedy="Give it a column 'file' with paths relative to the table.",
        )
    if not files:
        raise FormatError(f"{path} names no box.")
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise FormatError(f"{path} names {twice} twice.", remedy="Give each box one row.")
    classes, splits = table.first(CLASSES), table.first(("split", "set"))
    with MrcVolume(files[0], ignore_voxel_size=False) as first:
        shape, size = first.shape, first.header.voxel_size_angstrom
    class_N = None if classes is None else np.array([value.strip() for value in classes], dtype=np.str_)
    return BoxTable(
        path, files, class_N,
        _paths(path, table, ("mask",)), _paths(path, table, ("density",)),
        None if splits is None else _splits(path, splits), shape, size,
    )  # fmt: skip


def read_boxes(
    files: Sequence[Path], shape: Zyx, voxel_size_angstrom: float | None = None
) -> npt.NDArray[np.float32]:
    """Read boxes into one array (N, Z, Y, X).

    Parameters
    ----------
    files : sequence of Path
    shape : Zyx
        Of every box, voxels.
    voxel_size_angstrom : float, optional
        Of every box; None: that of the first one whose header says it. Headers with 0 or 1 Å say nothing.

    Raises
    ------
    FormatError
        A box has another shape or voxel size, or values that are not finite.
    """
    boxes = np.empty((len(files), *shape), np.float32)
    for number, box in enumerate(_each_box(files, shape, voxel_size_angstrom)):
        boxes[number] = box
    return boxes


def read_masks(
    files: Sequence[Path], shape: Zyx, voxel_size_angstrom: float | None = None
) -> npt.NDArray[np.uint8]:
    """Read masks into one array (N, Z, Y, X): 1 where a box is not 0; else as `read_boxes`."""
    masks = np.empty((len(files), *shape), np.uint8)
    for number, box in enumerate(_each_box(files, shape, voxel_size_angstrom)):
        masks[number] = box != 0
    return masks


def _each_box(
    files: Sequence[Path], shape: Zyx, voxel_size_angstrom: float | None
) -> Iterator[npt.NDArray[np.float32]]:
    """Read boxes one by one, all of one shape and voxel size."""
    size, whose = voxel_size_angstrom, "the table's boxes"
    for file in files:
        with MrcVolume(file, ignore_voxel_size=False) as volume:
            if volume.shape != shape:
                raise FormatError(
                    f"{file} is {tuple(volume.shape)} voxels, the first box of the table {tuple(shape)}.",
                    remedy="Cut all boxes to one shape.",
                )
            mine = volume.header.voxel_size_angstrom
            if mine is not None and size is None:
                size, whose = mine, str(file)
            if mine is not None and size is not None and abs(mine / size - 1) > VOXEL_SIZE_TOLERANCE:
                raise FormatError(
                    f"{file} has voxels of {mine:g} Å, {whose} of {size:g} Å.",
                    remedy="Correct the voxel size in its header (0: unknown), or bring all boxes to one.",
                )
            box = volume.read(Box.whole(shape)).astype(np.float32, copy=False)
        if not np.isfinite(box).all():
            raise FormatError(f"{file} has voxels that are not finite.", remedy="Leave that box out.")
        yield box


def in_order(names: npt.NDArray[np.str_]) -> tuple[str, ...]:
    """List names once, numbers within them in their own order: "2" before "10"."""

    def key(name: str) -> list[tuple[int, int, str]]:
        parts = re.split(r"(\d+)", name)
        return [(0, int(p), "") if p.isdigit() else (1, 0, p.lower()) for p in parts if p]

    return tuple(sorted({str(name) for name in names}, key=key))


def _table(path: Path) -> Table:
    try:
        if path.suffix.lower() == ".star":
            blocks = star_blocks(path)
            found = [b for b in blocks.values() if any(name in b for name in FILES)]
            return Table(path, (found or list(blocks.values()))[0])
        if path.suffix.lower() != ".csv":
            raise ConfigurationError(f"{path} is neither .csv nor .star.", remedy="Give a table of boxes.")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [line for line in csv.reader(stream) if any(field.strip() for field in line)]
    except FileNotFoundError:
        raise ConfigurationError(f"there is no file {path}.", remedy="Check the path.") from None
    except OSError as error:
        raise SurroundingsError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not text ({error}).") from error
    if not lines or any(len(line) != len(lines[0]) for line in lines):
        raise FormatError(f"{path}: the rows do not all have as many fields as the header line.")
    return Table(path, {name: [line[n] for line in lines[1:]] for n, name in enumerate(lines[0])})


def _paths(path: Path, table: Table, names: Sequence[str]) -> tuple[Path, ...] | None:
    """Return the files of a column, all of which are there."""
    written = table.first(names)
    if written is None:
        return None
    found = tuple(path.parent / value.strip() for value in written)
    for value, file in zip(written, found, strict=True):
        if "@" in value:
            raise FormatError(
                f"{path}: '{value}' is one of a stack.", remedy="Write each box to a file of its own."
            )
        if not value.strip() or not file.is_file():
            raise ConfigurationError(
                f"{path}: there is no file {file}.",
                remedy="Paths are relative to the table; check the column.",
            )
    return found


def _splits(path: Path, values: Sequence[str]) -> npt.NDArray[np.str_]:
    unknown = sorted({value for value in values if value.strip().lower() not in SPLITS})
    if unknown:
        raise FormatError(
            f"{path}: the split '{unknown[0]}' is unknown.", remedy="Write train, validation or test."
        )
    return np.array([SPLITS[value.strip().lower()] for value in values], dtype=np.str_)
