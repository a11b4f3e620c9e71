"""Connected components of a label volume, block by block, joined across faces.

Voxels belong together if they share a face and have the same value (not 0). A block is reduced to a small
table and its six face planes; joining the tables of all blocks gives what labelling the whole volume
would. Sums are of integers below 2**53, so they are exact in float64 in any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box

Int64 = npt.NDArray[np.int64]

# Values above this are renumbered first: finding objects makes a list as long as the largest value.
_MOST_VALUES = 65_535


@dataclass(frozen=True, eq=False)
class BlockComponents:
    """The components of one block; local ids are 1 to N, 0 is background.

    Parameters
    ----------
    values_N : (N,) int64
        The label value of each component.
    voxels_N : (N,) int64
        Voxel counts.
    sums_N3 : (N, 3) float64
        Sums of the voxels' coordinates z, y, x in the whole volume.
    lower_N3, upper_N3 : (N, 3) int64
        Bounding box in the whole volume, half open.
    first_N3 : (N, 3) int64
        The component's first voxel in raster order, in the whole volume.
    z0, z1, y0, y1, x0, x1 : 2-D int32
        Local ids on the first and last plane along each axis.
    """

    values_N: Int64
    voxels_N: Int64
    sums_N3: npt.NDArray[np.float64]
    lower_N3: Int64
    upper_N3: Int64
    first_N3: Int64
    z0: npt.NDArray[np.int32]
    z1: npt.NDArray[np.int32]
    y0: npt.NDArray[np.int32]
    y1: npt.NDArray[np.int32]
    x0: npt.NDArray[np.int32]
    x1: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.values_N)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the parts as named arrays, for storage."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> BlockComponents:
        """Make it again from what `to_arrays` returned."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})

    def face(self, axis: int, last: bool) -> npt.NDArray[np.int32]:
        """Return the local ids on the first or last plane along an axis."""
        plane: npt.NDArray[np.int32] = getattr(self, f"{'zyx'[axis]}{int(last)}")
        return plane


@dataclass(frozen=True, eq=False)
class Instances:
    """The components of a whole volume, ordered by value and then by first voxel; row i is instance i + 1.

    Parameters
    ----------
    values_N, voxels_N : (N,) int64
        Label value and number of voxels.
    centroids_N3 : (N, 3) float64
        Mean coordinates z, y, x, voxels.
    lower_N3, upper_N3 : (N, 3) int64
        Bounding box, half open.
    first_N3 : (N, 3) int64
        First voxel in raster order.
    block_ids : list of (n,) int64
        For each block in the order given, the instance number (from 1) of each local component: a block's
        voxels are relabelled by ``concatenate([[0], ids])[local_ids]``.
    """

    values_N: Int64
    voxels_N: Int64
    centroids_N3: npt.NDArray[np.float64]
    lower_N3: Int64
    upper_N3: Int64
    first_N3: Int64
    block_ids: list[Int64]

    def __len__(self) -> int:
        return len(self.values_N)


def local_ids(labels_ZYX: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int32], Int64]:
    """Give each component of a block a number: by value, then by first voxel in raster order.

    Returns
    -------
    ids_ZYX : (Z, Y, X) int32
        1 to N; 0 where the label is 0.
    values_N : (N,) int64
        The value of each component.

    Raises
    ------
    LayoutError
        A label is negative.
    """
    labels = np.asarray(labels_ZYX)
    ids = np.zeros(labels.shape, dtype=np.int32)
    if not labels.any():
        return ids, np.empty(0, dtype=np.int64)
    if labels.min() < 0:
        raise LayoutError(f"label volumes hold 0 and positive values, got {labels.min()}")
    known = None
    if labels.max() > _MOST_VALUES:
        known, dense = np.unique(labels, return_inverse=True)
        labels = dense.reshape(labels.shape) + 1
        if known[0] == 0:
            known, labels = known[1:], labels - 1
    values: list[int] = []
    for index, box in enumerate(ndimage.find_objects(labels.astype(np.int32, copy=False))):
        if box is None:
            continue
        part, count = ndimage.label(labels[box] == index + 1)
        np.add(part, len(values), out=ids[box], where=part > 0)
        values += [index + 1 if known is None else int(known[index])] * int(count)
    return ids, np.array(values, dtype=np.int64)


def label_block(labels_ZYX: npt.NDArray[np.integer], origin: Sequence[int] = (0, 0, 0)) -> BlockComponents:
    """Find the components of one block.

    Parameters
    ----------
    labels_ZYX : (Z, Y, X) int
        Label values; 0 is background.
    origin : three int
        The voxel of the whole volume that `labels_ZYX[0, 0, 0]` is.

    Raises
    ------
    LayoutError
        A label is negative.
    """
    ids, values = local_ids(labels_ZYX)
    count = len(values)
    start = np.array(origin, dtype=np.int64)
    sums = np.zeros((count, 3), dtype=np.float64)
    lower, upper = np.zeros((count, 3), dtype=np.int64), np.zeros((count, 3), dtype=np.int64)
    first = np.zeros(count + 1, dtype=np.int64)
    voxels = np.bincount(ids.ravel(), minlength=count + 1)[1:].astype(np.int64)
    # Plane by plane, so that memory stays small beside the block.
    for axis in range(3):
        for plane in range(ids.shape[axis]):
            here = np.bincount(np.take(ids, plane, axis=axis).ravel(), minlength=count + 1)[1:]
            sums[:, axis] += here * float(plane + start[axis])
    area = ids.shape[1] * ids.shape[2]
    for plane in reversed(range(ids.shape[0])):
        # Written backwards, the first voxel of a component is the last to be written.
        first[ids[plane].ravel()[::-1]] = np.arange(area)[::-1] + plane * area
    for row, box in enumerate(ndimage.find_objects(ids)):
        lower[row] = [s.start for s in box]
        upper[row] = [s.stop for s in box]
    first_N3 = np.stack(np.unravel_index(first[1:], ids.shape), axis=1).reshape(-1, 3) + start
    faces = [np.ascontiguousarray(np.take(ids, end, axis=axis)) for axis in range(3) for end in (0, -1)]
    return BlockComponents(values, voxels, sums, lower + start, upper + start, first_N3, *faces)


