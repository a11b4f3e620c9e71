"""Label volumes that a person drew: MRC of any mode, OME-Zarr 0.4 and 0.5; always z, y, x as it comes out.

===========================  ===============================================================================
what is given                what is read
===========================  ===============================================================================
``drawn.mrc``                the file; whole numbers, whatever its mode; no names
``drawn.zarr``               its finest level if it is a label image; names and colours of its metadata
``image.ome.zarr``           an image with one label image below `labels/`: that one
``image.ome.zarr/labels/n``  that label image
``array.zarr``               a plain Zarr array of three axes, taken as z, y, x
===========================  ===============================================================================

The value 255 says that nobody knows; 0 is background; classes begin at 1.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cryoscale.data.foreign import ForeignArray, group_attributes, is_array
from cryoscale.errors import ConfigurationError, DataError, FormatError
from cryoscale.formats.inputs import SUFFIXES
from cryoscale.formats.mrc import MrcVolume
from cryoscale.geometry import Box, Zyx

UNKNOWN = 255
HIGHEST = 254  # value of a class
ANGSTROM = {"angstrom": 1.0, "ångström": 1.0, "nanometer": 10.0, "micrometer": 1e4, "picometer": 0.01}
Color = tuple[int, int, int]


@dataclass
class LabelFile:
    """A label volume that hands out boxes in the order z, y, x.

    Parameters
    ----------
    path : Path
        As given.
    shape : Zyx
        Voxels.
    voxel_sizes : (z, y, x) float or None
        Å; None where the file does not say.
    names : dict
        By value, as far as the file knows.
    colors : dict
        By value.
    volume : MrcVolume or ForeignArray
        What is read.
    axes : tuple of int
        Which axis of the array each of z, y, x is; others have one element.
    chunk_bytes : int
        What reading a voxel makes of other voxels.
    """

    path: Path
    shape: Zyx
    voxel_sizes: tuple[float, float, float] | None
    volume: MrcVolume | ForeignArray
    names: dict[int, str] = field(default_factory=dict)
    colors: dict[int, Color] = field(default_factory=dict)
    axes: tuple[int, ...] = (0, 1, 2)
    chunk_bytes: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.volume, MrcVolume):
            self.volume.close()

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read a box inside the volume.

        Raises
        ------
        DataError
            A value is no whole number, negative, or above 255.
        """
        values = self._stored(box)
        if values.dtype.kind == "f":
            whole = np.rint(values)
            if not np.array_equal(whole, values):
                odd = values[whole != values].ravel()[0]
                raise DataError(
                    f"{self.path} holds {odd:g}, no label: labels are whole numbers from 0 to {HIGHEST}.",
                    remedy="Export the labels, not an image of them.",
                )
            values = whole
        low, high = values.min(), values.max()
        if low < 0 or high > UNKNOWN:
            raise DataError(
                f"{self.path} holds the label {low if low < 0 else high:g}; labels go from 0 to {HIGHEST}, "
                f"and {UNKNOWN} is unknown.",
                remedy="Number the classes 1, 2, …; instances are no classes.",
            )
        return values.astype(np.uint8)

    def _stored(self, box: Box) -> npt.NDArray[Any]:
        if isinstance(self.volume, MrcVolume):
            return self.volume.read(box)
        place: list[slice | int] = [0] * len(self.volume.shape)
        for axis, part in zip(self.axes, box.slices, strict=True):
            place[axis] = part
        values = self.volume.read(tuple(place))
        order = np.argsort(self.axes)  # the axes that are left, as they come
        return np.ascontiguousarray(values.transpose(np.argsort(order)))


def open_labels(path: str | os.PathLike[str]) -> LabelFile:
    """Open a label volume; nothing but metadata is read.

    Raises
    ------
    ConfigurationError
        There is no such file, or it is of another kind, or holds several label images.
    FormatError
        Its metadata is broken, or its values are no numbers.
    """
    path = Path(path)
    if path.is_dir():
        return _open_zarr(path)
    if not path.exists():
        raise ConfigurationError(f"there is no label file {path}.", remedy="Check the path.")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigurationError(
            f"{path} is no label volume that can be read.",
            remedy=f"Give MRC ({', '.join(SUFFIXES)}) or OME-Zarr.",
        )
    volume = MrcVolume(path)
    size = volume.header.voxel_size_angstrom
    return LabelFile(path, volume.shape, None if size is None else (size, size, size), volume)


def labels_stamp(path: str | os.PathLike[str]) -> list[Any] | None:
    """Recognise a label volume by size and time, a folder by those of all its files; None when it is gone."""
    place = Path(path)
    if place.is_file():
        status = place.stat()
        return [status.st_size, status.st_mtime_ns]
    if not place.is_dir():
        return None
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(place):
        folders.sort()
        for name in sorted(files):
            status = Path(folder, name).stat()
            entry = [os.path.relpath(folder, place), name, status.st_size, status.st_mtime_ns]
            digest.update(repr(entry).encode())
    return [digest.hexdigest()[:16]]


# -- OME-Zarr ------------------------------------------------------------------------------------------------


