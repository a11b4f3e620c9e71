"""From what stands where to a density and a label volume, box by box.

The same voxels come out whatever boxes the volume is cut into: a voxel is a sum over all that reaches it, in
a fixed order (film, membranes, filaments, gold, particles by row), and each addend is a function of the
voxel's place alone.

Shape suffixes: Z, Y, X voxels of the box; V voxels of a tile; S side of a stamp; N particles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box
from cryoscale.simulate.filaments import contour_of
from cryoscale.simulate.placed import Placed
from cryoscale.simulate.scene import LEAFLET_OFFSET_ANGSTROM, LEAFLET_SIGMA_ANGSTROM
from cryoscale.simulate.shapes import CONTOUR, blur_sigma_voxels
from cryoscale.simulate.surroundings import EDGE_CONTOUR, GRAIN, grain, lamella, occupancy, tiles_of

Signal = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

TILE = 32
"""Edge of the tiles in which fields are computed, voxels: what is far from a tile costs nothing there."""


class Stamp(Protocol):
    """One density that can be turned."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extent of every stamp: odd, the middle voxel is the particle's centre."""
        ...

    def stamp(self, quaternion_xyzw: Any, offset_zyx: Any) -> Signal:
        """Return the turned density, its centre up to half a voxel beyond the middle voxel."""
        ...


class Stamps(Protocol):
    """Densities by name, as configured."""

    def __getitem__(self, name: str, /) -> Stamp: ...


def paint_box(placed: Placed, stamps: Stamps, box: Box) -> tuple[Signal, Labels]:
    """Paint what meets a box.

    Parameters
    ----------
    placed : Placed
        What stands where.
    stamps : mapping of str to Stamp
        By the names in `placed.densities`, at its voxel size and resolution.
    box : Box
        What is wanted; it may leave the volume.

    Returns
    -------
    signal_ZYX : (Z, Y, X) float32
        Scattering above ice; objects positive.
    labels_ZYX : (Z, Y, X) uint8
        Class value: where an object's density is above the contour; particles win over everything else.
    """
    signal_ZYX, labels_ZYX = np.zeros(box.shape, np.float32), np.zeros(box.shape, np.uint8)
    _paint_fields(placed, box, signal_ZYX, labels_ZYX)
    for row in rows_meeting(placed, stamps, box):
        origin, stamp_SSS = _stamp_of(placed, stamps, row)
        meets = Box.of(origin, [o + n for o, n in zip(origin, stamp_SSS.shape, strict=True)]).intersect(box)
        part = stamp_SSS[meets.relative_to(origin).slices]
        here = meets.relative_to(box.start).slices
        signal_ZYX[here] += placed.contrast_N[row] * part
        labels_ZYX[here][part > np.float32(CONTOUR) * stamp_SSS.max()] = placed.class_N[row]
    return signal_ZYX, labels_ZYX


def particle_alone(placed: Placed, stamps: Stamps, row: int, box: Box) -> Signal:
    """Return the density of one particle in a box, without its neighbours, at its own contrast.

    Returns
    -------
    density_ZYX : (Z, Y, X) float32
        As it was added by `paint_box`.
    """
    alone_ZYX = np.zeros(box.shape, np.float32)
    _put(alone_ZYX, box, *_stamp_of(placed, stamps, row))
    alone_ZYX *= placed.contrast_N[row]
    return alone_ZYX


def particle_mask(placed: Placed, stamps: Stamps, row: int, box: Box) -> npt.NDArray[np.bool_]:
    """Return where in a box one particle's density is above the contour, 0.2 of its greatest."""
    origin, stamp_SSS = _stamp_of(placed, stamps, row)
    alone_ZYX = np.zeros(box.shape, np.float32)
    _put(alone_ZYX, box, origin, stamp_SSS)
    mask_ZYX: npt.NDArray[np.bool_] = alone_ZYX > np.float32(CONTOUR) * stamp_SSS.max()
    return mask_ZYX


