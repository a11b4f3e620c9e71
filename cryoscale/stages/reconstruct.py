"""Reconstruct: from a tilt series to a tomogram by weighted back-projection, rows of y apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.arrays import read_arrays, read_some, write_arrays
from cryoscale.geometry import Block, Box, Grid, Zyx
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan
from cryoscale.stages.imaging import KINDS, SPARE_BYTES, Measured, imaging_of, write_facts

if TYPE_CHECKING:
    from cryoscale.simulate.backprojection import Mixture

ROWS = 64  # of y in a block: as many as are back-projected at once
FINE = 24  # bytes: of float32, a pixel's four fine samples, its filtered row and its transform


class ReconstructStage(BlockStage):
    """From imaged tilts to `simulated/<tomogram>.mrc`, and the noisy tilts as `<tomogram>_tilts.mrc`."""

    name = "reconstruct"
    reads = frozenset({"tilts"})
    writes = "simulated"

    def plan(self, access: Access) -> Plan:
        """Cut the tomogram into rows of y."""
        from cryoscale.simulate.tilts import detector_width, tilt_angles

        shape = Zyx.of(access.simulation().scene.shape)
        angles = tilt_angles(imaging_of(access.simulation()))
        tilts = Zyx(len(angles), shape.y, detector_width(shape, angles))
        blocks = tuple(Grid.of(shape, (shape.z, ROWS, shape.x)).blocks())
        rows = blocks[0].core.voxels
        needed = 3 * rows * 4 + tilts.z * ROWS * tilts.x * (8 + FINE) + tilts.z * shape.x * 64
        sealing = shape.voxels * 4 + 4 * rows * 4 + 2 * tilts.voxels * 4
        return Plan((blocks,), max(needed, sealing) + SPARE_BYTES, 3 * shape.voxels * 4 + tilts.voxels * 4)

    def create(self, access: Access) -> None:
        """Remove parts of an earlier plan."""
        access.parts().delete()

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the tilts."""
        from cryoscale.simulate.backprojection import backproject, row_sums
        from cryoscale.simulate.tilts import tilt_angles

        angles = tilt_angles(imaging_of(access.simulation()))
        tilts = {kind: access.tilts(kind) for kind in KINDS}
        stack = tilts["signal"].shape(0)
        parts = access.parts()

        def rows(block: Block) -> BlockReport:
            start, stop = block.core.start.y, block.core.stop.y
            seen = Box.of((0, start, 0), (stack.z, stop, stack.x))
            made: dict[str, npt.NDArray[Any]] = {}
            for kind in KINDS:
                volume_ZYX = backproject(
                    tilts[kind].read(0, seen), angles, block.core.shape.z, width_x=block.core.shape.x
                )
                made |= {kind: volume_ZYX, f"{kind}_sums": row_sums(volume_ZYX)}
            write_arrays(parts, _part(block), made)
            return BlockReport(voxels=block.core.voxels)

        yield rows

    def seal(self, access: Access) -> dict[str, Any]:
        """Add signal and noise at the wanted ratio, and write the tomogram and its tilt series."""
        from cryoscale.formats.mrc import write_mrc
        from cryoscale.simulate.backprojection import mixture

        simulation = access.simulation()
        blocks, parts = self.plan(access).phases[0], access.parts()
        sums = [read_some(parts, _part(block), [f"{kind}_sums" for kind in KINDS]) for block in blocks]
        shape = Zyx.of(simulation.scene.shape)
        mixed = mixture(
            np.concatenate([s["signal_sums"] for s in sums]), np.concatenate([s["noise_sums"] for s in sums]),
            shape.voxels, simulation.imaging.snr,
        )  # fmt: skip
        volume_ZYX, measured = np.empty(shape, np.float32), Measured()
        for block in blocks:
            part = read_arrays(parts, _part(block))
            volume_ZYX[block.core.slices] = mixed.apply(part["signal"], part["noise"])
            measured.add(part["signal"], volume_ZYX[block.core.slices])
        folder, size = access.output(), simulation.scene.voxel_size_angstrom
        Path(folder.path()).mkdir(parents=True, exist_ok=True)
        write_mrc(folder.path(f"{access.tomogram}.mrc"), volume_ZYX, size)
        del volume_ZYX
        write_mrc(folder.path(f"{access.tomogram}_tilts.mrc"), _series(access, mixed), size)
        _write_angles(access)
        return write_facts(access, measured.snr)


def _part(block: Block) -> str:
    return f"{block.index:04d}.safetensors"


def _series(access: Access, mixed: Mixture) -> npt.NDArray[np.float32]:
    """Add signal and noise of the tilts as they were added in the tomogram: back-projection is linear."""
    stacks = [access.tilts(kind).read(0, Box.whole(access.tilts(kind).shape(0))) for kind in KINDS]
    for stack_TYU, factor in zip(stacks, (mixed.signal_factor, mixed.noise_factor), strict=True):
        stack_TYU *= np.float32(factor)
    stacks[0] += stacks[1]
    series: npt.NDArray[np.float32] = stacks[0]
    return series


def _write_angles(access: Access) -> None:
    """Write the tilt angles as IMOD's `.rawtlt`: one a line, degrees."""
    from cryoscale.simulate.tilts import tilt_angles

    angles = tilt_angles(imaging_of(access.simulation()))
    text = "".join(f"{angle:.2f}\n" for angle in angles)
    access.output().write_bytes(f"{access.tomogram}_tilts.rawtlt", text.encode())
