"""Pick: from a tomogram to picks, by difference of Gaussians over blocks, or from imported positions."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.sections import PickConfig
from cryoscale.data.access import Access
from cryoscale.data.folder import Folder
from cryoscale.data.pyramid import Level
from cryoscale.data.rows import PICK_TILE_VOXELS, Picks, write_picks
from cryoscale.data.tables import read_table, write_table
from cryoscale.data.tomogram import Tomogram
from cryoscale.errors import ConfigurationError, DataError
from cryoscale.geometry import Block, Box, Grid, Zyx, pick_order, round_up, voxels_of
from cryoscale.ops.dog import TILE, Dog, dog_candidates, required_read, tile_voxels, working_bytes
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan
from cryoscale.stages.patching import smoothed_statistics, statistics_notes

SEAL_BYTES = 200  # for each candidate above the threshold, from its part to the sorted table
STATISTICS_BYTES = 160 * 2**20  # a sample of two million voxels, sorted in float64
NOISE_EDGE = 192  # voxels; the volume of shuffled voxels on which the noise threshold is measured


class PickStage(BlockStage):
    """From a tomogram to picks.

    Blocks only read the tomogram; each leaves its candidates as one part. Threshold and suppression need the
    whole tomogram and happen in `seal`, so a seam is nowhere special.
    """

    name = "pick"
    version = 3
    reads = frozenset({"tomogram"})
    writes = "picks"

    def plan(self, access: Access) -> Plan:
        """Cut the tomogram into unions of fixed tiles; none when positions are imported."""
        level = _level(access)
        _check_box(access, level)
        _check_files(access)
        if access.config.pick.positions:
            return Plan(((),), 512 * 2**20)
        dog = dog_for(access.config.pick, level)
        wanted = _wanted_slab(access, level)
        edges = [
            round_up(access.config.execution.block_voxels, n) for n in tile_voxels(level.shape, dog, TILE)
        ]
        cells = Grid.of(level.shape, edges).boxes()
        blocks: list[Block] = []
        for core in (cell.intersect(wanted) for cell in cells):
            if not core.empty:
                blocks.append(Block(len(blocks), core, required_read(core, level.shape, dog, TILE)))
        read = max((block.read.voxels for block in blocks), default=0)
        largest = [max(sides) for sides in zip(*(block.core.shape for block in blocks), strict=True)]
        # The voxels as stored, at most four bytes each; as much on the way to them; and without their mean.
        finding = read * (8 if dog.thinned else 12) + working_bytes(level.shape, dog, TILE, largest)
        expected = expected_candidates(sum(block.core.voxels for block in blocks), dog)
        pairs = min(expected * 32, 8_000_000) * 40  # what suppression compares at once
        sealing = expected * SEAL_BYTES + pairs + STATISTICS_BYTES
        return Plan((tuple(blocks),), max(finding, sealing) + 64 * 2**20, expected * 16)

    def create(self, access: Access) -> None:
        """Remove parts of an earlier plan."""
        access.parts().delete()
        access.output().delete(f"{access.tomogram}.parquet")

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the tomogram."""
        tomogram = access.open_tomogram()
        number = access.working_level()
        level = tomogram.facts.levels[number]
        statistics = tomogram.facts.statistics[number]
        scale = (-1.0 if tomogram.facts.bright else 1.0) / statistics.sd  # canonical, as `read_canonical`
        dog = dog_for(access.config.pick, level)
        parts = access.parts()

        def pick(block: Block) -> BlockReport:
            voxels = tomogram.pyramid.read(number, block.read)
            positions_N3, scores_N = dog_candidates(
                voxels, block.read, block.core, level.shape, dog, TILE, offset=statistics.mean, scale=scale
            )
            z, y, x = positions_N3.astype(np.int32).T
            write_table(parts, _part(block), {"z": z, "y": y, "x": x, "score": scores_N})
            return BlockReport(empty=not len(scores_N), voxels=block.core.voxels)

        yield pick

    def seal(self, access: Access) -> dict[str, Any]:
        """Threshold, suppress, sort, and write the picks; the same for any cut into blocks."""
        level = _level(access)
        if access.config.pick.positions:
            picks, facts = _imported(access, level)
        else:
            picks, facts = _selected(access, level, self.plan(access).phases[0])
        sigma, number = access.config.patch.smooth_sigma_voxels, access.working_level()
        statistics = smoothed_statistics(access.open_tomogram(), number, sigma)
        notes = statistics_notes(number, sigma, statistics)  # once per tomogram, for all who cut patches
        write_picks(access.output(), access.tomogram, picks, notes=notes)
        return {**facts, "picks": len(picks), "empty": len(picks) == 0}


