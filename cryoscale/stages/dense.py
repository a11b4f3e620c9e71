"""Labels for every voxel: by tiles seen with a margin, or by blended windows of the patch box.

Either way windows stand at fixed places of the tomogram, so blocks do not change a label.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.errors import DataError
from cryoscale.geometry import Box, Zyx, fast_length
from cryoscale.ops.blend import Windows
from cryoscale.ops.cells import Cells
from cryoscale.ops.gaussian import filter_tile, halo_voxels
from cryoscale.ops.tiles import reflected
from cryoscale.stages.labelling import SHARD
from cryoscale.stages.networks import BATCH, open_labeller, open_segmenter
from cryoscale.stages.patching import PatchReader

if TYPE_CHECKING:
    from cryoscale.stages.networks import Network

Labels = npt.NDArray[np.uint8]
Predict = Callable[[Box], Labels]
TILE, MARGIN = 128, 8  # voxels; docs/design/010-segmentation.md
LEAST_BOX = 32  # voxels; a network trained on smaller patches has hardly seen a voxel far from their faces
ALIGNMENT = 4  # of windows: two poolings


def tiles_for(shape: Zyx, box: Zyx) -> Cells:
    """Return the tiles of a tomogram; thinner than the box, it is reflected to fill the box."""
    return Cells.fitted(shape, largest=TILE, margin=MARGIN, unit=SHARD, alignment=ALIGNMENT, least=box)


def windows_for(access: Access, shape: Zyx, box: Zyx) -> Windows:
    """Return the overlapping windows of the patch box."""
    asked = access.config.segment.overlap_voxels
    return Windows.of(shape, box, [side // 2 if asked is None else min(asked, side - 1) for side in box])


def in_tiles(access: Access) -> bool:
    """Tell whether tiles are labelled, or windows of the box blended."""
    asked = access.config.segment.windows
    return min(access.config.patch.box) >= LEAST_BOX if asked is None else asked == "tiles"


@contextlib.contextmanager
def open_dense(access: Access) -> Iterator[Predict]:
    """Open what labels any box of the level at work."""
    reader = PatchReader.for_access(access)
    opener = _open_tiles if in_tiles(access) else _open_windows
    with opener(access, reader) as predict:
        yield predict


@contextlib.contextmanager
def _open_tiles(access: Access, reader: PatchReader) -> Iterator[Predict]:
    """Label tile by tile: each voxel from the one window that holds it in its middle."""
    tiles = tiles_for(reader.level.shape, reader.box)
    density = WindowReader(reader, tiles.size)
    with open_labeller(access, tiles.size) as engine:

        def predict(core: Box) -> Labels:
            pairs = list(tiles.overlapping(core))
            labels = np.empty(core.shape, np.uint8)
            density.load(pairs[0][1], pairs[-1][1])
            for cell, window in pairs:
                found = engine.run(density.window(window)[None, None])[0, 0]
                if not np.isfinite(found.sum(dtype=np.float64)):
                    raise DataError(f"the prediction for the window at {tuple(window.start)} is not finite.")
                kept = cell.intersect(core)
                labels[kept.relative_to(core.start).slices] = found[kept.relative_to(window.start).slices]
            return labels

        yield predict


@contextlib.contextmanager
def _open_windows(access: Access, reader: PatchReader) -> Iterator[Predict]:
    """Blend overlapping windows of the patch box."""
    windows = windows_for(access, reader.level.shape, reader.box)
    with open_segmenter(access, "weighted") as engine:

        def predict(core: Box) -> Labels:
            starts, region = windows.starts_for(core), windows.read_box(core)
            density = reader.read(region)
            weighted = _weighted(engine, density, region, windows, starts)
            return windows.labels(core, starts, weighted, engine.output_shape[0])

        yield predict


def _weighted(
    engine: Network, density: npt.NDArray[np.float32], region: Box, windows: Windows, starts: list[Zyx]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the weighted probabilities of each window, computed a batch at a time."""
    items = np.empty((BATCH, 1, *windows.size), np.float32)
    for first in range(0, len(starts), BATCH):
        batch = starts[first : first + BATCH]
        for item, start in zip(items, batch, strict=False):
            reflected(density, region, windows.window(start), windows.shape, out=item[0])
        yield from engine.run(items[: len(batch)])


class WindowReader:
    """Density of one window after another as the network sees it, smoothed window by window.

    `PatchReader.read` smooths whole tiles of its own: for a window that reaches a little into its neighbours
    that would be many times as much work.

    Parameters
    ----------
    reader : PatchReader
        Of the tomogram.
    size : Zyx
        Extent of every window, voxels.
    """

    def __init__(self, reader: PatchReader, size: Zyx) -> None:
        self.reader, self.size = reader, size
        self.halo = halo_voxels(reader.sigma) if reader.sigma else 0
        self.buffer = np.zeros([fast_length(n + 2 * self.halo) for n in size], np.float32)
        self.source, self.read = np.empty((0, 0, 0), np.float32), Box.whole((0, 0, 0))

    def load(self, first: Box, last: Box) -> None:
        """Read what all windows between two corners need."""
        box = self._needed(Box(first.start, last.stop))
        self.source, self.read = self.reader.tomogram.read_canonical(self.reader.number, box), box

    def _needed(self, box: Box) -> Box:
        return box.grow(self.halo).intersect(Box.whole(self.reader.level.shape))

    def window(self, window: Box) -> npt.NDArray[np.float32]:
        """Return the voxels of a window, smoothed and scaled; reflected where it leaves the volume."""
        wanted = window.grow(self.halo)
        part = self.buffer[tuple(slice(0, n) for n in wanted.shape)]  # beyond it the buffer holds zeros
        reflected(self.source, self.read, wanted, self.reader.level.shape, out=part)
        if not self.halo:
            return part
        keep = window.relative_to(wanted.start).slices
        mean, sd = self.reader.statistics
        density = filter_tile(self.buffer, [(1.0, self.reader.sigma)], keep)
        density -= np.float32(mean)
        density *= np.float32(1.0 / sd)
        return density


def dense_bytes(access: Access, reader: PatchReader, core: Box, channels: int, n_classes: int) -> int:
    """Bound what labelling a core takes: density, sums or labels, and the network at work.

    The network holds two arrays of all channels at full resolution, and less than one more of them at the
    resolutions below.
    """
    if in_tiles(access):
        tiles = tiles_for(reader.level.shape, reader.box)
        grown = core.grow(MARGIN + 6 * int(np.ceil(reader.sigma))).voxels
        window = tiles.size.voxels
        smoothing = (
            6 * 4 * int(np.prod([fast_length(n + 12 * int(np.ceil(reader.sigma))) for n in tiles.size]))
        )
        return 4 * 2 * grown + core.voxels + smoothing + 4 * window * (3 * channels + n_classes + 4)
    windows = windows_for(access, reader.level.shape, reader.box)
    plane = core.shape.y * core.shape.x
    sums = 4 * 2 * n_classes * min(windows.size.z, core.shape.z) * plane
    batch = 4 * BATCH * windows.size.voxels * (3 * channels + 3 * n_classes + 2)
    return 4 * 2 * core.grow(reader.box).voxels + core.voxels + sums + batch
