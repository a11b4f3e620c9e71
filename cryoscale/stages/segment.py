"""Segment: from a tomogram to a label volume, densely, or in the paper's way on patches of chosen clusters.

The prediction is made at the level at work; finer levels repeat it, coarser ones take the most
frequent value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.tomogram import LabelFacts
from cryoscale.geometry import Block, Box, Zyx
from cryoscale.ops.blend import Windows, weight_window
from cryoscale.ops.patches import patch_box
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, renumber
from cryoscale.stages.labelling import CHUNK, SHARD, coarser, finer, label_blocks
from cryoscale.stages.masks import OTSU_ROWS, class_level
from cryoscale.stages.networks import BATCH, open_decoder, open_segmenter
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.training import check_voxel_size

Labels = npt.NDArray[np.uint8]
Predict = Callable[[Box], Labels]


class SegmentStage(BlockStage):
    """From a tomogram (and, but for `dense`, its assignments) to `labels/<name>` with all levels."""

    name = "segment"
    version = 3
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
        core = max(block.core.voxels for block in phases[0])
        box = reader.box
        grown = max(b.core.grow(box).voxels for b in phases[0])
        n_classes = 1 + len(_classes(access)[0])
        channels = _channels(access, reader)
        needed = (n_classes + 3) * core * 4 + 2 * grown * 4 + BATCH * box.voxels * channels * 4 * 4
        needed += reader.bytes_per_gather() + 256 * 2**20
        if access.config.segment.mode == "decoded":
            needed += OTSU_ROWS * box.voxels * 12  # members whose histogram gives a level, then in float64
        return Plan(renumber(phases), needed, sum(level.shape.voxels for level in levels))

    def create(self, access: Access) -> None:
        """Make the empty arrays of all levels."""
        volume = access.label_volume(write=True)
        levels = access.open_tomogram().facts.levels
        volume.pyramid.create(levels, np.uint8, chunk=CHUNK, shard=SHARD, image=False)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Load the network once; open the tomogram and the label volume."""
        pyramid = access.label_volume(write=True).pyramid
        work = access.working_level()
        opener = {"dense": _open_dense, "picks": _open_picks, "decoded": _open_decoded}
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
def _open_dense(access: Access) -> Iterator[Predict]:
    """Predict every voxel: overlapping windows at fixed places, blended."""
    reader = PatchReader.for_access(access)
    asked = access.config.segment.overlap_voxels
    overlap = [side // 2 if asked is None else min(asked, side - 1) for side in reader.box]
    windows = Windows.of(reader.level.shape, reader.box, overlap)
    with open_segmenter(access) as engine:

        def predict(core: Box) -> Labels:
            starts = windows.starts_for(core)
            region = windows.read_box(core)
            density = reader.read(region)
            probabilities = windows.accumulate(
                core, starts, _window_probabilities(engine, density, region, windows, starts),
                engine.output_shape[0],
            )  # fmt: skip
            labels: Labels = probabilities.argmax(axis=0).astype(np.uint8)
            return labels

        yield predict


def _window_probabilities(
    engine: Any, density: npt.NDArray[np.float32], region: Box, windows: Windows, starts: list[Zyx]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the probabilities of each window, computed a batch at a time."""
    for first in range(0, len(starts), BATCH):
        batch = [
            density[windows.window(start).relative_to(region.start).slices]
            for start in starts[first : first + BATCH]
        ]
        yield from engine.run(np.stack(batch)[:, None])


@contextlib.contextmanager
def _open_picks(access: Access) -> Iterator[Predict]:
    """Predict patches of chosen clusters and embed them at their places, as the paper does."""
    reader = PatchReader.for_access(access)
    centres_N3, values_N, _ = _chosen(access, reader)
    by_cluster = access.config.segment.class_of == "cluster"
    with open_segmenter(access) as engine:
        n_classes = 1 + len(access.selection().classes) if by_cluster else engine.output_shape[0]

        def patches(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            probabilities = engine.run(reader.gather(centres_N3[rows])[:, None])
            if not by_cluster:
                return probabilities
            # The network says where the object is; what it is, the cluster of the pick knows better.
            votes = np.zeros((len(rows), n_classes, *reader.box), np.float32)
            votes[:, 0] = probabilities[:, 0]
            votes[np.arange(len(rows)), values_N[rows]] = 1 - probabilities[:, 0]
            return votes

        def predict(core: Box) -> Labels:
            votes = _embed(core, centres_N3, reader.box, n_classes, patches)
            return _object_first(votes) if by_cluster else votes.argmax(axis=0).astype(np.uint8)

        yield predict


@contextlib.contextmanager
def _open_decoded(access: Access) -> Iterator[Predict]:
    """Embed the decoded patches themselves, cut at a level, as in the paper's figure 4."""
    reader = PatchReader.for_access(access)
    centres_N3, values_N, rows_N = _chosen(access, reader)
    codes_NF = access.encodings().read()[rows_N]
    n_classes = 1 + len(access.selection().classes)
    with open_decoder(access) as engine:
        level_L = np.zeros(n_classes, np.float32)
        for value in np.unique(values_N):
            members = codes_NF[values_N == value]
            some = members[:: -(-len(members) // OTSU_ROWS)]
            level_L[value] = class_level(engine.run(some)[:, 0], access.config.segmenter.level)

        def patches(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            objects = engine.run(codes_NF[rows])[:, 0] < level_L[values_N[rows], None, None, None]
            votes = np.zeros((len(rows), n_classes, *reader.box), np.float32)
            votes[:, 0] = ~objects
            votes[np.arange(len(rows)), values_N[rows]] = objects
            return votes

        def predict(core: Box) -> Labels:
            return _object_first(_embed(core, centres_N3, reader.box, n_classes, patches))

        yield predict


def _chosen(
    access: Access, reader: PatchReader
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return centres, class values and rows of the picks whose cluster is chosen."""
    class_of = access.selection().class_of_cluster(int(access.clusters().card["n_clusters"]))
    values_N = class_of[access.assignments()[0]]
    rows = np.flatnonzero(values_N > 0)
    return reader.voxels(access.picks().positions_N3)[rows], values_N[rows], rows


def _embed(
    core: Box,
    centres_N3: npt.NDArray[np.int64],
    box: Zyx,
    n_classes: int,
    patches: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]],
) -> npt.NDArray[np.float32]:
    """Sum the weighted predictions of patches in the voxels of a core; 0 where no patch lies."""
    low = centres_N3 - np.array(box) // 2
    near = np.all((low < core.stop) & (low + np.array(box) > core.start), axis=1)
    rows = np.flatnonzero(near)
    total = np.zeros((n_classes, *core.shape), np.float32)
    weight = weight_window(box)
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        for row, predicted in zip(batch, patches(batch), strict=True):
            place = patch_box(centres_N3[row].tolist(), box)
            part = place.intersect(core)
            inner = part.relative_to(place.start).slices
            total[(slice(None), *part.relative_to(core.start).slices)] += (
                predicted[(slice(None), *inner)] * weight[inner]
            )
    return total


def _object_first(votes_LZYX: npt.NDArray[np.float32]) -> Labels:
    """Say object or background first, then which class; without votes it is background.

    Patches of two classes that overlap on one object share its votes. Each class alone may have fewer than
    background although nobody doubts that there is an object.
    """
    objects = votes_LZYX[1:].sum(axis=0) > votes_LZYX[0]
    labels: Labels = votes_LZYX[1:].argmax(axis=0).astype(np.uint8)
    labels += 1
    labels *= objects
    return labels