def _open_zarr(path: Path) -> LabelFile:
    if is_array(path):
        return _label_file(path, ForeignArray(path, ""), ["z", "y", "x"], None, {})
    group = _label_group(path)
    metadata = _ome(path, group)
    scales = metadata.get("multiscales")
    try:
        image = scales[0]  # type: ignore[index]
        dataset = image["datasets"][0]
        array = ForeignArray(path, "/".join(part for part in (group, str(dataset["path"])) if part))
        axes = [axis if isinstance(axis, str) else str(axis["name"]) for axis in image.get("axes", [])]
    except (KeyError, IndexError, TypeError) as error:
        raise FormatError(f"{path / group}: the OME-Zarr metadata is incomplete ({error!r}).") from error
    axes = axes or ["t", "c", "z", "y", "x"][-len(array.shape) :]
    sizes = _sizes(image, dataset, axes)
    found = metadata.get("image-label")
    return _label_file(path, array, axes, sizes, found if isinstance(found, Mapping) else {})


def _ome(path: Path, group: str) -> Mapping[str, Any]:
    """Return the OME metadata of a group: under `ome` since 0.5."""
    attributes = group_attributes(path, group)
    if attributes is None:
        raise ConfigurationError(
            f"{path / group} is a folder, and no Zarr group.", remedy="Give an MRC file or an OME-Zarr group."
        )
    ome = attributes.get("ome")
    return ome if isinstance(ome, Mapping) else attributes


def _label_group(path: Path) -> str:
    """Return which group holds the labels: the one given, or the one below its `labels`."""
    metadata = _ome(path, "")
    if "image-label" in metadata:
        return ""
    listed = group_attributes(path, "labels") if (path / "labels").is_dir() else None
    if listed is not None:
        inner = listed.get("ome", listed)
        names = [str(name) for name in inner.get("labels", [])] if isinstance(inner, Mapping) else []
        if len(names) == 1:
            return f"labels/{names[0]}"
        if names:
            raise ConfigurationError(
                f"{path} has the label images {', '.join(names)}.",
                remedy=f"Give one: {path}/labels/{names[0]}",
            )
    if "multiscales" not in metadata:
        raise ConfigurationError(
            f"{path} is no OME-Zarr image (its metadata has no multiscales).",
            remedy="Give the label image itself, such as image.ome.zarr/labels/name.",
        )
    return ""


def _sizes(
    image: Mapping[str, Any], dataset: Mapping[str, Any], axes: Sequence[str]
) -> tuple[float, float, float] | None:
    """Return the voxel sizes in Å along z, y, x; None without scales or with units that are no lengths."""
    scale = np.ones(len(axes))
    told = False
    for source in (dataset, image):
        for transform in source.get("coordinateTransformations", []) or []:
            if transform.get("type") == "scale" and len(transform.get("scale", [])) == len(axes):
                scale *= np.array(transform["scale"], float)
                told = True
    units = {axis["name"]: axis.get("unit") for axis in image.get("axes", []) if not isinstance(axis, str)}
    factors = [ANGSTROM.get(str(units.get(name) or "").lower()) for name in "zyx"]
    if not told or any(factor is None for factor in factors):
        return None
    z, y, x = (float(scale[list(axes).index(n)]) * float(f or 0) for n, f in zip("zyx", factors, strict=True))
    return (z, y, x) if min(z, y, x) > 0 else None


def _label_file(
    path: Path,
    array: ForeignArray,
    axes: Sequence[str],
    sizes: tuple[float, float, float] | None,
    label: Mapping[str, Any],
) -> LabelFile:
    if array.dtype.kind not in "iufb":
        raise FormatError(f"{array.name} holds {array.dtype}, which are no labels.")
    if len(axes) != len(array.shape) or not set("zyx") <= set(axes):
        raise FormatError(
            f"{array.name} has the axes {', '.join(axes)} and shape {array.shape}; z, y, x are needed."
        )
    others = [n for axis, n in zip(axes, array.shape, strict=True) if axis not in "zyx"]
    if any(n != 1 for n in others):
        raise FormatError(f"{array.name} has shape {array.shape}: one label volume is needed, not a series.")
    order = tuple(list(axes).index(axis) for axis in "zyx")
    names, colors = _meaning(label)
    shape = Zyx.of([array.shape[axis] for axis in order])
    return LabelFile(path, shape, sizes, array, names, colors, order, array.chunk_bytes)


def _meaning(label: Mapping[str, Any]) -> tuple[dict[int, str], dict[int, Color]]:
    """Read names and colours of label values; what is malformed is left out."""
    names, colors = dict[int, str](), dict[int, Color]()
    for entry in label.get("properties") or []:
        value, name = (
            entry.get("label-value"),
            entry.get("name") or entry.get("label-name") or entry.get("class"),
        )
        if isinstance(value, int) and 0 < value <= HIGHEST and name:
            names[value] = str(name)
    for entry in label.get("colors") or []:
        value, rgba = entry.get("label-value"), entry.get("rgba")
        if isinstance(value, int) and 0 < value <= HIGHEST and isinstance(rgba, list) and len(rgba) >= 3:
            colors[value] = (int(rgba[0]) & 255, int(rgba[1]) & 255, int(rgba[2]) & 255)
    return names, colors
