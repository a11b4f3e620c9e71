"""Votes for every voxel of a box, the same way for all networks: by tiles, by blended windows, or on picks.

A prediction of a core comes as pieces, each a part of the core with the sums of its votes: one channel for
the background and one for each class, then one for the recovered density where it is wanted. Weights of
windows are in the sums, so a share is what a class has of all votes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.errors import DataError
from cryoscale.geometry import Box, Zyx
from cryoscale.ops.blend import most_likely, weight_window
from cryoscale.ops.tiles import reflected
from cryoscale.stages.applying import Applied, in_tiles, tiles_of, windows_of
from cryoscale.stages.dense import WindowReader
from cryoscale.stages.embedding import Float32, blended, embedded, object_first, touching
from cryoscale.stages.faces import box_face, slice_face, slice_filter_halo, votes_face
from cryoscale.stages.networks import Network, batch_for, open_labeller, open_large, open_network
from cryoscale.stages.patching import PatchReader, one_ahead

Labels = npt.NDArray[np.uint8]
SINGLES = 4  # windows handed over together where each is a batch of its own
PLANES = 32  # of slices read at a time, counted from the origin
PICK_PLANES = 128  # of a core whose votes on picks are held at a time


@dataclass(frozen=True)
class Piece:
    """A part of a core: its labels, and the votes where they are wanted."""

    box: Box
    labels: Labels
    votes_CZYX: Float32 | None


Predict = Callable[[Box], Iterator[Piece]]


@contextlib.contextmanager
def open_prediction(access: Access, model: Applied, *, votes: bool) -> Iterator[Predict]:
    """Open what labels any box of the level at work.

    Parameters
    ----------
    model : Applied
        The network.
    votes : bool
        Whether votes are wanted beside the labels.
    """
    reader = model.reader(access)
    if access.config.segment.mode == "picks":
        opened = _open_picks(access, model, reader)
    elif model.in_slices:
        opened = _open_slices(access, model, reader)
    elif in_tiles(access, model):
        opened = (_open_tiles if votes else _open_label_tiles)(access, model, reader)
    else:
        opened = _open_windows(access, model, reader)
    with opened as predict:
        yield predict


def labels_of(model: Applied, votes_CZYX: Float32) -> Labels:
    """Return the label with most votes; where boxes say the class, object or background comes first."""
    votes_LZYX = votes_CZYX[: model.n_classes]
    return object_first(votes_LZYX) if model.by_particle else most_likely(votes_LZYX)


# -- dense, by windows ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_windows(access: Access, model: Applied, reader: PatchReader) -> Iterator[Predict]:
    """Blend overlapping windows of the box."""
    windows, face = windows_of(access, model, reader.level.shape), box_face(access, model)
    batch = batch_for(windows.size.voxels)
    with open_network(access, face.kind, (1, *windows.size), face.wrap, batch) as engine:

        def predict(core: Box) -> Iterator[Piece]:
            region = windows.read_box(core)
            density = reader.read(region)
            boxes = [windows.window(start) for start in windows.starts_for(core)]
            results = _answers(engine, density, region, boxes, reader.level.shape, batch)
            for first, sums in blended(windows, core, face.channels, results, face.add):
                box = Box.of((first, *core.start[1:]), (first + sums.shape[1], *core.stop[1:]))
                yield Piece(box, labels_of(model, sums), sums)

        yield predict


def _answers(
    engine: Network, density: Float32, region: Box, boxes: list[Box], shape: Zyx, batch: int
) -> Iterator[Float32]:
    """Yield what the network says of boxes, which may leave the volume, some at a time."""
    if not boxes:
        return
    count = at_a_time(batch)
    buffers = [np.empty((count, 1, *boxes[0].shape), np.float32) for _ in range(2)]

    def compute(job: tuple[int, list[Box]]) -> Float32:
        number, some = job
        items = buffers[number % 2]
        for item, box in zip(items, some, strict=False):
            reflected(density, region, box, shape, out=item[0])
        return engine.run(items[: len(some)])

    jobs = [boxes[first : first + count] for first in range(0, len(boxes), count)]
    with (
        ThreadPoolExecutor(1) as pool,
        contextlib.closing(one_ahead(pool, compute, enumerate(jobs))) as computed,
    ):
        for results in computed:  # while these are added up, the next are computed
            yield from results


def at_a_time(batch: int) -> int:
    """Return how many windows an engine gets together: a device copies some while it computes others."""
    return batch if batch > 1 else SINGLES


@contextlib.contextmanager
def _open_slices(access: Access, model: Applied, reader: PatchReader) -> Iterator[Predict]:
    """Blend overlapping tiles of each slice."""
    shape, order = reader.level.shape, model.order
    windows = windows_of(access, model, shape)
    edge = slice_filter_halo(model)
    growth = _back((model.neighbours, edge, edge), order)
    size = _back(windows.size, order)
    face = slice_face(model, weight_window(size))
    grown = [n + 2 * g for n, g in zip(size, growth, strict=True)]
    batch = batch_for(int(np.prod(grown)))
    with open_network(access, face.kind, (1, *grown), face.wrap, batch) as engine:

        def answers(core: Box, region: Box, density: Float32) -> Iterator[Float32]:
            starts = windows.starts_for(_turned(core, order))
            boxes = [_turned(windows.window(start), _inverse(order)).grow(growth) for start in starts]
            for result in _answers(engine, density, region, boxes, shape, batch):
                yield result.transpose(0, *(1 + axis for axis in order))

        def predict(core: Box) -> Iterator[Piece]:
            for part in _layers(core, model.axis):
                turned = _turned(part, order)
                seen = _turned(windows.read_box(turned), _inverse(order)).grow(growth)
                region = seen.intersect(Box.whole(shape))
                density = reader.read(region)
                results = answers(part, region, density)
                for first, sums in blended(windows, turned, face.channels, results, face.add):
                    box = Box.of((first, *turned.start[1:]), (first + sums.shape[1], *turned.stop[1:]))
                    labels = labels_of(model, sums)
                    back = _inverse(order)
                    yield Piece(
                        _turned(box, back), labels.transpose(back), sums.transpose(0, *(1 + a for a in back))
                    )

        yield predict


def _layers(core: Box, axis: int) -> Iterator[Box]:
    """Cut a core into layers along an axis, at multiples of `PLANES` from the volume's origin."""
    first = core.start[axis]
    while first < core.stop[axis]:
        last = min(core.stop[axis], (first // PLANES + 1) * PLANES)
        start, stop = list(core.start), list(core.stop)
        start[axis], stop[axis] = first, last
        yield Box.of(start, stop)
        first = last


def _turned(box: Box, order: tuple[int, int, int]) -> Box:
    """Return a box in a frame whose axes are those of the volume in another order."""
    return Box.of([box.start[axis] for axis in order], [box.stop[axis] for axis in order])


def _inverse(order: tuple[int, int, int]) -> tuple[int, int, int]:
    return (order.index(0), order.index(1), order.index(2))


def _back(sides: Any, order: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return extents that are given in a turned frame in that of the volume."""
    back = _inverse(order)
    return (int(sides[back[0]]), int(sides[back[1]]), int(sides[back[2]]))


# -- dense, by tiles --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_label_tiles(access: Access, model: Applied, reader: PatchReader) -> Iterator[Predict]:
    """Label tile by tile; the network itself says which label."""
    tiles = tiles_of(model, reader.level.shape)
    with open_labeller(access, tiles.size) as engine:
        yield _tile_by_tile(model, reader, engine)


@contextlib.contextmanager
def _open_tiles(access: Access, model: Applied, reader: PatchReader) -> Iterator[Predict]:
    """Give the shares of all classes tile by tile."""
    tiles, recover = tiles_of(model, reader.level.shape), access.config.segment.densities
    wrap = votes_face(np.ones((1, 1, 1), np.float32), recover)
    with open_large(
        access, f"tiles{'+rec' * recover}", tiles.size, wrap, model.n_classes + recover
    ) as engine:
        yield _tile_by_tile(model, reader, engine)


def _tile_by_tile(model: Applied, reader: PatchReader, engine: Network) -> Predict:
    """Each voxel comes from the one window that holds it in its middle."""
    tiles = tiles_of(model, reader.level.shape)
    density = WindowReader(reader, tiles.size)

    def predict(core: Box) -> Iterator[Piece]:
        pairs = list(tiles.overlapping(core))
        density.load(pairs[0][1], pairs[-1][1])
        for cell, window in pairs:
            found = engine.run(density.window(window)[None, None])[0]
            if not np.isfinite(found.sum(dtype=np.float64)):
                raise DataError(f"the prediction for the window at {tuple(window.start)} is not finite.")
            kept = cell.intersect(core)
            part = found[(slice(None), *kept.relative_to(window.start).slices)]
            if len(part) == 1:
                yield Piece(kept, part[0].astype(np.uint8), None)
            else:
                yield Piece(kept, labels_of(model, part), part)

    return predict


# -- on picks ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_picks(access: Access, model: Applied, reader: PatchReader) -> Iterator[Predict]:
    """Predict the boxes around the picks and embed them at their places."""
    centres_N3 = reader.voxels(access.picks().positions_N3)
    face, batch = box_face(access, model), batch_for(reader.box.voxels)
    with (
        open_network(access, face.kind, (1, *reader.box), face.wrap, batch) as engine,
        ThreadPoolExecutor(1) as pool,
    ):

        def patches(rows: npt.NDArray[np.int64]) -> Float32:
            return engine.run(reader.gather(centres_N3[rows])[:, None])

        def predict(core: Box) -> Iterator[Piece]:
            for first in range(core.start.z, core.stop.z, PICK_PLANES):
                last = min(first + PICK_PLANES, core.stop.z)
                part = Box.of((first, *core.start[1:]), (last, *core.stop[1:]))
                if not len(touching(part, centres_N3, reader.box)):
                    continue
                votes = np.zeros((face.channels, *part.shape), np.float32)
                for _, result, here, inner in embedded(part, centres_N3, reader.box, patches, batch, pool):
                    face.add(result, inner, votes[(slice(None), *here)])
                yield Piece(part, labels_of(model, votes), votes)

        yield predict
