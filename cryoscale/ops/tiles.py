"""Fixed tiles anchored at the origin of a volume, so that results do not depend on blocks.

::

    +-- buffer (always the same shape, fast for FFTs) ------+
    |  +-- tile plus halo -------------------+              |
    |  |   +-- tile (clipped to volume) --+  |   zeros      |
    |  |   |  what the caller keeps       |  |              |
    |  |   +------------------------------+  |              |
    |  +-------------------------------------+              |
    +-------------------------------------------------------+

A block may be any box. Each tile that it touches is computed whole, from the same voxels in the same
buffer, whatever the block; so the bits agree across blocks. Beyond a face of the volume data is reflected
with the edge voxel repeated (scipy's `reflect`, numpy's `symmetric`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box, Grid, Zyx, fast_length
from cryoscale.ops.gaussian import Float32, filter_tile, halo_voxels


def tile_edge(shape: Sequence[int], edge: int) -> Zyx:
    """Return the extent of a tile: `edge`, or the volume's extent along axes where that is smaller."""
    return Zyx(*(min(edge, n) for n in Zyx.of(shape)))


def buffer_shape(shape: Sequence[int], tile: int, halo: int) -> Zyx:
    """Return the shape of the buffer in which every tile of a volume of this shape is filtered."""
    return Zyx(*(fast_length(n + 2 * halo) for n in tile_edge(shape, tile)))


def required_voxels(core: Box, shape: Sequence[int], tile: int, halo: int) -> Box:
    """Return the box of true voxels that filtering all tiles touching `core` needs.

    It is the union of those tiles, grown by `halo`, with what leaves the volume reflected back inside
    (for volumes thinner than the halo that is the whole axis).
    """
    extent = Zyx.of(shape)
    tiles = list(Grid.of(extent, tile_edge(extent, tile)).overlapping(core))
    if not tiles:
        return Box.of((0, 0, 0), (0, 0, 0))
    spans = zip(tiles[0].start, tiles[-1].stop, extent, strict=True)
    indices = [_reflected_indices(a - halo, b + halo, n) for a, b, n in spans]
    return Box.of([int(i.min()) for i in indices], [int(i.max()) + 1 for i in indices])


def reflected(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    want: Box,
    shape: Sequence[int],
    *,
    out: npt.NDArray[np.generic] | None = None,
) -> npt.NDArray[np.generic]:
    """Cut a box out of data, reflecting where it leaves the volume.

    Parameters
    ----------
    read_ZYX : (Z, Y, X)
        The voxels of the box `read`.
    read, want : Box
        What is there and what is wanted, in voxels of the volume; `want` may leave it by any distance.
    shape : three int
        Extent of the volume.
    out : array of want.shape, optional
        Where to write; a new array of the type of `read_ZYX` otherwise.

    Returns
    -------
    cut_ZYX : array of want.shape

    Raises
    ------
    LayoutError
        A voxel that is needed lies outside `read`, or `read` and its array disagree.
    """
    if tuple(read_ZYX.shape) != tuple(read.shape):
        raise LayoutError(f"the array has shape {read_ZYX.shape} but the box {read} has {tuple(read.shape)}")
    if out is None:
        out = np.empty(want.shape, dtype=read_ZYX.dtype)
    runs = []
    for axis, n in enumerate(Zyx.of(shape)):
        index = _reflected_indices(want.start[axis], want.stop[axis], n) - read.start[axis]
        if index.size and (index.min() < 0 or index.max() >= read.shape[axis]):
            raise LayoutError(
                f"axis {'zyx'[axis]}: {want} needs voxels {index.min() + read.start[axis]} to "
                f"{index.max() + read.start[axis]}, but only {read} was read"
            )
        runs.append(_runs(index))
    for parts in itertools.product(*runs):
        target = tuple(t for t, _ in parts)
        out[target] = read_ZYX[tuple(s for _, s in parts)]
    return out


