"""Paint: from what stands where to a noise-free scene and its labels, block by block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.pyramid import Level
from cryoscale.geometry import Block, Grid, Zyx, round_up
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan
from cryoscale.stages.templates import open_templates, stamp_bytes

CHUNK, SHARD = 64, 128  # voxels
BYTES_PER_VOXEL = 16  # signal and labels, and their copies on the way to storage
SPARE_BYTES = 192 * 2**20  # for tiles, stamps at work and the rows of what stands where


class PaintStage(BlockStage):
    """From the truth and the densities to a scene: `signal` (objects positive) and `labels`."""

    name = "paint"
    version = 2
    reads = frozenset({"truth", "densities"})
    writes = "scene"

    def plan(self, access: Access) -> Plan:
        """Cut the scene into blocks of whole shards."""
        shape = Zyx.of(access.simulation().scene.shape)
        edge = access.config.execution.block_voxels
        unit = [min(SHARD, round_up(n, min(CHUNK, n))) for n in shape]
        cell = Zyx(*(round_up(min(edge, n), u) for n, u in zip(shape, unit, strict=True)))
        blocks = tuple(Grid.of(shape, cell).blocks())
        largest = max(block.core.voxels for block in blocks)
        stamps = stamp_bytes(access)
        return Plan((blocks,), largest * BYTES_PER_VOXEL + stamps + SPARE_BYTES, shape.voxels * 5)

    def create(self, access: Access) -> None:
        """Make the empty arrays."""
        scene = access.simulation().scene
        levels = [Level(Zyx.of(scene.shape), scene.voxel_size_angstrom)]
        for name, dtype in (("signal", np.float32), ("labels", np.uint8)):
            pyramid = access.scene(name, write=True)
            pyramid.create(levels, dtype, chunk=CHUNK, shard=SHARD, image=name == "signal")

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Load what stands where and the densities."""
        from cryoscale.simulate.painting import paint_box
        from cryoscale.simulate.placed import Placed

        placed, stamps = Placed.from_truth(access.truth()), open_templates(access)
        signal, labels = access.scene("signal", write=True), access.scene("labels", write=True)

        def paint(block: Block) -> BlockReport:
            signal_ZYX, labels_ZYX = paint_box(placed, stamps, block.core)
            signal.write(0, block.core, signal_ZYX)
            labels.write(0, block.core, labels_ZYX)
            return BlockReport(empty=not signal_ZYX.any(), voxels=block.core.voxels)

        yield paint

    def seal(self, access: Access) -> dict[str, Any]:
        """Nothing is left to be joined."""
        return {"particles": len(access.truth())}
