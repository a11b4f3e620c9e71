"""Write scores into a folder: JSON, a CSV table, plots, and a page that shows them together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryoscale import __version__
from cryoscale.data.folder import Folder
from cryoscale.evaluate.tables import (
    CLASSES,
    CLUSTERS,
    LABELS,
    MEMBRANE,
    NAMED,
    PICKS,
    STRUCTURES,
    WHOLE,
    as_csv,
    cell,
    object_accuracy,
    whole_volume,
)
from cryoscale.report import score_figures as draw
from cryoscale.report.html import environment, render

PLOTS = (
    "precision-recall.png", "selection.png", "clusters.png", "membranes.png", "dice.png", "labels.png",
    "classes.png",
    "fsc.png",
)  # fmt: skip
PARTITION = {"value": "value", "random": "random", "random_sd": "sd of random"}


@dataclass(frozen=True)
class Picture:
    """A plot of the page: file, what it shows in a word, and its caption."""

    file: str
    title: str
    caption: str


@dataclass(frozen=True)
class TableOf:
    """A table of the page: heading, titles of its columns, and rows of text, the name first."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, title: str, columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> TableOf:
        """Choose columns of rows and write their values."""
        body = tuple((name, *(cell(row.get(key)) for key in columns)) for name, row in rows.items())
        return cls(title, tuple(columns.values()), body)


def write_scores(report: Mapping[str, Any], place: str) -> str:
    """Write `scores.json`, `scores.csv`, plots of the pooled scores, and `index.html`.

    Parameters
    ----------
    report : mapping
        What `evaluate_run` returns.
    place : str
        Path or URL of the folder; what an earlier call wrote there is replaced.

    Returns
    -------
    page : str
        Path of `index.html`.
    """
    folder = Folder.of(place)
    folder.write_bytes("scores.json", json.dumps(report, indent=1).encode())
    folder.write_bytes("scores.csv", as_csv(report).encode())
    pictures = []
    for picture, figure in _plots(report["pooled"]):
        folder.write_bytes(picture.file, draw.drawn(figure()))
        pictures.append(picture)
    for name in set(PLOTS) - {picture.file for picture in pictures}:
        folder.delete(name)
    several = len(report["tomograms"]) > 1
    sections = [report["pooled"], *(report["tomograms"] if several else [])]
    page = render(
        environment(), "scores", title_of_run=str(report["run"]).rsplit("/", 1)[-1], place=report["run"],
        version=__version__, pictures=pictures, failed=report["failed"],
        sections=[
            {"name": s["tomogram"], "truth": s["truth"], "radius": f"{s['radius_angstrom']:g}",
             "tables": _tables(s), "notes": _notes(s)}
            for s in sections
        ],
    )  # fmt: skip
    folder.write_bytes("index.html", page)
    return folder.path("index.html")


