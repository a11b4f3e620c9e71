"""Apply a supervised network: from a tomogram to label volumes, and on request probabilities and densities.

The prediction is made at the level at work; finer levels of a label volume repeat it, coarser ones take the
most frequent value. Probabilities and densities have the level at work alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Pyramid
from cryoscale.data.tomogram import LabelFacts, LabelVolume, publish_label_list
from cryoscale.data.volumes import (
    PART_OF,
    ImageVolume,
    drop_companions,
    feature_volumes,
    file_names,
    mark_part,
)
from cryoscale.geometry import Block, Box
from cryoscale.stages.applying import Applied, applied, check_mode
from cryoscale.stages.applying_bytes import apply_bytes, blocks_of
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, renumber
from cryoscale.stages.embedding import shares_of
from cryoscale.stages.labelling import CHUNK, SHARD, coarser, finer
from cryoscale.stages.predicting import Predict, open_prediction

Select = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]


class ApplyStage(BlockStage):
    """From a tomogram (and its picks, in the mode `picks`) to `labels/<name>` and what goes with it."""

    name = "segment"
    version = 1
    engine = "model"
    reads = frozenset({"tomogram", "picks", "segmenter"})
    writes = "labels"

    def plan(self, access: Access) -> Plan:
        """Plan the level at work first, then each level from its neighbour towards it."""
        model = applied(access)
        check_mode(access, model)
        levels = access.open_tomogram().facts.levels
        work = access.working_level()
        order = [work, *range(work + 1, len(levels)), *range(work - 1, -1, -1)]
        phases = [blocks_of(access, model, levels, number) for number in order]
        config, voxels = access.config.segment, levels[work].shape.voxels
        volumes = {"merged": 1, "features": len(model.names), "both": 1 + len(model.names)}[config.volumes]
        disk = volumes * sum(level.shape.voxels for level in levels)
        disk += voxels * (2 * len(model.names) * config.probabilities + 4 * config.densities)
        return Plan(renumber(phases), apply_bytes(access, model, phases), disk)

    def create(self, access: Access) -> None:
        """Make the empty arrays; what came with an earlier result goes."""
        outputs = Outputs.of(access, applied(access))
        facts, work = access.open_tomogram().facts, access.working_level()
        drop_companions(outputs.tomogram, access.config.segment.labels)
        if access.config.segment.volumes == "features":
            whole = access.label_volume(write=True)
            whole.parent.delete(whole.name)
        for volume, _, _ in outputs.labels:
            volume.pyramid.create(facts.levels, np.uint8, chunk=CHUNK, shard=SHARD, image=False)
            if volume.name != access.config.segment.labels:
                mark_part(volume, access.config.segment.labels)
        for image in outputs.shares:
            image.create(facts.levels[work], np.float16, chunk=CHUNK, shard=SHARD)
        if outputs.density is not None:
            outputs.density.create(facts.levels[work], np.float32, chunk=CHUNK, shard=SHARD)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Load the network once; open the tomogram and all volumes that are written."""
        model, work = applied(access), access.working_level()
        outputs = Outputs.of(access, model)
        with open_prediction(access, model, votes=outputs.wants_votes) as predict:

            def apply(block: Block) -> BlockReport:
                if block.level == work:
                    found = outputs.write_prediction(predict, model, block)
                else:
                    found = outputs.write_level(block, coarser if block.level > work else finer)
                return BlockReport(empty=not found, voxels=block.core.voxels)

            yield apply

    def seal(self, access: Access) -> dict[str, Any]:
        """Publish names, colours and levels; list the label volumes among those of the tomogram."""
        model = applied(access)
        outputs, config = Outputs.of(access, model), access.config.segment
        levels, work = access.open_tomogram().facts.levels, access.working_level()
        notes: dict[str, Any] = {
            "mode": config.mode, "network": model.card["architecture"]["name"],
            "upstream": dict(access.upstream),
        }  # fmt: skip
        for image, name in zip(outputs.shares, model.names, strict=False):
            image.publish(levels[work], {**notes, "class_name": name, "level": work, "key": access.key})
        if outputs.density is not None:
            outputs.density.publish(levels[work], {**notes, "level": work, "key": access.key})
        for volume, names, colors in outputs.labels:
            part = {} if volume.name == config.labels else {PART_OF: config.labels}
            volume.publish(
                LabelFacts(
                    name=volume.name, levels=levels, class_names=names, colors=colors, key=access.key,
                    working_level=work, notes={**notes, **part},
                )
            )  # fmt: skip
        publish_label_list(outputs.tomogram.child("labels"))
        return {"classes": list(model.names), "mode": config.mode, "network": notes["network"]}


