"""Truth labels: the label volume of a simulated scene, on the grid of its tomogram, with all levels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.clusters import PALETTE
from cryoscale.data.tomogram import LabelFacts
from cryoscale.data.truth import TRUTH_LABELS
from cryoscale.geometry import Block
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, renumber
from cryoscale.stages.labelling import CHUNK, SHARD, coarser, label_blocks


class TruthLabelsStage(BlockStage):
    """From a scene to `labels/truth` of its tomogram: every OME-Zarr viewer lays it over the density."""

    name = "truth_labels"
    reads = frozenset({"tomogram", "truth", "scene"})
    writes = "truth_labels"

    def plan(self, access: Access) -> Plan:
        """Plan level 0, then each coarser level from the one below."""
        levels = access.open_tomogram().facts.levels
        edge = access.config.execution.block_voxels
        phases = [label_blocks(levels, number, edge) for number in range(len(levels))]
        core = max(block.core.voxels for block in phases[0])
        return Plan(renumber(phases), core * 24 + 64 * 2**20, sum(level.shape.voxels for level in levels))

    def create(self, access: Access) -> None:
        """Make the empty arrays of all levels."""
        volume = access.truth_labels(write=True)
        levels = access.open_tomogram().facts.levels
        volume.pyramid.create(levels, np.uint8, chunk=CHUNK, shard=SHARD, image=False)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the scene's labels and the label volume."""
        pyramid = access.truth_labels(write=True).pyramid
        scene = access.scene("labels")

        def label(block: Block) -> BlockReport:
            labels = coarser(pyramid, block) if block.level else scene.read(0, block.core)
            if labels.any():
                pyramid.write(block.level, block.core, labels)
                return BlockReport(voxels=block.core.voxels)
            pyramid.delete_shards(block.level, block.core)
            return BlockReport(empty=True, voxels=block.core.voxels)

        yield label

    def seal(self, access: Access) -> dict[str, Any]:
        """Publish names, colours and levels."""
        names = access.truth().class_names[1:]
        facts = LabelFacts(
            name=TRUTH_LABELS,
            levels=access.open_tomogram().facts.levels,
            class_names=names,
            colors=tuple(PALETTE[number % len(PALETTE)] for number in range(len(names))),
            key=access.key,
            working_level=0,
            notes={"simulated": True, "upstream": dict(access.upstream)},
        )
        access.truth_labels(write=True).publish(facts)
        return {"classes": list(names)}
