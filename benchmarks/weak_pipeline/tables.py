"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAMES = {"paper": "paper's code", "code": "linear code", "default": "code and invariants"}


def write_tables(rows: list[dict[str, Any]], path: Path) -> None:
    """Write all tables of all signal-to-noise ratios."""
    rows = sorted(rows, key=lambda row: (-row["snr"], row["seed"]))
    text = "\n\n".join(
        [_picks(rows), _clusters(rows), _agreement(rows), _labels(rows), _contacts(rows), _k(rows)]
    )
    path.write_text(text + "\n")


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Lay out a table; numbers with two digits."""

    def word(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    body = [" | ".join(word(value) for value in line) for line in lines]
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {b} |" for b in body)])


def _picks(rows: list[dict[str, Any]]) -> str:
    classes = list(rows[0]["picks"]["recall_by_class"])
    header = ["SNR", "picks", "precision", "recall", "F1", "at random places", "average precision",
              *(f"recall {name}" for name in classes)]  # fmt: skip
    kept = ("found", "precision", "recall", "f1", "random_f1", "average_precision")
    lines = [
        [f"{r['snr']:g}", *(r["picks"][key] for key in kept), *r["picks"]["recall_by_class"].values()]
        for r in rows
    ]
    return "### Picks\n\n" + table(header, lines)


def _clusters(rows: list[dict[str, Any]]) -> str:
    classes = list(rows[0]["picks"]["recall_by_class"])
    header = [
        "SNR",
        "encoding",
        "mean F1",
        *classes,
        "threshold, mean",
        "random clusters, mean",
        "dead units",
    ]
    lines = []
    for r in rows:
        null = sum(r["random"].values()) / len(classes)
        for code, found in r["codes"].items():
            lines.append([
                f"{r['snr']:g}", NAMES[code], found["mean_f1"],
                *(found["by_class"][c]["f1"] for c in classes),
                found["mean_f1_threshold"], null, found["dead_units"],
            ])  # fmt: skip
    return "### Clusters chosen on the fitted cell, scored on the other: F1\n\n" + table(header, lines)


def _agreement(rows: list[dict[str, Any]]) -> str:
    header = [
        "SNR",
        "encoding",
        "ARI",
        "random",
        "NMI",
        "random",
        "purity",
        "random",
        "linear probe, mean F1",
    ]
    lines = []
    for r in rows:
        for code, found in r["codes"].items():
            a = found["agreement"]
            pairs = [
                a[name][key]
                for name in ("adjusted_rand", "normalised_mutual_information", "purity")
                for key in ("value", "random")
            ]
            lines.append(
                [f"{r['snr']:g}", NAMES[code], *pairs, sum(found["probe"].values()) / len(found["probe"])]
            )
    return "### Clusters against classes\n\n" + table(header, lines)


def _labels(rows: list[dict[str, Any]]) -> str:
    classes = list(next(iter(rows[0]["labels"].values()))["dice"])
    header = ["SNR", "labels", *(f"Dice {name}" for name in classes), "mIoU, pooled", "pixel accuracy"]
    lines = [
        [
            f"{r['snr']:g}",
            way,
            *(found["dice"].get(c) for c in classes),
            found["mean_iou"],
            found["pixel_accuracy"],
        ]
        for r in rows
        for way, found in r["labels"].items()
    ]
    return "### Label volumes of the other cell\n\n" + table(header, lines)


def contact_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the enrichment of each cluster, with the class that most of its picks belong to."""
    majority = row["contacts"]["majority"]
    by_cluster = row["contacts"]["scores"]["by_cluster"]
    return [{**found, "class": majority[int(cluster)]} for cluster, found in by_cluster.items()]


def _contacts(rows: list[dict[str, Any]]) -> str:
    header = ["SNR", "clusters of", "clusters", "enriched", "depleted", "neither"]
    lines = []
    for r in rows:
        clusters = contact_rows(r)
        for name in dict.fromkeys(c["class"] for c in sorted(clusters, key=lambda c: c["class"])):
            mine = [c["verdict"] for c in clusters if c["class"] == name]
            lines.append([f"{r['snr']:g}", name, len(mine), mine.count("enriched"), mine.count("depleted"),
                          len(mine) - mine.count("enriched") - mine.count("depleted")])  # fmt: skip
    return "### Clusters at membranes\n\n" + table(header, lines) + "\n\n" + _planted(rows)


def _planted(rows: list[dict[str, Any]]) -> str:
    """The same test for the picks grouped by what they truly are: as good as any clustering could do."""
    header = ["SNR", "picks of", "picks", "near membranes", "log2 odds", "95 % from", "to", "verdict"]
    keys = ("picks", "share_near", "log2_odds", "low", "high", "verdict")
    lines = [
        [f"{r['snr']:g}", name, *(found[key] for key in keys)]
        for r in rows
        for name, found in sorted(r["contacts"]["scores"]["by_class"].items())
    ]
    return "### Placed classes at membranes\n\n" + table(header, lines)


def _k(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["k"]["best"])
    header = ["SNR", *(name.replace("_", " ") for name in names)]
    return "### Number of clusters\n\n" + table(
        header, [[f"{r['snr']:g}", *r["k"]["best"].values()] for r in rows]
    )
