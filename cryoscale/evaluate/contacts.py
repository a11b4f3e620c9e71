"""Which clusters stand at true membranes more often than the other picks: the planted contact, found or not.

Shape suffixes: N picks, 3 coordinates z, y, x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.evaluate.known import true_labels
from cryoscale.geometry import Box

MEMBRANES = ("membrane", "double_membrane")  # names of true labels
REACH = (
    1.5  # of the picked radius: a particle that touches a membrane has its centre one radius off its surface
)
ON_MEMBRANE = 2.0  # voxels: a pick so near that is no particle is of the membrane itself
MEMBRANE = "membrane"
AT_MEMBRANES = " at membranes"
HOLDS = 0.5  # share of a cluster's picks
ALPHA = 0.05  # largest share of false verdicts
SHIFTS = 999  # of the null that keeps neighbours together


@dataclass(frozen=True)
class Contacts:
    """The picks of one tomogram: cluster, true class, and whether a membrane is near.

    Parameters
    ----------
    tomogram : str
        Which.
    reach_angstrom : float
        What counts as near, from the labelled membrane.
    near_N : (N,) bool
        Whether a pick is near.
    ids_N : (N,) int64
        Its cluster.
    class_N : (N,) str
        Its true class; "membrane" on one, "no particle" elsewhere without a match.
    planted_N : (N,) bool, optional
        Whether its particle was placed at or near a membrane.
    """

    tomogram: str
    reach_angstrom: float
    near_N: npt.NDArray[np.bool_]
    ids_N: npt.NDArray[np.int64]
    class_N: npt.NDArray[np.str_]
    planted_N: npt.NDArray[np.bool_] | None = None


class _Slabs:
    """Slabs of z of a label volume, without ever reading all of it."""

    def __init__(self, volume: LabelVolume, level: int) -> None:
        self.volume, self.level = volume, level
        self.shape: tuple[int, ...] = tuple(volume.facts.levels[level].shape)

    def __getitem__(self, key: slice, /) -> npt.NDArray[np.integer[Any]]:
        start, stop, _ = key.indices(self.shape[0])
        return self.volume.read(self.level, Box.of((start, 0, 0), (stop, *self.shape[1:])))


def picked_radius(run: Run, voxel_size_angstrom: float) -> float:
    """Return the radius of the objects that were picked for, Å; sigma is r / sqrt(3)."""
    pick = run.config.pick
    if pick.radius_angstrom is not None:
        return pick.radius_angstrom
    sigma = pick.sigma_voxels if pick.sigma_voxels is not None else 5.0
    return math.sqrt(3) * sigma * voxel_size_angstrom


def contacts_of(
    run: Run,
    tomogram: str,
    positions_N3: npt.NDArray[np.float64],
    ids_N: npt.NDArray[np.int64],
    class_N: npt.NDArray[np.str_],
    reach_angstrom: float | None = None,
    *,
    nothing: str = "no particle",
    planted_N: npt.NDArray[np.bool_] | None = None,
) -> Contacts | None:
    """Measure which picks are near a true membrane; None where the truth labels none.

    Parameters
    ----------
    positions_N3 : (N, 3) float64
        Picks, Å.
    ids_N, class_N : (N,) int, (N,) str
        Their clusters and true classes.
    reach_angstrom : float, optional
        What counts as near; None: 1.5 times the radius that was picked for.
    nothing : str
        The class of picks without a particle; those on a membrane become "membrane".
    planted_N : (N,) bool, optional
        Whether the particle of a pick was placed at or near a membrane.
    """
    from cryoscale.evaluate.distances import label_distances

    volume = true_labels(run, tomogram)
    if volume is None or not len(ids_N):
        return None
    facts = volume.facts
    values = [value for value, name in enumerate(facts.class_names, start=1) if name in MEMBRANES]
    if not values:
        return None
    opened = Tomogram(run.tomogram(tomogram)).facts
    work = min(opened.level_for(run.config.run.working_voxel_size_angstrom), len(facts.levels) - 1)
    level = facts.levels[work]
    index_N3 = (positions_N3 - level.origin_angstrom) / level.voxel_size_angstrom
    index_N3 = np.clip(index_N3, 0, np.array(level.shape) - 1)
    distance_N = label_distances(index_N3, _Slabs(volume, work), values, level.voxel_size_angstrom)
    if reach_angstrom is None:
        reach_angstrom = REACH * picked_radius(run, opened.levels[work].voxel_size_angstrom)
    on_N = (class_N == nothing) & (distance_N <= ON_MEMBRANE * level.voxel_size_angstrom)
    named_N = np.where(on_N, MEMBRANE, class_N)
    return Contacts(tomogram, reach_angstrom, distance_N <= reach_angstrom, ids_N, named_N, planted_N)


def contact_scores(parts: Sequence[Contacts], *, seed: int) -> dict[str, Any]:
    """Compare each cluster's share of picks near membranes with that of the other picks.

    A verdict needs both a q below 0.05 of the exact test, which takes picks for independent, and one of the
    shifts, which keep neighbours together: clusters of neighbouring picks are not called for that alone.

    Returns
    -------
    scores : dict
        `reach_angstrom`, `near` (share of all picks); `by_cluster` and `by_class` (the same picks grouped by
        truth: as good as any clustering could do): per group picks, share near, share of the other picks,
        log2 odds with its 95 % interval, q, verdict, and `p_shift` and `q_shift`, p value and
        Benjamini-Hochberg q against shifts that keep neighbours together; by cluster the `majority`, the
        class of more than half of its picks, None without one. `enriched`: the clusters called so. `planted`,
        where particles were placed at or near membranes: the clusters that hold them, or the membrane itself,
        to one half, those `found` and `missed`, and enriched ones `elsewhere`; `by_class` is split then by
        placement.
    """
    near_N = np.concatenate([part.near_N for part in parts])
    tomogram_N = np.repeat(np.arange(len(parts)), [len(part.near_N) for part in parts])
    ids_N = np.concatenate([part.ids_N for part in parts])
    class_N = np.concatenate([part.class_N for part in parts])
    by_cluster = _groups(ids_N, near_N, tomogram_N, seed)
    for name, row in by_cluster.items():
        row["majority"] = _majority(class_N[ids_N.astype(str) == name])
    enriched = [name for name, row in by_cluster.items() if row["verdict"] == "enriched"]
    planted_N = np.concatenate([_planted(part) for part in parts])
    planted = {}
    if planted_N.any():
        class_N = np.where(planted_N, np.char.add(class_N, AT_MEMBRANES), class_N)
        planted = {"planted": _told(ids_N, planted_N | (class_N == MEMBRANE), enriched)}
    return {
        "reach_angstrom": max(part.reach_angstrom for part in parts),
        "near": float(near_N.mean()),
        "enriched": enriched,
        **planted,
        "by_cluster": by_cluster,
        "by_class": _groups(class_N, near_N, tomogram_N, seed),
    }


def _planted(part: Contacts) -> npt.NDArray[np.bool_]:
    return np.zeros(len(part.near_N), np.bool_) if part.planted_N is None else part.planted_N


def _majority(class_N: npt.NDArray[np.str_]) -> str | None:
    """Return the class of more than half of the picks."""
    names, counts = np.unique(class_N, return_counts=True)
    largest = int(counts.argmax())
    return str(names[largest]) if 2 * counts[largest] > len(class_N) else None


def _told(
    ids_N: npt.NDArray[np.int64], contact_N: npt.NDArray[np.bool_], enriched: Sequence[str]
) -> dict[str, list[str]]:
    """Compare the enriched clusters with those of which at least half stands at membranes by construction."""
    ids_C = np.unique(ids_N)
    holding = [str(c) for c in ids_C.tolist() if contact_N[ids_N == c].mean() >= HOLDS]
    return {
        "holding": holding,
        "found": [c for c in holding if c in enriched],
        "missed": [c for c in holding if c not in enriched],
        "elsewhere": [c for c in enriched if c not in holding],
    }


def _groups(
    group_N: npt.NDArray[Any], near_N: npt.NDArray[np.bool_], tomogram_N: npt.NDArray[np.int64], seed: int
) -> dict[str, dict[str, Any]]:
    from cryoscale.evaluate.enrichment import group_enrichment, shuffled_enrichment

    rows = group_enrichment(group_N, near_N, tomogram_N, alpha=ALPHA)
    null = shuffled_enrichment(group_N, near_N, tomogram_N, how="shift", repeats=SHIFTS, seed=seed)
    shift_of = dict(zip(null.groups, zip(null.p_G.tolist(), null.q_G.tolist(), strict=True), strict=True))
    groups = {}
    for row in rows:
        p_shift, q_shift = shift_of[row.group]
        groups[str(row.group)] = {
            "picks": row.n, "share_near": row.share, "share_near_others": _plain(row.baseline),
            "log2_odds": row.log2_odds, "low": _plain(row.low), "high": _plain(row.high),
            "q": row.q, "p_shift": p_shift, "q_shift": q_shift,
            "verdict": row.verdict if q_shift < ALPHA else "none",
        }  # fmt: skip
    return groups


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
