"""Which groups of picks stand near something (a membrane) more often than the other picks, and how surely.

Two questions, two nulls. Among the picks: is one cluster nearer than the rest (`group_enrichment`)? Against
space: does a class as a whole stand nearer than random places do (`distance_enrichment` in `distances`)?

Shape suffixes: N picks, M points, G groups, S tomograms, B bins, R repeats, U units, 3 coordinates z, y, x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

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

    @property
    def q_G(self) -> Floats:
        """Benjamini-Hochberg over the groups, of `p_G`."""
        q_G: Floats = stats.false_discovery_control(self.p_G)
        return q_G


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
