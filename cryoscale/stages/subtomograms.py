"""Subtomograms: boxes around drawn particles of a simulated tomogram, with mask, density and class."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import SimulateConfig, SubtomogramsConfig
from cryoscale.data.access import Access
from cryoscale.data.subtomograms import ROWS_PER_SHARD, Subtomograms
from cryoscale.data.truth import Truth
from cryoscale.errors import DataError
from cryoscale.geometry import Block, Box
from cryoscale.ops.patches import patch_box
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, chunked_rows
from cryoscale.stages.templates import open_templates, stamp_bytes

SPLITS = ("train", "validation", "test")


class SubtomogramsStage(BlockStage):
    """From a simulated tomogram and its truth to a training set in the manner of DSM-Net."""

    name = "subtomograms"
    reads = frozenset({"tomogram", "truth", "densities"})
    writes = "subtomograms"

    def plan(self, access: Access) -> Plan:
        """Cut the drawn rows into shards."""
        settings = _settings(access)
        voxels = settings.size_voxels**3
        count = len(drawn_rows(access.truth(), access.simulation(), access.tomogram))
        blocks = chunked_rows(count, ROWS_PER_SHARD)
        return Plan(
            (blocks,), ROWS_PER_SHARD * voxels * 24 + stamp_bytes(access) + 256 * 2**20, count * voxels * 9
        )

    def create(self, access: Access) -> None:
        """Make the empty arrays."""
        rows_N = drawn_rows(access.truth(), access.simulation(), access.tomogram)
        Subtomograms(access.output()).create(len(rows_N), _settings(access).size_voxels)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the tomogram and load the densities."""
        from cryoscale.simulate.painting import particle_alone, particle_mask
        from cryoscale.simulate.placed import Placed

        simulation, truth = access.simulation(), access.truth()
        size = _settings(access).size_voxels
        placed, stamps = Placed.from_truth(truth), open_templates(access)
        tomogram, target = access.open_tomogram(), Subtomograms(access.output())
        rows_N = drawn_rows(truth, simulation, access.tomogram)

        def cut(block: Block) -> BlockReport:
            first, stop = block.rows
            made: dict[str, list[npt.NDArray[Any]]] = {"data": [], "density": [], "mask": []}
            for row in rows_N[first:stop]:
                box = box_of(truth, simulation, int(row), size)
                made["data"].append(tomogram.read_canonical(0, box))
                made["density"].append(particle_alone(placed, stamps, int(row), box))
                made["mask"].append(particle_mask(placed, stamps, int(row), box))
            target.write(first, {name: np.stack(parts) for name, parts in made.items()})
            return BlockReport(voxels=(stop - first) * size**3)

        yield cut

    def seal(self, access: Access) -> dict[str, Any]:
        """Write the table: where each box is, what it holds, and which part of the split it belongs to."""
        truth, simulation = access.truth(), access.simulation()
        rows_N = drawn_rows(truth, simulation, access.tomogram)
        z, y, x = truth.positions_N3[rows_N].T
        split_N = split_of(len(rows_N), _settings(access).split, _seed(simulation, access.tomogram, 3))
        table = {
            "row": rows_N, "z": z, "y": y, "x": x, "class": truth.class_N[rows_N],
            "class_name": np.array(truth.class_names)[truth.class_N[rows_N]],
            **dict(zip(("qx", "qy", "qz", "qw"), truth.quaternion_N4[rows_N].T, strict=True)),
            "split": split_N,
        }  # fmt: skip
        Subtomograms(access.output()).publish(table)
        return {"subtomograms": len(rows_N), "empty": not len(rows_N)}


def _settings(access: Access) -> SubtomogramsConfig:
    settings = access.simulation().subtomograms
    assert settings is not None  # the step is there only if it is
    return settings


def _seed(simulation: SimulateConfig, tomogram: str, purpose: int) -> np.random.Generator:
    return np.random.default_rng([simulation.seed, simulation.number_of(tomogram), purpose])


def box_of(truth: Truth, simulation: SimulateConfig, row: int, size: int) -> Box:
    """Return the box of a particle: its centre's voxel in the middle."""
    centre = np.rint(truth.positions_N3[row] / simulation.scene.voxel_size_angstrom).astype(int)
    return patch_box(centre.tolist(), (size, size, size))


def drawn_rows(truth: Truth, simulation: SimulateConfig, tomogram: str) -> npt.NDArray[np.int64]:
    """Draw the particles of one tomogram whose boxes lie inside; the same seed draws the same.

    Raises
    ------
    DataError
        Fewer fit than are asked for.
    """
    settings = simulation.subtomograms
    assert settings is not None
    number, many = simulation.number_of(tomogram), simulation.tomograms
    asked = settings.count // many + (number <= settings.count % many)
    size, scene = settings.size_voxels, simulation.scene
    low = np.rint(truth.positions_N3 / scene.voxel_size_angstrom).astype(int) - size // 2
    inside = (low >= 0).all(axis=1) & (low + size <= scene.shape).all(axis=1)
    fitting = np.flatnonzero(inside)
    if len(fitting) < asked:
        raise DataError(
            f"'{tomogram}': {asked} subtomograms of {settings.size_voxels} voxels are asked for, but only "
            f"{len(fitting)} of {len(truth)} particles are so far from the faces.",
            remedy="Lower simulate.subtomograms.count or size_voxels, or place more particles.",
        )
    chosen = _seed(simulation, tomogram, 2).permutation(fitting)[:asked]
    return np.sort(chosen).astype(np.int64)


def split_of(
    count: int, shares: tuple[float, float, float], rng: np.random.Generator
) -> npt.NDArray[np.str_]:
    """Draw which part of the split each row belongs to; shares are rounded down, and the rest trains."""
    whole = sum(shares) or 1.0
    held = [int(count * share / whole) for share in shares[1:]]
    names = [SPLITS[0]] * (count - sum(held)) + [SPLITS[1]] * held[0] + [SPLITS[2]] * held[1]
    return np.array(names, dtype="<U10")[rng.permutation(count)]
