"""Scores as text for a terminal, and as rows for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryoscale.evaluate.evidence import ALL

PICKS = {
    "truth": "truth", "found": "found", "precision": "precision", "recall": "recall", "f1": "F1",
    "f_beta4": "F-beta 4", "average_precision": "AP", "best_threshold_f1": "best F1",
    "median_error_angstrom": "error Å", "random_f1": "random F1",
}  # fmt: skip
NAMED = {
    "against": "against", "truth": "truth", "found": "found", "precision": "precision", "recall": "recall",
    "f1": "F1", "f_beta4": "F-beta 4", "median_error_angstrom": "error Å",
}  # fmt: skip
CLUSTERS = {
    "truth": "truth", "split_half_f1": "split half", "split_half_threshold_f1": "threshold",
    "split_half_random_f1": "random", "best_fifth_of_clusters_f1": "best fifth",
    "best_fifth_random_f1": "random fifth",
}  # fmt: skip
CLASSES = {
    "truth": "truth", "found": "found", "precision": "precision", "recall": "recall", "f1": "F1",
}  # fmt: skip
LABELS = {
    "truth": "truth", "found": "found", "iou": "IoU", "random_iou": "random", "dice": "Dice",
    "random_dice": "random",
}  # fmt: skip
WHOLE = {"value": "value", "random": "random"}
STRUCTURES = {
    "particles": "particles", "fsc_0.5_angstrom": "FSC 0.5, Å", "fsc_0.143_angstrom": "FSC 0.143, Å",
    "half_fsc_0.143_angstrom": "halves 0.143, Å", "random_fsc_0.5_angstrom": "random 0.5",
    "random_fsc_0.143_angstrom": "random 0.143", "random_half_fsc_0.143_angstrom": "random halves",
}  # fmt: skip
MEMBRANE = {
    "picks": "picks", "share_near": "near", "share_near_others": "others near", "log2_odds": "log2 odds",
    "low": "from", "high": "to", "q": "q", "q_shift": "q shift", "majority": "mostly", "verdict": "verdict",
}  # fmt: skip
NESTED = (
    "curve",
    "table",
    "confusion",
    "half_fsc",
    "fsc",
    "random_half_fsc",
    "random_fsc",
)  # nested arrays: for plots, not for tables


def as_text(scores: Mapping[str, Any]) -> str:
    """Write the scores of one or several tomograms as tables."""
    picks = scores["picks"]
    lines = [
        f"{scores['tomogram']}: {scores['truth']} true positions, "
        f"matched within {scores['radius_angstrom']:g} Å"
    ]
    rows = {"all": picks} if len(picks["by_class"]) != 1 else {}
    lines += ["", "picks", *table(PICKS, {**rows, **picks["by_class"]})]
    among = ", ".join(f"{k}: {cell(v)}" for k, v in picks["recall_among_best"].items())
    lines += [f"  recall among the best {among}"] if among else []
    if "left_out" in scores:
        lines += ["", *(f"not scored: {what}" for what in scores["left_out"])]
    if "clusters" in scores:
        lines += ["", *_clusters(scores["clusters"])]
    for what, title in (("selection", "picks of selected classes"), ("instances", "instances")):
        if scores.get(what):
            lines += ["", title, *table(NAMED, scores[what]), *_partners(unmatched(scores[what]))]
    if "classes" in scores:
        classes = scores["classes"]
        lines += ["", "classes of the picks", *table(WHOLE, object_accuracy(classes))]
        lines += table(CLASSES, classes["by_class"])
    if "segmentation" in scores:
        lines += ["", *_segmentation(scores["segmentation"])]
    if scores.get("structures"):
        lines += ["", "structures", *table(STRUCTURES, scores["structures"])]
    return "\n".join(lines)


def _clusters(clusters: Mapping[str, Any]) -> list[str]:
    lines = [f"{clusters['n_clusters']} clusters: F1 of those chosen for a class"]
    lines += table(CLUSTERS, clusters["by_class"])
    measures = {
        f"{measure.replace('_', ' ')}, {which}": values
        for key, which in (("all_picks", "all picks"), ("matched_picks", "matched"))
        for measure, values in clusters[key].items()
    }
    lines += ["", "clusters as a partition"]
    lines += table({"value": "value", "random": "random", "random_sd": "sd"}, measures)
    if "membrane" in clusters:
        membrane = clusters["membrane"]
        lines += ["", f"within {membrane['reach_angstrom']:.0f} Å of a membrane, by true class"]
        lines += table(MEMBRANE, membrane["by_class"])
        if "planted" in membrane:
            planted = membrane["planted"]
            lines += [
                "  planted contacts: "
                + "; ".join(
                    f"{key}: {', '.join(planted[key]) or 'none'}" for key in ("found", "missed", "elsewhere")
                )
            ]
        told = {f"cluster {k}": row for k, row in membrane["by_cluster"].items() if row["verdict"] != "none"}
        lines += ["clusters that differ from the other picks", *table(MEMBRANE, told)] if told else []
    return lines


def whole_volume(labels: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of a label volume as a whole, beside those by chance, as rows of a table."""
    titles = {
        "pixel_accuracy": "pixel accuracy", "mean_iou_by_sample": "mean IoU by tomogram",
        "mean_iou": "mean IoU",
    }  # fmt: skip
    return {
        title: {"value": labels[key], "random": labels[f"random_{key}"]}
        for key, title in titles.items()
        if key != "mean_iou_by_sample" or labels["samples"] > 1  # of one tomogram it is the mean IoU
    }