def filtered_tiles(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    shape: Sequence[int],
    *,
    tile: int,
    halo: int,
    apply: Callable[[Float32, tuple[slice, slice, slice]], Float32],
    margin: int = 0,
) -> Iterator[tuple[Box, Box, Float32]]:
    """Filter every tile that touches `core`, each in a buffer of one fixed shape.

    Parameters
    ----------
    read_ZYX : (Z, Y, X) float
        The voxels of `read`.
    read : Box
        Must contain `required_voxels(core, shape, tile, halo + margin)`.
    core : Box
        Any box; tiles that share no voxel with it are skipped.
    shape : three int
        Extent of the volume.
    tile, halo : int
        Tile edge, and reach of the filter, voxels.
    apply : callable
        ``apply(buffer, keep)`` returns the part `keep` of the filtered buffer.
    margin : int
        Extra layers around the tile that the caller wants too.

    Yields
    ------
    tile : Box
        The tile, clipped to the volume; raster order.
    cover : Box
        The tile grown by `margin`, clipped to the volume.
    filtered_ZYX : (Z, Y, X) float32
        The filtered voxels of `cover`.

    Raises
    ------
    LayoutError
        `read` is too small.
    """
    extent = Zyx.of(shape)
    reach = halo + margin
    buffer = np.zeros(buffer_shape(extent, tile, reach), dtype=np.float32)
    for box in Grid.of(extent, tile_edge(extent, tile)).overlapping(core):
        want = box.grow(reach)
        cover = box.grow(margin).intersect(Box.whole(extent))
        # A clipped tile leaves a remainder of the buffer; it holds zeros, never voxels of the tile before.
        if want.shape != buffer.shape:
            buffer[...] = 0.0
        reflected(read_ZYX, read, want, extent, out=buffer[tuple(slice(0, n) for n in want.shape)])
        yield box, cover, apply(buffer, cover.relative_to(want.start).slices)


def smoothed(
    read_ZYX: npt.NDArray[np.generic],
    read: Box,
    core: Box,
    shape: Sequence[int],
    sigma: float,
    tile: int,
) -> Float32:
    """Smooth the voxels of `core` with a Gaussian; the same bits for any core that holds a voxel.

    Parameters
    ----------
    read_ZYX : (Z, Y, X) float
        The voxels of `read`.
    read : Box
        Must contain ``required_voxels(core, shape, tile, halo_voxels(sigma))``.
    core : Box
        What is wanted, inside the volume.
    shape : three int
        Extent of the volume.
    sigma : float
        Width, voxels.
    tile : int
        Tile edge, voxels.

    Returns
    -------
    smooth_ZYX : float32, shape of `core`

    Raises
    ------
    LayoutError
        `read` is too small, or `core` leaves the volume.
    """
    if not Box.whole(shape).contains(core):
        raise LayoutError(f"the box {core} leaves the volume of shape {tuple(shape)}")
    result = np.empty(core.shape, dtype=np.float32)
    for box, _, part_ZYX in filtered_tiles(
        read_ZYX,
        read,
        core,
        shape,
        tile=tile,
        halo=halo_voxels(sigma),
        apply=lambda buffer, keep: filter_tile(buffer, [(1.0, sigma)], keep),
    ):
        inside = box.intersect(core)
        result[inside.relative_to(core.start).slices] = part_ZYX[inside.relative_to(box.start).slices]
    return result


def _reflected_indices(start: int, stop: int, extent: int) -> npt.NDArray[np.int64]:
    """Return the voxel that each index in [start, stop) shows: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ..."""
    index = np.arange(start, stop, dtype=np.int64) % (2 * extent)
    return np.minimum(index, 2 * extent - 1 - index)


def _runs(index: npt.NDArray[np.int64]) -> list[tuple[slice, slice]]:
    """Split a list of indices into runs up or down by one: (target slice, source slice) each.

    Slices copy an order of magnitude faster than a gather, and a reflected box has three runs or so.
    """
    runs: list[tuple[slice, slice]] = []
    begin = 0
    while begin < len(index):
        step = int(index[begin + 1] - index[begin]) if begin + 1 < len(index) else 1
        step = step if step in (1, -1) else 1
        length = 1
        while begin + length < len(index) and index[begin + length] == index[begin] + step * length:
            length += 1
        first, last = int(index[begin]), int(index[begin]) + step * length
        source = slice(first, last if last >= 0 else None, step)
        runs.append((slice(begin, begin + length), source))
        begin += length
    return runs
