"""The trainings as pictures: curves, bars beside the published numbers, slices of what came out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.dsm_net.published import PUBLISHED, Published
from benchmarks.dsm_net.rows import OWN, all_rows

Record = dict[str, Any]
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#999999", "#f0e442")
PARTS = {"validation_seg_iou": "mIoU of the voxels", "validation_cls_accuracy": "accuracy of the class"}
SNR = {"D": 0.5, "A": 0.06, "B": 0.01}


def draw(records: Sequence[Record], examples: Path, folder: Path) -> list[tuple[Path, str]]:
    """Draw what the records allow; returns the files and what they show."""
    mpl.use("Agg")
    pictures: list[tuple[str, str, Callable[[Any], Any]]] = [
        ("published", "Ours (blue, with standard deviations over seeds) beside the published numbers.",
         lambda plt: _bars(plt, records)),
        ("curves", "Validation boxes while training, first seed.", lambda plt: _curves(plt, records)),
        ("improved", "What improves on the papers' recipes, and plain alternatives.",
         lambda plt: _improved(plt, records)),
        ("snr", "SSN3D-ED and SSN3D-FCN over the signal-to-noise ratio.", lambda plt: _snr(plt, records)),
    ]  # fmt: skip
    for data in "ABC":
        told = f"Middle slices of test boxes of {data}, first seed."
        pictures.append(
            (f"slices-{data}", told, partial(_slices, records=records, examples=examples, data=data))
        )
    from matplotlib import pyplot as plt

    drawn = []
    for name, told, function in pictures:
        figure = function(plt)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=100)
            plt.close(figure)
            drawn.append((path, told))
    return drawn


def _of(records: Sequence[Record], data: str, name: str) -> list[Record]:
    return [r for r in records if (r["data"], r["name"]) == (data, name)]


def _first_seeds(records: Sequence[Record], data: str) -> list[Record]:
    """Return one record of each row of the paper, that of its first seed."""
    names = [row.name for row in all_rows() if row.data == data and "paper" in row.groups]
    return [found[0] for name in names if (found := _of(records, data, name))]


def _curves(plt: Any, records: Sequence[Record]) -> Any:
    datas = [data for data in "ABC" if _first_seeds(records, data)]
    if not datas:
        return None
    figure, axes = plt.subplots(2, len(datas), figsize=(4.4 * len(datas), 6.4), squeeze=False)
    for column, data in enumerate(datas):
        for row, color in zip(_first_seeds(records, data), COLORS, strict=False):
            for axis, (part, told) in zip(axes[:, column], PARTS.items(), strict=True):
                values = [epoch[part] for epoch in row["history"] if part in epoch]
                if values:
                    axis.plot(
                        range(1, len(values) + 1), values, "-", color=color, marker=".", label=row["name"]
                    )
                axis.set(title=f"{data}: {told}", xlabel="epoch")
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def _bars(plt: Any, records: Sequence[Record]) -> Any:
    datas = [data for data in "ABC" if _first_seeds(records, data)]
    if not datas:
        return None
    figure, axes = plt.subplots(2, len(datas), figsize=(4.6 * len(datas), 6.4), squeeze=False)
    for column, data in enumerate(datas):
        for axis, key, told in zip(
            axes[:, column], ("miou", "object"), ("mIoU", "object accuracy"), strict=True
        ):
            rows = [r for r in _first_seeds(records, data) if key in r["scores"]]
            for place, row in enumerate(rows):
                values = [100 * r["scores"][key] for r in _of(records, data, row["name"])]
                sd = statistics.stdev(values) if len(values) > 1 else 0.0
                axis.bar(place + 0.2, statistics.mean(values), 0.4, yerr=sd or None, color="#0072b2")
                published = PUBLISHED.get((data, row["name"]), Published())
                value = published.miou if key == "miou" else published.object_
                if value is not None:
                    axis.bar(place - 0.2, value, 0.4, fill=False, edgecolor="black")
            if rows:
                axis.axhline(100 * rows[0]["chance"][key], color="gray", ls=":", lw=1)
            axis.set(title=f"{data}: {told}, %", ylim=(0, 100), xticks=range(len(rows)))
            axis.set_xticklabels([r["name"] for r in rows], rotation=40, ha="right", fontsize=7)
    outline = plt.Rectangle((0, 0), 1, 1, fill=False, edgecolor="black")
    chance = plt.Line2D([], [], color="gray", ls=":", lw=1)
    ours = plt.Rectangle((0, 0), 1, 1, color="#0072b2")
    axes[0, 0].legend([outline, ours, chance], ["published", "ours", "chance"], fontsize=7, loc="lower right")
    figure.tight_layout()
    return figure


def _improved(plt: Any, records: Sequence[Record]) -> Any:
    groups = ("improved", "plain")
    datas = [
        d
        for d in "AB"
        if any(_of(records, d, r.name) for r in all_rows() if r.data == d and r.groups[0] in groups)
    ]
    if not datas:
        return None
    figure, axes = plt.subplots(1, len(datas), figsize=(6.0 * len(datas), 4.2), squeeze=False)
    for axis, data in zip(axes[0], datas, strict=True):
        names = [
            "DSM-Net",
            "SSN3D-ED",
            *(r.name for r in all_rows() if r.data == data and r.groups[0] in groups),
        ]
        shown = [(name, found) for name in names if (found := _of(records, data, name))]
        for key, shift, color, told in (
            ("miou", -0.2, "#0072b2", "mIoU"),
            ("object", 0.2, "#e69f00", "object accuracy"),
        ):
            values = [statistics.mean(100 * r["scores"].get(key, 0.0) for r in found) for _, found in shown]
            axis.bar(np.arange(len(shown)) + shift, values, 0.4, color=color, label=told)
        axis.set(title=data, ylim=(0, 100), xticks=range(len(shown)))
        axis.set_xticklabels([name for name, _ in shown], rotation=50, ha="right", fontsize=7)
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure


def _snr(plt: Any, records: Sequence[Record]) -> Any:
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    drawn = False
    for name, color in ((OWN, COLORS[0]), ("SSN3D-FCN", COLORS[1])):
        points = [
            (SNR[data], [100 * r["scores"]["miou"] for r in found])
            for data in SNR
            if (found := _of(records, data, name))
        ]
        drawn = drawn or len(points) > 1
        axis.plot(
            [x for x, _ in points], [statistics.mean(v) for _, v in points], "o-", color=color, label=name
        )
    axis.set(xscale="log", xlabel="signal-to-noise ratio", ylabel="mIoU, %")
    axis.legend()
    figure.tight_layout()
    if not drawn:
        plt.close(figure)
    return figure if drawn else None


def _slices(plt: Any, records: Sequence[Record], examples: Path, data: str) -> Any:
    """Show what the three main networks make of the same test boxes."""
    found = {}
    for name in ("DSM-Net", "Seg", "SSN3D-ED", "DSM-Net, all"):
        mine = _of(records, data, name)
        if mine and (path := examples / mine[0]["examples"]).exists():
            with np.load(path) as arrays:
                found[name] = {key: arrays[key] for key in arrays.files}
    if not found:
        return None
    one = next(iter(found.values()))
    columns: list[tuple[str, Any, dict[str, Any]]] = [
        ("input", one["input"], {"cmap": "gray", "vmin": -3, "vmax": 3}),
        ("truth", one["mask"], {"cmap": "Blues", "vmin": 0, "vmax": 1}),
    ]
    for name, arrays in found.items():
        columns.append((name, arrays["predicted_mask"], {"cmap": "Blues", "vmin": 0, "vmax": 1}))
    span = {"cmap": "gray", "vmin": float(one["density"].min()), "vmax": 0.0}
    columns.append(("true density", one["density"], span))
    columns += [(f"{name}, recovered", a["recovered"], span) for name, a in found.items() if "recovered" in a]
    count = len(one["input"])
    figure, axes = plt.subplots(count, len(columns), figsize=(1.7 * len(columns), 1.8 * count), squeeze=False)
    for line in range(count):
        for axis, (name, images, words) in zip(axes[line], columns, strict=True):
            axis.imshow(images[line], interpolation="nearest", **words)
            axis.set(xticks=[], yticks=[])
            if line == 0:
                axis.set_title(name, fontsize=8)
    figure.tight_layout()
    return figure
