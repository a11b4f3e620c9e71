"""Instances: from a label volume to one row per object, the form that subtomogram averaging needs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.arrays import read_some, write_arrays
from cryoscale.data.folder import Folder
from cryoscale.data.tables import write_table
from cryoscale.errors import StateError
from cryoscale.geometry import Block, Grid
from cryoscale.ops.components import BlockComponents, label_block, merge
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan

VOXELS_PER_OBJECT = 1024  # a guess for plans: objects and specks at the faces of blocks, one per so many
ROW_BYTES = 112  # a component in the table of its block
TABLE_BYTES = 4 * ROW_BYTES  # while components are joined: the tables, their sorted copies, the links
COLUMNS = ("values_N", "voxels_N", "sums_N3", "lower_N3", "upper_N3", "first_N3")
FACES = ("z0", "z1", "y0", "y1", "x0", "x1")
DROPPED = "dropped"


class InstancesStage(BlockStage):
    """Connected components of each class, joined across blocks; centroids in Å."""

    name = "instances"
    version = 2
    reads = frozenset({"tomogram", "labels"})
    writes = "instances"

    def plan(self, access: Access) -> Plan:
        """Cut the level at work into blocks."""
        level = access.open_tomogram().facts.levels[access.working_level()]
        edge = access.config.execution.block_voxels
        blocks = tuple(Grid.of(level.shape, edge).blocks(level=access.working_level()))
        core = max(block.core.voxels for block in blocks)
        faces = sum(2 * (z * y + z * x + y * x) for z, y, x in (block.core.shape for block in blocks))
        sealing = level.shape.voxels // VOXELS_PER_OBJECT * TABLE_BYTES
        disk = faces * 2 + level.shape.voxels // VOXELS_PER_OBJECT * ROW_BYTES
        return Plan((blocks,), max(core * 24, sealing) + 64 * 2**20, disk)

    def create(self, access: Access) -> None:
        """Remove parts of an earlier plan."""
        access.parts().delete()
        access.output().delete(f"{access.tomogram}.parquet")

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the label volume."""
        volume, parts = access.label_volume(), access.parts()
        smallest = access.config.instances.min_voxels

        def find(block: Block) -> BlockReport:
            found = label_block(volume.read(block.level, block.core), block.core.start)
            kept, dropped = without_specks(found, smallest)
            arrays = compact(kept) | {DROPPED: np.array([dropped], np.int64)}
            write_arrays(parts, _part(block), arrays)
            return BlockReport(empty=len(found) == 0, voxels=block.core.voxels)

        yield find

    def seal(self, access: Access) -> dict[str, Any]:
        """Join components across faces, drop small ones, and write the table."""
        level = access.open_tomogram().facts.levels[access.working_level()]
        facts = access.label_volume().facts
        parts = access.parts()
        blocks = [(b.core, StoredComponents.open(parts, b)) for b in self.plan(access).phases[0]]
        dropped = sum(components.dropped for _, components in blocks)
        found = merge(blocks)
        del blocks
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
        return {"instances": int(big.sum()), "too_small": int((~big).sum()) + dropped, "by_class": counts,
                "empty": not big.any()}  # fmt: skip


def _part(block: Block) -> str:
    return f"{block.index:08d}.safetensors"


def without_specks(found: BlockComponents, smallest: int) -> tuple[BlockComponents, int]:
    """Leave out components that are too small and touch no face: nothing can join them.

    Returns
    -------
    kept : BlockComponents
        With local ids without gaps.
    dropped : int
        How many were left out.
    """
    touching = np.zeros(len(found) + 1, dtype=bool)
    for name in FACES:
        touching[getattr(found, name)] = True
    kept = touching[1:] | (found.voxels_N >= smallest)
    if kept.all():
        return found, 0
    numbers = np.concatenate([[0], np.cumsum(kept)]).astype(np.int32)  # of ids that stay; others do not occur
    faces = {name: numbers[getattr(found, name)] for name in FACES}
    rows = {name: getattr(found, name)[kept] for name in COLUMNS}
    return replace(found, **rows, **faces), int((~kept).sum())


def compact(found: BlockComponents) -> dict[str, npt.NDArray[Any]]:
    """Return named arrays for storage, the faces in the smallest type that holds their ids."""
    arrays: dict[str, npt.NDArray[Any]] = dict(found.to_arrays())
    kind = np.min_scalar_type(len(found))
    return arrays | {name: arrays[name].astype(kind) for name in FACES}


@dataclass(frozen=True, eq=False)
class StoredComponents(BlockComponents):
    """Components of a block whose table is in memory and whose faces stay on storage until they are met.

    Joining blocks looks at each face once: two faces are in memory at any time. The fields of the faces are
    placeholders of the right shape that take no memory.
    """

    parts: Folder
    name: str
    dropped: int

    @classmethod
    def open(cls, parts: Folder, block: Block) -> StoredComponents:
        """Read the table of a block."""
        table: dict[str, Any] = read_some(parts, _part(block), [*COLUMNS, DROPPED])
        dropped = int(table.pop(DROPPED)[0])
        z, y, x = block.core.shape
        shapes = {"z": (y, x), "y": (z, x), "x": (z, y)}
        empty: dict[str, Any] = {name: np.broadcast_to(np.int32(0), shapes[name[0]]) for name in FACES}
        return cls(**table, **empty, parts=parts, name=_part(block), dropped=dropped)

    def face(self, axis: int, last: bool) -> npt.NDArray[np.int32]:
        """Read the local ids on the first or last plane along an axis."""
        name = f"{'zyx'[axis]}{int(last)}"
        plane = read_some(self.parts, self.name, [name])[name].astype(np.int32)
        if plane.shape != getattr(self, name).shape:
            raise StateError(f"{self.parts.path(self.name)} was made from a block of another shape.")
        return plane
