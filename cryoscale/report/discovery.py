"""Write a discovery into a folder: JSON, a table of subtomograms, densities, pictures, and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryoscale import __version__
from cryoscale.data.folder import Folder
from cryoscale.data.tables import Table, read_table, write_table
from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.discovery import Discovery
from cryoscale.evaluate.recovery import Volume
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.report import discovery_figures as draw
from cryoscale.report.figures import training_curves
from cryoscale.report.html import environment, render
from cryoscale.report.score_figures import drawn, label_confusion
from cryoscale.report.scores import Picture, TableOf

FEATURES = {
    "purity": "share of it", "recall": "of the class", "f1": "F1", "random_purity": "share by chance",
    "random_recall": "of class by chance", "random_f1": "F1 by chance", "enrichment": "enrichment",
    "p": "p", "p_of_best": "p of the best", "size": "size", "verdict": "verdict",
}  # fmt: skip
NAMES = {
    "trained": "features of the trained network", "untrained": "the same network, untrained",
    "components": "50 principal components of the boxes",
}  # fmt: skip
NETWORK = {
    "samples": "boxes", "object_accuracy": "object accuracy", "pixel_accuracy": "pixel accuracy",
    "mean_iou_by_sample": "mIoU by sample", "mean_iou": "mIoU", "recovery_error": "recovery error",
    "recovery_error_of_nothing": "error of zeros",
}  # fmt: skip
AVERAGES = {
    "particles": "particles", "half": "FSC 0.5", "low": "FSC 0.143", "halves": "halves 0.143",
}  # fmt: skip
SINGLES = {
    "reached": "reach 0.5", "half": "FSC 0.5 (median)", "half_range": "quartiles",
    "low": "FSC 0.143 (median)",
}  # fmt: skip
AVERAGE_NAMES = {
    "recovered": "recovered densities of the class", "members": "recovered densities of all the cluster",
    "shuffled": "of the class, turns shuffled", "raw": "boxes of the class as they are",
}  # fmt: skip
SINGLE_NAMES = {"recovered": "recovered density", "raw": "box as it is"}

DIFFERENCES = (
    "The paper's data set was never released. This one is simulated here; its structures, its packing and "
    "its noise "
    "are those of the run, which run.toml names.",
    "The paper says neither how features are scaled before k-means nor how often k-means starts: here they "
    "are taken "
    "as they are, with 10 starts.",
    "The paper picks the cluster by eye. Here it is the one with the best F1 for the class that was left "
    "out, so the "
    "truth is used; what chance reaches is chosen in the same way.",
    "The paper reports one Fourier shell correlation, “5.0”, without a unit or a threshold. Here "
    "resolutions stand in "
    "nm and in Å, at 0.5 and at 0.143, of single subtomograms and of averages at true orientations, which "
    "nobody has "
    "for a real tomogram.",
    "In the paper 1KP8 was left out; which class plays its part here is said above.",
)


def write_discovery(found: Discovery, place: str) -> str:
    """Write `discovery.json`, `subtomograms.parquet`, densities as MRC, pictures, and `index.html`.

    Parameters
    ----------
    found : Discovery
        What `discover` returns.
    place : str
        Path of the folder, on this machine; what an earlier call wrote there is replaced.

    Returns
    -------
    page : str
        Path of `index.html`.
    """
    folder = local(place)
    for name in folder.names():
        if name.endswith((".png", ".mrc")):
            folder.delete(name)
    size = found.boxes.voxel_size_angstrom
    for volume in _volumes(found):
        write_mrc(Path(folder.path(f"{volume.name}.mrc")), volume.density_ZYX.astype(np.float32), size)
    folder.write_bytes("discovery.json", json.dumps(found.scores, indent=1).encode())
    write_table(folder, "subtomograms.parquet", subtomogram_table(found))
    pictures = []
    for picture, figure in _pictures(found, folder):
        folder.write_bytes(picture.file, drawn(figure))
        pictures.append(picture)
    page = render(
        environment(), "discovery", title_of_run=f"{found.asked.left_out}, left out", version=__version__,
        scores=found.scores, pictures=pictures, tables=tables_of(found.scores),
        summary=summary_of(found.scores), differences=DIFFERENCES,
        files=[f"{volume.name}.mrc" for volume in _volumes(found)],
    )  # fmt: skip
    folder.write_bytes("index.html", page)
    return folder.path("index.html")


def local(place: str) -> Folder:
    """Return a folder on this machine: MRC files are written in place.

    Raises
    ------
    ConfigurationError
        It is a URL.
    """
    folder = Folder.of(place)
    if not folder.is_local:
        raise ConfigurationError(
            f"MRC files are written to folders of this machine, not to {place}.",
            remedy="Give a path with --to, and copy the folder.",
        )
    return folder


def _volumes(found: Discovery) -> list[Volume]:
    if found.recovery is None:
        return []
    return [*found.recovery.volumes, *(volume for triple in found.recovery.examples for volume in triple)]


def subtomogram_table(found: Discovery) -> Table:
    """Return one row per subtomogram: where it is from, its class, what was made of it."""
    boxes, names = found.boxes, np.array(found.boxes.class_names)
    return {
        "tomogram": boxes.tomogram_N, "row": boxes.row_N, "class_name": boxes.names_N, "split": boxes.split_N,
        "cluster": found.ids_N, "found_class": names[found.answers.class_N],
        "probability": found.answers.confidence_N.astype(np.float32),
        "picture_x": found.layout_N2[:, 0].astype(np.float32),
        "picture_y": found.layout_N2[:, 1].astype(np.float32),
    }  # fmt: skip


def _pictures(found: Discovery, folder: Folder) -> list[tuple[Picture, Any]]:
    boxes, asked, scores = found.boxes, found.asked, found.scores
    features = scores["features"]
    pictures = [
        (
            Picture("tsne.png", "Features", "All subtomograms, by t-SNE of their features. "
                    "Crosses: the class that was left out."),
            draw.layout(found.layout_N2, boxes.class_N, boxes.class_names, asked.left_out, found.ids_N,
                        features["trained"]["richest"]),
        ),
        (
            Picture("clusters.png", "Clusters", "Members of each cluster, the class that was left out in "
                    "black; the triangle marks the cluster that holds it best."),
            draw.cluster_bars(features),
        ),
    ]  # fmt: skip
    pictures += _of_densities(found)
    known = scores["network"]["known"]
    if known is not None and "confusion" in known:
        pictures.append(
            (
                Picture(
                    "confusion.png", "Known classes", "Where test subtomograms of each known class went."
                ),
                label_confusion(known["confusion"]),
            )
        )
    if folder.exists("model/history.parquet"):
        history = read_table(folder.child("model"), "history.parquet")
        figure, _ = training_curves(history, scores["training"]["best_epoch"])
        pictures.append(
            (Picture("training.png", "Training", "Curves of the training, validation dashed."), figure)
        )
    return pictures


def _of_densities(found: Discovery) -> list[tuple[Picture, Any]]:
    """Draw shells and slices of what was recovered."""
    if found.recovery is None:
        return []
    size = found.boxes.voxel_size_angstrom
    shells = Picture("fsc.png", "Shells", "Correlation with the truth; dotted at 0.5 and 0.143.")
    pictures = [(shells, draw.shells(found.scores["recovery"]))]
    if found.recovery.volumes:
        words = "xy slices of averages at true orientations, each on its own grey scale, objects bright."
        pictures.append(
            (Picture("averages.png", "Averages", words), draw.slices(found.recovery.volumes, size))
        )
    singles = [volume for triple in found.recovery.examples for volume in triple]
    words = (
        "Single subtomograms: the box, the recovered density, the truth; a quarter down the ranks of "
        "their correlation, in the middle, and three quarters down."
    )
    pictures.append((Picture("examples.png", "Examples", words), draw.slices(singles, size)))
    return pictures


def tables_of(scores: Mapping[str, Any]) -> list[TableOf]:
    """Make the tables of the page, and of the terminal."""
    features = {
        NAMES[name]: {**row, "p": f"{row['p']:.1g}", "p_of_best": f"{row['p_of_best']:.1g}"}
        for name, row in scores["features"].items()
    }
    tables = [TableOf.of("The cluster that holds the class best", FEATURES, features)]
    recovery = scores["recovery"]
    if recovery is not None:
        if "average" in recovery:
            averages = {
                AVERAGE_NAMES[name]: {
                    "particles": row["particles"], "half": nm(row["fsc_0.5_angstrom"]),
                    "low": nm(row["fsc_0.143_angstrom"]), "halves": nm(row.get("half_fsc_0.143_angstrom")),
                }
                for name, row in recovery["average"].items()
            }  # fmt: skip
            tables.append(TableOf.of("Averages at true orientations, against the truth", AVERAGES, averages))
        singles = {SINGLE_NAMES[name]: _single(row) for name, row in recovery["single"].items()}
        tables.append(TableOf.of("Single subtomograms, against their own density", SINGLES, singles))
    network = scores["network"]
    rows = {
        "known classes, test rows": network["known"],
        f"{scores['left_out']}, never seen": network["unseen"],
    }
    known = network["known"] or {}
    rows |= {f"  {name}": row for name, row in known.get("by_class", {}).items()}
    tables.append(TableOf.of("What the network says", NETWORK, {k: v for k, v in rows.items() if v}))
    return tables


def _single(row: Mapping[str, Any]) -> dict[str, Any]:
    half, low = row["fsc_0.5_angstrom"], row["fsc_0.143_angstrom"]
    return {
        "reached": row["reached_0.5"],
        "half": nm(half[1] if half else None),
        "half_range": f"{half[0] / 10:.1f} to {half[2] / 10:.1f} nm" if half else None,
        "low": nm(low[1] if low else None),
    }


def nm(angstrom: float | None) -> str:
    """Write a resolution in nm and Å."""
    return "not reached" if angstrom is None else f"{angstrom / 10:.2f} nm ({angstrom:.0f} Å)"


def summary_of(scores: Mapping[str, Any]) -> list[str]:
    """Say in a few sentences what was found, and what chance and plain alternatives give."""
    own, base = scores["features"]["trained"], scores["features"]["components"]
    plain, chance = scores["unseen"] / scores["subtomograms"], own["random_f1"]
    lines = [
        f"Cluster {own['richest']} of {scores['n_clusters']} holds {own['hits']} of the {scores['unseen']} "
        f"subtomograms "
        f"of “{scores['left_out']}” ({100 * own['recall']:.0f} %), and {100 * own['purity']:.0f} % of its "
        f"{own['size']} "
        f"members are of it, against {100 * plain:.0f} % of all ({own['enrichment']:.1f} times as many, "
        f"Fisher's p = "
        f"{own['p']:.2g}).",
        f"F1 {own['f1']:.3f}; by chance the best of as many clusters has {chance:.3f} ± "
        f"{own['random_f1_sd']:.3f}, an "
        f"untrained network {scores['features']['untrained']['f1']:.3f}, principal components of the boxes "
        f"{base['f1']:.3f}.",
    ]
    beaten = [
        NAMES[name]
        for name, row in scores["features"].items()
        if name != "trained" and row["f1"] >= own["f1"]
    ]
    if beaten:
        lines.append(f"The training does not pay here: as good or better are {', '.join(beaten)}.")
    without = scores["without_truth"]
    auc = "" if without["auc"] is None else (
        f" A subtomogram of it is less sure than another that was not trained on with probability "
        f"{without['auc']:.2f} (0.5 by chance)."
    )  # fmt: skip
    lines.append(
        f"Without the truth: by the mean confidence of its members the cluster is number {without['rank']} "
        f"of "
        f"{without['clusters']}, the least sure first.{auc}"
    )
    return lines + _recovery_words(scores["recovery"])


def _recovery_words(recovery: Mapping[str, Any] | None) -> list[str]:
    if recovery is None:
        return ["The network has no recovery head: there is no density."]
    lines = []
    if not recovery["from_cluster"]:
        lines.append("The cluster holds fewer than two of the class: densities are of all its subtomograms.")
    half = recovery["single"]["recovered"]["fsc_0.5_angstrom"]
    lines.append(
        "FSC 0.5 of single subtomograms' recovered densities with their own, median: "
        f"{nm(half[1] if half else None)}."
    )
    if "average" in recovery:
        reached = {name: nm(row["fsc_0.5_angstrom"]) for name, row in recovery["average"].items()}
        lines.append(
            f"The same of their average at true orientations: {reached['recovered']}; of the boxes as "
            f"they are, averaged alike: {reached['raw']}; with shuffled turns: {reached['shuffled']}."
        )
    return lines


def as_text(scores: Mapping[str, Any]) -> str:
    """Write what was found for a terminal."""
    lines = list(summary_of(scores))
    for table in tables_of(scores):
        lines += ["", table.title, *_laid_out(table)]
    return "\n".join(lines)


def _laid_out(table: TableOf) -> Sequence[str]:
    everything = [("", *table.columns), *table.rows]
    widths = [max(len(row[n]) for row in everything) for n in range(len(everything[0]))]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join("  " + c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
        for row in everything
    ]