def _plots(scores: Mapping[str, Any]) -> list[tuple[Picture, Callable[[], Any]]]:
    """List the plots that there is something for."""
    plots: list[tuple[Picture, Callable[[], Any]]] = [
        (
            Picture("precision-recall.png", "Picks", "Precision and recall of every threshold on the score; "
                    "a dot for all picks, a cross for as many at random places."),
            lambda: draw.precision_recall(scores["picks"]),
        )
    ]  # fmt: skip
    clusters = scores.get("clusters")
    if clusters:
        choosing = (
            "Best F1 of at most n clusters, chosen with the truth in hand, above the same for shuffled "
            "clusters. Diamond and dashed line: clusters, and a threshold on the score, chosen on one half "
            "and scored on the other."
        )
        holding = "Share of the picks of each cluster by true class, and the size of the cluster."
        plots += [
            (
                Picture("selection.png", "Choosing clusters", choosing),
                lambda: draw.selection_curves(clusters["by_class"]),
            ),
            (
                Picture("clusters.png", "What clusters hold", holding),
                lambda: draw.cluster_confusion(clusters["table"]),
            ),
        ]
    if clusters and "membrane" in clusters:
        reach = clusters["membrane"]["reach_angstrom"]
        caption = (
            f"Odds of a membrane within {reach:.0f} Å against those of the other picks of the same tomogram; "
            "coloured where the false discovery rate is below 5 %."
        )
        plots.append(
            (
                Picture("membranes.png", "Contacts with membranes", caption),
                lambda: draw.contact_odds(clusters["membrane"]),
            )
        )
    classes = scores.get("classes")
    if classes:
        going = "What the network took the picks of each true class for; first those of no particle."
        plots.append(
            (
                Picture("classes.png", "Classes of picks", going),
                lambda: draw.label_confusion(classes["confusion"]),
            )
        )
    labels = scores.get("segmentation")
    if labels:
        plots += [
            (
                Picture("dice.png", "Label volume", "Overlap of each class with the truth."),
                lambda: draw.overlap_bars(labels["by_class"]),
            ),
            (
                Picture("labels.png", "Where voxels went", "Share of the voxels of each true class."),
                lambda: draw.label_confusion(labels["confusion"]),
            ),
        ]
    structures = scores.get("structures") or {}
    if any("half_fsc" in row for row in structures.values()):
        caption = (
            "Averages of the found particles, turned by the truth: against the true density of the class, "
            "the same with the turns shuffled among them, and between halves. "
            "The number is that of the particles; dotted lines at 0.5 and 0.143."
        )
        plots.append((Picture("fsc.png", "Structures", caption), lambda: draw.shell_curves(structures)))
    return plots


def _tables(scores: Mapping[str, Any]) -> list[TableOf]:
    """Make the tables of one tomogram, or of all."""
    picks = scores["picks"]
    rows = {"all": picks} if len(picks["by_class"]) != 1 else {}
    tables = [TableOf.of("Picks", PICKS, {**rows, **picks["by_class"]})]
    clusters = scores.get("clusters")
    if clusters:
        tables.append(TableOf.of("F1 of clusters chosen for a class", CLUSTERS, clusters["by_class"]))
        for key, words in (("all_picks", "all picks"), ("matched_picks", "matched picks")):
            measures = {name.replace("_", " "): values for name, values in clusters[key].items()}
            if measures:
                tables.append(TableOf.of(f"Clusters as a partition, {words}", PARTITION, measures))
        if "membrane" in clusters:
            tables.append(
                TableOf.of("Near membranes, by true class", MEMBRANE, clusters["membrane"]["by_class"])
            )
    for key, words in (("selection", "Picks of selected classes"), ("instances", "Instances")):
        if scores.get(key):
            tables.append(TableOf.of(words, NAMED, scores[key]))
    if "classes" in scores:
        classes = scores["classes"]
        tables.append(TableOf.of("Classes of the picks", WHOLE, object_accuracy(classes)))
        tables.append(TableOf.of("Classes of the picks, by class", CLASSES, classes["by_class"]))
    if "segmentation" in scores:
        labels = scores["segmentation"]
        tables.append(TableOf.of("Label volume", WHOLE, whole_volume(labels)))
        tables.append(TableOf.of("Label volume, by class", LABELS, labels["by_class"]))
    if scores.get("structures"):
        tables.append(TableOf.of("Structures", STRUCTURES, scores["structures"]))
    return tables


def _notes(scores: Mapping[str, Any]) -> list[str]:
    """Say what has no place in a table."""
    notes = [f"Not scored: {what}" for what in scores.get("left_out", [])]
    labels = scores.get("segmentation")
    if labels:
        for side, words in (("found", "without a true class of the name"), ("truth", "true, but not found")):
            if labels["unmatched"][side]:
                notes.append(f"Label classes {words}: {', '.join(labels['unmatched'][side])}.")
    enriched = scores.get("clusters", {}).get("membrane", {}).get("enriched")
    if enriched:
        notes.append(f"Clusters enriched near membranes: {', '.join(enriched)}.")
    return notes
