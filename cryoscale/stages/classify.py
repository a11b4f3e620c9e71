"""Classify: from picks to what a network says each of them is, a fixed range of rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.arrays import read_arrays, write_arrays
from cryoscale.data.classes import write_classes
from cryoscale.data.rows import ROWS_PER_BLOCK
from cryoscale.errors import ConfigurationError, DataError
from cryoscale.geometry import Block
from cryoscale.stages.applying import Applied, applied, check_boxes
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, chunked_rows
from cryoscale.stages.networks import applied_bytes, batch_for, open_network
from cryoscale.stages.patching import one_ahead

if TYPE_CHECKING:
    from torch import nn

ROWS_AT_A_TIME = 512  # boxes gathered while so many others are classified; a multiple of the batch
SHARES = "shares_NK"


class ClassifyStage(BlockStage):
    """From picks to a class each, with the probability of every class."""

    name = "classify"
    version = 1
    engine = "model"
    reads = frozenset({"tomogram", "picks", "segmenter"})
    writes = "classes"

    def plan(self, access: Access) -> Plan:
        """Blocks of 4096 rows, one part each."""
        model = classifier(access)
        rows, reader = access.pick_count(), model.reader(access)
        voxels, kinds = reader.box.voxels, len(particle_names(model))
        network = applied_bytes(access, voxels, model.width, model.maps, batch_for(voxels))
        table = 4 * rows * (3 * kinds + 40)
        needed = reader.bytes_per_gather() + 2 * 4 * ROWS_AT_A_TIME * voxels + network + table
        needed += model.loading_bytes + 256 * 2**20
        return Plan((chunked_rows(rows, ROWS_PER_BLOCK),), needed, rows * (4 * kinds + 12))

    def create(self, access: Access) -> None:
        """Remove parts and table of an earlier plan."""
        access.parts().delete()
        access.output().delete(f"{access.tomogram}.parquet")

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Load the network once; open the tomogram and the picks."""
        model, parts = classifier(access), access.parts()
        reader = model.reader(access)
        centres_N3 = reader.voxels(access.picks().positions_N3)
        buffers = [np.empty((ROWS_AT_A_TIME, *reader.box), np.float32) for _ in range(2)]

        def gather(job: tuple[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
            number, some_N3 = job
            return reader.gather(some_N3, out=buffers[number % 2][: len(some_N3)])

        batch = batch_for(reader.box.voxels)
        kind = f"classes{'+each' * model.each_box}"
        with (
            open_network(access, kind, (1, *reader.box), _class_shares(model), batch) as engine,
            ThreadPoolExecutor(1) as pool,
        ):

            def classify(block: Block) -> BlockReport:
                first, last = block.rows
                jobs = [
                    centres_N3[start : min(start + ROWS_AT_A_TIME, last)]
                    for start in range(first, last, ROWS_AT_A_TIME)
                ]
                with contextlib.closing(one_ahead(pool, gather, enumerate(jobs))) as gathered:
                    shares_NK = np.concatenate([engine.run(boxes_NZYX[:, None]) for boxes_NZYX in gathered])
                if not np.isfinite(shares_NK).all():
                    raise DataError(f"what the network says of rows {first} to {last} is not finite.")
                write_arrays(parts, _part(block), {SHARES: shares_NK})
                return BlockReport(voxels=(last - first) * reader.box.voxels)

            yield classify

    def seal(self, access: Access) -> dict[str, Any]:
        """Join the parts, in the order of the picks."""
        names = particle_names(classifier(access))
        parts = access.parts()
        blocks = chunked_rows(access.pick_count(), ROWS_PER_BLOCK)
        found = [read_arrays(parts, _part(block))[SHARES] for block in blocks]
        shares_NK = np.concatenate([np.empty((0, len(names)), np.float32), *found])
        ids_N = write_classes(access.output(), access.tomogram, names, shares_NK)
        counts = {name: int(np.sum(ids_N == number)) for number, name in enumerate(names)}
        return {"rows": len(ids_N), "by_class": counts, "empty": len(ids_N) == 0}


def classifier(access: Access) -> Applied:
    """Read the card of a network that says of which class a box is.

    Raises
    ------
    ConfigurationError
        The run's network does not, or its boxes are larger than the picks leave room for.
    """
    model = applied(access)
    if "cls" not in model.facts.heads:
        raise ConfigurationError(
            f"{model.card['architecture']['name']} does not say of which class a box is.",
            remedy="Take dsm-net or dsrf3d-v2.",
        )
    check_boxes(access, model)
    return model


def particle_names(model: Applied) -> tuple[str, ...]:
    """Return the names of the classes 0, 1, … of boxes."""
    return tuple(model.card["particles"]["names"])


def _class_shares(model: Applied) -> Callable[[nn.Module], nn.Module]:
    def wrap(module: nn.Module) -> nn.Module:
        from cryoscale.inference.wrappers import HeadOf, SoftmaxOf

        return model.scaled(SoftmaxOf(HeadOf(module, "cls")))

    return wrap


def _part(block: Block) -> str:
    return f"{block.index:08d}.safetensors"
