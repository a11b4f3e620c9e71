"""The blocks of a prediction, and a bound for the memory that one takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.pyramid import Level
from cryoscale.data.rows import PICK_TILE_VOXELS
from cryoscale.geometry import Block, Box, Grid, Zyx, fast_length, round_up
from cryoscale.ops.gaussian import halo_voxels
from cryoscale.stages.applying import Applied, in_tiles, tiles_of, windows_of
from cryoscale.stages.faces import slice_filter_halo
from cryoscale.stages.labelling import CHUNK, SHARD, label_blocks
from cryoscale.stages.networks import applied_bytes, batch_for
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.predicting import PICK_PLANES, PLANES, at_a_time

LIBRARIES = 256 * 2**20  # what torch and OpenVINO take once they run
SLICE_EDGE = 1024  # voxels of a block across the slices at least: tiles at its faces are computed twice
SLICE_EDGE_WITH_VOTES = 512


def blocks_of(access: Access, model: Applied, levels: tuple[Level, ...], number: int) -> list[Block]:
    """Cut a level of the label volumes into blocks: unions of shards.

    Blocks of slices are wider across them than deep: half of a tile's overlap lies in the next block.
    """
    edge = access.config.execution.block_voxels
    if not model.in_slices or number != access.working_level():
        return label_blocks(levels, number, edge)
    least = SLICE_EDGE_WITH_VOTES if access.config.segment.probabilities else SLICE_EDGE
    shape = levels[number].shape
    cell = []
    for axis, n in enumerate(shape):
        wanted = edge if axis == model.axis else max(edge, least)
        cell.append(round_up(min(wanted, n), min(SHARD, round_up(n, min(CHUNK, n)))))
    return list(Grid.of(shape, cell).blocks(level=number))


def apply_bytes(access: Access, model: Applied, phases: Sequence[Sequence[Block]]) -> int:
    """Bound what a worker takes: the volumes of a block, what is read, and the network at work."""
    core = max((block.core for block in phases[0]), key=lambda core: core.voxels)
    others = max((block.core.voxels for phase in phases[1:] for block in phase), default=0)
    reader, config = model.reader(access), access.config.segment
    written = core.voxels * (2 + 2 * len(model.names) * config.probabilities + 4 * config.densities)
    channels = model.n_classes + config.densities
    if config.mode == "picks":
        predicting = _picks_bytes(access, model, core, channels)
    elif model.in_slices:
        predicting = _slices_bytes(access, model, reader, core)
    elif in_tiles(access, model):
        predicting = _tiles_bytes(model, reader, core, channels)
    else:
        predicting = _windows_bytes(access, model, reader, core, channels)
    return LIBRARIES + model.loading_bytes + max(written + predicting, 24 * others)


def _picks_bytes(access: Access, model: Applied, core: Box, channels: int) -> int:
    box, reader = Zyx.of(model.patch.box), model.reader(access)
    votes = channels * min(PICK_PLANES, core.shape.z) * core.shape.y * core.shape.x
    batch = batch_for(box.voxels)
    rows = 100 * access.pick_count()
    items = 2 * batch * box.voxels * (2 + channels)
    network = applied_bytes(access, box.voxels, model.width, model.maps, batch)
    return 4 * (votes + votes // channels + items) + rows + reader.bytes_per_gather() + network


def _windows_bytes(access: Access, model: Applied, reader: PatchReader, core: Box, channels: int) -> int:
    windows = windows_of(access, model, reader.level.shape)
    size = windows.size
    slab = 2 * channels * min(size.z, core.shape.z) * core.shape.y * core.shape.x
    batch = batch_for(size.voxels)
    items = 2 * at_a_time(batch) * size.voxels * (2 + channels)
    network = applied_bytes(access, size.voxels, model.width, model.maps, batch)
    return 4 * (slab + items) + _reading_bytes(reader, core.grow(size)) + network


def _slices_bytes(access: Access, model: Applied, reader: PatchReader, core: Box) -> int:
    windows = windows_of(access, model, reader.level.shape)
    edge = slice_filter_halo(model)
    sides = (1 + 2 * model.neighbours, windows.size.y + 2 * edge, windows.size.x + 2 * edge)
    voxels = sides[0] * sides[1] * sides[2]
    growth = [0, 0, 0]
    for axis, side in zip(model.order, (model.neighbours, *sides[1:]), strict=True):
        growth[axis] = side
    stop = list(core.stop)
    stop[model.axis] = core.start[model.axis] + min(PLANES, core.shape[model.axis])
    batch = batch_for(voxels)
    plane = windows.size.y * windows.size.x
    sums = 4 * model.n_classes * core.shape.voxels // core.shape[model.axis]
    items = 2 * at_a_time(batch) * (2 * voxels + 2 * model.n_classes * plane)
    network = applied_bytes(access, sides[1] * sides[2], model.width, model.maps, batch)
    return 4 * (sums + items) + _reading_bytes(reader, Box.of(core.start, stop).grow(growth)) + network


def _tiles_bytes(model: Applied, reader: PatchReader, core: Box, channels: int) -> int:
    tiles = tiles_of(model, reader.level.shape)
    window, halo = tiles.size.voxels, halo_voxels(reader.sigma)
    smoothing = 6 * int(np.prod([fast_length(n + 2 * halo) for n in tiles.size], dtype=np.int64))
    grown = core.grow(tiles.margin + halo).intersect(Box.whole(reader.level.shape)).voxels
    return 4 * (2 * grown + smoothing + window * (model.maps * model.width + 3 * channels + 4))


def _reading_bytes(reader: PatchReader, region: Box) -> int:
    """Bound what reading a box takes: itself, the tiles it is smoothed from, and the filter at work."""
    shape, halo = reader.level.shape, halo_voxels(reader.sigma)
    inside = region.intersect(Box.whole(shape))
    if not reader.sigma:
        return 4 * 2 * inside.voxels
    unit = PICK_TILE_VOXELS  # smoothing runs on these tiles
    start = [a // unit * unit - halo for a in inside.start]
    stop = [round_up(b, unit) + halo for b in inside.stop]
    source = Box.of(start, stop).intersect(Box.whole(shape)).voxels
    return 4 * (2 * inside.voxels + source) + reader.bytes_per_gather()
