"""The results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.weak_pipeline.runs import SCORED
from benchmarks.weak_pipeline.tables import NAMES, contact_rows
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.geometry import Box

COLORS = {"paper": "#999999", "code": "#56b4e9", "default": "#0072b2"}
GROUP_COLORS = {
    "ribosome": "#e69f00", "barrel": "#56b4e9", "ball": "#009e73", "membrane": "#cc79a7",
    "no object": "#555555", "mixed": "#d55e00",
}  # fmt: skip
CLASS_COLORS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2"]


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Draw every picture."""
    mpl.use("Agg")
    rows = sorted(rows, key=lambda row: -row["snr"])
    _f1(rows, out / "clusters.png")
    _dice(rows, out / "labels.png")
    _contacts(rows, out / "contacts.png")
    _k(rows, out / "number-of-clusters.png")
    _slices(rows, out)


def _f1(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    classes = list(rows[0]["picks"]["recall_by_class"])
    figure, axes = plt.subplots(1, len(classes), figsize=(3.4 * len(classes), 3.2), sharey=True)
    for axis, name in zip(axes, classes, strict=True):
        snr = [row["snr"] for row in rows]
        for code, color in COLORS.items():
            f1 = [row["codes"][code]["by_class"][name]["f1"] for row in rows]
            axis.plot(snr, f1, "o-", color=color, label=NAMES[code])
        threshold = [row["codes"]["default"]["by_class"][name]["f1_threshold"] for row in rows]
        axis.plot(snr, threshold, "k--", label="threshold on the score")
        axis.plot(snr, [row["random"][name] for row in rows], "k:", label="random clusters")
        axis.set(xscale="log", title=name, xlabel="SNR", ylim=(0, 1))
    axes[0].set_ylabel("F1 on the other cell")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _dice(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    ways = list(rows[0]["labels"])
    classes = list(rows[0]["labels"][ways[0]]["dice"])
    figure, axes = plt.subplots(1, len(classes), figsize=(3.2 * len(classes), 3.2), sharey=True)
    for axis, name in zip(axes, classes, strict=True):
        for way, color in zip(ways, ("#0072b2", "#56b4e9", "#e69f00", "#000000"), strict=True):
            dice = [row["labels"][way]["dice"].get(name) or 0.0 for row in rows]
            axis.plot([row["snr"] for row in rows], dice, "o-", color=color, label=way)
        axis.set(xscale="log", title=name, xlabel="SNR", ylim=(0, 1))
    axes[0].set_ylabel("Dice on the other cell")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _contacts(rows: list[dict[str, Any]], path: Path) -> None:
    """Log odds of each cluster to be near a membrane, with its interval, by the class that it holds."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(3.6 * len(rows), 3.4), sharey=True, squeeze=False)
    for axis, row in zip(axes[0], rows, strict=True):
        place = 0
        for name, color in GROUP_COLORS.items():
            mine = [c for c in contact_rows(row) if c["class"] == name]
            for cluster in sorted(mine, key=lambda c: c["log2_odds"] or 0.0):
                low, value, high = (
                    float(np.clip(cluster[key] if cluster[key] is not None else end, -8, 8))
                    for key, end in (("low", -8), ("log2_odds", 0), ("high", 8))
                )
                axis.plot([place, place], [low, high], color=color, lw=1)
                filled = color if cluster["verdict"] == "enriched" else "white"
                axis.plot(place, value, "o", color=color, mfc=filled, ms=4)
                place += 1
            place += 2
        axis.axhline(0, color="k", lw=0.5)
        axis.set(title=f"SNR {row['snr']:g}", xticks=[])
    axes[0, 0].set_ylabel("log2 odds of a pick near a membrane")
    dots = [plt.Line2D([], [], marker="o", ls="", color=c, label=n) for n, c in GROUP_COLORS.items()]
    figure.legend(handles=dots, ncols=len(dots), loc="lower center", fontsize=8)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)


def _k(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    kinds = ("gap", "calinski_harabasz", "silhouette", "stability")
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 3.0))
    for axis, kind in zip(axes, kinds, strict=True):
        for row, color in zip(rows, CLASS_COLORS, strict=False):
            axis.plot(row["k"]["k"], row["k"][kind], "o-", ms=3, color=color, label=f"SNR {row['snr']:g}")
        axis.set(xscale="log", xlabel="clusters", title=kind.replace("_", " "))
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _slices(rows: list[dict[str, Any]], out: Path) -> None:
    """Show a slice of the other cell at each ratio: density, truth, and labels of three origins."""
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap

    shown = [row for row in rows if (out / f"snr{row['snr']:g}-seed{row['seed']}").exists()]
    if not shown:
        return
    columns = ("density", "truth", "weak", "supervised", "decoded")
    figure, axes = plt.subplots(len(shown), 5, figsize=(13, 2.7 * len(shown)), squeeze=False)
    for line, row in zip(axes, shown, strict=True):
        run = Run.open(out / f"snr{row['snr']:g}-seed{row['seed']}")
        truth = LabelVolume(run.tomogram(SCORED), "truth").facts.class_names
        for axis, name in zip(line, columns, strict=True):
            _show(axis, run, name, truth, ListedColormap(["#ffffff", *CLASS_COLORS]))
        line[0].set_ylabel(f"SNR {row['snr']:g}")
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name)
    figure.tight_layout()
    figure.savefig(out / "slices.png", dpi=90)


def _show(axis: Any, run: Run, name: str, truth: tuple[str, ...], colors: Any) -> None:
    tomogram = Tomogram(run.tomogram(SCORED))
    z, y, x = tomogram.facts.levels[0].shape
    box = Box.of((z // 2, 0, 0), (z // 2 + 1, y, x))
    if name == "density":
        density = tomogram.read(0, box)[0]
        axis.imshow(density, cmap="gray", vmin=np.percentile(density, 1), vmax=np.percentile(density, 99))
    else:
        volume = LabelVolume(run.tomogram(SCORED), name)
        table = np.array([0, *(truth.index(n) + 1 for n in volume.facts.class_names)])
        image = table[volume.read(0, box)[0]]
        axis.imshow(image, cmap=colors, vmin=0, vmax=colors.N - 1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
