"""What is counted in a tomogram before scores are made of it, so that tomograms can be scored together.

Shape suffixes: N picks, M true positions, 3 coordinates z, y, x (Å).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cryoscale.data.classes import read_classes
from cryoscale.data.rows import Picks, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import read_table
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.errors import ConfigurationError, StateError
from cryoscale.evaluate.classified import Classified
from cryoscale.evaluate.contacts import Contacts, contacts_of
from cryoscale.evaluate.detection import Detection, Pairs, detect
from cryoscale.evaluate.known import Known, known_of_run, true_labels
from cryoscale.evaluate.labels import LabelCounts, count_labels
from cryoscale.evaluate.matching import match_points
from cryoscale.evaluate.picks import classes_of_picks
from cryoscale.evaluate.places import Places, places_for_picks
from cryoscale.evaluate.stale import Stale, finished_units
from cryoscale.evaluate.structure_scores import MOST_PARTICLES, Found, box_voxels, found_particles

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
KnownOf = Callable[[str, Tomogram], Known]

DEFAULT_RADIUS_VOXELS = 3.0  # of level 0
PLANTED = ("at", "near")  # placements of particles that stand at membranes by construction
ALL, NO_PARTICLE = "all particles", "no particle"


@dataclass(frozen=True)
class Settings:
    """How to score.

    Parameters
    ----------
    radius_angstrom : float, optional
        Largest distance of a pick from its true position; None: three voxels of level 0.
    seed : int
        Of random clusters, random places, and the particles that are averaged.
    structures : bool
        Whether to average found particles; it needs the truth of a simulation.
    most_particles : int
        Most particles of one class to average.
    reach_angstrom : float, optional
        How near to a true membrane a pick counts as near; None: 1.5 times the radius that was picked for.

    Raises
    ------
    ConfigurationError
        A radius or reach not above 0.
    """

    radius_angstrom: float | None = None
    seed: int = 0
    structures: bool = False
    most_particles: int = MOST_PARTICLES
    reach_angstrom: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("radius", self.radius_angstrom), ("reach", self.reach_angstrom)):
            if value is not None and not (value > 0 and np.isfinite(value)):
                raise ConfigurationError(
                    f"the {name} must be above 0 Å, got {value:g}.", remedy=f"Give another --{name}."
                )

    def radius_for(self, voxel_size_angstrom: float) -> float:
        """Return the matching radius in a tomogram, Å."""
        if self.radius_angstrom is None:
            return DEFAULT_RADIUS_VOXELS * voxel_size_angstrom
        return self.radius_angstrom


@dataclass(frozen=True)
class Named:
    """Found positions of one class against those that they are scored by.

    Parameters
    ----------
    against : str or None
        The true class of the same name; "all particles" where there is none; None where the truth knows the
        class but has no positions of it (membranes).
    pairs : Pairs
        The matching.
    """

    against: str | None
    pairs: Pairs


@dataclass(frozen=True)
class Evidence:
    """All that is counted in one tomogram, or in several.

    Parameters
    ----------
    tomograms : tuple of str
        Which.
    radius_angstrom : float
        Largest distance of a pair.
    class_names : tuple of str
        "background", then the true classes.
    every : Detection
        Picks against all true particles.
    by_class : dict of str to Detection
        Picks against those of one class; rows are those of `every`.
    class_N : (N,) int64
        Row of `class_names` of the particle that a pick is matched with, 0 for none.
    ids_N : (N,) int64 or None
        Cluster of each pick.
    named : dict
        For "selection" and "instances": found class to its pairs.
    labels : LabelCounts or None
        Where there are label volumes, found and true.
    found : dict of str to Found
        Particles to average.
    contacts : Contacts or None
        Where there are clusters and true membranes.
    classified : Classified or None
        Where a network gave a class to each pick.
    """

    tomograms: tuple[str, ...]
    radius_angstrom: float
    class_names: tuple[str, ...]
    every: Detection
    by_class: dict[str, Detection]
    class_N: Ints
    ids_N: Ints | None = None
    named: dict[str, dict[str, Named]] = field(default_factory=dict)
    labels: LabelCounts | None = None
    found: dict[str, Found] = field(default_factory=dict)
    contacts: Contacts | None = None
    classified: Classified | None = None
    left_out: tuple[str, ...] = ()


def know(run: Run, tomogram: str, known_of: KnownOf | None) -> Known:
    """Return what is known of a tomogram; None asks for the run's own truth."""
    opened = Tomogram(run.tomogram(tomogram))
    if known_of is not None:
        return known_of(tomogram, opened)
    level = opened.facts.levels[0]
    return known_of_run(run, tomogram, level.shape, level.voxel_size_angstrom)


