"""Sums of what overlapping windows or patches say of each voxel; planes are given away once complete.

Each voxel adds its windows in one order, whatever box is asked for, so blocks do not change a bit of a sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.errors import DataError
from cryoscale.geometry import Box, Zyx
from cryoscale.ops.blend import Windows, most_likely
from cryoscale.ops.patches import patch_box
from cryoscale.stages.patching import one_ahead

if TYPE_CHECKING:
    from concurrent.futures import Executor

Float32 = npt.NDArray[np.float32]
Slices = tuple[slice, slice, slice]
Add = Callable[[Any, Slices, Float32], None]
"""`add(result, inner, target_CZYX)` adds what a network's result says of a part of its window to sums."""


def blended(
    windows: Windows, core: Box, channels: int, results: Iterable[Any], add: Add
) -> Iterator[tuple[int, Float32]]:
    """Add the windows that touch a core, and give the sums of planes once no window adds to them any more.

    Parameters
    ----------
    windows : Windows
        Where they stand.
    core : Box
        Inside the volume.
    channels : int
        C, of the sums.
    results : iterable
        What the network says of each window, in the order of `windows.starts_for(core)`.
    add : callable
        Adds a result, weights included.

    Yields
    ------
    first : int
        Plane of the volume, along the first axis.
    sums_CZYX : (C, Z, Y, X) float32
        Of the planes from there on, over the core. Valid until the next is asked for.
    """
    slab = np.zeros((channels, min(windows.size.z, core.shape.z), *core.shape[1:]), np.float32)
    done = core.start.z  # planes before this one are given away; it is the first of the slab
    for start, result in zip(windows.starts_for(core), results, strict=True):
        if start.z > done:
            ready = start.z - done
            yield done, slab[:, :ready]
            slab[:, : slab.shape[1] - ready] = slab[:, ready:].copy()
            slab[:, slab.shape[1] - ready :] = 0
            done = start.z
        box = windows.window(start)
        inside = box.intersect(core)
        here = inside.relative_to((done, *core.start[1:])).slices
        add(result, inside.relative_to(box.start).slices, slab[(slice(None), *here)])
    yield done, slab[:, : core.stop.z - done]


def touching(core: Box, centres_N3: npt.NDArray[np.int64], box: Zyx) -> npt.NDArray[np.int64]:
    """Return the rows of patches that share a voxel with a core, ascending."""
    low = centres_N3 - np.array(box) // 2
    return np.flatnonzero(np.all((low < core.stop) & (low + np.array(box) > core.start), axis=1))


def embedded(
    core: Box,
    centres_N3: npt.NDArray[np.int64],
    box: Zyx,
    patches: Callable[[npt.NDArray[np.int64]], Any],
    batch: int,
    pool: Executor | None = None,
) -> Iterator[tuple[int, Any, Slices, Slices]]:
    """Yield patches that reach into a core: row, prediction, the shared part of the core and of the patch.

    With a pool the next batch is predicted there while this one is used.
    """
    rows = touching(core, centres_N3, box)
    batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
    with contextlib.ExitStack() as stack:
        found: Iterator[Any] = map(patches, batches)
        if pool is not None:
            found = stack.enter_context(contextlib.closing(one_ahead(pool, patches, batches)))
        for some, predicted_N in zip(batches, found, strict=True):
            for row, predicted in zip(some.tolist(), predicted_N, strict=True):
                place = patch_box(centres_N3[row].tolist(), box)
                part = place.intersect(core)
                here, inner = part.relative_to(core.start), part.relative_to(place.start)
                yield row, predicted, here.slices, inner.slices


def object_first(votes_LZYX: Float32) -> npt.NDArray[np.uint8]:
    """Say object or background first, then which class; without votes it is background.

    Patches of two classes that overlap on one object share its votes. Each class alone may have fewer than
    background although nobody doubts that there is an object.
    """
    labels = np.empty(votes_LZYX.shape[1:], np.uint8)
    for z in range(len(labels)):  # a plane at a time stays in the cache
        votes_LYX = votes_LZYX[:, z]
        most_likely(votes_LZYX[1:, z : z + 1], out=labels[z : z + 1])
        labels[z] += 1
        labels[z] *= votes_LYX[1:].sum(axis=0) > votes_LYX[0]
    return labels


def shares_of(votes_LZYX: Float32) -> npt.NDArray[np.float16]:
    """Return the share of each class but the background in the votes of each voxel; 0 where there are none.

    Raises
    ------
    DataError
        A vote is not finite.
    """
    shares = np.zeros((len(votes_LZYX) - 1, *votes_LZYX.shape[1:]), np.float16)
    for z in range(votes_LZYX.shape[1]):
        total_YX = votes_LZYX[:, z].sum(axis=0)
        if not np.isfinite(total_YX).all():
            raise DataError("a prediction is not finite.")
        inverse_YX = np.divide(1, total_YX, out=np.zeros_like(total_YX), where=total_YX > 0)
        for value, votes_ZYX in enumerate(votes_LZYX[1:]):
            shares[value, z] = votes_ZYX[z] * inverse_YX
    return shares