def dog_for(config: PickConfig, level: Level) -> Dog:
    """Return the filter: by the particle's radius, or by the paper's voxels (2, 5, 1.1)."""
    if config.radius_angstrom is not None:
        radius = voxels_of(config.radius_angstrom, level.voxel_size_angstrom)
        if radius < 1:
            raise ConfigurationError(
                f"pick.radius_angstrom = {config.radius_angstrom:g} is {radius:.2f} voxels of "
                f"{level.voxel_size_angstrom:g} Å; it must be at least one.",
                remedy="Work at a smaller voxel size, or look for larger particles.",
            )
        return Dog.of_radius(radius, ratio=config.ratio)
    smooth = 2.0 if config.smooth_sigma_voxels is None else config.smooth_sigma_voxels
    return Dog.of_paper(smooth, config.sigma_voxels or 5.0, config.ratio)


def expected_candidates(voxels: int, dog: Dog) -> int:
    """Estimate generously how many local maxima the filter has in a volume.

    Notes
    -----
    Bardeen, Bond, Kaiser, Szalay 1986, doi:10.1086/164143, eq. 4.11b: a Gaussian random field has 0.016 / R^3
    maxima per voxel; for white noise behind a Laplacian of a Gaussian of width s, R = 0.82 s, so 0.029 / s^3.
    Twice that is allowed for. More than a quarter of all voxels cannot be greater than 18 neighbours.
    """
    return int(voxels * min(0.25, 0.06 / dog.narrow**3)) + 1


def _part(block: Block) -> str:
    return f"{block.index:08d}.parquet"


def _level(access: Access) -> Level:
    return access.open_tomogram().facts.levels[access.working_level()]


def _check_box(access: Access, level: Level) -> None:
    box = access.config.patch.box
    if any(n < side for n, side in zip(level.shape, box, strict=True)):
        raise DataError(
            f"tomogram '{access.tomogram}' is {tuple(level.shape)} voxels (z, y, x) at "
            f"{level.voxel_size_angstrom:g} Å, smaller than a patch of {box}.",
            remedy="Make patch.size_voxels smaller, or work at a smaller voxel size.",
        )


