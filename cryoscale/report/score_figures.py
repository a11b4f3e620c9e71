"""Figures of scores: precision and recall, choosing clusters, confusion, overlap, shells, contacts.

Names of classes stand in these pictures, because they are looked at alone; no character of them is markup.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cryoscale.data.clusters import PALETTE
from cryoscale.report.figures import ACCENT, QUIET, TRAIN, VALIDATION, house_style, png_bytes

Scores = Mapping[str, Any]

LONGEST_NAME = 22
TOGETHER = 6  # classes that share one pair of axes
COLUMNS = 4
GRID = {"color": "#ddd", "linewidth": 0.5}


def drawn(figure: Any) -> bytes:
    """Render to PNG; characters that the font lacks become boxes, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return png_bytes(figure)


def short(name: str) -> str:
    """Shorten a name for a picture."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _new(width: float, height: float) -> Any:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _color(number: int) -> tuple[float, ...]:
    if number < 0:
        return (0.0, 0.0, 0.0)
    order = [4, 0, 2, 5, 6, 1, 3, 7]  # the dark ones of the palette first: these are thin lines
    return tuple(c / 255 for c in PALETTE[order[number % len(order)]])


def _panels(names: Sequence[str], height: float = 2.9) -> tuple[Any, list[Any]]:
    """Return a figure with one pair of axes per name, titled."""
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = _new(max(3.4, 3.1 * columns), height * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(short(name), parse_math=False)
        axes.grid(**GRID)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    return figure, list(grid[: len(names)])


def _legend_above(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=4, loc="outside upper center")


def precision_recall(picks: Scores) -> Any:
    """Draw precision against recall of every threshold on the score, all particles and class by class."""
    rows = {"all": picks} if len(picks["by_class"]) != 1 else {}
    rows = {**rows, **picks["by_class"]}
    with house_style():
        if len(rows) <= TOGETHER + 1:
            figure = _new(8.2, 4.2)
            panels = [figure.subplots()] * len(rows)
            panels[0].grid(**GRID)
        else:
            figure, panels = _panels(list(rows))
        for number, ((key, row), axes) in enumerate(zip(rows.items(), panels, strict=True)):
            color = _color(number - ("all" in rows))
            name = short(key) + "  " if len(set(panels)) == 1 else ""
            label = f"{name}AP {row['average_precision']:.3f}"
            axes.plot(row["curve"]["recall"], row["curve"]["precision"], color=color, label=label, lw=1.6)
            axes.plot(row["recall"], row["precision"], "o", ms=5, color=color)
            axes.plot(row["random_recall"], row["random_precision"], "x", ms=5, color=color)
        together = len(set(panels)) == 1
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if together else {"loc": "best"}
        for axes in dict.fromkeys(panels):
            axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
            for text in axes.legend(frameon=False, fontsize=8, **place).get_texts():
                text.set_parse_math(False)
        figure.supxlabel("recall", fontsize=9)
        figure.supylabel("precision", fontsize=9)
    return figure


def selection_curves(by_class: Scores) -> Any:
    """Draw the best F1 of a selection of at most n clusters against n, with random clusters below."""
    with house_style():
        figure, panels = _panels(list(by_class))
        for (_, row), axes in zip(by_class.items(), panels, strict=True):
            curve = row["curve"]
            n, random, sd = (np.array(curve[key]) for key in ("n", "random", "random_sd"))
            axes.fill_between(n, random - 2 * sd, random + 2 * sd, color=QUIET, alpha=0.35, linewidth=0)
            axes.plot(n, random, color=QUIET, lw=1.4, label="random clusters, ± 2 sd")
            axes.plot(n, curve["f1"], color=TRAIN, lw=1.8, label="clusters")
            threshold = row["split_half_threshold_f1"]
            axes.axhline(threshold, color=VALIDATION, lw=1.2, ls="--", label="threshold, split half")
            axes.plot(n[-1], row["split_half_f1"], "D", ms=5, color=TRAIN, label="clusters, split half")
            axes.set(xscale="log", ylim=(0, 1.02))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        _legend_above(figure, panels[0])
        figure.supxlabel("clusters chosen, at most", fontsize=9)
        figure.supylabel("F1", fontsize=9)
    return figure


def cluster_confusion(table: Scores) -> Any:
    """Draw what the picks of each cluster are, as shares of the cluster, with the sizes of the clusters."""
    counts_CL = np.array(table["counts"], np.float64).reshape(len(table["clusters"]), -1)
    size_C = counts_CL.sum(axis=1)
    share_CL = counts_CL / np.maximum(size_C, 1)[:, None]
    order = np.lexsort((-share_CL.max(axis=1), share_CL.argmax(axis=1)))
    names = [short(name) for name in table["classes"]]
    n_clusters, n_classes = share_CL.shape
    with house_style():
        figure = _new(3.6 + 0.32 * n_classes, max(3.4, 1.9 + min(0.17 * n_clusters, 12)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(max(2.0, 0.32 * n_classes), 1.1))
        image = left.imshow(share_CL[order], aspect="auto", cmap="Blues", vmin=0, vmax=1)
        left.set_xticks(range(n_classes), names, rotation=60, ha="right", rotation_mode="anchor")
        for text in left.get_xticklabels():
            text.set_parse_math(False)
        every = max(1, -(-n_clusters // 70))
        ticks = np.arange(0, n_clusters, every)
        left.set_yticks(ticks, [str(table["clusters"][c]) for c in order[ticks]], fontsize=6)
        left.set(ylabel="cluster")
        right.barh(np.arange(n_clusters), size_C[order], height=0.85, color=QUIET)
        right.set(xlabel="picks", ylim=(n_clusters - 0.5, -0.5))
        right.tick_params(left=False)
        right.locator_params(axis="x", nbins=3)
        figure.colorbar(image, ax=[left, right], label="share of the cluster", shrink=0.6, pad=0.02)
    return figure


def label_confusion(confusion: Scores) -> Any:
    """Draw where the voxels of each true class went, as shares of the class."""
    names = [short(name) for name in confusion["names"]]
    counts_CC = np.array(confusion["counts"], np.float64)
    share_CC = counts_CC / np.maximum(counts_CC.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.34 * len(names)
    with house_style():
        figure = _new(side + 1, side)
        axes = figure.subplots()
        image = axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_parse_math(False)
        axes.set(xlabel="found", ylabel="true")
        if len(names) <= 12:
            for (row, column), share in np.ndenumerate(share_CC):
                tone = "white" if share > 0.55 else "#444"
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=6.5, color=tone)
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.7)
    return figure


def overlap_bars(by_class: Scores) -> Any:
    """Draw Dice and IoU of each class, with what chance gives as a mark."""
    names = list(by_class)
    rows = np.arange(len(names), dtype=np.float64)
    with house_style():
        figure = _new(6.4, 1.1 + 0.38 * len(names))
        axes = figure.subplots()
        for key, color, shift in (("dice", TRAIN, -0.19), ("iou", ACCENT, 0.19)):
            values = [by_class[name][key] or 0.0 for name in names]
            random = [by_class[name][f"random_{key}"] or 0.0 for name in names]
            axes.barh(
                rows + shift, values, height=0.36, color=color, label={"dice": "Dice", "iou": "IoU"}[key]
            )
            axes.plot(random, rows + shift, "|", color="black", ms=9, mew=1.4)
        axes.plot([], [], "|", color="black", ms=9, mew=1.4, label="by chance")
        axes.set_yticks(rows, [short(name) for name in names])
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
        axes.set(xlim=(0, 1), ylim=(len(names) - 0.45, -0.55))
        axes.grid(axis="x", **GRID)
        axes.set_axisbelow(True)
        _legend_above(figure, axes)
    return figure


def shell_curves(structures: Scores) -> Any:
    """Draw Fourier shell correlations of each class, against the true density and between halves."""
    rows = {name: row for name, row in structures.items() if "half_fsc" in row}
    with house_style():
        figure, panels = _panels([f"{short(n)} ({row['particles']})" for n, row in rows.items()])
        for row, axes in zip(rows.values(), panels, strict=True):
            for key, color, style, label in (
                ("random_fsc", QUIET, "-", "with the truth, turns shuffled"),
                ("fsc", TRAIN, "-", "with the truth"),
                ("half_fsc", VALIDATION, "--", "between halves"),
            ):
                if key in row:
                    axes.plot(
                        10 * np.array(row[key]["frequency"]),
                        np.array(row[key]["correlation"], np.float64),
                        color=color, ls=style, lw=1.6, label=label,
                    )  # fmt: skip
            for level in (0.5, 0.143):
                axes.axhline(level, color=QUIET, lw=0.9, ls=":")
            axes.set(ylim=(-0.25, 1.02))
        _legend_above(figure, panels[0])
        figure.supxlabel("spatial frequency, 1/nm", fontsize=9)
        figure.supylabel("Fourier shell correlation", fontsize=9)
    return figure


def contact_odds(membrane: Scores) -> Any:
    """Draw by how much each true class and each cluster is nearer membranes than the other picks."""
    with house_style():
        groups = (membrane["by_class"], membrane["by_cluster"])
        ends = [row[key] or 0.0 for rows in groups for row in rows.values() for key in ("low", "high")]
        most = min(max(4.0, *(abs(end) for end in ends)) * 1.03, 12.0)
        figure = _new(8.6, max(2.6, 1.0 + 0.17 * max(map(len, groups))))
        pair = figure.subplots(1, 2)
        for axes, rows, title in zip(pair, groups, ("true classes", "clusters"), strict=True):
            order = sorted(rows, key=lambda name: -rows[name]["log2_odds"])
            for place, name in enumerate(order):
                row = rows[name]
                color = {"enriched": VALIDATION, "depleted": TRAIN}.get(row["verdict"], QUIET)
                low = -most if row["low"] is None else row["low"]
                high = most if row["high"] is None else row["high"]
                axes.plot([low, high], [place, place], color=color, lw=1.2)
                axes.plot(row["log2_odds"], place, "o", ms=3.5, color=color)
            every = max(1, -(-len(order) // 70))
            axes.set_yticks(range(0, len(order), every), [short(n) for n in order[::every]], fontsize=7)
            for text in axes.get_yticklabels():
                text.set_parse_math(False)
            axes.axvline(0, color="black", lw=0.8)
            axes.set(xlim=(-most, most), ylim=(len(order) - 0.4, -0.6), title=title)
            axes.grid(axis="x", **GRID)
        figure.supxlabel("log2 odds of a membrane within reach, 95 % interval", fontsize=9)
    return figure