def collect(run: Run, tomogram: str, known_of: KnownOf | None, settings: Settings) -> Evidence:
    """Match and count everything that a tomogram has.

    Parameters
    ----------
    known_of : callable, optional
        Name and tomogram to what is known of it; None: the run's own truth.

    Raises
    ------
    CryoscaleError
        Nothing is known of it, or what is known is of another tomogram.
    """
    opened = Tomogram(run.tomogram(tomogram))
    level = opened.facts.levels[0]
    radius = settings.radius_for(level.voxel_size_angstrom)
    known = know(run, tomogram, known_of)
    picks = read_picks(run.picks, tomogram)
    if radius > level.voxel_size_angstrom * max(level.shape) / 2:
        raise ConfigurationError(
            f"a radius of {radius:g} Å is more than half of '{tomogram}', {tuple(level.shape)} voxels of "
            f"{level.voxel_size_angstrom:g} Å: every pick would match.",
            remedy="Give a smaller --radius, about that of the particles.",
        )
    every, by_class = _detections(picks, known, radius, places_for_picks(run, tomogram, settings.seed))
    stale = Stale(run, tomogram, finished_units(run))
    ids_N = stale.cluster_ids(len(picks))
    class_N = classes_of_picks(picks.positions_N3, known.positions_M3, known.class_M, radius)
    found: dict[str, Found] = {}
    if settings.structures and known.truth is not None:
        box = box_voxels(run, opened.facts.level_for(run.config.run.working_voxel_size_angstrom))
        for name in known.particle_classes:
            found[name] = found_particles(tomogram, level, picks.positions_N3, known, name, radius, box)
    return Evidence(
        tomograms=(tomogram,),
        radius_angstrom=radius,
        class_names=known.class_names,
        every=every,
        by_class=by_class,
        class_N=class_N,
        ids_N=ids_N,
        named=_named(run, tomogram, picks, ids_N, known, radius, stale),
        labels=_label_counts(run, tomogram, stale, known),
        found=found,
        contacts=None
        if ids_N is None
        else contacts_of(
            run,
            tomogram,
            picks.positions_N3,
            ids_N,
            _words(class_N, known),
            settings.reach_angstrom,
            nothing=NO_PARTICLE,
            planted_N=_planted(picks, known, radius),
        ),
        classified=_classified(run, tomogram, stale, _words(class_N, known)),
        left_out=tuple(stale.left_out),
    )


def _words(class_N: Ints, known: Known) -> npt.NDArray[np.str_]:
    """Name the true class of each pick."""
    return np.array([NO_PARTICLE, *known.particle_classes])[class_N]


def _planted(picks: Picks, known: Known, radius: float) -> npt.NDArray[np.bool_] | None:
    """Return which picks are matched with particles that were placed at or near a membrane."""
    if known.truth is None:
        return None
    match = match_points(picks.positions_N3, known.positions_M3, radius)
    planted_N = np.zeros(len(picks), np.bool_)
    planted_N[match.pick_K] = np.isin(known.truth.placement_N[match.truth_K], PLANTED)
    return planted_N


def _detections(
    picks: Picks, known: Known, radius: float, places: Places
) -> tuple[Detection, dict[str, Detection]]:
    """Match the picks with all particles, and with those of each class."""
    random_RN3 = places.draw(len(picks))
    last = np.concatenate([picks.positions_N3[:, 2], known.positions_M3[:, 2], [0.0]]).max()

    def one(true_M3: Floats) -> Detection:
        return detect(
            picks.positions_N3, picks.scores_N, true_M3, radius, middle_x=last / 2, random_RN3=random_RN3
        )

    by_class = {name: one(known.positions_M3[known.of_class(name)]) for name in known.particle_classes}
    every = one(known.positions_M3) if len(by_class) != 1 else next(iter(by_class.values()))
    return every, by_class


def n_clusters_of(run: Run) -> int:
    """Return the number of clusters, 0 where there is no clustering."""
    return int(run.clusters.card["n_clusters"]) if run.clusters.exists else 0


def _named(
    run: Run, tomogram: str, picks: Picks, ids_N: Ints | None, known: Known, radius: float, stale: Stale
) -> dict[str, dict[str, Named]]:
    """Match the picks of selected classes, and the objects, class by class."""
    found: dict[str, dict[str, Floats]] = {}
    n_clusters = n_clusters_of(run)
    selection = run.clusters.selection(n_clusters) if ids_N is not None else None
    if selection is not None and ids_N is not None and run.clusters.accepts(selection):
        value_N = selection.class_of_cluster(n_clusters)[ids_N]
        found["selection"] = {
            name: picks.positions_N3[value_N == value]
            for value, name in enumerate(selection.class_names, start=1)
        }
    if run.instances.exists(f"{tomogram}.parquet") and not stale.instances():
        table = read_table(run.instances, f"{tomogram}.parquet")
        found_N3 = np.stack([table["z"], table["y"], table["x"]], axis=1).reshape(-1, 3)
        classes = table["class_name"].astype(str)
        found["instances"] = {str(name): found_N3[classes == name] for name in np.unique(classes)}
    return {what: against_truth(classes_, known, radius) for what, classes_ in found.items()}