def merge(blocks: Sequence[tuple[Box, BlockComponents]]) -> Instances:
    """Join the components of blocks that touch.

    Parameters
    ----------
    blocks : sequence of (Box, BlockComponents)
        Where each block lies, and its components. Boxes must not overlap; together they are the volume.

    Returns
    -------
    instances : Instances
        The same for any division into blocks, and equal to `scipy.ndimage.label` value by value.
    """
    counts = np.array([len(part) for _, part in blocks], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(offsets[-1])
    links = [np.empty((0, 2), dtype=np.int64)]
    for a, b, pairs in _touching(blocks):
        links.append(pairs + offsets[[a, b]])
    joined = np.concatenate(links)
    ones = np.ones(len(joined), dtype=np.int8)
    graph = coo_array((ones, (joined[:, 0], joined[:, 1])), shape=(total, total))
    groups, group = connected_components(graph, directed=False) if total else (0, np.empty(0, dtype=np.int64))

    def gathered(name: str, width: int) -> npt.NDArray[np.generic]:
        parts = [getattr(part, name).reshape(-1, width) for _, part in blocks]
        return np.concatenate(parts) if parts else np.empty((0, width))

    first_N3 = np.full((groups, 3), np.iinfo(np.int64).max)
    firsts = gathered("first_N3", 3)
    # Raster order, last written wins: write the rows from last to first.
    descending = np.lexsort(firsts.T[::-1])[::-1]
    first_N3[group[descending]] = firsts[descending]
    values = np.zeros(groups, dtype=np.int64)
    values[group] = gathered("values_N", 1)[:, 0]
    voxels, sums = np.zeros(groups, dtype=np.int64), np.zeros((groups, 3))
    lower, upper = np.full((groups, 3), np.iinfo(np.int64).max), np.zeros((groups, 3), dtype=np.int64)
    np.add.at(voxels, group, gathered("voxels_N", 1)[:, 0])
    np.add.at(sums, group, gathered("sums_N3", 3))
    np.minimum.at(lower, group, gathered("lower_N3", 3))
    np.maximum.at(upper, group, gathered("upper_N3", 3))
    order = np.lexsort((*first_N3.T[::-1], values))
    number = np.empty(groups, dtype=np.int64)
    number[order] = np.arange(1, groups + 1)
    centroids = sums / np.maximum(voxels, 1)[:, None]
    ids = [number[group[a:b]] for a, b in itertools.pairwise(offsets)]
    return Instances(
        values[order], voxels[order], centroids[order], lower[order], upper[order], first_N3[order], ids
    )


def _touching(blocks: Sequence[tuple[Box, BlockComponents]]) -> Iterator[tuple[int, int, Int64]]:
    """Yield pairs of blocks that share a face, and the pairs of local components (from 0) that touch."""
    starts = np.array([box.start for box, _ in blocks], dtype=np.int64).reshape(-1, 3)
    stops = np.array([box.stop for box, _ in blocks], dtype=np.int64).reshape(-1, 3)
    for box, part in blocks:
        if part.z0.shape != box.shape[1:] or part.x0.shape != box.shape[:2]:
            raise LayoutError(f"the components of the block {box} were made from another shape")
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        for plane in np.intersect1d(stops[:, axis], starts[:, axis]):
            before, after = np.flatnonzero(stops[:, axis] == plane), np.flatnonzero(starts[:, axis] == plane)
            share = np.ones((len(before), len(after)), dtype=bool)
            for o in others:
                share &= np.maximum.outer(starts[before, o], starts[after, o]) < np.minimum.outer(
                    stops[before, o], stops[after, o]
                )
            for i, j in zip(*np.nonzero(share), strict=True):
                a, b = int(before[i]), int(after[j])
                yield a, b, _face_pairs(blocks[a], blocks[b], axis)


def _face_pairs(before: tuple[Box, BlockComponents], after: tuple[Box, BlockComponents], axis: int) -> Int64:
    """Return the distinct pairs (from 0) of local components of equal value that meet at a face."""
    (box_a, part_a), (box_b, part_b) = before, after
    shared = box_a.intersect(box_b)  # empty along `axis`, the face along the others
    here: list[npt.NDArray[np.int32]] = []
    others = [o for o in range(3) if o != axis]
    for box, part, last in ((box_a, part_a, True), (box_b, part_b, False)):
        window = tuple(slice(shared.start[o] - box.start[o], shared.stop[o] - box.start[o]) for o in others)
        here.append(part.face(axis, last)[window].ravel())
    both = (here[0] > 0) & (here[1] > 0)
    pairs = np.unique(np.stack([here[0][both], here[1][both]], axis=1).astype(np.int64) - 1, axis=0)
    same = part_a.values_N[pairs[:, 0]] == part_b.values_N[pairs[:, 1]]
    met: Int64 = pairs[same]
    return met
