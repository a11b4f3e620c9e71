"""Ingest: from an MRC file to an OME-Zarr pyramid, shard by shard, with the facts that every stage needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.pyramid import Level, Pyramid, pyramid_levels
from cryoscale.data.tomogram import Statistics, TomogramFacts, publish_tomogram
from cryoscale.errors import DataError, FormatError, SurroundingsError
from cryoscale.geometry import Block, Box, Grid, Zyx, round_up
from cryoscale.stages.base import BlockFunction, BlockReport, BlockStage, Plan, renumber

if TYPE_CHECKING:
    from cryoscale.formats.mrc import MrcVolume
    from cryoscale.formats.mrc_header import MrcHeader

SLAB = 32  # planes of a level made at a time, so that memory follows the slab and not the block
PROFILE_VOXELS = 8_000_000  # the z profile is measured on a level not larger than this, as are statistics
STATISTICS_VOXELS = (
    2_000_000  # of a larger sample, neighbours say little more: the medians cost more than all
)
SOURCE_BYTES = 8 << 20  # most that is read of the source at once (`formats.mrc.BUFFER_BYTES`)
SEAL_BYTES = 48  # for each voxel of such a sample: robust statistics sort it in float64 (measured: 42)


class IngestStage(BlockStage):
    """From a source file to a tomogram: level 0 copied, each further level made from the stored one below."""

    name = "ingest"
    version = 3
    reads = frozenset({"source"})
    writes = "tomogram"

    def plan(self, access: Access) -> Plan:
        """One phase per level; blocks are unions of shards."""
        header = _header(access)
        levels = _levels(access, header)
        edge = access.config.execution.block_voxels
        phases = []
        for number, level in enumerate(levels):
            unit = _shard(level.shape, access.config.ingest.chunk, access.config.ingest.shard)
            cell = Zyx(*(round_up(min(edge, n), u) for n, u in zip(level.shape, unit, strict=True)))
            phases.append(list(Grid.of(level.shape, cell).blocks(level=number)))
        item = header.dtype.itemsize
        chunk = access.config.ingest.chunk
        unit = _shard(levels[0].shape, chunk, access.config.ingest.shard)
        layer = min(chunk, levels[0].shape.z) * unit.y * unit.x  # what a shard is made from, piece by piece
        # as read, its columns, encoded; with odd chunks a slab of 2x2x2 as many is halved, in float32
        blocks = layer * item * 3 + 2 * SOURCE_BYTES + SLAB * 8 * unit.y * unit.x * (item + 8) * (chunk % 2)
        needed = max(blocks, SEAL_BYTES * min(levels[0].shape.voxels, PROFILE_VOXELS))
        disk = sum(level.shape.voxels for level in levels) * item
        return Plan(renumber(phases), needed + 64 * 2**20, disk)

    def create(self, access: Access) -> None:
        """Make the empty arrays of all levels."""
        header = _header(access)
        config = access.config.ingest
        pyramid = Pyramid(access.tomogram_folder(), writable=True)
        levels = _levels(access, header)
        pyramid.create(levels, header.dtype, chunk=config.chunk, shard=config.shard, image=True)

    @contextlib.contextmanager
    def open_worker(self, access: Access) -> Iterator[BlockFunction]:
        """Open the source for reading and the pyramid for writing."""
        source = access.source()["place"]
        pyramid = Pyramid(access.tomogram_folder(), writable=True)
        ignore = access.given_voxel_size() is not None
        with _opened(source, ignore_voxel_size=ignore) as volume:

            def ingest(block: Block) -> BlockReport:
                def copied(box: Box) -> npt.NDArray[Any]:
                    with _judged(source):
                        data = volume.read(box)
                    _check_finite(data, source, box)
                    return data

                def halved(box: Box) -> npt.NDArray[Any]:
                    return _downsample(pyramid, block.level, box)

                pyramid.write_layers(block.level, block.core, halved if block.level else copied)
                return BlockReport(voxels=block.core.voxels)

            yield ingest

    def seal(self, access: Access) -> dict[str, Any]:
        """Measure statistics, contrast and the slab of the sample; publish the metadata last.

        Raises
        ------
        DataError
            The volume is constant.
        """
        header = _header(access)
        pyramid = Pyramid(access.tomogram_folder(), writable=True)
        levels = _levels(access, header)
        source = access.source()
        try:
            statistics = tuple(_statistics(pyramid, number) for number in range(len(levels)))
        except DataError as error:
            raise DataError(f"{source['place']}: {error}") from error
        contrast, reason = _contrast(access, pyramid, levels)
        z_range, z_reason = _z_range(pyramid, levels)
        facts = TomogramFacts(
            name=access.tomogram,
            levels=tuple(levels),
            statistics=statistics,
            contrast=contrast,
            contrast_reason=reason,
            key=access.key,
            source={
                "path": source["path"],
                "content_id": access.upstream.get(f"identify/{access.tomogram}", ""),
                "dtype": header.dtype.name,
                "mrc_mode": header.mode,
            },
            z_range=z_range,
            z_range_reason=z_reason,
        )
        publish_tomogram(pyramid, facts)
        return {
            "shape": list(levels[0].shape),
            "voxel_size_angstrom": levels[0].voxel_size_angstrom,
            "contrast": contrast,
            "contrast_reason": reason,
            "z_range": list(z_range) if z_range else [],
            "z_range_reason": z_reason,
        }


def _header(access: Access) -> MrcHeader:
    from cryoscale.formats.mrc import read_header

    source = access.source()["place"]
    with _judged(source):
        return read_header(source, ignore_voxel_size=access.given_voxel_size() is not None)


@contextlib.contextmanager
def _judged(source: str) -> Iterator[None]:
    """Blame a source that is gone or closed to us on its tomogram; storage that fails pauses the run."""
    from cryoscale.formats.inputs import source_exists

    try:
        yield
    except (OSError, SurroundingsError):
        if not source_exists(source):
            raise DataError(f"{source} is gone.", remedy="Put it back, then run again.") from None
        if not os.access(source, os.R_OK):
            raise DataError(
                f"{source} may not be read by this user.", remedy="Change its permissions."
            ) from None
        raise


@contextlib.contextmanager
def _opened(source: str, *, ignore_voxel_size: bool) -> Iterator[MrcVolume]:
    """Open the source for reading boxes."""
    from cryoscale.formats.mrc import MrcVolume

    with _judged(source):
        volume = MrcVolume(source, ignore_voxel_size=ignore_voxel_size)
    with volume:
        yield volume


def _levels(access: Access, header: MrcHeader) -> list[Level]:
    size = access.given_voxel_size() or header.voxel_size_angstrom
    if size is None:
        raise FormatError(
            f"{access.source()['place']}: the header does not say the voxel size ({header.voxel_size_note}).",
            remedy="Give it: cryoscale init … --voxel-size N (ingest.voxel_size_angstrom in run.toml).",
        )
    return pyramid_levels(header.shape, size, count=access.config.ingest.levels)


def _shard(shape: Zyx, chunk: int, shard: int) -> Zyx:
    """Return the write unit that `Pyramid.create` gives a level of this shape."""
    chunks = [min(chunk, n) for n in shape]
    return Zyx(*(round_up(min(shard, round_up(n, c)), c) for n, c in zip(shape, chunks, strict=True)))


def _check_finite(data: npt.NDArray[Any], source: str, core: Box) -> None:
    if data.dtype.kind != "f" or _all_finite(data):
        return
    bad = int(np.count_nonzero(~np.isfinite(data)))
    raise DataError(
        f"{source}: {bad} voxels between {tuple(core.start)} and {tuple(core.stop)} (z, y, x) are NaN or "
        "infinite.",
        remedy="Write the tomogram again from its reconstruction, or replace these voxels by its mean.",
    )


def _all_finite(data: npt.NDArray[Any]) -> bool:
    """Whether no voxel is NaN or infinite; a NaN makes the minimum NaN."""
    # plane by plane: the second pass finds it in cache
    return all(np.isfinite(plane.min()) and np.isfinite(plane.max()) for plane in data)


def _downsample(pyramid: Pyramid, level: int, box: Box) -> npt.NDArray[Any]:
    """Make a box of a level from the level below: the mean of 2x2x2 voxels, of fewer at odd faces.

    Each chunk of the level below is halved as it comes, while it is in cache.
    """
    below = level - 1
    whole = Box.whole(pyramid.shape(below))
    made = np.empty(box.shape, dtype=pyramid.array(level).dtype)
    layout = pyramid.layout(below)
    by_chunks = layout is not None and all(
        chunk % 2 == 0 or chunk >= n for chunk, n in zip(layout.chunk, whole.shape, strict=True)
    )
    depth = box.shape.z if by_chunks else SLAB  # else a piece may be as large as what is asked for
    for z in range(0, box.shape.z, depth):
        slab = made[z : z + depth]
        start = box.start._replace(z=box.start.z + z)
        stop = box.stop._replace(z=start.z + len(slab))
        fine = Box.of([2 * n for n in start], [2 * n for n in stop]).intersect(whole)

        def take(place: tuple[slice, ...], stored: npt.NDArray[Any], slab: npt.NDArray[Any] = slab) -> None:
            mean = _halve(stored) if stored.ndim else stored
            half = tuple(slice(cut.start // 2, -(-cut.stop // 2)) for cut in place)
            slab[half] = np.rint(mean) if made.dtype.kind in "iu" else mean

        pyramid.read_pieces(below, fine, take)
    return made


def _halve(volume_ZYX: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Average pairs along each axis in float32; an odd last voxel stands for itself."""
    if any(n % 2 for n in volume_ZYX.shape):
        volume_ZYX = np.pad(volume_ZYX, [(0, n % 2) for n in volume_ZYX.shape], mode="edge")
    pairs = np.add(volume_ZYX[0::2], volume_ZYX[1::2], dtype=np.float32)
    pairs = pairs[:, 0::2] + pairs[:, 1::2]
    sums: npt.NDArray[np.float32] = pairs[:, :, 0::2] + pairs[:, :, 1::2]
    sums *= np.float32(0.125)  # a power of two: as if each pair had been halved, but for overflow
    return sums