def object_accuracy(classes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return how many matched picks got the right class, beside chance, as rows of a table."""
    right, by_chance = classes["object_accuracy"], classes["random_object_accuracy"]
    return {f"right, of {classes['matched']} matched": {"value": right, "random": by_chance}}


def _segmentation(labels: Mapping[str, Any]) -> list[str]:
    lines = ["label volume", *table(WHOLE, whole_volume(labels)), *table(LABELS, labels["by_class"])]
    return lines + _partners(labels["unmatched"])


def unmatched(named: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of selected classes or objects that only one side has."""
    return {
        "found": [name for name, row in named.items() if row["against"] == ALL],
        "truth": [name for name, row in named.items() if row["against"] == name and not row["found"]],
    }


def _partners(names: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which names have no partner."""
    words = {"found": "found, without a true class of the name", "truth": "true, not found"}
    return [f"  {words[side]}: {', '.join(names[side])}" for side in words if names[side]]


def table(columns: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lay rows out under the titles of the columns, numbers to the right."""
    body = [[name, *(cell(row.get(key)) for key in columns)] for name, row in rows.items()]
    everything = [["", *columns.values()], *body]
    widths = [max(len(line[n]) for line in everything) for n in range(len(columns) + 1)]
    return [
        "  "
        + line[0].ljust(widths[0])
        + "".join("  " + c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))
        for line in everything
    ]


def cell(value: Any) -> str:
    """Write one value: three decimals, whole numbers plain, an em dash for nothing."""
    if value is None:
        return "—"
    if isinstance(value, float):
        value += 0.0 if abs(value) >= 0.0005 else -value  # no minus before zeros
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return str(value)


def as_csv(report: Mapping[str, Any]) -> str:
    """Write all single numbers of a report, one per row: tomogram, part, class, measure, value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["tomogram", "part", "group", "measure", "value"])
    parts: Sequence[Mapping[str, Any]] = report["tomograms"]
    pooled = [report["pooled"]] if len(parts) > 1 else []
    for scores in [*parts, *pooled]:
        name = "pooled" if "pooled_over" in scores else scores["tomogram"]
        for path, value in _leaves(scores):
            part, group, measure = path[0], ".".join(path[1:-1]), path[-1]
            writer.writerow([name, part if len(path) > 1 else "", group, measure, value])
    return stream.getvalue()


def _leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every number or word with the keys that lead to it; lists and curves are left out."""
    for key, inner in value.items():
        if key in NESTED or isinstance(inner, list) or (not path and key in ("tomogram", "pooled_over")):
            continue
        if isinstance(inner, Mapping):
            yield from _leaves(inner, (*path, str(key)))
        elif inner is not None:
            yield (*path, str(key)), inner
