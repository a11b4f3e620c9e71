"""A tomogram on storage: an OME-Zarr pyramid with what cryoscale must know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Level, Pyramid, multiscales
from cryoscale.errors import ConfigurationError, LayoutError, StateError
from cryoscale.geometry import Box, Zyx

VOXEL_SIZE_TOLERANCE = 0.05  # a level within 5 % of the working voxel size counts as that size


@dataclass(frozen=True)
class Statistics:
    """Robust mean and standard deviation of one level, in the units of the stored density."""

    mean: float
    sd: float


@dataclass(frozen=True)
class TomogramFacts:
    """What ingest found out about a tomogram.

    Parameters
    ----------
    name : str
        Unique in the run.
    levels : tuple of Level
        The pyramid.
    statistics : tuple of Statistics
        One per level.
    contrast : str
        "dark" or "bright": how objects look in the stored density.
    contrast_reason : str
        Why: given by the person, or what was measured.
    key : str
        What the stored bytes depend on.
    source : dict
        Path, content id, data type of the source.
    z_range : tuple of int or None
        Suggested slab of level 0 that holds the sample, and `z_range_reason`, why.
    """

    name: str
    levels: tuple[Level, ...]
    statistics: tuple[Statistics, ...]
    contrast: str
    contrast_reason: str
    key: str
    source: dict[str, Any]
    z_range: tuple[int, int] | None = None
    z_range_reason: str = ""

    @property
    def bright(self) -> bool:
        """Whether objects are brighter than their surroundings as stored."""
        return self.contrast == "bright"

    def level_for(self, working_voxel_size_angstrom: float | None) -> int:
        """Return the pyramid level that stages work on.

        Raises
        ------
        ConfigurationError
            No level has the working voxel size; the message lists what there is.
        """
        if working_voxel_size_angstrom is None:
            return 0
        for number, level in enumerate(self.levels):
            if abs(level.voxel_size_angstrom / working_voxel_size_angstrom - 1) <= VOXEL_SIZE_TOLERANCE:
                return number
        have = ", ".join(f"{level.voxel_size_angstrom:g}" for level in self.levels)
        raise ConfigurationError(
            f"tomogram '{self.name}' has levels at {have} Å, none within {VOXEL_SIZE_TOLERANCE:.0%} of "
            f"working_voxel_size_angstrom = {working_voxel_size_angstrom:g}.",
            remedy="Choose a voxel size that all tomograms have, or put this tomogram into a run of its own.",
        )


class Tomogram:
    """Read access to a published tomogram; picklable by its folder.

    Parameters
    ----------
    folder : Folder
        The `<name>.ome.zarr` group.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.pyramid = Pyramid(folder)
        self._facts: TomogramFacts | None = None

    @property
    def facts(self) -> TomogramFacts:
        """What ingest recorded; raises `StateError` for an unfinished tomogram."""
        if self._facts is None:
            self._facts = _facts_from(self.pyramid.attributes, self.folder)
        return self._facts

    def read(self, level: int, box: Box, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read a box inside the volume as stored; into `out`, if given."""
        return self.pyramid.read(level, box, out)

    def read_canonical(
        self, level: int, box: Box, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Read a box as canonical density: zero mean, unit sd, objects dark (negative).

        `out`, if given, is written in place and returned: float32, of the box's shape.
        """
        statistics = self.facts.statistics[level]
        mean = np.float32(statistics.mean)
        scale = np.float32((-1.0 if self.facts.bright else 1.0) / statistics.sd)
        if out is None:
            out = np.empty(box.shape, np.float32)
        elif out.shape != tuple(box.shape) or out.dtype != np.float32:
            raise LayoutError(f"{box} needs a float32 array of its shape, not {out.dtype} {out.shape}")
        density = out

        def take(place: tuple[slice, ...], stored: npt.NDArray[Any]) -> None:
            part = density[place]
            np.subtract(stored, mean, out=part, dtype=np.float32)
            part *= scale

        self.pyramid.read_pieces(level, box, take)
        return out


def publish_tomogram(pyramid: Pyramid, facts: TomogramFacts) -> None:
    """Write the metadata that makes a tomogram readable, for cryoscale and for every OME-Zarr reader."""
    ours = asdict(facts)
    ours["kind"] = "tomogram"
    pyramid.publish(multiscales(facts.name, facts.levels, image=True), ours)


def _facts_from(ours: dict[str, Any], folder: Folder) -> TomogramFacts:
    try:
        return TomogramFacts(
            name=ours["name"],
            levels=tuple(_level_from(level) for level in ours["levels"]),
            statistics=tuple(Statistics(**entry) for entry in ours["statistics"]),
            contrast=ours["contrast"],
            contrast_reason=ours["contrast_reason"],
            key=ours["key"],
            source=dict(ours["source"]),
            z_range=tuple(ours["z_range"]) if ours["z_range"] else None,
            z_range_reason=ours["z_range_reason"],
        )
    except (KeyError, TypeError) as error:
        raise StateError(f"{folder.url} was not written by this version of cryoscale ({error}).") from error


def _level_from(entry: dict[str, Any]) -> Level:
    return Level(Zyx.of(entry["shape"]), entry["voxel_size_angstrom"], entry["origin_angstrom"])


@dataclass(frozen=True)
class LabelFacts:
    """What a label volume means: names and colours of its classes, from 1; 0 is background."""

    name: str
    levels: tuple[Level, ...]
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    key: str
    working_level: int
    notes: dict[str, Any]


class LabelVolume:
    """A label volume of a tomogram, `labels/<name>` in its group."""

    def __init__(self, tomogram: Folder, name: str, *, writable: bool = False) -> None:
        self.parent = tomogram.child("labels")
        self.name = name
        self.pyramid = Pyramid(tomogram.child("labels", name), writable=writable)

    @property
    def facts(self) -> LabelFacts:
        """What the segment stage recorded; raises `StateError` when unfinished."""
        ours = self.pyramid.attributes
        return LabelFacts(
            name=ours["name"],
            levels=tuple(_level_from(level) for level in ours["levels"]),
            class_names=tuple(ours["class_names"]),
            colors=tuple((int(r), int(g), int(b)) for r, g, b in ours["colors"]),
            key=ours["key"],
            working_level=ours["working_level"],
            notes=dict(ours["notes"]),
        )

    @property
    def published(self) -> bool:
        """Whether the volume is there and finished."""
        try:
            return bool(self.pyramid.attributes)
        except StateError:
            return False

    def read(self, level: int, box: Box) -> npt.NDArray[Any]:
        """Read a box inside the volume."""
        return self.pyramid.read(level, box)

    def publish(self, facts: LabelFacts) -> None:
        """Write the label metadata, then list the volume among its tomogram's labels."""
        ome = multiscales(facts.name, facts.levels, image=False)
        values = range(1, len(facts.class_names) + 1)
        ome["image-label"] = {
            "colors": [
                {"label-value": v, "rgba": [*c, 255]} for v, c in zip(values, facts.colors, strict=True)
            ],
            "properties": [
                {"label-value": v, "name": n} for v, n in zip(values, facts.class_names, strict=True)
            ],
            "source": {"image": "../../"},
        }
        self.pyramid.publish(ome, {**asdict(facts), "kind": "labels"})
        publish_label_list(self.parent)


def publish_label_list(labels: Folder) -> None:
    """List all published label volumes in the `labels` group, sorted by name."""
    names = [
        name
        for name in labels.names()
        if name != "zarr.json"
        and labels.exists(f"{name}/zarr.json")
        and "ome" in labels.read_json(f"{name}/zarr.json").get("attributes", {})
    ]
    attributes = {"ome": {"version": "0.5", "labels": names}}
    labels.write_json("zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def common_voxel_size(facts: Sequence[TomogramFacts]) -> float | None:
    """Return the smallest voxel size that all tomograms have as a level, or None."""
    if not facts:
        return None
    for level in facts[0].levels:
        size = level.voxel_size_angstrom
        if all(
            any(abs(other.voxel_size_angstrom / size - 1) <= VOXEL_SIZE_TOLERANCE for other in fact.levels)
            for fact in facts
        ):
            return size
    return None
