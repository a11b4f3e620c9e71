"""Patches in memory: read once per tile, smooth on fixed tiles, cut. For the stages that hold networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cryoscale.config.sections import PatchConfig
from cryoscale.data.access import Access
from cryoscale.data.pyramid import Level
from cryoscale.data.rows import PICK_TILE_VOXELS
from cryoscale.data.tomogram import Tomogram
from cryoscale.geometry import Box, Grid, Zyx, fast_length
from cryoscale.ops.gaussian import filter_tile, halo_voxels
from cryoscale.ops.normalise import robust_statistics, sample_boxes
from cryoscale.ops.patches import cut
from cryoscale.ops.smooth import WIDEST, smooth_inner
from cryoscale.ops.tiles import filtered_tiles, required_voxels, smoothed

TILE = PICK_TILE_VOXELS  # smoothing runs in buffers of one shape per tomogram: no block changes a result
SAMPLE_VOXELS, SAMPLE_TILE = 2_000_000, 32  # what the statistics after smoothing are measured on
STATISTICS = "smoothed_statistics"  # their note in the table of picks


Job = TypeVar("Job")
Result = TypeVar("Result")


class PatchReader:
    """Density as the networks see it: canonical, smoothed, and scaled to unit sd after smoothing.

    Smoothing takes away most of the noise, so the sd that the tomogram has before it says little; the density
    is scaled once more by the robust mean and sd of the smoothed tomogram, which the pick stage measures once
    and records with the picks. Objects stay dark.

    Parameters
    ----------
    tomogram : Tomogram
        What to read.
    level : int
        Pyramid level at work.
    config : PatchConfig
        Box and smoothing.
    statistics : (float, float), optional
        Mean and sd after smoothing as recorded; measured when they are needed and not given.
    """

    def __init__(
        self,
        tomogram: Tomogram,
        level: int,
        config: PatchConfig,
        statistics: tuple[float, float] | None = None,
    ) -> None:
        self.tomogram, self.number = tomogram, level
        self.level: Level = tomogram.facts.levels[level]
        self.box = Zyx.of(config.box)
        self.sigma = config.smooth_sigma_voxels
        self._statistics = (0.0, 1.0) if self.sigma == 0 else statistics
        # The tile of the last patches, its cover and the density there: the next rows often begin with it.
        self._last: tuple[Box, Box, npt.NDArray[np.float32]] | None = None

    @classmethod
    def for_access(cls, access: Access, tomogram: str | None = None) -> PatchReader:
        """Open the reader of a tomogram that a stage may read, with what is recorded beside its picks."""
        opened, number = access.open_tomogram(tomogram), access.working_level(tomogram)
        config, known = access.config.patch, None
        if "picks" in access.reads:
            known = recorded_statistics(access.pick_notes(tomogram), number, config.smooth_sigma_voxels)
        return cls(opened, number, config, known)

    @property
    def statistics(self) -> tuple[float, float]:
        """Robust mean and sd after smoothing."""
        if self._statistics is None:
            self._statistics = smoothed_statistics(self.tomogram, self.number, self.sigma)
        return self._statistics

    def read(self, box: Box) -> npt.NDArray[np.float32]:
        """Read a box inside the tomogram, as the networks see it."""
        mean, sd = self.statistics
        density = self._smoothed(box)
        if self.sigma:
            density -= np.float32(mean)
            density *= np.float32(1.0 / sd)
        return density

    def _smoothed(self, box: Box) -> npt.NDArray[np.float32]:
        """Smooth a box; each voxel comes from the tile it lies in."""
        if self.sigma == 0:
            return self.tomogram.read_canonical(self.number, box)
        need = required_voxels(box, self.level.shape, TILE, halo_voxels(self.sigma))
        source = self.tomogram.read_canonical(self.number, need)
        return smoothed(source, need, box, self.level.shape, self.sigma, TILE)

    def _tile(self, tile: Box) -> tuple[Box, npt.NDArray[np.float32]]:
        """Read, smooth and scale what patches around voxels of a tile need; and say where it lies."""
        halo, margin, shape = halo_voxels(self.sigma), max(self.box) // 2, self.level.shape
        need = required_voxels(tile, shape, TILE, halo + margin)
        source = self.tomogram.read_canonical(self.number, need)
        _, cover, density = next(filtered_tiles(
            source, need, tile, shape, tile=TILE, halo=halo, margin=margin, apply=self._smooth
        ))  # fmt: skip
        mean, sd = self.statistics
        density -= np.float32(mean)
        density *= np.float32(1.0 / sd)
        return cover, density

    def _smooth(
        self, buffer: npt.NDArray[np.float32], keep: tuple[slice, slice, slice]
    ) -> npt.NDArray[np.float32]:
        if self.sigma > WIDEST:
            return filter_tile(buffer, [(1.0, self.sigma)], keep)
        halo = halo_voxels(self.sigma)
        inner = tuple(slice(part.start - halo, part.stop - halo) for part in keep)
        return np.ascontiguousarray(smooth_inner(buffer, self.sigma)[inner])

    def voxels(self, positions_N3: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Turn positions in Å into voxels of the level at work."""
        return self.level.to_voxels(positions_N3)

    def gather(
        self, centres_N3: npt.NDArray[np.int64], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Cut patches at voxels of the level at work, reading and smoothing each neighbourhood once.

        Parameters
        ----------
        centres_N3 : (N, 3) int
            Voxels z, y, x.
        out : (N, Z, Y, X) float32, optional
            Where to write, for example a part of a larger sample.

        Returns
        -------
        patches_NZYX : (N, Z, Y, X) float32
            In the order of the centres. A patch comes from the tile of its centre, whatever else is asked.
        """
        patches = np.empty((len(centres_N3), *self.box), dtype=np.float32) if out is None else out
        for rows, tile in self._groups(centres_N3):
            cover, density = self._around(centres_N3[rows], tile)
            if rows[-1] - rows[0] == len(rows) - 1:  # as they are stored
                part = slice(rows[0], rows[-1] + 1)
                cut(density, centres_N3[part], self.box, cover.start, out=patches[part])
                continue
            for row in rows.tolist():  # one by one: no second copy of a tile's patches
                cut(density, centres_N3[row], self.box, cover.start, out=patches[row : row + 1])
        return patches

    def _around(self, centres_N3: npt.NDArray[np.int64], tile: Box) -> tuple[Box, npt.NDArray[np.float32]]:
        """Return the density that the patches around some centres of one tile need, and where it lies."""
        if self.sigma:
            if self._last is None or self._last[0] != tile:
                self._last = None  # let go of it before the next is made
                self._last = (tile, *self._tile(tile))
            return self._last[1:]
        low = centres_N3.min(axis=0) - np.array(self.box) // 2
        high = centres_N3.max(axis=0) - np.array(self.box) // 2 + np.array(self.box)
        cover = Box.of(low.tolist(), high.tolist()).intersect(Box.whole(self.level.shape))
        return cover, self.tomogram.read_canonical(self.number, cover)

    def _groups(self, centres_N3: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[Any], Box]]:
        """Group centres by tile, in the order in which the tiles come."""
        if not len(centres_N3):
            return
        cells, first, inverse = np.unique(centres_N3 // TILE, axis=0, return_index=True, return_inverse=True)
        grid = Grid.of(self.level.shape, TILE)
        order = np.argsort(inverse.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(inverse.ravel(), minlength=len(cells)))
        groups = np.split(order, ends[:-1])
        for number in np.argsort(first):  # as the rows come: the last tile may be the next call's first
            yield groups[number], grid.box(cells[number].tolist())

    def bytes_per_gather(self) -> int:
        """Bound the bytes that cutting patches out of one tile takes."""
        side = TILE + 2 * halo_voxels(self.sigma) + max(self.box)
        sides = [min(side, n + 2 * halo_voxels(self.sigma) + max(self.box)) for n in self.level.shape]
        return 4 * 7 * int(np.prod([fast_length(n) for n in sides], dtype=np.int64))


def one_ahead(
    pool: Executor, function: Callable[[Job], Result], jobs: Iterable[Job]
) -> Generator[Result, None, None]:
    """Yield the function of each job, in order, while the pool is already at the next.

    A result may live in memory that the function uses again for the job after the next: it is asked for that
    only when the caller comes back. Closing the generator waits for what is under way.
    """
    waiting = iter(jobs)
    running: Future[Result] | None = None
    try:
        for job in waiting:
            running = pool.submit(function, job)
            break
        while running is not None:
            result = running.result()
            running = None
            for job in waiting:
                running = pool.submit(function, job)
                break
            yield result
    finally:
        if running is not None:
            wait([running])


def smoothed_statistics(tomogram: Tomogram, number: int, sigma: float) -> tuple[float, float]:
    """Measure the robust mean and sd of a smoothed level on a seeded sample; no block plays a part.

    The sample is smoothed in tiles of its own, of the size of a sample box: in the tiles that patches come
    from, twenty times as many voxels would be filtered as are looked at.
    """
    if sigma == 0:
        return 0.0, 1.0
    shape = tomogram.facts.levels[number].shape
    parts = []
    for box in sample_boxes(shape, edge=SAMPLE_TILE, budget_voxels=SAMPLE_VOXELS, seed=2):
        tile = min(TILE, max(SAMPLE_TILE, *box.shape))  # a small level is a single box
        need = required_voxels(box, shape, tile, halo_voxels(sigma))
        source = tomogram.read_canonical(number, need)
        parts.append(smoothed(source, need, box, shape, sigma, tile).ravel())
    return robust_statistics(np.concatenate(parts))


def statistics_notes(number: int, sigma: float, statistics: tuple[float, float]) -> dict[str, str]:
    """Write the statistics after smoothing as notes of the table of picks."""
    return {STATISTICS: json.dumps({"level": number, "sigma": sigma, "mean": statistics[0],
                                    "sd": statistics[1]}, sort_keys=True)}  # fmt: skip


def recorded_statistics(notes: dict[str, str], number: int, sigma: float) -> tuple[float, float] | None:
    """Read the statistics from the notes; None when they are not there, or of another level or smoothing."""
    try:
        entry = json.loads(notes[STATISTICS])
        if (entry["level"], entry["sigma"]) != (number, sigma):
            return None
        return float(entry["mean"]), float(entry["sd"])
    except (KeyError, TypeError, ValueError):
        return None
