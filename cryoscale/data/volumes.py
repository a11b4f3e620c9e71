"""Volumes that come with a label volume: one binary label volume per class, and images on the same grid.

```
tomograms/<t>.ome.zarr/
  labels/<name>/                       the label volume itself
  labels/<name>-<class>/               the same as one binary volume per class, 1 is the class
  probabilities/<name>/<class>/0       float16, the level at work
  densities/<name>/0                   float32, the level at work
```
Each image is an OME-Zarr 0.5 image with one level; the groups above it are plain Zarr groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy.typing as npt

from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import OUR_KEY, Level, Pyramid, multiscales
from cryoscale.data.tomogram import LabelVolume, publish_label_list
from cryoscale.errors import StateError

Kind = Literal["probabilities", "densities"]
KINDS: tuple[Kind, ...] = ("probabilities", "densities")
PART_OF = "part_of"  # attribute of a volume of one class: the label volume that it belongs to


def file_names(class_names: Sequence[str]) -> list[str]:
    """Return names for folders and files: letters, digits, `.`, `_`, `-`, each another one.

    "double membrane" becomes "double-membrane". Classes that would get the same name have their value
    behind it.
    """
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "class" for name in class_names]
    folded = [name.lower() for name in plain]  # some file systems do not tell cases apart
    return [
        name if folded.count(name.lower()) == 1 else f"{name}-{value}"
        for value, name in enumerate(plain, start=1)
    ]


def feature_volumes(
    tomogram: Folder, name: str, class_names: Sequence[str], *, writable: bool = False
) -> list[LabelVolume]:
    """Return the binary label volumes of the classes of a label volume, `labels/<name>-<class>`."""
    return [LabelVolume(tomogram, f"{name}-{file}", writable=writable) for file in file_names(class_names)]


def finished_features(tomogram: Folder, name: str) -> list[LabelVolume]:
    """List the finished binary label volumes that come with a label volume, by name."""
    labels, found = tomogram.child("labels"), []
    for other in sorted(labels.names()):
        if other.startswith(f"{name}-") and labels.exists(f"{other}/zarr.json"):
            ours = labels.read_json(f"{other}/zarr.json").get("attributes", {}).get(OUR_KEY, {})
            if ours.get("notes", {}).get(PART_OF) == name:
                found.append(LabelVolume(tomogram, other))
    return found


class ImageVolume:
    """An image on the grid of one level of a tomogram.

    Parameters
    ----------
    tomogram : Folder
        The `<name>.ome.zarr` group.
    kind : {"probabilities", "densities"}
        What it shows.
    labels : str
        Name of the label volume that it comes with.
    part : str
        File name of the class; empty where there is one image alone.
    """

    def __init__(
        self, tomogram: Folder, kind: Kind, labels: str, part: str = "", *, writable: bool = False
    ) -> None:
        self.groups = [tomogram.child(kind)] + ([tomogram.child(kind, labels)] if part else [])
        place = (kind, labels, part) if part else (kind, labels)
        self.name = "/".join(place)
        self.pyramid = Pyramid(tomogram.child(*place), writable=writable)

    def create(self, level: Level, dtype: npt.DTypeLike, *, chunk: int, shard: int) -> None:
        """Make the empty array, and the groups above it."""
        for group in self.groups:
            group.write_json("zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
        self.pyramid.create([level], dtype, chunk=chunk, shard=shard, image=True)

    def publish(self, level: Level, notes: Mapping[str, Any]) -> None:
        """Write the metadata that makes it readable."""
        ome = multiscales(self.name, [level], image=True)
        (image,) = ome["multiscales"]
        if level.origin_angstrom:
            moved = {"type": "translation", "translation": [level.origin_angstrom] * 3}
            image["datasets"][0]["coordinateTransformations"].append(moved)
        del image["type"], image["metadata"]  # nothing was made smaller
        ours = {"kind": self.name.split("/")[0], "voxel_size_angstrom": level.voxel_size_angstrom}
        self.pyramid.publish(ome, {**ours, **notes})

    @property
    def notes(self) -> dict[str, Any]:
        """What was recorded; raises `StateError` when unfinished."""
        return self.pyramid.attributes


def image_volumes(tomogram: Folder, kind: Kind, labels: str) -> list[ImageVolume]:
    """List the finished images of a kind that come with a label volume, by name."""
    folder = tomogram.child(kind, labels)
    parts = [""] if folder.exists("0/zarr.json") else sorted(n for n in folder.names() if n != "zarr.json")
    found = []
    for part in parts:
        volume = ImageVolume(tomogram, kind, labels, part)
        try:
            volume.notes  # noqa: B018  # raises where it is unfinished
        except StateError:
            continue
        found.append(volume)
    return found


def mark_part(volume: LabelVolume, whole: str) -> None:
    """Note on an unfinished volume which label volume it belongs to, so that it can be found and removed."""
    attributes = {PART_OF: whole}
    volume.pyramid.folder.write_json(
        "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    )


def drop_companions(tomogram: Folder, name: str) -> None:
    """Remove what came with a label volume: volumes of single classes, probabilities, densities."""
    labels = tomogram.child("labels")
    for other in labels.names():
        if other.startswith(f"{name}-") and labels.exists(f"{other}/zarr.json"):
            attributes = labels.read_json(f"{other}/zarr.json").get("attributes", {})
            if name in (attributes.get(PART_OF), attributes.get(OUR_KEY, {}).get("notes", {}).get(PART_OF)):
                labels.delete(other)
    for kind in KINDS:
        tomogram.child(kind).delete(name)
    if labels.exists("zarr.json"):
        publish_label_list(labels)
