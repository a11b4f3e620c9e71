"""The levels of a label volume: from one level to the next, up or down."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cryoscale.data.pyramid import Level, Pyramid
from cryoscale.geometry import Block, Box, Grid, Zyx, round_up

Labels = npt.NDArray[np.uint8]
CHUNK, SHARD = 64, 256  # voxels; labels compress to almost nothing


def label_blocks(levels: tuple[Level, ...], number: int, edge: int) -> list[Block]:
    """Cut a level of a label volume into blocks: unions of shards."""
    shape = levels[number].shape
    unit = [min(SHARD, round_up(n, min(CHUNK, n))) for n in shape]
    cell = Zyx(*(round_up(min(edge, n), u) for n, u in zip(shape, unit, strict=True)))
    return list(Grid.of(shape, cell).blocks(level=number))


def coarser(pyramid: Pyramid, block: Block) -> Labels:
    """Take the most frequent label of 2x2x2 voxels of the level below; the smaller value on a tie."""
    below = block.level - 1
    fine = Box.of([2 * n for n in block.core.start], [2 * n for n in block.core.stop])
    labels = pyramid.read(below, fine.intersect(Box.whole(pyramid.shape(below))))
    pads = [(0, 2 * n - m) for n, m in zip(block.core.shape, labels.shape, strict=True)]
    labels = np.pad(labels, pads, mode="edge")
    eight = [labels[z::2, y::2, x::2] for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    best = np.zeros(block.core.shape, np.uint8)
    most = np.zeros(block.core.shape, np.uint8)
    for value in np.unique(labels):
        count = sum((part == value).astype(np.uint8) for part in eight)
        better = count > most
        best[better] = value
        most = np.maximum(most, count)
    return best


def finer(pyramid: Pyramid, block: Block) -> Labels:
    """Repeat each label of the level above for its 2x2x2 voxels."""
    above = Box.of([n // 2 for n in block.core.start], [-(-n // 2) for n in block.core.stop])
    labels = pyramid.read(block.level + 1, above)
    for axis in range(3):
        labels = np.repeat(labels, 2, axis=axis)
    offset = [n % 2 for n in block.core.start]
    return np.ascontiguousarray(labels[Box.whole(block.core.shape).shift(offset).slices])
