"""How far picks stand from a label (a membrane), and whether that is nearer than random places are.

Shape suffixes: N picks, M points, B bins, R repeats, U units, 3 coordinates z, y, x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Sliceable(Protocol):
    """What is read of a label volume: its shape, and slabs of z (a numpy or a Zarr array)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(Z, Y, X)."""

    def __getitem__(self, key: slice, /) -> npt.NDArray[np.integer]:
        """Return a slab."""


def label_distances(
    index_N3: npt.ArrayLike,
    labels_ZYX: Sliceable,
    values: Sequence[int],
    voxel_size_angstrom: float,
    *,
    slab: int = 32,
) -> Floats:
    """Return each pick's distance to the nearest voxel with one of some labels.

    Parameters
    ----------
    index_N3 : (N, 3) float
        Picks in voxels.
    labels_ZYX : (Z, Y, X) int
        Label volume; read in slabs of z, so a Zarr array will do.
    values : sequence of int
        Labels in question, for example those of membranes.
    voxel_size_angstrom : float
        Voxel size, Å.
    slab : int
        Planes read at a time.

    Returns
    -------
    distance_N : (N,) float64
        Å, to the middle of that voxel; 0 for a pick in a voxel with such a label; inf if there is none.

    Notes
    -----
    The nearest labelled voxel of a point outside lies on the label's surface, so the surface alone is kept:
    the memory is one slab and the surface, whatever the size of the volume.
    """
    shape = labels_ZYX.shape
    index = np.asarray(index_N3, dtype=np.float64).reshape(-1, 3)
    voxel = np.rint(index).astype(np.int64)
    if ((voxel < 0) | (voxel >= shape)).any() or slab < 1 or not voxel_size_angstrom > 0:
        raise ConfigurationError(
            f"picks must lie in the label volume of shape {shape}, slab and voxel size be above 0; "
            f"got {index.min(axis=0, initial=np.inf)} to {index.max(axis=0, initial=-np.inf)}, {slab}, "
            f"{voxel_size_angstrom}."
        )
    inside_N = np.zeros(len(index), dtype=np.bool_)
    surface = [np.empty((0, 3))]
    for start in range(0, shape[0], slab):
        stop = min(start + slab, shape[0])
        first = max(start - 1, 0)
        member = np.isin(np.asarray(labels_ZYX[first : min(stop + 1, shape[0])]), values)
        here = (voxel[:, 0] >= start) & (voxel[:, 0] < stop)
        inside_N[here] = member[tuple((voxel[here] - (first, 0, 0)).T)]
        found = np.argwhere(_surface(member)) + np.array([first, 0, 0])
        surface.append(found[(found[:, 0] >= start) & (found[:, 0] < stop)].astype(np.float64))
    points = np.concatenate(surface)
    if not len(points):
        return np.where(inside_N, 0.0, np.inf)
    distance_N = np.asarray(cKDTree(points).query(index)[0], dtype=np.float64) * voxel_size_angstrom
    distance_N[inside_N] = 0
    return distance_N


def _surface(member_ZYX: Bools) -> Bools:
    """Mark labelled voxels with a neighbour that is not; beyond the volume all count as labelled."""
    padded = np.pad(member_ZYX, 1, constant_values=True)
    within = np.ones_like(member_ZYX)
    for axis in range(3):
        for shift in (0, 2):
            view = [slice(1, -1)] * 3
            view[axis] = slice(shift, shift + member_ZYX.shape[axis])
            within &= padded[tuple(view)]
    return member_ZYX & ~within


def random_points(
    shape: Sequence[int],
    count: int,
    *,
    seed: int,
    margin: int = 0,
    forbidden_ZYX: npt.NDArray[np.bool_] | None = None,
) -> Floats:
    """Draw places uniformly inside a volume, for `distance_enrichment`.

    Parameters
    ----------
    shape : three ints
        Of the volume, voxels.
    count : int
        Places. Take one multiple of the picks (ten, say) in every tomogram, so that tomograms weigh alike.
    seed : int
        Of the draw.
    margin : int
        Voxels kept from every face, as the picker did.
    forbidden_ZYX : (Z, Y, X) bool, optional
        Where no place may lie: the membrane itself, or all that is filled.

    Returns
    -------
    index_M3 : (M, 3) float64
        Voxels; continuous within a voxel.
    """
    rng = np.random.default_rng(seed)
    size = np.array(shape) - 2 * margin
    if (size < 1).any() or (forbidden_ZYX is not None and forbidden_ZYX.shape != tuple(shape)):
        raise ConfigurationError(f"no room in a volume of shape {tuple(shape)} with a margin of {margin}.")
    kept, missing = [np.empty((0, 3))], count
    for _ in range(1000):
        index = rng.uniform(-0.5, size - 0.5, (max(missing, 64), 3)) + margin
        if forbidden_ZYX is not None:
            index = index[~forbidden_ZYX[tuple(np.rint(index).astype(np.int64).T)]]
        kept.append(index[:missing])
        missing -= len(kept[-1])
        if not missing:
            return np.concatenate(kept)
    raise ConfigurationError(f"hardly any place is allowed: {missing} of {count} could not be drawn.")


def block_ids(
    index_N3: npt.ArrayLike, edge_voxels: float, tomogram_N: npt.ArrayLike | None = None
) -> npt.NDArray[np.str_]:
    """Name the cube of a tomogram that each place lies in: units for the bootstrap of few tomograms."""
    index = np.asarray(index_N3, dtype=np.float64).reshape(-1, 3)
    cube_N3 = np.floor((index + 0.5) / edge_voxels).astype(np.int64)
    tomograms = np.zeros(len(index), np.int64) if tomogram_N is None else np.asarray(tomogram_N)
    return np.array(
        [f"{t}:{z}.{y}.{x}" for t, (z, y, x) in zip(tomograms, cube_N3, strict=True)], dtype=np.str_
    )


@dataclass(frozen=True)
class DistanceEnrichment:
    """Picks by distance, over what random places would give.

    Parameters
    ----------
    edges : (B + 1,) float64
        Of the bins, Å.
    picks_B, expected_B : (B,) float64
        Picks in each bin, and how many there would be at random places.
    ratio_B, low_B, high_B : (B,) float64
        Picks over expected, and the 95 % interval of the bootstrap; NaN where no random place lies, and the
        interval where there is one unit only.
    """

    edges: Floats
    picks_B: Floats
    expected_B: Floats
    ratio_B: Floats
    low_B: Floats
    high_B: Floats


def distance_enrichment(
    distance_N: npt.ArrayLike,
    random_M: npt.ArrayLike,
    edges: npt.ArrayLike,
    *,
    unit_N: npt.ArrayLike | None = None,
    unit_M: npt.ArrayLike | None = None,
    repeats: int = 1000,
    seed: int = 0,
) -> DistanceEnrichment:
    """Compare picks' distances to something with those of random places.

    Parameters
    ----------
    distance_N, random_M : (N,), (M,) float
        Distances of picks and of `random_points`, Å. Infinite ones (tomograms without a membrane) are left
        out.
    edges : (B + 1,) float
        Of the bins, rising, Å; half open. The share of a bin is taken of all finite distances.
    unit_N, unit_M : arrays, optional
        The tomogram (or block, `block_ids`) of each: what the bootstrap draws. Picks near each other are not
        independent, tomograms are.
    repeats : int
        Bootstrap draws.
    seed : int
        Of the bootstrap.

    Notes
    -----
    Percentile bootstrap over units: Efron 1979, doi:10.1214/aos/1176344552.
    """
    limits = np.asarray(edges, dtype=np.float64)
    if limits.ndim != 1 or len(limits) < 2 or not (np.diff(limits) > 0).all() or repeats < 1:
        raise ConfigurationError(f"expected rising edges of at least one bin, got {limits.tolist()}.")
    picks, places = (np.asarray(v, dtype=np.float64) for v in (distance_N, random_M))
    units = [
        np.zeros(len(v), np.int64) if u is None else np.asarray(u)
        for v, u in ((picks, unit_N), (places, unit_M))
    ]
    if units[0].shape != picks.shape or units[1].shape != places.shape or np.isnan([*picks, *places]).any():
        raise ConfigurationError("distances must be numbers, each with its unit.")
    names, unit = np.unique(np.concatenate(units), return_inverse=True)
    picks_UB = _counts(picks, unit[: len(picks)], limits, len(names))
    places_UB = _counts(places, unit[len(picks) :], limits, len(names))
    if not picks_UB.sum() or not places_UB.sum():
        raise ConfigurationError("no pick, or no random place, has a finite distance.")
    rng = np.random.default_rng(seed)
    draws_RU = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=repeats)
    low_B = high_B = np.full(len(limits) - 1, np.nan)
    if len(names) > 1:
        ratios_RB = _ratio(draws_RU @ picks_UB, draws_RU @ places_UB)
        with np.errstate(invalid="ignore"):
            low_B, high_B = _quantiles(ratios_RB)
    whole, random = picks_UB.sum(axis=0), places_UB.sum(axis=0)
    expected_B = random[:-1] / random.sum() * whole.sum()
    return DistanceEnrichment(
        limits, whole[:-1], expected_B, _ratio(whole[None], random[None])[0], low_B, high_B
    )


def _counts(distance_N: Floats, unit_N: Ints, edges: Floats, n_units: int) -> Floats:
    """Count by unit and bin; the last column holds finite distances in no bin."""
    finite = np.isfinite(distance_N)
    bins = len(edges) - 1
    bin_N = np.searchsorted(edges, distance_N[finite], side="right") - 1
    bin_N[(bin_N < 0) | (bin_N >= bins)] = bins
    flat = unit_N[finite] * (bins + 1) + bin_N
    return np.bincount(flat, minlength=n_units * (bins + 1)).reshape(n_units, bins + 1).astype(np.float64)


def _ratio(picks_RB: Floats, places_RB: Floats) -> Floats:
    """Share of picks over share of places, without the last column; NaN where there is no place."""
    nothing = np.full((len(picks_RB), picks_RB.shape[1] - 1), np.nan)
    above = picks_RB[:, :-1] * places_RB.sum(axis=1, keepdims=True)
    below = places_RB[:, :-1] * picks_RB.sum(axis=1, keepdims=True)
    ratio: Floats = np.divide(above, below, out=nothing, where=below > 0)
    return ratio


def _quantiles(ratios_RB: Floats) -> tuple[Floats, Floats]:
    """2.5 and 97.5 % of each column, draws without a value left out."""
    columns = [column[np.isfinite(column)] for column in ratios_RB.T]
    ends = [np.quantile(c, [0.025, 0.975]) if len(c) else np.full(2, np.nan) for c in columns]
    low_B, high_B = np.array(ends).T
    return low_B, high_B
