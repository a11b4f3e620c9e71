"""Encode: from picks to encodings, a fixed range of rows at a time; patches live between gather and model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.rows import ROWS_PER_BLOCK
from cryoscale.geometry import Block
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, chunked_rows
from cryoscale.stages.networks import encoding_width, invariants_bytes, network_bytes, open_encoder
from cryoscale.stages.patching import PatchReader, one_ahead
from cryoscale.stages.training import check_voxel_size

ROWS_AT_A_TIME = 512  # patches gathered while so many others are encoded; a multiple of the batch


class EncodeStage(BlockStage):
    """From picks to one vector each."""

    name = "encode"
    version = 2
    engine = "model"
    reads = frozenset({"tomogram", "picks", "encoder"})
    writes = "encodings"

    def plan(self, access: Access) -> Plan:
        """Blocks of 4096 rows, one shard of the encodings each."""
        rows = access.pick_count()
        reader = PatchReader.for_access(access)
        patches = ROWS_AT_A_TIME * reader.box.voxels * 4
        card = access.model("encoder").card  # not the configuration: the weights may be given ones
        check_voxel_size(card, reader.level.voxel_size_angstrom, "the encoder", f"'{access.tomogram}'")
        architecture = card["architecture"]
        activations = network_bytes(access, reader.box.voxels, int(architecture["channels"]))
        needed = reader.bytes_per_gather() + 2 * patches + activations + 256 * 2**20
        needed += invariants_bytes(card, reader.box)
        disk = rows * encoding_width(card) * 4
        return Plan((chunked_rows(rows, ROWS_PER_BLOCK),), needed, disk)

    def create(self, access: Access) -> None:
        """Make the empty array."""
        width = encoding_width(access.model("encoder").card)
        access.encodings().create(access.pick_count(), width)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Load the encoder once; open the tomogram and the picks."""
        reader = PatchReader.for_access(access)
        centres_N3 = reader.voxels(access.picks().positions_N3)
        encodings = access.encodings()
        buffers = [np.empty((ROWS_AT_A_TIME, *reader.box), np.float32) for _ in range(2)]

        def gather(job: tuple[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
            number, some_N3 = job
            return reader.gather(some_N3, out=buffers[number % 2][: len(some_N3)])

        with open_encoder(access) as engine, ThreadPoolExecutor(1) as pool:

            def encode(block: Block) -> BlockReport:
                first, last = block.rows
                parts = [
                    centres_N3[start : min(start + ROWS_AT_A_TIME, last)]
                    for start in range(first, last, ROWS_AT_A_TIME)
                ]
                with contextlib.closing(one_ahead(pool, gather, enumerate(parts))) as gathered:
                    encoded = [engine.run(patches_NZYX[:, None]) for patches_NZYX in gathered]
                encodings.write(first, np.concatenate(encoded))
                return BlockReport(voxels=(last - first) * reader.box.voxels)

            yield encode

    def seal(self, access: Access) -> dict[str, Any]:
        """Count the rows."""
        rows, dimension = access.encodings().shape
        return {"rows": rows, "dimension": dimension, "empty": rows == 0}
