"""Segment: from a tomogram to a label volume, densely, or in the paper's way on patches of chosen clusters.

The prediction is made at the level at work; finer levels repeat it, coarser ones take the most
frequent value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.tomogram import LabelFacts
from cryoscale.data.volumes import drop_companions
from cryoscale.geometry import Block, Box
from cryoscale.ops.blend import most_likely, weight_window
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, renumber
from cryoscale.stages.dense import Labels, Predict, dense_bytes, open_dense
from cryoscale.stages.embedding import embedded, object_first
from cryoscale.stages.labelling import CHUNK, SHARD, coarser, finer, label_blocks
from cryoscale.stages.masks import OTSU_ROWS, class_level
from cryoscale.stages.networks import BATCH, network_bytes, open_decoder, open_segmenter
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.training import check_voxel_size


class SegmentStage(BlockStage):
    """From a tomogram (and, but for `dense`, its assignments) to `labels/<name>` with all levels."""

    name = "segment"
    version = 4
    engine = "model"
    reads = frozenset(
        {"tomogram", "picks", "encodings", "encoder", "clusters", "assignments", "selection", "segmenter"}
    )
    writes = "labels"

    def plan(self, access: Access) -> Plan:
        """Plan the level at work first, then each level from its neighbour towards it."""
        levels = access.open_tomogram().facts.levels
        work = access.working_level()
        edge = access.config.execution.block_voxels
        order = [work, *range(work + 1, len(levels)), *range(work - 1, -1, -1)]
        phases = [label_blocks(levels, number, edge) for number in order]
        reader = PatchReader.for_access(access)
        largest = max((block.core for block in phases[0]), key=lambda core: core.voxels)
        n_classes, channels = 1 + len(_classes(access)[0]), _channels(access, reader)
        if access.config.segment.mode == "dense":
            needed = dense_bytes(access, reader, largest, channels, n_classes)
        else:
            needed = (n_classes + 3) * largest.voxels * 4 + reader.bytes_per_gather()
            needed += network_bytes(access, reader.box.voxels, channels)
        needed += 256 * 2**20
        if access.config.segment.mode == "decoded":
            needed += OTSU_ROWS * reader.box.voxels * 12  # members whose histogram gives a level, in float64
        return Plan(renumber(phases), needed, sum(level.shape.voxels for level in levels))

    def create(self, access: Access) -> None:
        """Make the empty arrays of all levels; what a supervised network left beside them goes."""
        volume = access.label_volume(write=True)
        drop_companions(access.run.tomogram(access.tomogram), volume.name)
        levels = access.open_tomogram().facts.levels
        volume.pyramid.create(levels, np.uint8, chunk=CHUNK, shard=SHARD, image=False)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Load the network once; open the tomogram and the label volume."""
        pyramid = access.label_volume(write=True).pyramid
        work = access.working_level()
        opener = {"dense": open_dense, "picks": _open_picks, "decoded": _open_decoded}
        with opener[access.config.segment.mode](access) as predict:

            def segment(block: Block) -> BlockReport:
                if block.level == work:
                    labels = predict(block.core)
                elif block.level > work:
                    labels = coarser(pyramid, block)
                else:
                    labels = finer(pyramid, block)
                if labels.any():
                    pyramid.write(block.level, block.core, labels)
                    return BlockReport(voxels=block.core.voxels)
                pyramid.delete_shards(block.level, block.core)
                return BlockReport(empty=True, voxels=block.core.voxels)

            yield segment

    def seal(self, access: Access) -> dict[str, Any]:
        """Publish names, colours and levels; list the volume among the tomogram's labels."""
        names, colors = _classes(access)
        volume = access.label_volume(write=True)
        facts = LabelFacts(
            name=access.config.segment.labels,
            levels=access.open_tomogram().facts.levels,
            class_names=tuple(names),
            colors=tuple(colors),
            key=access.key,
            working_level=access.working_level(),
            notes={"mode": access.config.segment.mode, "upstream": dict(access.upstream)},
        )
        volume.publish(facts)
        return {"classes": list(names), "mode": access.config.segment.mode}


