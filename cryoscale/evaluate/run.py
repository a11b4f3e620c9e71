"""Score a run against positions that are known: picks, clusters, and what was selected."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.rows import Picks, read_assignments, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table
from cryoscale.evaluate.clusters import split_half_selection, split_half_threshold
from cryoscale.evaluate.matching import match_points, score_threshold_curve
from cryoscale.evaluate.picks import cluster_margins

BEST = (100, 300, 1000, 3000)


def evaluate_tomogram(
    run: Run, tomogram: str, truth_M3: npt.NDArray[np.float64], radius_angstrom: float, *, seed: int = 0
) -> dict[str, Any]:
    """Score the picks, clusters and selected picks of one tomogram.

    Parameters
    ----------
    run : Run
        With picks at least.
    tomogram : str
        Its name.
    truth_M3 : (M, 3) float
        True positions z, y, x in Å.
    radius_angstrom : float
        Largest distance of a pick from its true position; matching is one to one.
    seed : int
        Of the random clusters.

    Returns
    -------
    scores : dict
        Plain values: `picks` (recall among the best K, precision, best threshold), where there are clusters
        `clusters` (choosing on one half of the tomogram in x, scoring on the other), and where there are
        instances `instances`.
    """
    picks = read_picks(run.picks, tomogram)
    scores: dict[str, Any] = {
        "tomogram": tomogram,
        "radius_angstrom": radius_angstrom,
        "truth": len(truth_M3),
    }
    scores["picks"] = _pick_scores(picks, truth_M3, radius_angstrom)
    if run.assignments.exists(f"{tomogram}.parquet"):
        ids_N = read_assignments(run.assignments, tomogram)[0]
        if len(ids_N) == len(picks):
            n_clusters = int(run.clusters.card["n_clusters"])
            scores["clusters"] = _cluster_scores(picks, ids_N, truth_M3, radius_angstrom, n_clusters, seed)
            scores["selection"] = _selection_scores(run, picks, ids_N, truth_M3, radius_angstrom)
    if run.instances.exists(f"{tomogram}.parquet"):
        table = read_table(run.instances, f"{tomogram}.parquet")
        found_N3 = np.stack([table["z"], table["y"], table["x"]], axis=1)
        scores["instances"] = {
            str(name): _match_scores(found_N3[table["class_name"] == name], truth_M3, radius_angstrom)
            for name in np.unique(table["class_name"].astype(str))
        }
    return scores


def _match_scores(
    found_N3: npt.NDArray[np.float64], truth_M3: npt.NDArray[np.float64], radius: float
) -> dict[str, Any]:
    match = match_points(found_N3, truth_M3, radius)
    return {
        "found": match.n_picks, "precision": match.precision, "recall": match.recall, "f1": match.f1,
        "mean_error_angstrom": float(match.distance_K.mean()) if len(match.distance_K) else None,
    }  # fmt: skip


def _pick_scores(picks: Picks, truth_M3: npt.NDArray[np.float64], radius: float) -> dict[str, Any]:
    curve = score_threshold_curve(picks.positions_N3, picks.scores_N, truth_M3, radius)
    best = np.argsort(-picks.scores_N, kind="stable")
    recall = {
        str(k): match_points(picks.positions_N3[best[:k]], truth_M3, radius).recall
        for k in BEST
        if k <= len(picks)
    }
    return {
        **_match_scores(picks.positions_N3, truth_M3, radius),
        "recall_among_best": recall,
        "best_threshold_f1": curve.best_f1,
        "average_precision": curve.average_precision,
    }


def _cluster_scores(
    picks: Picks,
    ids_N: npt.NDArray[np.int32],
    truth_M3: npt.NDArray[np.float64],
    radius: float,
    n_clusters: int,
    seed: int,
) -> dict[str, Any]:
    """Choose on one half in x and score on the other, both ways; beside a threshold, and random clusters."""
    match = match_points(picks.positions_N3, truth_M3, radius)
    middle = float(np.concatenate([picks.positions_N3[:, 2], truth_M3[:, 2]]).max()) / 2
    first_N = picks.positions_N3[:, 2] < middle
    in_first = int((truth_M3[:, 2] < middle).sum())
    halves = (in_first, len(truth_M3) - in_first)
    chosen = split_half_selection(ids_N, match.is_match_N, first_N, halves, n_clusters)
    threshold = split_half_threshold(picks.scores_N, match.is_match_N, first_N, halves)
    shuffled = np.random.default_rng(seed).permutation(ids_N)
    chance = split_half_selection(shuffled, match.is_match_N, first_N, halves, n_clusters)
    margin = cluster_margins(
        picks.positions_N3, picks.scores_N, ids_N, {"truth": truth_M3}, radius,
        n_clusters=n_clusters, seed=seed,
    )[0]  # fmt: skip
    return {
        "split_half_f1": chosen.mean, "split_half_threshold_f1": threshold.mean,
        "split_half_random_f1": chance.mean,
        "best_fifth_of_clusters_f1": margin.selection.f1, "best_fifth_random_f1": margin.chance_f1,
    }  # fmt: skip


def _selection_scores(
    run: Run, picks: Picks, ids_N: npt.NDArray[np.int32], truth_M3: npt.NDArray[np.float64], radius: float
) -> dict[str, Any]:
    """Score the picks of each selected class as if all of the truth were that class."""
    n_clusters = int(run.clusters.card["n_clusters"])
    selection = run.clusters.selection(n_clusters)
    if selection is None or not run.clusters.accepts(selection):
        return {}
    value_N = selection.class_of_cluster(n_clusters)[ids_N]
    return {
        name: _match_scores(picks.positions_N3[value_N == value], truth_M3, radius)
        for value, name in enumerate(selection.class_names, start=1)
    }