def _wanted_slab(access: Access, level: Level) -> Box:
    """Return the slab of the working level that `z_range` leaves."""
    whole = Box.whole(level.shape)
    asked = access.config.pick.z_range
    facts = access.open_tomogram().facts
    slices = facts.z_range if asked == "auto" else asked
    if slices is None or isinstance(slices, str):
        return whole
    low, high = slices
    factor = level.voxel_size_angstrom / facts.levels[0].voxel_size_angstrom
    slab = Box.of((int(low / factor), 0, 0), (-(-int(high) // max(1, round(factor))), *whole.stop[1:]))
    inside = slab.intersect(whole)
    if inside.empty:
        raise ConfigurationError(
            f"pick.z_range = {list(asked)} leaves nothing of '{access.tomogram}', "
            f"which has {facts.levels[0].shape.z} slices.",
            remedy='Give two slice numbers of level 0, first < second, or "auto".',
        )
    return inside


def _selected(access: Access, level: Level, blocks: Sequence[Block]) -> tuple[Picks, dict[str, Any]]:
    """Reduce the candidates of all blocks to picks; those below the threshold are never held together."""
    from cryoscale.ops.peaks import suppress

    parts, best = access.parts(), [np.float32(np.inf), np.float32(-np.inf)]
    usable, total, fitting, unmasked = [], 0, 0, 0
    for block in blocks:
        voxels, scores = _candidates(parts, block)
        fit = _fits(access, level, voxels)
        good = fit & _in_mask(access, level, voxels)
        usable.append(np.packbits(good))  # one bit each: the mask is read once
        total, fitting, unmasked = total + len(fit), fitting + int(fit.sum()), unmasked + int(good.sum())
        if good.any():
            best = [min(best[0], scores[good].min()), max(best[1], scores[good].max())]
    if fitting and not unmasked:
        raise DataError(
            f"mask {_mask_path(access)} leaves no candidate of tomogram '{access.tomogram}'.",
            remedy="Non-zero voxels of the mask are where picks are wanted.",
        )
    threshold = _threshold(access, level, np.array(best if unmasked else [], np.float32))
    places, values = [np.empty((0, 3), np.int32)], [np.empty(0, np.float32)]
    for block, packed in zip(blocks, usable, strict=True):
        voxels, scores = _candidates(parts, block)
        good = np.unpackbits(packed, count=len(scores)).astype(bool) & (scores >= threshold)
        places.append(voxels[good])
        values.append(scores[good])
    voxels_N3, scores_N = np.concatenate(places), np.concatenate(values)
    del places, values
    kept = suppress(voxels_N3, scores_N, _min_distance(access.config.pick, level))
    kept = kept[: access.config.pick.max_picks]
    facts = {"candidates": total, "threshold": float(threshold) if np.isfinite(threshold) else 0.0}
    return _as_picks(voxels_N3[kept].astype(np.int64), scores_N[kept], level), facts


def _candidates(parts: Folder, block: Block) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Read what a block left: voxels and scores."""
    table = read_table(parts, _part(block))
    voxels_N3 = np.stack([table["z"], table["y"], table["x"]], axis=1).astype(np.int32)
    return voxels_N3, table["score"].astype(np.float32)


def _fits(access: Access, level: Level, voxels_N3: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    from cryoscale.ops.patches import fits

    return fits(voxels_N3, access.config.patch.box, level.shape)


def _min_distance(config: PickConfig, level: Level) -> float:
    """Return the minimum distance in voxels: as given, or twice the filter's narrow sigma (paper: 2 s1)."""
    if config.min_distance_angstrom is not None:
        return voxels_of(config.min_distance_angstrom, level.voxel_size_angstrom)
    if config.radius_angstrom is None:
        return 2 * (config.sigma_voxels or 5.0)
    return 2 * dog_for(config, level).narrow


def _threshold(access: Access, level: Level, scores_N: npt.NDArray[np.float32]) -> float:
    from cryoscale.ops.peaks import noise_threshold, range_threshold

    config = access.config.pick
    if config.threshold_rule == "score":
        return config.threshold
    if config.threshold_rule == "range":
        return range_threshold(scores_N, config.threshold)
    return noise_threshold(_noise_scores(access, level), config.threshold)


def _noise_scores(access: Access, level: Level) -> npt.NDArray[np.float32]:
    """Pick a volume of randomly drawn voxels in the same way and return its scores."""
    from cryoscale.ops.normalise import sample_boxes
    from cryoscale.ops.peaks import noise_volume

    tomogram, number = access.open_tomogram(), access.working_level()
    seed = access.config.pick.seed
    boxes = sample_boxes(level.shape, budget_voxels=2_000_000, seed=seed)
    sample = np.concatenate([tomogram.read_canonical(number, box).ravel() for box in boxes])
    whole = Box.whole(Zyx.of(NOISE_EDGE))
    noise = noise_volume(sample, whole.shape, seed)
    return dog_candidates(noise, whole, whole, whole.shape, dog_for(access.config.pick, level), TILE)[1]


def _mask_path(access: Access) -> str:
    return (access.config.pick.mask or "").replace("{tomogram}", access.tomogram)


def _check_files(access: Access) -> None:
    """Refuse masks and positions that are not there, before anything is computed."""
    for key, pattern in (("mask", access.config.pick.mask), ("positions", access.config.pick.positions)):
        path = (pattern or "").replace("{tomogram}", access.tomogram)
        if path and not os.path.isfile(path):
            raise ConfigurationError(
                f"pick.{key}: there is no file {path} for tomogram '{access.tomogram}'.",
                remedy=f"Make it, or change pick.{key} ({{tomogram}} stands for the name).",
            )
        if path and not os.access(path, os.R_OK):
            raise ConfigurationError(
                f"pick.{key}: {path} may not be read by this user.", remedy="Change its permissions."
            )


def _in_mask(access: Access, level: Level, positions_N3: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Tell which positions lie where the mask is not zero; everywhere without a mask."""
    if access.config.pick.mask is None or not len(positions_N3):
        return np.ones(len(positions_N3), dtype=bool)
    from cryoscale.formats.mrc import MrcVolume

    _check_files(access)  # it may have gone since the plan
    path = _mask_path(access)
    base = access.open_tomogram().facts.levels[0]
    with MrcVolume(path, ignore_voxel_size=True) as mask:
        if mask.shape not in (level.shape, base.shape):
            raise DataError(
                f"mask {path} is {tuple(mask.shape)} voxels, tomogram '{access.tomogram}' is "
                f"{tuple(base.shape)} (level at work: {tuple(level.shape)}).",
                remedy="Make the mask on the tomogram's grid.",
            )
        if mask.shape == level.shape:
            voxels = positions_N3
        else:
            voxels = np.minimum(base.to_voxels(level.to_angstrom(positions_N3)), np.array(base.shape) - 1)
        wanted = np.zeros(len(voxels), dtype=bool)
        (_, y0, x0), (_, y1, x1) = voxels.min(axis=0).tolist(), (voxels.max(axis=0) + 1).tolist()
        for z in np.unique(voxels[:, 0]).tolist():  # plane by plane: a mask may be as large as its tomogram
            plane = mask.read(Box.of((z, y0, x0), (z + 1, y1, x1)))[0]
            here = voxels[:, 0] == z
            wanted[here] = plane[voxels[here, 1] - y0, voxels[here, 2] - x0] != 0
    return wanted


def _imported(access: Access, level: Level) -> tuple[Picks, dict[str, Any]]:
    from cryoscale.formats.points import read_positions
    from cryoscale.ops.patches import fits

    _check_files(access)
    path = (access.config.pick.positions or "").replace("{tomogram}", access.tomogram)
    tomogram: Tomogram = access.open_tomogram()
    base = tomogram.facts.levels[0]
    points = read_positions(
        path, shape=base.shape, voxel_size_angstrom=base.voxel_size_angstrom, tomogram=access.tomogram
    )
    voxels_N3 = level.to_voxels(points.positions_N3)
    good = fits(voxels_N3, access.config.patch.box, level.shape)
    if len(good) and not good.any():  # a list of none is an answer too
        raise DataError(
            f"{path}: none of {len(good)} positions leaves room for a patch in tomogram '{access.tomogram}'.",
            remedy="Check their unit, their axis order, and the voxel size.",
        )
    scores = points.score_N if points.score_N is not None else np.ones(len(good), np.float32)
    order = pick_order(points.positions_N3[good], level.voxel_size_angstrom, PICK_TILE_VOXELS)
    picks = Picks(points.positions_N3[good][order], scores[good][order].astype(np.float32))
    return picks, {"imported": len(good), "outside": int((~good).sum())}


def _as_picks(voxels_N3: npt.NDArray[np.int64], scores_N: npt.NDArray[np.float32], level: Level) -> Picks:
    order = pick_order(voxels_N3.astype(np.float64), 1.0, PICK_TILE_VOXELS)
    return Picks(level.to_angstrom(voxels_N3[order]), scores_N[order])