def _channels(access: Access, reader: PatchReader) -> int:
    """Return the width of the network that is used, after checking that it was made for this voxel size."""
    name = "encoder" if access.config.segment.mode == "decoded" else "segmenter"
    card = access.model(name).card  # not the configuration: the weights may be given ones
    check_voxel_size(card, reader.level.voxel_size_angstrom, f"the {name}", f"'{access.tomogram}'")
    return int(card["architecture"]["channels"])


def _classes(access: Access) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Return names and colours: of the segmenter, or of the selection where clusters say the class."""
    config = access.config.segment
    if config.mode == "decoded" or (config.mode == "picks" and config.class_of == "cluster"):
        selection = access.selection()
        return list(selection.class_names), list(selection.colors)
    card = access.model("segmenter").card
    return list(card["classes"]["names"]), [(c[0], c[1], c[2]) for c in card["classes"]["colors"]]


@contextlib.contextmanager
def _open_picks(access: Access) -> Iterator[Predict]:
    """Predict patches of chosen clusters and embed them at their places, as the paper does."""
    reader = PatchReader.for_access(access)
    centres_N3, values_N, _ = _chosen(access, reader)
    by_cluster = access.config.segment.class_of == "cluster"
    weight_ZYX = weight_window(reader.box)
    with open_segmenter(access, "background" if by_cluster else "weighted") as engine:
        n_classes = 1 + len(access.selection().classes) if by_cluster else engine.output_shape[0]

        def patches(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            return engine.run(reader.gather(centres_N3[rows])[:, None])

        def predict(core: Box) -> Labels:
            votes = np.zeros((n_classes, *core.shape), np.float32)
            for row, weighted, here, inner in embedded(core, centres_N3, reader.box, patches, BATCH):
                if by_cluster:
                    # The network says where the object is; what it is, the cluster of the pick knows better.
                    votes[(0, *here)] += weighted[(0, *inner)]
                    votes[(values_N[row], *here)] += weight_ZYX[inner] - weighted[(0, *inner)]
                else:
                    votes[(slice(None), *here)] += weighted[(slice(None), *inner)]
            return object_first(votes) if by_cluster else most_likely(votes)

        yield predict


@contextlib.contextmanager
def _open_decoded(access: Access) -> Iterator[Predict]:
    """Embed the decoded patches themselves, cut at a level, as in the paper's figure 4."""
    reader = PatchReader.for_access(access)
    centres_N3, values_N, rows_N = _chosen(access, reader)
    codes_NF = access.encodings().read()[rows_N]
    n_classes = 1 + len(access.selection().classes)
    weight_ZYX = weight_window(reader.box)
    with open_decoder(access) as engine:
        level_L = np.zeros(n_classes, np.float32)
        for value in np.unique(values_N):
            members = codes_NF[values_N == value]
            some = members[:: -(-len(members) // OTSU_ROWS)]
            level_L[value] = class_level(engine.run(some)[:, 0], access.config.segmenter.level)

        def patches(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            return engine.run(codes_NF[rows])

        def predict(core: Box) -> Labels:
            votes = np.zeros((n_classes, *core.shape), np.float32)
            for row, decoded, here, inner in embedded(core, centres_N3, reader.box, patches, BATCH):
                value = values_N[row]
                objects = weight_ZYX[inner] * (decoded[(0, *inner)] < level_L[value])
                votes[(0, *here)] += weight_ZYX[inner] - objects
                votes[(value, *here)] += objects
            return object_first(votes)

        yield predict


def _chosen(
    access: Access, reader: PatchReader
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return centres, class values and rows of the picks whose cluster is chosen."""
    class_of = access.selection().class_of_cluster(int(access.clusters().card["n_clusters"]))
    values_N = class_of[access.assignments()[0]]
    rows = np.flatnonzero(values_N > 0)
    return reader.voxels(access.picks().positions_N3)[rows], values_N[rows], rows
