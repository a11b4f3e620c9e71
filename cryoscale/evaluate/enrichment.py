"""Which groups of picks stand near something (a membrane) more often than the other picks, and how surely.

Two questions, two nulls. Among the picks: is one cluster nearer than the rest (`group_enrichment`)? Against
space: does a class as a whole stand nearer than random places do (`distance_enrichment`)?

Shape suffixes: N picks, M points, G groups, S tomograms, B bins, R repeats, U units, 3 coordinates z, y, x.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.spatial import cKDTree

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Verdict = Literal["enriched", "depleted", "none"]

Z95 = 1.959963984540054
EXACT = 5000
"""Up to this many possible counts the exact distribution is used, beyond it the normal approximation."""


@dataclass(frozen=True)
class Enrichment:
    """One group of picks against all others of the same tomograms.

    Parameters
    ----------
    group : int or str
        The group.
    n, near : int
        Its picks, and how many of them are near.
    share, baseline : float
        Share near of the group, and of the other picks, these weighted as the group's picks lie over the
        tomograms. NaN without any.
    log2_odds, low, high : float
        log2 of the common odds ratio and its 95 % interval; 0 with an infinite interval where no tomogram
        can tell.
    p, q : float
        Exact two-sided p value; Benjamini-Hochberg over the groups.
    verdict : {"enriched", "depleted", "none"}
        By q and the sign of the odds.
    """

    group: int | str
    n: int
    near: int
    share: float
    baseline: float
    log2_odds: float
    low: float
    high: float
    p: float
    q: float
    verdict: Verdict


@dataclass(frozen=True)
class _Tables:
    """Margins of the 2 x 2 tables of every group and tomogram; shuffling `near` leaves them as they are."""

    names: npt.NDArray[np.generic]
    group_N: Ints
    tomogram_N: Ints
    group_SG: Ints
    total_S: Ints
    near_S: Ints

    def near_of(self, near_N: Bools) -> Ints:
        """Count near picks by tomogram and group."""
        shape = self.group_SG.shape
        flat_N = self.tomogram_N[near_N] * shape[1] + self.group_N[near_N]
        counts: Ints = np.bincount(flat_N, minlength=shape[0] * shape[1]).reshape(shape)
        return counts


def group_enrichment(
    group_N: npt.ArrayLike,
    near_N: npt.ArrayLike,
    tomogram_N: npt.ArrayLike | None = None,
    *,
    alpha: float = 0.05,
) -> list[Enrichment]:
    """Compare each group's share of near picks with that of all other picks of the same tomograms.

    Parameters
    ----------
    group_N : (N,) int or str
        Cluster, class, or any other group of each pick.
    near_N : (N,) bool
        Whether it is near: `label_distances(...) <= reach`.
    tomogram_N : (N,) int or str, optional
        Its tomogram. Comparisons are made within tomograms, so one with more membranes, or more picks of one
        group, does not count as enrichment.
    alpha : float
        Largest q of a verdict: the expected share of false ones among those given.

    Returns
    -------
    enrichments : list of Enrichment
        By group, rising.

    Raises
    ------
    ConfigurationError
        Arrays of different lengths, none, or an alpha outside of (0, 1).

    Notes
    -----
    Common odds ratio: Mantel and Haenszel 1959, doi:10.1093/jnci/22.4.719. Interval: the variance of its
    logarithm by Robins, Breslow and Greenland 1986, doi:10.2307/2531052. Where a sum of the ratio is zero,
    0.5 / S is added to every cell of the S tomograms that can tell (for S = 1 Haldane and Anscombe's rule).
    p: the probability, at the given margins, of all counts no likelier than the one seen (Fisher's rule); the
    distribution is that of a sum of hypergeometric numbers, one per tomogram. With more than 5000 possible
    counts, Cochran's normal approximation. q: Benjamini and Hochberg 1995,
    doi:10.1111/j.2517-6161.1995.tb02031.x.

    p takes picks for independent. Picks along one membrane are not: read
    `shuffled_enrichment(..., how="shift")` beside it.
    """
    if not 0 < alpha < 1:
        raise ConfigurationError(f"alpha must be between 0 and 1, got {alpha}.")
    near_N = _near(near_N)
    tables = _tables(group_N, near_N, tomogram_N)
    near_SG = tables.near_of(near_N)
    p_G = _p_values(tables, near_SG.sum(axis=0)[None], _null_tables(tables))[0]
    q_G = stats.false_discovery_control(p_G)
    rows = []
    for g, name in enumerate(tables.names):
        cells = _cells(tables, near_SG, g)
        log2_odds, low, high = _log2_odds(*cells)
        verdict: Verdict = "none"
        if q_G[g] < alpha:
            verdict = "enriched" if log2_odds > 0 else "depleted"
        n, near = int(tables.group_SG[:, g].sum()), int(near_SG[:, g].sum())
        rows.append(
            Enrichment(
                name.item(), n, near, near / n, _baseline(*cells), log2_odds, low, high,
                float(p_G[g]), float(q_G[g]), verdict,
            )
        )  # fmt: skip
    return rows


def _near(near_N: npt.ArrayLike) -> Bools:
    near = np.asarray(near_N)
    if near.dtype != np.bool_ or near.ndim != 1 or not near.size:
        raise ConfigurationError(
            f"near must be a bool per pick, got {near.dtype} {near.shape}.",
            remedy="Compare distances with a reach first.",
        )
    return near


def _tables(group: npt.ArrayLike, near_N: Bools, tomogram: npt.ArrayLike | None) -> _Tables:
    groups = np.asarray(group)
    tomograms = np.zeros(len(near_N), np.int64) if tomogram is None else np.asarray(tomogram)
    if groups.shape != near_N.shape or tomograms.shape != near_N.shape:
        raise ConfigurationError(
            f"expected a group and a tomogram for each of {len(near_N)} picks, "
            f"got {groups.shape} and {tomograms.shape}."
        )
    names, group_N = np.unique(groups, return_inverse=True)
    strata, tomogram_N = np.unique(tomograms, return_inverse=True)
    shape = len(strata), len(names)
    group_SG = np.bincount(tomogram_N * shape[1] + group_N, minlength=shape[0] * shape[1]).reshape(shape)
    near_S = np.bincount(tomogram_N[near_N], minlength=shape[0])
    return _Tables(names, group_N, tomogram_N, group_SG, group_SG.sum(axis=1), near_S)


def _cells(tables: _Tables, near_SG: Ints, g: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Near and far of the group, near and far of the others, by tomogram."""
    a = near_SG[:, g].astype(np.float64)
    b, c = tables.group_SG[:, g] - a, tables.near_S - a
    return a, b, c, tables.total_S - a - b - c


def _baseline(a: Floats, b: Floats, c: Floats, d: Floats) -> float:
    """Share near of the others where the group is, weighted by the group's picks."""
    weight, others = a + b, c + d
    both = (weight > 0) & (others > 0)
    if not both.any():
        return float("nan")
    return float(np.average(c[both] / others[both], weights=weight[both]))


def _log2_odds(a: Floats, b: Floats, c: Floats, d: Floats) -> tuple[float, float, float]:
    """Mantel-Haenszel odds ratio with its Robins-Breslow-Greenland interval, as log2."""
    telling = (a + b > 0) & (c + d > 0) & (a + c > 0) & (b + d > 0)
    if not telling.any():
        return 0.0, -np.inf, np.inf
    a, b, c, d = (cell[telling] for cell in (a, b, c, d))
    if not ((a * d).any() and (b * c).any()):
        a, b, c, d = (cell + 0.5 / len(cell) for cell in (a, b, c, d))
    n = a + b + c + d
    agree, differ, r, s = (a + d) / n, (b + c) / n, a * d / n, b * c / n
    R, S = r.sum(), s.sum()
    variance = (
        (agree * r).sum() / (2 * R**2)
        + (agree * s + differ * r).sum() / (2 * R * S)
        + (differ * s).sum() / (2 * S**2)
    )
    log2, half = np.log2(R / S), Z95 * np.sqrt(variance) / np.log(2)
    return float(log2), float(log2 - half), float(log2 + half)


def _null_tables(tables: _Tables) -> list[tuple[int, Floats]]:
    """For each group the least possible count of near picks, and the p value of every count from there."""
    return [
        _null_of_margins(tables.total_S, tables.near_S, tables.group_SG[:, g])
        for g in range(len(tables.names))
    ]


def _null_of_margins(total_S: Ints, near_S: Ints, group_S: Ints) -> tuple[int, Floats]:
    """Return the least count and two-sided p values of the sum of hypergeometric numbers."""
    low_S, high_S = np.maximum(0, group_S + near_S - total_S), np.minimum(group_S, near_S)
    lowest, possible = int(low_S.sum()), int((high_S - low_S).sum()) + 1
    if possible > EXACT:
        mean = (group_S * near_S / total_S).sum()
        spread_S = group_S * near_S * (total_S - group_S) / total_S**2 * (total_S - near_S)
        sd = np.sqrt((spread_S / np.maximum(total_S - 1, 1)).sum())
        z = np.maximum(np.abs(lowest + np.arange(possible) - mean) - 0.5, 0) / sd
        return lowest, 2 * stats.norm.sf(z)
    mass = np.ones(1)
    for total, near, group, low, high in zip(total_S, near_S, group_S, low_S, high_S, strict=True):
        if high > low:
            mass = np.convolve(mass, stats.hypergeom.pmf(np.arange(low, high + 1), total, near, group))
    order = np.argsort(mass)
    # Counts whose probabilities differ by rounding alone are equally likely.
    last = np.searchsorted(mass[order], mass * (1 + 1e-7), side="right")
    p = np.cumsum(mass[order])[last - 1]
    return lowest, np.clip(p, np.finfo(np.float64).tiny, 1.0)


def _p_values(tables: _Tables, near_RG: Ints, nulls: list[tuple[int, Floats]]) -> Floats:
    """Look up the p value of each count."""
    columns = [p[near_RG[:, g] - lowest] for g, (lowest, p) in enumerate(nulls)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True)
class ShuffleNull:
    """What shuffling `near` among the picks of each tomogram gives.

    Parameters
    ----------
    groups : tuple
        The groups, rising.
    p_G : (G,) float64
        Share of shuffles that look at least as unlikely as the truth, the truth counted in (Phipson and Smyth
        2010, doi:10.2202/1544-6115.1585).
    familywise_p_G : (G,) float64
        The same against the most unlikely of all groups in each shuffle (Westfall and Young 1993).
    discoveries_R : (R,) int64
        Groups called enriched or depleted in each shuffle: all of them false.
    """

    groups: tuple[int | str, ...]
    p_G: Floats
    familywise_p_G: Floats
    discoveries_R: Ints


def shuffled_enrichment(
    group_N: npt.ArrayLike,
    near_N: npt.ArrayLike,
    tomogram_N: npt.ArrayLike | None = None,
    *,
    how: Literal["permute", "shift"] = "permute",
    repeats: int = 999,
    alpha: float = 0.05,
    seed: int,
) -> ShuffleNull:
    """Repeat `group_enrichment` with `near` shuffled within each tomogram.

    Parameters
    ----------
    group_N, near_N, tomogram_N, alpha
        As in `group_enrichment`.
    how : {"permute", "shift"}
        "permute" takes picks for independent. "shift" moves the values of `near` along the rows of a
        tomogram, round its end, by a random number: neighbours in the table keep theirs together. Rows of
        picks lie in Morton order, so that keeps most of what neighbours in space share.
    repeats : int
        Shuffles.
    seed : int
        Of the shuffles.
    """
    if how not in ("permute", "shift") or repeats < 1:
        raise ConfigurationError(f"cannot shuffle by {how!r}, {repeats} times: use 'permute' or 'shift'.")
    near = _near(near_N)
    tables = _tables(group_N, near, tomogram_N)
    nulls = _null_tables(tables)
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(tables.tomogram_N == s) for s in range(len(tables.total_S))]
    near_RG = np.empty((repeats, len(tables.names)), np.int64)
    for r in range(repeats):
        shuffled = np.empty_like(near)
        for of_one in rows:
            values = near[of_one]
            moved = (
                rng.permutation(values) if how == "permute" else np.roll(values, rng.integers(len(values)))
            )
            shuffled[of_one] = moved
        near_RG[r] = np.bincount(tables.group_N[shuffled], minlength=near_RG.shape[1])
    seen_G = _p_values(tables, tables.near_of(near).sum(axis=0)[None], nulls)[0]
    p_RG = _p_values(tables, near_RG, nulls)
    limit_G = seen_G * (1 + 1e-9)
    return ShuffleNull(
        tuple(name.item() for name in tables.names),
        (1 + (p_RG <= limit_G).sum(axis=0)) / (repeats + 1),
        (1 + (p_RG.min(axis=1)[:, None] <= limit_G).sum(axis=0)) / (repeats + 1),
        (stats.false_discovery_control(p_RG, axis=1) < alpha).sum(axis=1),
    )


@dataclass(frozen=True)
class PlantedContact:
    """Whether a contact that was planted was found, and found nowhere else.

    Parameters
    ----------
    by_group : list of Enrichment
        The groups (clusters) as found.
    by_class : list of Enrichment
        The same picks grouped by what they truly are: as good as any clustering could do.
    holding : tuple
        Groups that consist of contact classes to the stated share.
    found, missed, elsewhere : tuple
        Holding groups called enriched; holding groups not; enriched groups that do not hold.
    """

    by_group: list[Enrichment]
    by_class: list[Enrichment]
    holding: tuple[int | str, ...]
    found: tuple[int | str, ...]
    missed: tuple[int | str, ...]
    elsewhere: tuple[int | str, ...]


def planted_contact_test(
    group_N: npt.ArrayLike,
    class_N: npt.ArrayLike,
    near_N: npt.ArrayLike,
    contact_classes: Collection[int],
    tomogram_N: npt.ArrayLike | None = None,
    *,
    least_share: float = 0.5,
    alpha: float = 0.05,
) -> PlantedContact:
    """Test whether the groups that hold a planted contact are called enriched, and no others.

    Parameters
    ----------
    group_N, near_N, tomogram_N, alpha
        As in `group_enrichment`.
    class_N : (N,) int
        What each pick truly is, 0 for nothing (`classes_of_picks`). To tell copies of one structure at and
        far from membranes apart, give them values of their own.
    contact_classes : collection of int
        Values that stand near by construction: particles placed at the membrane, and the membrane itself.
    least_share : float
        A group holds the contact if this share of its picks, or more, is of the contact classes.
    """
    classes, groups = np.asarray(class_N), np.asarray(group_N)
    if classes.shape != groups.shape or not len(contact_classes) or not 0 < least_share <= 1:
        raise ConfigurationError(
            f"expected classes like the groups {groups.shape}, got {classes.shape}, {len(contact_classes)} "
            f"contact classes, and a share in (0, 1], got {least_share}."
        )
    by_group = group_enrichment(groups, near_N, tomogram_N, alpha=alpha)
    contact_N = np.isin(classes, list(contact_classes))
    holding = {row.group for row in by_group if contact_N[groups == row.group].mean() >= least_share}
    enriched = {row.group for row in by_group if row.verdict == "enriched"}
    parts = (
        tuple(row.group for row in by_group if row.group in chosen)
        for chosen in (holding, holding & enriched, holding - enriched, enriched - holding)
    )
    return PlantedContact(by_group, group_enrichment(classes, near_N, tomogram_N, alpha=alpha), *parts)


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
