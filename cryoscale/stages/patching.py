"""Patches in memory: read once per tile, smooth on fixed tiles, cut. For the stages that hold networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
from cryoscale.ops.tiles import filtered_tiles, required_voxels

TILE = PICK_TILE_VOXELS  # smoothing runs in buffers of one shape per tomogram: no block changes a result
SAMPLE_VOXELS = 2_000_000


class PatchReader:
    """Density as the networks see it: canonical, smoothed, and scaled to unit sd after smoothing.

    Smoothing takes away most of the noise, so the sd that the tomogram has before it says little; the density
    is scaled once more by the robust mean and sd of the smoothed tomogram (a seeded sample of it, the same
    for every worker). Objects stay dark.

    Parameters
    ----------
    tomogram : Tomogram
        What to read.
    level : int
        Pyramid level at work.
    config : PatchConfig
        Box and smoothing.
    """

    def __init__(self, tomogram: Tomogram, level: int, config: PatchConfig) -> None:
        self.tomogram, self.number = tomogram, level
        self.level: Level = tomogram.facts.levels[level]
        self.box = Zyx.of(config.box)
        self.sigma = config.smooth_sigma_voxels
        self._statistics: tuple[float, float] | None = None

    @classmethod
    def for_access(cls, access: Access, tomogram: str | None = None) -> PatchReader:
        """Open the reader of a tomogram that a stage may read."""
        opened = access.open_tomogram(tomogram)
        return cls(opened, access.working_level(tomogram), access.config.patch)

    @property
    def statistics(self) -> tuple[float, float]:
        """Robust mean and sd after smoothing."""
        if self._statistics is None:
            if self.sigma == 0:
                self._statistics = (0.0, 1.0)
            else:
                boxes = sample_boxes(self.level.shape, budget_voxels=SAMPLE_VOXELS, seed=2)
                sample = np.concatenate([self._smoothed(box).ravel() for box in boxes])
                self._statistics = robust_statistics(sample)
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
        made = np.empty(box.shape, dtype=np.float32)
        for cover, filtered in self._filtered(box, 0):
            part = cover.intersect(box)
            made[part.relative_to(box.start).slices] = filtered[part.relative_to(cover.start).slices]
        return made

    def _filtered(self, core: Box, margin: int) -> Iterator[tuple[Box, npt.NDArray[np.float32]]]:
        """Yield the smoothed tiles that touch `core`, each with `margin` voxels more around it."""
        halo, shape = halo_voxels(self.sigma), self.level.shape
        need = required_voxels(core, shape, TILE, halo + margin)
        source = self.tomogram.read_canonical(self.number, need)
        tiles = filtered_tiles(
            source, need, core, shape, tile=TILE, halo=halo, margin=margin,
            apply=lambda buffer, keep: filter_tile(buffer, [(1.0, self.sigma)], keep),
        )  # fmt: skip
        for _, cover, filtered in tiles:
            yield cover, filtered

    def voxels(self, positions_N3: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Turn positions in Å into voxels of the level at work."""
        return self.level.to_voxels(positions_N3)

    def gather(self, centres_N3: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Cut patches at voxels of the level at work, reading and smoothing each neighbourhood once.

        Returns
        -------
        patches_NZYX : (N, Z, Y, X) float32
            In the order of the centres. A patch comes from the tile of its centre, whatever else is asked.
        """
        patches = np.empty((len(centres_N3), *self.box), dtype=np.float32)
        margin = max(self.box) // 2
        whole = Box.whole(self.level.shape)
        for rows, tile in self._groups(centres_N3):
            if self.sigma:
                cover, density = next(self._filtered(tile, margin))
            else:
                cover = tile.grow(margin).intersect(whole)
                density = self.tomogram.read_canonical(self.number, cover)
            patches[rows] = cut(density, centres_N3[rows], self.box, cover.start)
        if self.sigma:
            mean, sd = self.statistics
            patches -= np.float32(mean)
            patches *= np.float32(1.0 / sd)
        return patches

    def _groups(self, centres_N3: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[Any], Box]]:
        """Group centres by tile."""
        if not len(centres_N3):
            return
        cells, inverse = np.unique(centres_N3 // TILE, axis=0, return_inverse=True)
        grid = Grid.of(self.level.shape, TILE)
        order = np.argsort(inverse.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(inverse.ravel(), minlength=len(cells)))
        for cell, rows in zip(cells, np.split(order, ends[:-1]), strict=True):
            yield rows, grid.box(cell.tolist())

    def bytes_per_gather(self) -> int:
        """Bound the bytes that cutting patches out of one tile takes."""
        side = TILE + 2 * halo_voxels(self.sigma) + max(self.box)
        sides = [min(side, n + 2 * halo_voxels(self.sigma) + max(self.box)) for n in self.level.shape]
        return 4 * 7 * int(np.prod([fast_length(n) for n in sides], dtype=np.int64))
