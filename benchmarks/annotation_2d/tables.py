"""The report: what was asked, the tables, and the case for either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.annotation_2d.cells import CLASSES, SNR
from benchmarks.annotation_2d.crops import TOLERANCE
from benchmarks.annotation_2d.sizes import SIZES, in_slices
from benchmarks.weak_pipeline.tables import table

HEAD = """\
# Annotation in slices: the 2D U-Net and the small CNN beside networks in boxes, {date}

What do 2D networks reach on the six classes of the 2D U-Net's README, on cells they were not trained on; and
is it better to draw labels for them, or to draw none and take EDSS3D's weak labels?

F1 of a class is 2 TP / (2 TP + FP + FN) over all voxels of the scored volume; the mean is over the five
features, without noise. {reduced}

{machine}
"""


def write_report(found: dict[str, Any], path: Path, pictures: Sequence[Path], notes: str = "") -> None:
    """Write the report of all rows; pictures lie in a folder beside it that is named like it."""
    size = SIZES[found["size"]]
    dates = sorted({row["date"] for row in found["rows"]})
    machines = dict.fromkeys(_machine(row["machine"]) for row in found["rows"])
    head = HEAD.format(
        date=" to ".join(dict.fromkeys([dates[0], dates[-1]])), reduced=size.reduced,
        machine="\n".join(f"- {told}" for told in machines),
    )  # fmt: skip
    parts = [head.strip(), notes.strip(), *sections(found["rows"], found["size"])]
    parts += [f"![{p.stem}]({path.stem}/{p.name})" for p in pictures]
    path.write_text("\n\n".join(part for part in parts if part) + "\n")


def sections(rows: Sequence[dict[str, Any]], size: str) -> list[str]:
    """Lay out the tables of what was measured."""
    cells = [row for row in rows if row["part"] == "cells"]
    crops = [row for row in rows if row["part"] == "crops"]
    return [*(_cells(cells, size) if cells else []), *(_crops(crops) if crops else [])]


def _machine(facts: dict[str, Any]) -> str:
    gpu = facts.get("gpu")
    torch, openvino = (facts["versions"].get(name, "none") for name in ("torch", "openvino"))
    return (
        f"{facts['processor']}, {facts['cores']} cores{f', {gpu}' if gpu else ''}; torch {torch}, openvino"
        f" {openvino}; commit {facts['commit'] or 'unknown'}."
    )


def _cells(rows: Sequence[dict[str, Any]], size: str) -> list[str]:
    shape = " x ".join(map(str, SIZES[size].shape))
    header = ["labels of", *CLASSES, "mean of five", "voxel accuracy", "the same on held-back tiles"]
    lines = [
        [row["row"], *(row["f1"][name] for name in CLASSES), row["mean_f1"], row["accuracy"],
         row.get("split_accuracy")]
        for row in rows
    ]  # fmt: skip
    share = rows[0]["share"]
    lines.append(
        ["voxels at random, as often as they are there", *(share[name] for name in CLASSES), None, None, None]
    )
    first = (
        f"## Six classes on simulated cells\n\nCells of {shape} voxels of 14 Å, SNR {SNR:g}: trained on two,"
        f" scored on a third. F1:\n\n{table(header, lines)}\n\n"
        "The last column is of what was held back in training. Networks in slices are validated on tiles of a"
        " range of planes, with a gap to those trained on; where a cell has too few planes, or a class would"
        " not be seen in the rest, on a random share of the tiles, which have neighbours that were trained on"
        " (the model card says which). Boxes are held back as one side of the cell. Both are drawn about"
        " objects, so it also counts another mixture of classes."
    )
    return [first, _case(rows)]


def _case(rows: Sequence[dict[str, Any]]) -> str:
    header = ["", "voxels drawn", "tiles or boxes", "epochs", "seconds in all", "mean F1 of five", "best at"]
    best = {name: max(row["f1"][name] for row in rows) for name in CLASSES[1:]}
    lines = []
    for row in rows:
        at = [name for name in CLASSES[1:] if row["f1"][name] == best[name] and best[name] > 0]
        spent = f"{sum(row['seconds'].values()):.0f}"
        lines.append([row["row"], row["drawn_voxels"], row["items"], row["epochs"], spent, row["mean_f1"],
                      ", ".join(at) or "-"])  # fmt: skip
    return "## The case for either\n\n" + table(header, lines) + "\n\n" + _verdict(rows)


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Say in words what the table says."""

    def top(chosen: list[dict[str, Any]]) -> dict[str, Any] | None:
        return max(chosen, key=lambda row: row["mean_f1"]) if chosen else None

    weak = top([row for row in rows if not row["drawn_voxels"]])
    flat = top([row for row in rows if in_slices(row["row"])])
    deep = top([row for row in rows if row["drawn_voxels"] and not in_slices(row["row"])])
    said = []
    seeds = ", ".join(sorted({str(row["seed"]) for row in rows}))
    if len(rows) > 1:
        said.append(
            f"All of this is of one seed ({seeds}), without a spread over trainings, and each best row was"
            " chosen on the cell that it is scored on, which flatters whichever kind has more rows."
        )
    if flat and deep:
        better, other = (flat, deep) if flat["mean_f1"] >= deep["mean_f1"] else (deep, flat)
        said.append(
            f"With labels drawn in two cells `{better['row']}` reaches {better['mean_f1']:.2f}, and the best"
            f" network of the other kind, `{other['row']}`, {other['mean_f1']:.2f}."
        )
    if weak and (drawn := top([row for row in rows if row["drawn_voxels"]])):
        features = [n for n in CLASSES[1:] if weak["f1"][n] >= 0.5 * max(drawn["f1"][n], 1e-9)]
        kept = ", ".join(features) or "none of the features"
        said.append(
            f"Without anything drawn, EDSS3D's weak labels reach {weak['mean_f1']:.2f}"
            f" ({weak['mean_f1'] / max(drawn['mean_f1'], 1e-9):.0%} of that of `{drawn['row']}`); they come"
            f" to half of its F1 or more at: {kept}."
        )
    meanings = [
        f'In "{row["row"]}" '
        + ", ".join(f"{word} was taken for {said}" for word, said in row["meaning"].items())
        for row in rows
        if row.get("meaning") and "suggested" in row["row"]
    ]
    return "\n".join(
        [*said, *(f"{text} (what each fits best on a cell it was fitted on)." for text in meanings)]
    )


def _crops(rows: Sequence[dict[str, Any]]) -> list[str]:
    header = ["network", "trained on", "scored on", "F1", "at random", f"F1 within {TOLERANCE:g} voxels",
              "precision", "recall", "voxel accuracy", "seconds"]  # fmt: skip
    lines = [
        [row["row"], row["direction"], row["scored"], row["f1"]["microtubule"], row["share"]["microtubule"],
         *(row["tolerant"][key] for key in ("f1", "precision", "recall")), row["accuracy"],
         f"{sum(row['seconds'].values()):.0f}"]
        for row in rows
    ]  # fmt: skip
    return [
        "## Microtubules drawn by hand\n\nTwo real crops of 96 x 96 x 96 voxels: trained on one, scored on"
        " the other; or trained on one half of a crop, scored on its other half. The drawing is a disc in"
        " each plane around a line, so thin in places that a shift of two voxels costs half of the F1:"
        f" the same with a tolerance of {TOLERANCE:g} voxels stands beside it, with its precision and recall."
        f" Planes of padding count for nothing.\n\n{table(header, lines)}"
    ]