def _statistics(pyramid: Pyramid, level: int) -> Statistics:
    """Measure a level on boxes all over it; of many voxels every second along each axis is enough."""
    from cryoscale.ops.normalise import robust_statistics, sample_boxes

    boxes = sample_boxes(pyramid.shape(level), seed=0)
    step = 1 if sum(box.voxels for box in boxes) <= STATISTICS_VOXELS else 2
    parts = [pyramid.read(level, box)[::step, ::step, ::step].ravel() for box in boxes]
    mean, sd = robust_statistics(np.concatenate(parts))
    return Statistics(mean, sd)


def _contrast(access: Access, pyramid: Pyramid, levels: list[Level]) -> tuple[str, str]:
    from cryoscale.ops.normalise import guess_contrast, sample_boxes

    asked = access.config.ingest.contrast
    if asked != "auto":
        return asked, "given in run.toml"
    boxes = sample_boxes(levels[0].shape, edge=64, budget_voxels=4_000_000, seed=1)
    guess = guess_contrast([pyramid.read(0, box) for box in boxes], levels[0].voxel_size_angstrom)
    return guess.value, guess.reason


def _z_range(pyramid: Pyramid, levels: list[Level]) -> tuple[tuple[int, int] | None, str]:
    """Suggest the slab of level 0 that holds the sample, from a level small enough to be read whole."""
    from cryoscale.ops.normalise import band_profile, suggest_z_range

    small = [n for n, level in enumerate(levels) if level.shape.voxels <= PROFILE_VOXELS]
    number = small[0] if small else len(levels) - 1
    box = Box.whole(levels[number].shape)
    if box.voxels > PROFILE_VOXELS:  # the coarsest is still large: take a column through the middle
        edge = max(16, int((PROFILE_VOXELS / box.shape.z) ** 0.5))
        middle = [(n - min(n, edge)) // 2 for n in box.shape[1:]]
        box = Box.of((0, *middle), (box.shape.z, *(m + edge for m in middle))).intersect(box)
    found = suggest_z_range(band_profile(pyramid.read(number, box).astype(np.float32)))
    if found.start is None or found.stop is None:
        return None, found.reason
    scale = 2**number
    return (found.start * scale, min(found.stop * scale, levels[0].shape.z)), found.reason
