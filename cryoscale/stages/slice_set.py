"""Tiles of slices to train a 2D network on, with the labels that a person drew or a simulation knows.

Shapes: N tiles, C planes beside each other, U and V the axes across the slices (in the order z, y, x),
T tomograms, K cells, L classes with the background.

A tile stands about a voxel that is drawn by the seed: with `object_share` one of an object, evenly over the
classes, else one of the background. Volumes are read cell by cell, so memory holds the set and little more.
In-plane rotations (ten of each tile in Chen et al. 2017) are left to the training, which draws them anew in
each epoch: `random_rotations` of `cryoscale.learn`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.access import Access
from cryoscale.errors import ConfigurationError, DataError
from cryoscale.geometry import Box, Grid, Zyx, round_up
from cryoscale.ops.tiles import reflected
from cryoscale.stages.label_boxes import labelled_tomograms
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.slice_drawing import (
    CELL,
    VALUES,
    Indices,
    Place,
    Source,
    Tiling,
    draw_tiles,
    tile_count,
)
from cryoscale.stages.supervised_set import IGNORED

if TYPE_CHECKING:
    from cryoscale.ops.slices import SliceFilter

PAPER_TILE = {"unet2d": 512, "cnn2d-chen": 64}
ALIGNMENT = {"unet2d": 16, "cnn2d-chen": 2}
CHUNK_BYTES = 256 * 2**20  # of density read for tiles that are not finished yet
AXES = "zyx"


@dataclass(frozen=True)
class SliceSet:
    """What a 2D network learns from.

    Attributes
    ----------
    inputs_NCYX : (N, C, U, V) float32
        Density as the networks see it (`PatchReader.read`), and after the preprocessing if there is one.
    targets_NYX : (N, U, V) uint8
        Label values of the middle plane; `IGNORED` beyond the faces of the tomogram.
    class_names : tuple of str
        Of the label values 1, 2, ….
    validation_rows : (V,) int64
        Tiles of the planes that are held back; or a share of all tiles, drawn by the seed, where no tomogram
        has enough planes, or a class would not be seen in those that are left. The notes say which.
    notes : dict
        For the model card: `slices` (axis, tile in voxels, neighbours), `preprocessing` (see
        `cryoscale.ops.slices.preprocessing_of`; empty if there is none), `classes` (names, colors), and
        `sample`, what was counted: tiles, voxels of each class in the labels, and how tiles are held back.
    """

    inputs_NCYX: npt.NDArray[np.float32]
    targets_NYX: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]
    validation_rows: Indices
    notes: dict[str, Any] = field(default_factory=dict)


def slice_set(access: Access) -> SliceSet:
    """Draw and cut the tiles of a training.

    Parameters
    ----------
    access : Access
        Reads tomograms, picks (for their notes) and drawn labels; `config.supervised` says what is wanted.

    Returns
    -------
    slices : SliceSet
        At most `max_patches` tiles, none twice, and not more than fit beside each other. A tile that was not
        asked for otherwise has the side of the paper, or that of the largest slice if no slice is so large;
        it is rounded up to what the network's poolings divide. Where a slice is smaller, its density is
        reflected and its label there `IGNORED`.

    Raises
    ------
    DataError
        A class without a voxel, values beyond the classes, or tomograms that name one value differently.
    NothingToDoError
        Nothing is labelled.
    ConfigurationError
        Neighbours for a network that sees one slice.
    """
    asked = access.config.supervised
    labelled, names, colors = labelled_tomograms(access)
    sources = [Source(access, one, names) for one in labelled]
    shapes = [source.shape for source in sources]
    tiling, band = _tiling(asked, shapes)
    counts_TPL = [source.counts(tiling.axis) for source in sources]
    voxels_L = np.sum([counts_PL.sum(axis=0) for counts_PL in counts_TPL], axis=0)
    missing = [f"'{name}'" for name, voxels in zip(names, voxels_L[1:], strict=True) if not voxels]
    if missing:
        where = ", ".join(source.name for source in sources[:5])
        raise DataError(
            f"no voxel of class {', '.join(missing)} is labelled in {where}.",
            remedy="Draw it, or leave its name out of supervised.classes.",
        )
    places, validation, how = draw_tiles(asked, sources, counts_TPL, tiling)
    if len(places) < 2:
        raise DataError(
            f"the labels give {len(places)} tile: one to train on and one to validate on are needed.",
            remedy="Label more slices, or lower supervised.tile_voxels.",
        )
    inputs, targets, preprocessing = _cut(sources, places, tiling, band)
    counted = {"background": int(voxels_L[0]), **dict(zip(names, voxels_L[1:].tolist(), strict=True))}
    notes = {
        "slices": {"axis": asked.axis, "tile": tiling.tile, "neighbours": asked.neighbours},
        "preprocessing": preprocessing,
        "classes": {"names": list(names), "colors": [list(color) for color in colors]},
        "sample": {"tiles": len(places), "voxels": counted, "validation": how},
    }
    return SliceSet(inputs, targets, names, validation, notes)


def tile_side(access: Access) -> int:
    """Return the side of the tiles that `slice_set` would cut, voxels."""
    shapes = [PatchReader.for_access(access, name).level.shape for name in access.tomograms]
    return _tiling(access.config.supervised, shapes)[0].tile


def slice_set_bytes(access: Access) -> int:
    """Bound what `slice_set` takes, bytes: the set, tiles under way, and a cell with its smoothing."""
    asked = access.config.supervised
    readers = [PatchReader.for_access(access, name) for name in access.tomograms]
    shapes = [reader.level.shape for reader in readers]
    tiling, _ = _tiling(asked, shapes)
    kept = tile_count(asked, shapes, tiling) * tiling.tile**2 * (4 * tiling.planes + 1)
    under_way = CHUNK_BYTES + 16 * tiling.planes * tiling.side**2
    cell = max(reader.bytes_per_gather() for reader in readers) + CELL**3 * (4 + 1 + 8)
    cells = sum(len(Grid.of(shape, CELL)) for shape in shapes)
    planes = sum(shape[tiling.axis] for shape in shapes)
    return kept + under_way + cell + (cells + planes) * VALUES * 8


def _tiling(asked: SupervisedConfig, shapes: Sequence[Zyx]) -> tuple[Tiling, SliceFilter | None]:
    """Choose the form of the tiles, and what is done to them before they reach the network."""
    name, axis = str(asked.model), AXES.index(asked.axis)
    across = [[n for number, n in enumerate(shape) if number != axis] for shape in shapes]
    wanted = asked.tile_voxels or min(PAPER_TILE[name], max(map(max, across)))
    tile = round_up(wanted, ALIGNMENT[name])
    if name != "cnn2d-chen":
        return Tiling(axis, tile, asked.neighbours, 0), None
    if asked.neighbours:
        raise ConfigurationError(
            f"supervised.neighbours = {asked.neighbours}, but {name} sees one slice.",
            remedy="Set it to 0, or take unet2d.",
        )
    from cryoscale.ops.slices import SliceFilter, high_pass_sigma, low_pass_sigma

    band = SliceFilter(low_pass_sigma(), high_pass_sigma(across[0]))
    return Tiling(axis, tile, 0, band.halo), band


def _cut(
    sources: Sequence[Source], places: Sequence[Place], tiling: Tiling, band: SliceFilter | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], dict[str, Any]]:
    """Cut all tiles, filter and scale them; the last is what the card says of that."""
    inputs = np.empty((len(places), tiling.planes, tiling.tile, tiling.tile), np.float32)
    targets = np.empty((len(places), tiling.tile, tiling.tile), np.uint8)
    core = slice(tiling.halo, tiling.halo + tiling.tile)
    at_once = max(1, CHUNK_BYTES // (5 * tiling.planes * tiling.side**2))
    for number, source in enumerate(sources):
        rows = [row for row, place in enumerate(places) if place.source == number]
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            windows = [tiling.window(places[row]) for row in part]
            for row, (density_ZYX, labels_ZYX) in zip(part, _read(source, windows), strict=True):
                image_CUV = tiling.flat(density_ZYX)
                inputs[row] = image_CUV if band is None else _filtered(band, image_CUV)[:, core, core]
                targets[row] = tiling.flat(labels_ZYX)[tiling.neighbours][core, core]
    return inputs, targets, {} if band is None else _scale(band, inputs)


def _read(
    source: Source, windows: Sequence[Box]
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]]:
    """Yield density (reflected at the faces) and labels (unknown beyond them) of windows, read by cells."""
    inside = [window.intersect(Box.whole(source.shape)) for window in windows]
    starts_N3, stops_N3 = np.array([box.start for box in inside]), np.array([box.stop for box in inside])
    density = [np.empty(box.shape, np.float32) for box in inside]
    labels = [np.empty(box.shape, np.uint8) for box in inside]
    for cell in source.grid:
        sharing = np.flatnonzero(((starts_N3 < cell.stop) & (stops_N3 > cell.start)).all(axis=1))
        if not len(sharing):
            continue
        cover = Box.of(starts_N3[sharing].min(axis=0).tolist(), stops_N3[sharing].max(axis=0).tolist())
        cover = cover.intersect(cell)
        seen, drawn = source.reader.read(cover), source.labels(cover)
        for n in sharing.tolist():
            shared = inside[n].intersect(cell)
            there, here = shared.relative_to(inside[n].start).slices, shared.relative_to(cover.start).slices
            density[n][there], labels[n][there] = seen[here], drawn[here]
    for window, box, seen, drawn in zip(windows, inside, density, labels, strict=True):
        whole = np.full(window.shape, IGNORED, np.uint8)
        whole[box.relative_to(window.start).slices] = drawn
        image: npt.NDArray[Any] = reflected(seen, box, window, source.shape)
        yield image, whole


def _filtered(band: SliceFilter, image_CUV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        contiguous = torch.from_numpy(np.ascontiguousarray(image_CUV))
        found: npt.NDArray[np.float32] = band.band(contiguous[None])[0].numpy()
    return found


def _scale(band: SliceFilter, inputs: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Scale and clamp filtered tiles in place by their own mean and sd; return the card of the filter."""
    moments = np.array(
        [(tile.sum(dtype=np.float64), np.square(tile, dtype=np.float64).sum()) for tile in inputs]
    )
    mean, square = moments.sum(axis=0) / inputs.size
    fitted = band.with_statistics(float(mean), math.sqrt(max(square - mean**2, 1e-12)))
    for tile in inputs:
        tile -= np.float32(fitted.mean)
        tile /= np.float32(fitted.sd)
        np.clip(tile, -fitted.clamp, fitted.clamp, out=tile)
        tile /= np.float32(fitted.clamp)
    return fitted.card
