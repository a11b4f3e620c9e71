"""Project: from a scene to the tilts of a series, one tilt a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.arrays import read_arrays, write_arrays
from cryoscale.data.pyramid import Level
from cryoscale.geometry import Block, Box, Grid, Zyx
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan
from cryoscale.stages.imaging import KINDS, SPARE_BYTES, imaging_of, noise_seed

CHUNK, SHARD = 64, 256  # tilts and pixels


class ProjectStage(BlockStage):
    """From a noise-free scene to its projections as the microscope shows them; the noise of each apart."""

    name = "project"
    version = 2
    reads = frozenset({"scene"})
    writes = "tilts"

    def plan(self, access: Access) -> Plan:
        """Make one block of each tilt; every worker holds the whole scene."""
        from cryoscale.simulate.tilts import detector_width, tilt_angles

        scene = Zyx.of(access.simulation().scene.shape)
        angles = tilt_angles(imaging_of(access.simulation()))
        width = detector_width(scene, angles)
        blocks = tuple(Grid.of((len(angles), scene.y, width), (1, scene.y, width)).blocks())
        whole = len(angles) * scene.y * width * 4
        needed = max(scene.voxels * 6, 2 * whole) + 24 * scene.y * width * 4 + SPARE_BYTES
        return Plan((blocks,), needed, 4 * whole)  # the parts and what is made of them

    def create(self, access: Access) -> None:
        """Remove parts of an earlier plan."""
        access.parts().delete()

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Read the scene."""
        from cryoscale.simulate.tilts import image_tilt, project, tilt_angles

        simulation = access.simulation()
        imaging, seed = imaging_of(simulation), noise_seed(access)
        size, angles = simulation.scene.voxel_size_angstrom, tilt_angles(imaging)
        signal_ZYX = access.scene("signal").read(0, Box.whole(simulation.scene.shape))
        parts = access.parts()

        def tilt(block: Block) -> BlockReport:
            index, (_, _, width) = block.core.start.z, block.core.shape
            angle = float(angles[index])
            projection_YU = project(signal_ZYX, angle, width=width)
            imaged = image_tilt(projection_YU, size, imaging, index=index, seed=seed)
            write_arrays(parts, _part(index), dict(zip(KINDS, imaged, strict=True)))
            return BlockReport(voxels=block.core.voxels)

        yield tilt

    def seal(self, access: Access) -> dict[str, Any]:
        """Join the tilts."""
        shape = Zyx.of(self.plan(access).phases[0][-1].core.stop)
        levels = [Level(shape, access.simulation().scene.voxel_size_angstrom)]
        for kind in KINDS:
            stack_TYU = np.empty(shape, np.float32)
            for index in range(shape.z):
                stack_TYU[index] = read_arrays(access.parts(), _part(index))[kind]
            pyramid = access.tilts(kind, write=True)
            pyramid.create(levels, np.float32, chunk=CHUNK, shard=SHARD, image=True)
            for box in Grid.of(shape, pyramid.write_unit(0)).boxes():
                pyramid.write(0, box, stack_TYU[box.slices])
        return {"tilts": shape.z, "width": shape.x}


def _part(index: int) -> str:
    return f"{index:04d}.safetensors"
