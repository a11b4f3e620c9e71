"""Score a run against what is known: picks, clusters, selected classes, objects, labels, structures.

Per tomogram and pooled: counts are added before scores are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy.typing as npt

from cryoscale.data.run import Run
from cryoscale.data.truth import read_truth
from cryoscale.errors import CryoscaleError, SurroundingsError
from cryoscale.evaluate.contacts import contact_scores
from cryoscale.evaluate.evidence import (
    NO_PARTICLE,
    Evidence,
    KnownOf,
    Named,
    Settings,
    collect,
    know,
    n_clusters_of,
    together,
)
from cryoscale.evaluate.known import Known, known_from_positions, with_all_classes
from cryoscale.evaluate.labels import segmentation_scores
from cryoscale.evaluate.partition import agreement, class_scores, cluster_table
from cryoscale.evaluate.structure_scores import ReadDensity, density_of_class, structure_scores

Made = TypeVar("Made")


def evaluate_run(
    run: Run,
    known_of: KnownOf | None,
    tomograms: Sequence[str],
    settings: Settings | None = None,
    *,
    read_density: ReadDensity | None = None,
) -> dict[str, Any]:
    """Score tomograms of a run one by one and together.

    Parameters
    ----------
    run : Run
        With picks at least.
    known_of : callable, optional
        Name and tomogram to what is known of it; None: the run's own truth.
    tomograms : sequence of str
        Which; they have picks.
    settings : Settings, optional
        How.
    read_density : callable, optional
        Path of a map (MRC) to its values (Z, Y, X) and voxel size, Å: averages are then compared with the
        densities that a simulated run keeps.

    Returns
    -------
    report : dict
        Plain values: `run`, `tomograms` (each as `score`), `pooled` (the same of all together), and `failed`,
        tomogram to reason. A tomogram that cannot be scored does not stop the others.

    Raises
    ------
    CryoscaleError
        The first one met, when nothing could be scored; and a `SurroundingsError` at once.
    """
    settings = settings or Settings()
    failed: dict[str, str] = {}
    errors: list[CryoscaleError] = []

    def each(names: Iterable[str], make: Callable[[str], Made]) -> dict[str, Made]:
        """Do one thing for each tomogram; those that fail are named."""
        made = {}
        for name in names:
            try:
                made[name] = make(name)
            except SurroundingsError:
                raise
            except CryoscaleError as error:
                errors.append(error)
                failed[name] = str(error)
        return made

    known = with_all_classes(each(tomograms, lambda name: know(run, name, known_of)))
    collected = each(known, lambda name: collect(run, name, lambda *_: known[name], settings))
    parts = list(collected.values())
    if errors and not parts:
        raise errors[0]
    scored = [score(run, [part], settings, read_density) for part in parts]
    pooled = scored[0] if len(parts) == 1 else score(run, parts, settings, read_density)
    return {"run": run.folder.url, "tomograms": scored, "pooled": pooled, "failed": failed}


def evaluate_tomogram(
    run: Run, tomogram: str, truth: Known | npt.ArrayLike, radius_angstrom: float, *, seed: int = 0
) -> dict[str, Any]:
    """Score one tomogram against what is known, or against positions (M, 3) in Å of one class.

    Returns
    -------
    scores : dict
        As `score`.
    """
    settings = Settings(radius_angstrom, seed)
    known = truth if isinstance(truth, Known) else known_from_positions(truth)
    return score(run, [collect(run, tomogram, lambda *_: known, settings)], settings)


def score(
    run: Run, parts: Sequence[Evidence], settings: Settings, read_density: ReadDensity | None = None
) -> dict[str, Any]:
    """Make scores of what was counted in one or several tomograms.

    Returns
    -------
    scores : dict
        Plain values: `tomogram`, `radius_angstrom`, `truth` (number of positions), `picks`; and where there
        are such `left_out` (what is of an earlier state of the run, and is not scored),
        `clusters`, `selection`, `classes`, `instances`, `segmentation`, `structures`; see
        docs/commands.md.
    """
    all_of_them = together(parts)
    several = len(parts) > 1
    scores: dict[str, Any] = {
        "tomogram": f"{len(parts)} tomograms" if several else all_of_them.tomograms[0],
        "radius_angstrom": all_of_them.radius_angstrom,
        "truth": all_of_them.every.pairs.n_truth,
        "picks": {
            **all_of_them.every.scores(),
            "by_class": {name: found.scores() for name, found in all_of_them.by_class.items()},
        },
    }
    if all_of_them.left_out:
        scores["left_out"] = list(all_of_them.left_out)
    if several:
        scores["pooled_over"] = list(all_of_them.tomograms)
    clustered = [part for part in parts if part.ids_N is not None]
    if clustered:
        scores["clusters"] = cluster_scores(together(clustered), n_clusters_of(run), settings)
        contacts = [part.contacts for part in clustered if part.contacts is not None]
        if contacts:
            scores["clusters"]["membrane"] = contact_scores(contacts, seed=settings.seed)
    scores |= {what: named_scores(rows) for what, rows in all_of_them.named.items()}
    if all_of_them.classified is not None:
        scores["classes"] = all_of_them.classified.scores()
    labelled = [part.labels for part in parts if part.labels is not None]
    if labelled:
        scores["segmentation"] = segmentation_scores(labelled)
    if settings.structures:
        scores["structures"] = _structures(run, parts, settings, read_density)
    return scores


def cluster_scores(evidence: Evidence, n_clusters: int, settings: Settings) -> dict[str, Any]:
    """Score clusters as a partition, and what choosing among them reaches.

    Returns
    -------
    scores : dict
        `n_clusters`; `all_picks` (with "no particle" as a class) and `matched_picks`: see `agreement`;
        `by_class`: see `class_scores`; `table`: picks by cluster and class. Where the truth is one class, the
        scores of `by_class` stand here, too.
    """
    ids_N, class_N = evidence.ids_N, evidence.class_N
    assert ids_N is not None
    matched = class_N > 0
    by_class = {
        name: class_scores(ids_N, found, n_clusters, seed=settings.seed)
        for name, found in evidence.by_class.items()
    }
    only = next(iter(by_class.values())) if len(by_class) == 1 else {}
    return {
        "n_clusters": n_clusters,
        **{key: value for key, value in only.items() if "f1" in key},
        "all_picks": agreement(ids_N, class_N, seed=settings.seed),
        "matched_picks": agreement(ids_N[matched], class_N[matched], seed=settings.seed),
        "by_class": by_class,
        "table": {
            "classes": [NO_PARTICLE, *evidence.class_names[1:]],
            **cluster_table(ids_N, class_N, len(evidence.class_names)),
        },
    }


def named_scores(rows: dict[str, Named]) -> dict[str, Any]:
    """Score classes by their names; `against` says what each was matched with."""
    return {
        name: {
            "against": row.against,
            **(row.pairs.scores() if row.against else {"found": row.pairs.n_found}),
        }
        for name, row in rows.items()
    }


def _structures(
    run: Run, parts: Sequence[Evidence], settings: Settings, read_density: ReadDensity | None
) -> dict[str, Any]:
    """Average the found particles of each class over the tomograms."""
    scores = {}
    for name in dict.fromkeys(name for part in parts for name in part.found):
        found = [part.found[name] for part in parts if name in part.found]
        density = None
        if read_density is not None:
            truths = [read_truth(run.truth, part.tomogram) for part in found]
            density = density_of_class(run, truths, name, read_density)
        scores[name] = structure_scores(run, found, density, most=settings.most_particles, seed=settings.seed)
    return scores
