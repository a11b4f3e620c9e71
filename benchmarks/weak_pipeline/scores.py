"""The numbers: picks, clusters, labels, contacts, and the number of clusters."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.weak_pipeline.runs import (
    FITTED,
    MAJORITY,
    MATCH_ANGSTROM,
    SCORED,
    classes_with_membranes,
    evidence,
)
from cryoscale.data.rows import Encodings, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.data.truth import TRUTH_LABELS, read_truth
from cryoscale.evaluate.clusters import best_selection_f1, selection_f1, shuffled_selection_f1
from cryoscale.evaluate.contacts import contact_scores, contacts_of
from cryoscale.evaluate.labels import count_labels, segmentation_scores
from cryoscale.evaluate.matching import f1_of, match_points
from cryoscale.evaluate.partition import agreement

SHARE = 0.2  # of the clusters that may be chosen for one class
REACH_ANGSTROM = 150.0  # what is near a membrane: a ribosome that touches one has its centre within it


def pick_scores(run: Run) -> dict[str, Any]:
    """Score the picks of the other cell: in all, and the recall of each class."""
    found = evidence(run, SCORED)
    scores = found.every.scores()
    kept = ("precision", "recall", "f1", "f_beta4", "average_precision", "mean_error_angstrom", "random_f1")
    by_class = {name: part.scores()["recall"] for name, part in found.by_class.items()}
    return {**{key: scores.get(key) for key in kept}, "found": scores["found"], "recall_by_class": by_class}


def cluster_scores(run: Run, *, seed: int = 0) -> dict[str, Any]:
    """Choose at most a fifth of the clusters for each class on the fitted cell, and score on the other."""
    fitted, scored = evidence(run, FITTED), evidence(run, SCORED)
    assert fitted.ids_N is not None
    assert scored.ids_N is not None
    most = int(SHARE * int(run.clusters.card["n_clusters"]))
    by_class = {}
    for name, here in fitted.by_class.items():
        there = scored.by_class[name]
        n_here, n_there = here.pairs.n_truth, there.pairs.n_truth
        chosen = best_selection_f1(fitted.ids_N, here.match_N, n_here, most)
        reached = selection_f1(scored.ids_N, there.match_N, n_there, chosen.clusters)
        bound = best_selection_f1(scored.ids_N, there.match_N, n_there, most)
        null = shuffled_selection_f1(scored.ids_N, there.match_N, n_there, most, seed=seed)
        by_class[name] = {
            "f1": reached.f1, "precision": reached.precision, "recall": reached.recall,
            "f1_with_truth_in_hand": bound.f1, "f1_random_clusters": float(null.mean()),
            "f1_threshold": threshold_f1(here, there), "clusters": len(chosen.clusters),
        }  # fmt: skip
    mine = classes_with_membranes(run, SCORED, scored)
    return {
        "by_class": by_class,
        "mean_f1": float(np.mean([row["f1"] for row in by_class.values()])),
        "mean_f1_threshold": float(np.mean([row["f1_threshold"] for row in by_class.values()])),
        "agreement": agreement(scored.ids_N, mine, seed=seed),
    }


def random_scores(run: Run, *, repeats: int = 20, seed: int = 0) -> dict[str, float]:
    """Do the same with shuffled clusters, and return the mean F1 of each class."""
    fitted, scored = evidence(run, FITTED), evidence(run, SCORED)
    most = int(SHARE * int(run.clusters.card["n_clusters"]))
    rng = np.random.default_rng(seed)
    f1: dict[str, list[float]] = {name: [] for name in fitted.by_class}
    for _ in range(repeats):
        here_N, there_N = rng.permutation(fitted.ids_N), rng.permutation(scored.ids_N)
        for name, values in f1.items():
            here, there = fitted.by_class[name], scored.by_class[name]
            chosen = best_selection_f1(here_N, here.match_N, here.pairs.n_truth, most)
            values.append(selection_f1(there_N, there.match_N, there.pairs.n_truth, chosen.clusters).f1)
    return {name: float(np.mean(values)) for name, values in f1.items()}


def threshold_f1(here: Any, there: Any) -> float:
    """Choose a threshold on the picker's score on one cell and score it on the other."""
    order = np.argsort(-here.score_N, kind="stable")
    hits = np.cumsum(here.match_N[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + here.pairs.n_truth)
    threshold = here.score_N[order][int(f1.argmax())]
    kept = there.score_N >= threshold
    return f1_of((kept & there.match_N).sum(), kept.sum(), there.pairs.n_truth)


def probe_scores(run: Run) -> dict[str, Any]:
    """Tell the classes apart with the truth of the fitted cell: what the encodings hold, clustered or not."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    cells = []
    for name in (FITTED, SCORED):
        found = evidence(run, name)
        cells.append((Encodings(run.encodings(name)).read(), classes_with_membranes(run, name, found)))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    probe.fit(*cells[0])
    told = probe.predict(cells[1][0])
    names = ("background", *LabelVolume(run.tomogram(SCORED), TRUTH_LABELS).facts.class_names)
    values = range(1, len(names))
    f1 = f1_score(cells[1][1], told, labels=list(values), average=None, zero_division=0)
    return {name: float(value) for name, value in zip(names[1:], f1, strict=True)}


def label_scores(run: Run, labels: str) -> dict[str, Any]:
    """Score one label volume of the other cell against the truth, voxel by voxel."""
    found = LabelVolume(run.tomogram(SCORED), labels)
    scores = segmentation_scores([count_labels(found, LabelVolume(run.tomogram(SCORED), TRUTH_LABELS))])
    by_class = {name: row["dice"] for name, row in scores["by_class"].items() if name != "background"}
    chance = {name: row["random_dice"] for name, row in scores["by_class"].items() if name != "background"}
    kept = ("pixel_accuracy", "mean_iou", "mean_iou_by_sample")
    return {**{key: scores[key] for key in kept}, "dice": by_class, "random_dice": chance}


def contact_report(run: Run, *, seed: int = 0) -> dict[str, Any]:
    """Which clusters stand at membranes, over both cells; and which of them hold the planted class."""
    parts, majority = [], []
    n_clusters = int(run.clusters.card["n_clusters"])
    for name in (FITTED, SCORED):
        found = evidence(run, name)
        assert found.ids_N is not None
        values = classes_with_membranes(run, name, found)
        facts = LabelVolume(run.tomogram(name), TRUTH_LABELS).facts
        names = np.array(["no object", *facts.class_names])
        positions_N3 = read_picks(run.picks, name).positions_N3
        words_N = placed_words(run, name, positions_N3, names[values])
        parts.append(contacts_of(run, name, positions_N3, found.ids_N, words_N, REACH_ANGSTROM))
        if name == FITTED:
            counts = np.zeros((n_clusters, len(names)))
            np.add.at(counts, (found.ids_N, values), 1)
            sure = counts.max(axis=1) > MAJORITY * np.maximum(counts.sum(axis=1), 1)
            majority = np.where(sure, names[counts.argmax(axis=1)], "mixed").tolist()
    scores = contact_scores([part for part in parts if part is not None], seed=seed)
    return {"scores": scores, "majority": majority}


def placed_words(run: Run, name: str, positions_N3: Any, words_N: Any) -> Any:
    """Add to the class of each matched pick how its particle was placed: at membranes, near or far."""
    truth = read_truth(run.truth, name)
    match = match_points(positions_N3, truth.positions_N3, MATCH_ANGSTROM)
    words = words_N.astype(object)
    words[match.pick_K] = [f"{words_N[p]} {truth.placement_N[t]}" for p, t in
                           zip(match.pick_K, match.truth_K, strict=True)]  # fmt: skip
    return words.astype(str)


def k_scores(run: Run, *, seed: int = 0) -> dict[str, Any]:
    """Gap statistic, Calinski-Harabasz and others over the number of clusters, on the fitted cell."""
    from cryoscale.evaluate.choose_k import score_k

    codes_NF = Encodings(run.encodings(FITTED)).read()
    ks = [k for k in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 75, 100) if k <= len(codes_NF) // 5]
    found = score_k(codes_NF, ks, references=5, stability_repeats=3, standardise=False, seed=seed)
    columns = {
        name: getattr(found, f"{name}_K").tolist()
        for name in ("gap", "calinski_harabasz", "davies_bouldin", "silhouette", "stability")
    }
    best = {name: getattr(found, name) for name in dir(found) if name.startswith(("best_", "largest_"))}
    return {"k": ks, **columns, "best": {k: v for k, v in best.items() if v is None or isinstance(v, int)}}
