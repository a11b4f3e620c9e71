"""Overlapping windows for dense prediction, blended so that neither windows nor blocks show.

Windows stand at a fixed stride from the volume's origin; the last along each axis is moved inside, flush
with the far face. A volume thinner than a window has one, whose rest the caller fills by reflection
(`cryoscale.ops.tiles.reflected`). Each voxel sums its windows in raster order, whatever the block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, DataError, LayoutError
from cryoscale.geometry import Box, Zyx

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Windows:
    """Where the windows of a dense prediction stand.

    Parameters
    ----------
    shape : Zyx
        Extent of the volume, voxels.
    size : Zyx
        Extent of a window, voxels.
    overlap : Zyx
        How much neighbouring windows share, voxels; smaller than `size`.
    """

    shape: Zyx
    size: Zyx
    overlap: Zyx

    @classmethod
    def of(cls, shape: Sequence[int], size: int | Sequence[int], overlap: int | Sequence[int]) -> Windows:
        """Make windows from numbers or triples."""
        return cls(Zyx.of(shape), Zyx.of(size), Zyx.of(overlap))

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or min(self.size) < 1 or min(self.overlap) < 0:
            raise ConfigurationError(f"windows need extents above 0 and overlap of at least 0, got {self}.")
        if any(o >= s for o, s in zip(self.overlap, self.size, strict=True)):
            raise ConfigurationError(
                f"an overlap of {tuple(self.overlap)} leaves no step for windows of {tuple(self.size)}.",
                remedy="Choose an overlap below the window's extent, for example a quarter of it.",
            )

    def axis_starts(self, axis: int) -> list[int]:
        """Return where windows begin along one axis, ascending."""
        extent, size = self.shape[axis], self.size[axis]
        last = max(0, extent - size)
        return [*range(0, last, size - self.overlap[axis]), last]

    def starts_for(self, core: Box) -> list[Zyx]:
        """Return the first voxels of all windows that share a voxel with `core`, in raster order."""
        inside = core.intersect(Box.whole(self.shape))
        if inside.empty:
            return []
        touching = [
            [
                a
                for a in self.axis_starts(axis)
                if a < inside.stop[axis] and a + self.size[axis] > inside.start[axis]
            ]
            for axis in range(3)
        ]
        return [Zyx(*start) for start in itertools.product(*touching)]

    def window(self, start: Sequence[int]) -> Box:
        """Return the box of the window at `start`; it leaves the volume only along axes thinner than it."""
        return Box.of(start, [a + s for a, s in zip(start, self.size, strict=True)])

    def read_box(self, core: Box) -> Box:
        """Return what the windows touching `core` need, clipped to the volume."""
        starts = self.starts_for(core)
        if not starts:
            return Box.of(core.start, core.start)
        return Box.of(starts[0], self.window(starts[-1]).stop).intersect(Box.whole(self.shape))

    def accumulate(
        self,
        core: Box,
        starts: Sequence[Zyx],
        probs: Iterable[npt.NDArray[np.generic]],
        n_classes: int,
    ) -> Float32:
        """Blend the predictions of windows into the voxels of `core`.

        Parameters
        ----------
        core : Box
            The voxels wanted, inside the volume.
        starts : sequence of Zyx
            ``starts_for(core)``.
        probs : iterable of (C, Z, Y, X) float
            One prediction per start, in the same order; taken one at a time, so a generator saves memory.
        n_classes : int
            C.

        Returns
        -------
        probs_CZYX : (C, Z, Y, X) float32
            The weighted mean. A voxel gets the same bits for any `core` that holds it.

        Raises
        ------
        LayoutError
            The windows or predictions do not cover the core, or have another shape.
        DataError
            A prediction is not finite.
        """
        if list(starts) != self.starts_for(core):
            raise LayoutError(f"the windows given are not those that touch {core}")
        weight_ZYX = weight_window(self.size)
        total = np.zeros((n_classes, *core.shape), dtype=np.float32)
        weights = np.zeros(core.shape, dtype=np.float32)
        for start, probs_CZYX in _paired(starts, probs):
            if tuple(probs_CZYX.shape) != (n_classes, *self.size):
                raise LayoutError(
                    f"a prediction of shape {probs_CZYX.shape}, expected {(n_classes, *self.size)}"
                )
            box = self.window(start)
            inside = box.intersect(core)
            here, there = inside.relative_to(core.start).slices, inside.relative_to(box.start).slices
            weight = weight_ZYX[there]
            piece = probs_CZYX[(slice(None), *there)].astype(np.float32, copy=False)
            if not np.isfinite(piece).all():
                raise DataError(f"the prediction for the window at {tuple(start)} is not finite.")
            total[(slice(None), *here)] += piece * weight
            weights[here] += weight
        total /= weights
        return total

    def labels(
        self, core: Box, starts: Sequence[Zyx], weighted: Iterable[Float32], n_classes: int
    ) -> npt.NDArray[np.uint8]:
        """Blend predictions that are weighted already, and keep the most likely class of each voxel.

        Parameters
        ----------
        core : Box
            The voxels wanted, inside the volume.
        starts : sequence of Zyx
            ``starts_for(core)``.
        weighted : iterable of (C, Z, Y, X) float32
            Probabilities times ``weight_window(size)``, one window per start, in the same order.
        n_classes : int
            C.

        Returns
        -------
        labels_ZYX : (Z, Y, X) uint8
            The class of the largest sum, the smallest on a tie: what `accumulate` and argmax give, but for
            rounding, since no sum is divided by its weights. The same for any `core` that holds a voxel.

        Raises
        ------
        LayoutError, DataError
            As `accumulate`.

        Notes
        -----
        Sums are held only for the planes that windows still add to, as many as a window has: 10 times less
        memory than all sums of a block of 256^3, and nearer to the processor.
        """
        if list(starts) != self.starts_for(core):
            raise LayoutError(f"the windows given are not those that touch {core}")
        labels = np.empty(core.shape, np.uint8)
        slab = np.zeros((n_classes, min(self.size.z, core.shape.z), *core.shape[1:]), np.float32)
        done = core.start.z  # planes before this one are labelled; it is the first of the slab
        for start, probs_CZYX in _paired(starts, weighted):
            if tuple(probs_CZYX.shape) != (n_classes, *self.size):
                raise LayoutError(
                    f"a prediction of shape {probs_CZYX.shape}, expected {(n_classes, *self.size)}"
                )
            if start.z > done:
                ready = start.z - done
                most_likely(slab[:, :ready], out=labels[done - core.start.z : start.z - core.start.z])
                slab[:, : slab.shape[1] - ready] = slab[:, ready:].copy()
                slab[:, slab.shape[1] - ready :] = 0
                done = start.z
            box = self.window(start)
            inside = box.intersect(core)
            here = inside.relative_to((done, *core.start[1:])).slices
            there = inside.relative_to(box.start).slices
            slab[(slice(None), *here)] += probs_CZYX[(slice(None), *there)].astype(np.float32, copy=False)
        most_likely(slab[:, : core.stop.z - done], out=labels[done - core.start.z :])
        return labels


def most_likely(votes_CZYX: Float32, out: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
    """Return the class with most votes in each voxel, the smallest on a tie.

    Parameters
    ----------
    votes_CZYX : (C, Z, Y, X) float32
        At most 256 classes.
    out : (Z, Y, X) uint8, optional
        Where to write.

    Returns
    -------
    labels_ZYX : (Z, Y, X) uint8

    Raises
    ------
    DataError
        A vote is NaN, or the largest of a voxel is infinite.

    Notes
    -----
    numpy's argmax over the first axis of several takes ten times as long.
    """
    labels = np.empty(votes_CZYX.shape[1:], np.uint8) if out is None else out
    for z in range(votes_CZYX.shape[1]):  # a plane at a time stays in the cache
        best_YX = votes_CZYX[0, z].copy()
        labels[z] = 0
        for value in range(1, len(votes_CZYX)):
            np.copyto(labels[z], np.uint8(value), where=votes_CZYX[value, z] > best_YX)
            np.maximum(best_YX, votes_CZYX[value, z], out=best_YX)
        if not np.isfinite(best_YX).all():
            raise DataError("a prediction is not finite.")
    return labels


def weight_window(size: int | Sequence[int]) -> Float32:
    """Return the weight of each voxel of a window: 1 in the middle, small but positive at the faces.

    Returns
    -------
    weight_ZYX : (Z, Y, X) float32
        Product of ``0.01 + 0.99 sin^2(pi (i + 1/2) / n)`` along the axes (a raised Hann window).
    """
    z, y, x = (0.01 + 0.99 * np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in Zyx.of(size))
    return (z[:, None, None] * y[None, :, None] * x[None, None, :]).astype(np.float32)


def _paired(
    starts: Sequence[Zyx], probs: Iterable[npt.NDArray[np.generic]]
) -> Iterator[tuple[Zyx, npt.NDArray[np.generic]]]:
    """Pair windows with predictions, and say which side ran out."""
    try:
        yield from zip(starts, probs, strict=True)
    except ValueError as error:
        raise LayoutError(f"there is not one prediction for each of the {len(starts)} windows") from error
