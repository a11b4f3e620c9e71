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
SHIFTS = 199  # of the null that keeps neighbours together


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
        Its true class, "no particle" without a match.
    """

    tomogram: str
    reach_angstrom: float
    near_N: npt.NDArray[np.bool_]
    ids_N: npt.NDArray[np.int64]
    class_N: npt.NDArray[np.str_]


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
    return Contacts(tomogram, reach_angstrom, distance_N <= reach_angstrom, ids_N, class_N)


def contact_scores(parts: Sequence[Contacts], *, seed: int) -> dict[str, Any]:
    """Compare each cluster's share of picks near membranes with that of the other picks.

    Returns
    -------
    scores : dict
        `reach_angstrom`, `near` (share of all picks); `by_cluster` and `by_class` (the same picks grouped by
        truth: as good as any clustering could do): per group picks, share near, share of the other picks,
        log2 odds with its 95 % interval, q, verdict, and `p_shift`, the p value against shifts that keep
        neighbours together. `enriched`: the clusters called so.
    """
    near_N = np.concatenate([part.near_N for part in parts])
    tomogram_N = np.repeat(np.arange(len(parts)), [len(part.near_N) for part in parts])
    ids_N = np.concatenate([part.ids_N for part in parts])
    by_cluster = _groups(ids_N, near_N, tomogram_N, seed)
    class_N = np.concatenate([part.class_N for part in parts])
    return {
        "reach_angstrom": max(part.reach_angstrom for part in parts),
        "near": float(near_N.mean()),
        "enriched": [name for name, row in by_cluster.items() if row["verdict"] == "enriched"],
        "by_cluster": by_cluster,
        "by_class": _groups(class_N, near_N, tomogram_N, seed),
    }


def _groups(
    group_N: npt.NDArray[Any], near_N: npt.NDArray[np.bool_], tomogram_N: npt.NDArray[np.int64], seed: int
) -> dict[str, dict[str, Any]]:
    from cryoscale.evaluate.enrichment import group_enrichment, shuffled_enrichment

    rows = group_enrichment(group_N, near_N, tomogram_N)
    null = shuffled_enrichment(group_N, near_N, tomogram_N, how="shift", repeats=SHIFTS, seed=seed)
    p_of = dict(zip(null.groups, null.p_G.tolist(), strict=True))
    return {
        str(row.group): {
            "picks": row.n, "share_near": row.share, "share_near_others": _plain(row.baseline),
            "log2_odds": row.log2_odds, "low": _plain(row.low), "high": _plain(row.high),
            "q": row.q, "p_shift": p_of[row.group], "verdict": row.verdict,
        }
        for row in rows
    }  # fmt: skip


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
