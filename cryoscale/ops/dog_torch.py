"""Difference of Gaussians and its maxima on any torch device, the whole volume or a large tile at a time.

The plan is that of `cryoscale.ops.multirate` (thin, filter, spread), but with one dense matrix per axis and
tile: a GPU multiplies faster than it reads, and few large products beat many small ones. Reflection at the
faces is in the matrices.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cryoscale.geometry import Box, Grid, Zyx
from cryoscale.ops.dog import Dog
from cryoscale.ops.gaussian import Float32, gaussian_taps, halo_voxels
from cryoscale.ops.multirate_plan import (
    coarse_reach,
    coarse_taps,
    factor_for,
    reflected_matrix,
    thinning,
    window_taps,
)
from cryoscale.ops.peaks import NEIGHBOURS

TILE = 384


@dataclass(frozen=True)
class Span:
    """What is done along one axis for one tile: voxels [start, stop) are read.

    `first_CV` comes before both Gaussians and `last_VD` after their difference; none for a narrow filter.
    """

    start: int
    stop: int
    first_CV: torch.Tensor | None
    narrow_DC: torch.Tensor
    wide_DC: torch.Tensor
    last_VD: torch.Tensor | None


class DeviceDog:
    """The filter for volumes of one shape, its matrices on a device.

    Parameters
    ----------
    shape : three int
        Extent of the volumes, voxels.
    dog : Dog
        Widths.
    device : str or torch.device
        Where to compute.
    tile : int
        Tile edge, voxels: what is in the device's memory at a time is about 20 bytes for each of its voxels.
    """

    def __init__(
        self, shape: Sequence[int], dog: Dog, device: str | torch.device = "cpu", tile: int = TILE
    ) -> None:
        self.shape = Zyx.of(shape)
        self.dog = dog
        self.device = torch.device(device)
        self._grid = Grid.of(self.shape, Zyx(*(_edge(n, tile) for n in self.shape)))
        self._spans: dict[tuple[int, int, int], Span] = {}

    def __call__(
        self, volume_ZYX: torch.Tensor | npt.NDArray[np.generic]
    ) -> tuple[npt.NDArray[np.int64], Float32]:
        """Find every local maximum of the difference of Gaussians of the inverted density.

        Parameters
        ----------
        volume_ZYX : (Z, Y, X) float
            Canonical density, on any device; only one tile and its halo is moved at a time.

        Returns
        -------
        positions_N3 : (N, 3) int64
            Voxels z, y, x, in raster order.
        scores_N : (N,) float32
            As `cryoscale.ops.dog.dog_candidates`, within 1e-5 of the sd of all scores.
        """
        volume = torch.as_tensor(volume_ZYX)
        places, scores = [], []
        with _full_precision(), torch.inference_mode():
            for box in self._grid.boxes():
                score, origin = self._scores(volume, box)
                found = _maxima_inside(score)
                scores.append(score[tuple(found.T)])
                places.append(found + torch.tensor(origin, device=self.device))
        positions = torch.cat(places).cpu().numpy().astype(np.int64)
        values = torch.cat(scores).cpu().numpy()
        order = np.lexsort(positions.T[::-1])
        return positions[order], values[order]

    def _scores(self, volume: torch.Tensor, box: Box) -> tuple[torch.Tensor, list[int]]:
        """Score a tile and one layer around it, minus infinity outside the volume; and where that begins."""
        spans = [self._span(axis, a, b) for axis, (a, b) in enumerate(zip(box.start, box.stop, strict=True))]
        part = volume[tuple(slice(s.start, s.stop) for s in spans)].to(self.device, torch.float32)
        for axis in (2, 1, 0):
            part = _along(part, spans[axis].first_CV, axis)
        narrow, wide = part, part
        for axis in (0, 1, 2):
            narrow = _along(narrow, spans[axis].narrow_DC, axis)
            wide = _along(wide, spans[axis].wide_DC, axis)
        part = wide - narrow  # inverted
        for axis in (0, 1, 2):
            part = _along(part, spans[axis].last_VD, axis)
        low = [int(a == 0) for a in box.start]
        high = [int(b == n) for b, n in zip(box.stop, self.shape, strict=True)]
        sides = [n for pair in zip(low[::-1], high[::-1], strict=True) for n in pair]
        padded = torch.nn.functional.pad(part, sides, value=-torch.inf)
        return padded, [a - 1 for a in box.start]

    def _span(self, axis: int, start: int, stop: int) -> Span:
        """Return the matrices along one axis for voxels [start, stop) and one layer around them."""
        extent = self.shape[axis]
        key = (extent, start, stop)
        if key not in self._spans:
            make = _thinned_span if self.dog.thinned else _plain_span
            low, high, *matrices = make(self.dog, extent, max(start - 1, 0), min(stop + 1, extent))
            first, narrow, wide, last = (
                None if m is None else torch.from_numpy(m.astype(np.float32)).to(self.device)
                for m in matrices
            )
            assert narrow is not None
            assert wide is not None
            self._spans[key] = Span(low, high, first, narrow, wide, last)
        return self._spans[key]


Matrices = tuple[
    int,
    int,
    npt.NDArray[np.float64] | None,
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.float64] | None,
]


def _edge(extent: int, tile: int) -> int:
    """Divide an axis evenly, into tiles of at most `tile` voxels."""
    return -(-extent // -(-extent // tile))


def _plain_span(dog: Dog, extent: int, start: int, stop: int) -> Matrices:
    """Make the matrices of a narrow filter: both Gaussians straight from voxels to voxels."""
    reach = halo_voxels(dog.wide)
    low, high = max(start - reach, 0), min(stop + reach, extent)
    places = np.arange(start, stop)
    narrow, wide = (
        reflected_matrix(places, low, high, extent, reach, functools.partial(gaussian_taps, sigma=sigma))
        for sigma in (dog.narrow, dog.wide)
    )
    return low, high, None, narrow, wide, None


def _thinned_span(dog: Dog, extent: int, start: int, stop: int) -> Matrices:
    """Make the matrices of a wide filter: to coarse samples, the filter there, and back to voxels."""
    factor = factor_for(dog.narrow)
    far = coarse_reach(dog.wide, factor)
    made = np.arange(start // factor - 5, -(-stop // factor) + 5)
    read = np.arange(made[0] - far, made[-1] + far + 1)
    low, high, first = thinning(read, factor, extent)
    lags = np.minimum(np.abs(made[:, None] - read[None, :]), far + 1)
    narrow, wide = (np.append(coarse_taps(sigma, factor, far), 0.0)[lags] for sigma in (dog.narrow, dog.wide))
    centres = made * factor + (factor - 1) / 2
    last = factor * window_taps(np.arange(start, stop)[:, None] - centres[None, :], factor)
    return low, high, first, narrow, wide, last


def _along(part_ZYX: torch.Tensor, matrix_BA: torch.Tensor | None, axis: int) -> torch.Tensor:
    """Multiply one axis by a matrix."""
    if matrix_BA is None:
        return part_ZYX
    if axis == 2:
        return part_ZYX @ matrix_BA.T
    if axis == 1:
        return torch.matmul(matrix_BA, part_ZYX)
    return (matrix_BA @ part_ZYX.reshape(len(part_ZYX), -1)).reshape(-1, *part_ZYX.shape[1:])


def _maxima_inside(score_ZYX: torch.Tensor) -> torch.Tensor:
    """Find voxels greater than their 18 face and edge neighbours, but not in the outermost layer.

    As `cryoscale.ops.peaks.maxima_inside`: one comparison per axis for both sides, then the few left over.
    """
    peak: torch.Tensor | None = None
    for axis in range(3):
        n = score_ZYX.shape[axis]
        rises = score_ZYX.narrow(axis, 1, n - 1) > score_ZYX.narrow(axis, 0, n - 1)
        turns = rises.narrow(axis, 0, n - 2) > rises.narrow(axis, 1, n - 2)
        for other in range(3):
            if other != axis:
                turns = turns.narrow(other, 1, score_ZYX.shape[other] - 2)
        peak = turns if peak is None else peak & turns
    assert peak is not None
    found = torch.nonzero(peak) + 1
    centre = score_ZYX[tuple(found.T)]
    good = torch.ones(len(found), dtype=torch.bool, device=found.device)
    for offset in NEIGHBOURS:
        z, y, x = (found + torch.tensor(offset, device=found.device)).T
        good &= centre > score_ZYX[z, y, x]
    return found[good]


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply in full float32: shortened to TF32, scores would be wrong by a part in a thousand."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