def rows_meeting(placed: Placed, stamps: Stamps, box: Box) -> list[int]:
    """Return the particles whose stamps share a voxel with a box, rising."""
    if box.empty:
        return []
    half_E = np.array([stamps[name].shape[0] // 2 for name in placed.densities], dtype=np.int64)
    half_N1 = np.repeat(half_E, placed.entry_counts)[:, None]
    nearest_N3 = np.rint(placed.positions_N3 / placed.voxel_size_angstrom).astype(np.int64)
    meets = (nearest_N3 + half_N1 >= box.start) & (nearest_N3 - half_N1 < box.stop)
    rows: list[int] = np.flatnonzero(meets.all(axis=1)).tolist()
    return rows


def _stamp_of(placed: Placed, stamps: Stamps, row: int) -> tuple[list[int], Signal]:
    """Return a particle's stamp and the voxel of the volume where its first voxel lies."""
    stamp = stamps[placed.density_of(row)]
    place = placed.positions_N3[row] / placed.voxel_size_angstrom
    nearest = np.rint(place)
    stamp_SSS = stamp.stamp(placed.quaternion_N4[row], place - nearest)
    if stamp_SSS.shape != tuple(stamp.shape):
        raise LayoutError(f"a stamp of shape {stamp_SSS.shape} where {tuple(stamp.shape)} was announced")
    return [int(n) - s // 2 for n, s in zip(nearest, stamp_SSS.shape, strict=True)], stamp_SSS


def _put(volume_ZYX: Signal, box: Box, origin: list[int], stamp_SSS: Signal) -> None:
    """Copy the part of a stamp that meets a box into the box's volume."""
    meets = Box.of(origin, [o + n for o, n in zip(origin, stamp_SSS.shape, strict=True)]).intersect(box)
    if not meets.empty:
        volume_ZYX[meets.relative_to(box.start).slices] = stamp_SSS[meets.relative_to(origin).slices]


@dataclass(frozen=True)
class _Tile:
    """A tile with its voxels' coordinates, Å, and the parts of the results that it covers."""

    box: Box
    centre_13: Floats
    reach: float
    z: Floats
    y: Floats
    x: Floats
    signal_ZYX: Signal
    labels_ZYX: Labels

    def near(self, thing: Any, beyond: float) -> bool:
        """Whether the thing's surface, grown by `beyond`, meets the sphere around the tile."""
        return float(thing.approach(self.centre_13)[0][0]) <= self.reach + beyond


def _tiles(placed: Placed, box: Box, signal_ZYX: Signal, labels_ZYX: Labels) -> Iterator[_Tile]:
    """Cut a box into tiles."""
    voxel = placed.voxel_size_angstrom
    for tile in tiles_of(box, TILE):
        low, high = (np.array(end, dtype=np.float64) for end in (tile.start, tile.stop))
        centre = (low + high - 1) / 2 * voxel
        reach = float(np.sqrt(((high - low) ** 2).sum())) / 2 * voxel
        lines = (
            np.arange(a, b, dtype=np.float64) * voxel for a, b in zip(tile.start, tile.stop, strict=True)
        )
        z, y, x = np.meshgrid(*lines, indexing="ij", sparse=True)
        here = tile.relative_to(box.start).slices
        yield _Tile(tile, centre[None], reach, z, y, x, signal_ZYX[here], labels_ZYX[here])


def _paint_fields(placed: Placed, box: Box, signal_ZYX: Signal, labels_ZYX: Labels) -> None:
    """Add everything but the particles."""
    if not (placed.membranes or placed.filaments or placed.carbon or placed.gold) or box.empty:
        return
    voxel = placed.voxel_size_angstrom
    blur = blur_sigma_voxels(placed.resolution_angstrom, voxel) * voxel
    contours = [contour_of(filament, blur) for filament in placed.filaments]
    for tile in _tiles(placed, box, signal_ZYX, labels_ZYX):
        z_slab = lamella(
            tile.box.start.z,
            tile.box.stop.z,
            voxel,
            float(placed.size_angstrom[0]),
            placed.border_angstrom,
            blur,
        )
        # How much of each voxel's cell is neither beyond the lamella nor film
        free_ZYX = np.broadcast_to(z_slab[:, None, None], tile.box.shape)
        if placed.carbon is not None and tile.near(placed.carbon, 4 * blur):
            free_ZYX = free_ZYX * _paint_carbon(placed, tile, blur)
        _paint_membranes(placed, tile, blur, free_ZYX)
        _paint_filaments(placed, tile, blur, free_ZYX, contours)
        _paint_gold(placed, tile, blur)


def _paint_carbon(placed: Placed, tile: _Tile, blur: float) -> Floats:
    """Add the film; return how much of each voxel it leaves free."""
    film = placed.carbon
    assert film is not None  # asked by the caller
    depth_ZYX = film.depth(tile.z, tile.y, tile.x)
    filled_ZYX = occupancy(depth_ZYX, blur)
    grain_ZYX = grain(placed.seed, tile.box, blur / placed.voxel_size_angstrom)
    rough_ZYX = 1 + GRAIN * grain_ZYX.astype(np.float64)
    tile.signal_ZYX[...] += (film.contrast * filled_ZYX * rough_ZYX).astype(np.float32)
    tile.labels_ZYX[depth_ZYX < EDGE_CONTOUR * blur] = placed.value_of("carbon")
    return 1 - filled_ZYX


def _paint_membranes(placed: Placed, tile: _Tile, blur: float, free_ZYX: Floats) -> None:
    """Add membranes: they end at the faces of a lamella and at the film."""
    # As in `scene`: painted at the height that a leaflet of full contrast keeps after the blur
    sigma = math.hypot(LEAFLET_SIGMA_ANGSTROM, blur)
    for membrane in placed.membranes:
        if not tile.near(membrane, LEAFLET_OFFSET_ANGSTROM + 4 * sigma):
            continue
        depth_ZYX = np.ascontiguousarray(membrane.depth(tile.z, tile.y, tile.x))
        tile.signal_ZYX[...] += (membrane.density(depth_ZYX, sigma) * free_ZYX).astype(np.float32)
        inside_ZYX = membrane.inside(depth_ZYX, sigma) & (free_ZYX >= 0.5)
        tile.labels_ZYX[inside_ZYX] = placed.value_of(membrane.class_name)


def _paint_filaments(
    placed: Placed, tile: _Tile, blur: float, free_ZYX: Floats, contours: list[float]
) -> None:
    """Add filaments: they end at the faces of a lamella and at the film."""
    for filament, contour in zip(placed.filaments, contours, strict=True):
        if not tile.near(filament, 4 * blur):
            continue
        distance_ZYX = filament.distance(tile.z, tile.y, tile.x)
        z, y, x = np.nonzero(distance_ZYX <= filament.radius_angstrom + 4 * blur)
        places = tile.z[z, 0, 0], tile.y[0, y, 0], tile.x[0, 0, x]
        density_V = filament.density(*places, blur) * free_ZYX[z, y, x]
        tile.signal_ZYX[z, y, x] += density_V.astype(np.float32)
        inside = density_V > contour
        tile.labels_ZYX[z[inside], y[inside], x[inside]] = placed.value_of(filament.class_name)


def _paint_gold(placed: Placed, tile: _Tile, blur: float) -> None:
    """Add gold beads."""
    gold = placed.gold
    if gold is None:
        return
    off = np.sqrt(((gold.centres_N3 - tile.centre_13) ** 2).sum(axis=1))
    for number in np.flatnonzero(off <= tile.reach + gold.radius + 4 * blur):
        cz, cy, cx = gold.centres_N3[number]
        depth_ZYX = np.sqrt(((tile.z - cz) ** 2 + (tile.y - cy) ** 2) + (tile.x - cx) ** 2) - gold.radius
        tile.signal_ZYX[...] += (gold.contrast * occupancy(depth_ZYX, blur)).astype(np.float32)
        tile.labels_ZYX[depth_ZYX < EDGE_CONTOUR * blur] = placed.value_of("gold")