@dataclass(frozen=True)
class Outputs:
    """The volumes that are written.

    Parameters
    ----------
    tomogram : Folder
        The group that they are in.
    labels : list
        Label volumes with the names and colours of their values.
    select : list
        What each label volume makes of the merged labels.
    shares : list of ImageVolume
        One for each class, or none.
    density : ImageVolume or None
    """

    tomogram: Folder
    labels: list[tuple[LabelVolume, tuple[str, ...], tuple[tuple[int, int, int], ...]]]
    select: list[Select]
    shares: list[ImageVolume] = field(default_factory=list)
    density: ImageVolume | None = None

    @classmethod
    def of(cls, access: Access, model: Applied) -> Outputs:
        """Open what the configuration asks for."""
        config, whole = access.config.segment, access.label_volume(write=True)
        tomogram = access.label_group()
        labels, select = [], list[Select]()
        if config.volumes != "features":
            labels.append((whole, model.names, model.colors))
            select.append(lambda labels: labels)
        if config.volumes != "merged":
            features = feature_volumes(tomogram, config.labels, model.names, writable=True)
            for value, volume in enumerate(features, start=1):
                labels.append((volume, model.names[value - 1 : value], model.colors[value - 1 : value]))
                select.append(_only(value))
        files = file_names(model.names) if config.probabilities else []
        shares = [ImageVolume(tomogram, "probabilities", config.labels, f, writable=True) for f in files]
        density = (
            ImageVolume(tomogram, "densities", config.labels, writable=True) if config.densities else None
        )
        return cls(tomogram, labels, select, shares, density)

    @property
    def wants_votes(self) -> bool:
        """Whether labels alone are not enough."""
        return bool(self.shares) or self.density is not None

    def write_prediction(self, predict: Predict, model: Applied, block: Block) -> bool:
        """Predict a block of the level at work and write all of it; tell whether a voxel has a label."""
        core = block.core
        labels = np.zeros(core.shape, np.uint8)
        shares = np.zeros((len(self.shares), *core.shape), np.float16)
        density = np.zeros(core.shape if self.density is not None else (0, 0, 0), np.float32)
        for piece in predict(core):
            here = piece.box.relative_to(core.start).slices
            labels[here] = piece.labels
            if piece.votes_CZYX is not None and self.wants_votes:
                votes_LZYX = piece.votes_CZYX[: model.n_classes]
                if self.shares:
                    shares[(slice(None), *here)] = shares_of(votes_LZYX)
                if self.density is not None:
                    total = votes_LZYX.sum(axis=0)
                    np.divide(piece.votes_CZYX[-1], total, out=density[here], where=total > 0)
        for image, values in zip(self.shares, shares, strict=True):
            _write(image.pyramid, 0, core, values)
        if self.density is not None:
            _write(self.density.pyramid, 0, core, density)
        for (volume, _, _), select in zip(self.labels, self.select, strict=True):
            _write(volume.pyramid, block.level, core, select(labels))
        return bool(labels.any())

    def write_level(self, block: Block, resample: Callable[[Pyramid, Block], npt.NDArray[np.uint8]]) -> bool:
        """Make a block of another level from its neighbour towards the level at work."""
        found = [
            _write(volume.pyramid, block.level, block.core, resample(volume.pyramid, block))
            for volume, _, _ in self.labels
        ]
        return any(found)


def _only(value: int) -> Select:
    return lambda labels: (labels == value).view(np.uint8)


def _write(pyramid: Pyramid, level: int, core: Box, values_ZYX: npt.NDArray[Any]) -> bool:
    """Write a block, or remove what stood there where it is empty; tell whether there is anything."""
    if values_ZYX.any():
        pyramid.write(level, core, values_ZYX)
        return True
    pyramid.delete_shards(level, core)
    return False
