"""Slices of a tomogram for people to look at: thin slabs of a pyramid level, never the whole volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from cryoscale.data.tomogram import LabelVolume, Tomogram, TomogramFacts
from cryoscale.errors import CryoscaleError
from cryoscale.geometry import Box
from cryoscale.report.figures import View

PIXELS = 640  # a picture needs no more along its longer side
SMOOTH = 1.0  # pixels, within the slice
MOST_HALF = 2  # voxels averaged on either side of a slice
Labels = npt.NDArray[np.integer[Any]]
AXES = {0: "yx", 1: "zx", 2: "yz"}  # by the axis that the slice is normal to


@dataclass(frozen=True)
class Slicer:
    """Cuts slices of one tomogram at one level.

    Parameters
    ----------
    tomogram : Tomogram
        Read block by block.
    level : int
        Pyramid level.
    half : int
        Voxels averaged on either side.
    labels : LabelVolume or None
        A label volume of the same grid.
    """

    tomogram: Tomogram
    level: int
    half: int
    labels: LabelVolume | None = None

    @property
    def voxel_nm(self) -> float:
        """Voxel size of the level."""
        return self.tomogram.facts.levels[self.level].voxel_size_angstrom / 10

    @property
    def stride(self) -> int:
        """Voxels per pixel: more than one only where the pyramid has no level that is small enough."""
        return -(-max(self.tomogram.facts.levels[self.level].shape) // PIXELS)

    @property
    def thickness_nm(self) -> float:
        """How much is averaged along the axis that is not shown."""
        return (2 * self.half + 1) * self.voxel_nm

    def view(self, axis: int, place_nm: float) -> View:
        """Cut the slice normal to `axis` (0 is z) that is nearest to a place."""
        level = self.tomogram.facts.levels[self.level]
        origin = level.origin_angstrom / 10
        index = min(max(round((place_nm - origin) / self.voxel_nm), 0), level.shape[axis] - 1)
        image = self._slab(axis, index).mean(axis=axis)
        labels = self._labels(axis, index)
        if axis == 2:  # z runs across, y upwards
            image, labels = image.T, None if labels is None else labels.T
        step = self.stride
        image = gaussian_filter(_reduced(image, step), SMOOTH)
        if labels is not None:
            labels = _sampled(labels, step, image.shape)
        pixel = self.voxel_nm * step
        first = origin + (step - 1) / 2 * self.voxel_nm
        return View(AXES[axis], image, pixel, first, origin + index * self.voxel_nm, labels)

    def _box(self, axis: int, low: int, high: int) -> Box:
        shape = self.tomogram.facts.levels[self.level].shape
        start, stop = [0, 0, 0], list(shape)
        start[axis], stop[axis] = max(0, low), min(shape[axis], high)
        return Box.of(start, stop)

    def _slab(self, axis: int, index: int) -> npt.NDArray[np.float32]:
        box = self._box(axis, index - self.half, index + self.half + 1)
        return self.tomogram.read_canonical(self.level, box)

    def _labels(self, axis: int, index: int) -> npt.NDArray[np.integer[Any]] | None:
        if self.labels is None:
            return None
        box = self._box(axis, index, index + 1)
        plane: npt.NDArray[np.integer[Any]] = np.take(self.labels.read(self.level, box), 0, axis=axis)
        return plane


def slicer_for(tomogram: Tomogram, labels: LabelVolume | None, radius_nm: float) -> Slicer:
    """Choose the finest level that fits a picture, and a slab about as thick as a third of a particle."""
    facts = tomogram.facts
    fitting = [n for n, level in enumerate(facts.levels) if max(level.shape) <= PIXELS]
    level = fitting[0] if fitting else len(facts.levels) - 1
    voxel_nm = facts.levels[level].voxel_size_angstrom / 10
    half = min(MOST_HALF, max(1, round(radius_nm / 3 / voxel_nm))) if fitting else 0
    return Slicer(tomogram, level, half, labels if labels is not None and matches(facts, labels) else None)


def matches(facts: TomogramFacts, labels: LabelVolume) -> bool:
    """Whether a label volume is finished and lies on the tomogram's grid."""
    try:
        shapes = [level.shape for level in labels.facts.levels]
    except (CryoscaleError, KeyError):
        return False
    return shapes == [level.shape for level in facts.levels]


def slab_of_interest(facts: TomogramFacts) -> tuple[float, float]:
    """Return the range of z to look at, nm: the suggested slab, or the whole tomogram."""
    voxel_nm = facts.levels[0].voxel_size_angstrom / 10
    low, high = facts.z_range or (0, facts.levels[0].shape.z)
    return low * voxel_nm, (high - 1) * voxel_nm


def _reduced(image: npt.NDArray[np.float32], step: int) -> npt.NDArray[np.float32]:
    """Average squares of pixels; what is left over at the far edges is dropped."""
    if step == 1:
        return image
    up, across = (max(1, n // step) for n in image.shape)
    trimmed = image[: up * step, : across * step]
    rows = np.add.reduceat(trimmed, np.arange(0, trimmed.shape[0], step), axis=0)
    sums = np.add.reduceat(rows, np.arange(0, trimmed.shape[1], step), axis=1)
    pixels = min(step, image.shape[0]) * min(step, image.shape[1])
    return np.asarray(sums / pixels, np.float32)


def _sampled(
    labels: npt.NDArray[np.integer[Any]], step: int, shape: tuple[int, ...]
) -> npt.NDArray[np.integer[Any]]:
    if step == 1:
        return labels
    rows = np.minimum(np.arange(shape[0]) * step + step // 2, labels.shape[0] - 1)
    columns = np.minimum(np.arange(shape[1]) * step + step // 2, labels.shape[1] - 1)
    return labels[np.ix_(rows, columns)]