def against_truth(found: dict[str, Floats], known: Known, radius: float) -> dict[str, Named]:
    """Match found classes with the true classes of the same names.

    One without a namesake is matched with all particles. True classes that nothing was found of come last,
    unless no name is shared and there is one true class: then the truth names no classes.
    """
    rows: dict[str, Named] = {}
    for name, found_N3 in found.items():
        if name in known.particle_classes:
            true_M3 = known.positions_M3[known.of_class(name)]
            rows[name] = Named(name, Pairs.between(found_N3, true_M3, radius))
        elif name in known.others:
            rows[name] = Named(None, Pairs(len(found_N3), 0, np.empty(0)))
        else:
            rows[name] = Named(ALL, Pairs.between(found_N3, known.positions_M3, radius))
    if len(known.particle_classes) > 1 or known.truth is not None:
        for name in known.particle_classes:
            rows.setdefault(name, Named(name, Pairs(0, int(known.of_class(name).sum()), np.empty(0))))
    return rows


def _classified(run: Run, tomogram: str, stale: Stale, true_N: npt.NDArray[np.str_]) -> Classified | None:
    """Put the classes that a network gave to the picks beside the true ones, where there are such."""
    if not run.classes.exists(f"{tomogram}.parquet"):
        return None
    found = read_classes(run.classes, tomogram)
    return None if stale.classes(len(found), len(true_N)) else Classified.of(found, true_N, NO_PARTICLE)


def _label_counts(run: Run, tomogram: str, stale: Stale, known: Known) -> LabelCounts | None:
    """Count labels where there are both a finished label volume and a true one.

    A network that was trained on masks of subtomograms knows one class, whatever the particle: then all true
    particles are that class.
    """
    truth = true_labels(run, tomogram)
    if truth is None:
        return None
    found = LabelVolume(run.tomogram(tomogram), run.config.segment.labels)
    try:
        _ = found.facts
    except StateError:  # not segmented, or not yet
        return None
    if stale.labels():
        return None
    counts = count_labels(found, truth)
    names = counts.found_names
    if run.config.supervised.model is not None and len(names) == 2 and names[1] not in counts.true_names:
        return counts.joined(known.particle_classes, names[1])
    return counts


def together(parts: Sequence[Evidence]) -> Evidence:
    """Join the evidence of several tomograms: rows follow each other, counts are added.

    Labels, particles and contacts stay apart: they are joined where they are scored.
    """
    if len(parts) == 1:
        return parts[0]
    names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    by_class = {
        name: Detection.together(
            [p.by_class[name] if name in p.by_class else p.every.of_nothing() for p in parts]
        )
        for name in names[1:]
    }
    ids = [p.ids_N for p in parts if p.ids_N is not None]
    named: dict[str, dict[str, Named]] = {}
    for what in ("selection", "instances"):
        rows = [part.named[what] for part in parts if what in part.named]
        if rows:
            named[what] = _joined(rows)
    return Evidence(
        tomograms=tuple(name for part in parts for name in part.tomograms),
        radius_angstrom=max(part.radius_angstrom for part in parts),
        class_names=names,
        every=Detection.together([p.every for p in parts]),
        by_class=by_class,
        class_N=np.concatenate([np.array([names.index(n) for n in p.class_names])[p.class_N] for p in parts]),
        ids_N=np.concatenate(ids) if len(ids) == len(parts) else None,
        named=named,
        classified=Classified.together(told)
        if (told := [p.classified for p in parts if p.classified])
        else None,
        left_out=tuple(what for part in parts for what in part.left_out),
    )


def _joined(rows: Sequence[dict[str, Named]]) -> dict[str, Named]:
    """Add the pairs of named classes over tomograms; what was matched with different things stays apart."""
    same: dict[tuple[str, str | None], list[Pairs]] = {}
    for row in rows:
        for name, named in row.items():
            same.setdefault((name, named.against), []).append(named.pairs)
    joined: dict[str, Named] = {}
    for (name, against), pairs in same.items():
        key = name if name not in joined else f"{name} ({against or 'no positions'})"
        joined[key] = Named(against, Pairs.together(pairs))
    return joined
