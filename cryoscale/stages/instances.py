"""Instances: from a label volume to one row per object, the form that subtomogram averaging needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.arrays import read_arrays, write_arrays
from cryoscale.data.tables import write_table
from cryoscale.geometry import Block, Grid
from cryoscale.ops.components import BlockComponents, label_block, merge
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan


class InstancesStage(BlockStage):
    """Connected components of each class, joined across blocks; centroids in Å."""

    name = "instances"
    reads = frozenset({"tomogram", "labels"})
    writes = "instances"

    def plan(self, access: Access) -> Plan:
        """Cut the level at work into blocks."""
        level = access.open_tomogram().facts.levels[access.working_level()]
        edge = access.config.execution.block_voxels
        blocks = tuple(Grid.of(level.shape, edge).blocks(level=access.working_level()))
        core = max(block.core.voxels for block in blocks)
        return Plan((blocks,), core * 24 + 64 * 2**20)

    def create(self, access: Access) -> None:
        """Remove parts of an earlier plan."""
        access.parts().delete()
        access.output().delete(f"{access.tomogram}.parquet")

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the label volume."""
        volume, parts = access.label_volume(), access.parts()

        def find(block: Block) -> BlockReport:
            found = label_block(volume.read(block.level, block.core), block.core.start)
            write_arrays(parts, f"{block.index:08d}.safetensors", found.to_arrays())
            return BlockReport(empty=len(found) == 0, voxels=block.core.voxels)

        yield find

    def seal(self, access: Access) -> dict[str, Any]:
        """Join components across faces, drop small ones, and write the table."""
        level = access.open_tomogram().facts.levels[access.working_level()]
        facts = access.label_volume().facts
        parts = access.parts()
        blocks = [
            (block.core, BlockComponents.from_arrays(read_arrays(parts, f"{block.index:08d}.safetensors")))
            for block in self.plan(access).phases[0]
        ]
        found = merge(blocks)
        big = found.voxels_N >= access.config.instances.min_voxels
        centroids = level.to_angstrom(found.centroids_N3[big])
        values = found.values_N[big]
        names = np.array(["background", *facts.class_names])[values]
        order = np.lexsort((*centroids.T[::-1], values)) if len(values) else np.empty(0, np.int64)
        z, y, x = centroids[order].T
        columns = {
            "z": z, "y": y, "x": x, "class_value": values[order].astype(np.int32), "class_name": names[order],
            "voxels": found.voxels_N[big][order].astype(np.int64),
            "volume_nm3": found.voxels_N[big][order] * (level.voxel_size_angstrom / 10) ** 3,
        }  # fmt: skip
        write_table(access.output(), f"{access.tomogram}.parquet", columns, notes={"unit": "angstrom"})
        counts = {name: int(np.sum(names == name)) for name in facts.class_names}
        return {"instances": int(big.sum()), "too_small": int((~big).sum()), "by_class": counts,
                "empty": not big.any()}  # fmt: skip
