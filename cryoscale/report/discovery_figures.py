"""Figures of a discovery: the picture of features, what clusters hold, shells, slices of densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.evaluate.recovery import Volume
from cryoscale.report.figures import ACCENT, QUIET, TRAIN, VALIDATION, house_style
from cryoscale.report.score_figures import GRID, _color, _legend_above, _new, short

Scores = Mapping[str, Any]

ROWS = {"trained": "trained", "untrained": "untrained network", "components": "components of the boxes"}
AVERAGES = {
    "recovered": ("recovered, averaged", TRAIN, "-"),
    "members": ("all of the cluster", ACCENT, "-"),
    "shuffled": ("recovered, turns shuffled", QUIET, "-"),
    "raw": ("boxes as they are, averaged", VALIDATION, "--"),
}
SINGLES = {"recovered": ("recovered", TRAIN, "-"), "raw": ("boxes as they are", VALIDATION, "--")}
SLICES = 7  # of each density


def layout(
    layout_N2: npt.NDArray[np.floating[Any]],
    class_N: npt.NDArray[np.int64],
    names: Sequence[str],
    left_out: str,
    ids_N: npt.NDArray[np.int64],
    richest: int,
) -> Any:
    """Draw all subtomograms by class and by cluster; the left out class and its cluster stand out."""
    unseen_N = np.array(names)[class_N] == left_out
    with house_style():
        figure = _new(11.0, 5.2)
        left, right = figure.subplots(1, 2)
        for number, name in enumerate(n for n in names if n != left_out):
            rows = class_N == names.index(name)
            left.scatter(*layout_N2[rows].T, s=9, lw=0, color=_color(number), label=short(name), alpha=0.75)
        left.scatter(
            *layout_N2[unseen_N].T, s=26, marker="X", lw=0.4, color="black", ec="white",
            label=f"{short(left_out)}, never seen",
        )  # fmt: skip
        within = ids_N == richest
        right.scatter(*layout_N2[~within].T, s=9, lw=0, c=ids_N[~within] % 20, cmap="tab20", alpha=0.55)
        right.scatter(*layout_N2[within].T, s=22, color=VALIDATION, lw=0, label=f"cluster {richest}")
        right.scatter(
            *layout_N2[unseen_N].T, s=26, marker="X", lw=0.4, color="black", ec="white", label="never seen"
        )
        for axes, title in ((left, "by class"), (right, "by cluster")):
            axes.set(title=title, xticks=[], yticks=[], aspect="equal")
            for spine in axes.spines.values():
                spine.set_visible(False)
            legend = axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.01),
                                 ncols=4)  # fmt: skip
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def cluster_bars(features: Scores) -> Any:
    """Draw the members of each cluster, those of the left out class apart, for each kind of features."""
    with house_style():
        figure = _new(10.6, 3.4)
        panels = figure.subplots(1, len(features), squeeze=False)[0]
        for axes, (name, scores) in zip(panels, features.items(), strict=True):
            rows = scores["by_cluster"]
            ids = [row["group"] for row in rows]
            sizes = np.array([row["n"] for row in rows])
            hits = np.array([row["near"] for row in rows])
            axes.bar(ids, sizes, color="#c9ced6", label="other classes")
            axes.bar(ids, hits, color="black", label="never seen")
            richest = ids.index(scores["richest"])
            axes.plot(scores["richest"], sizes[richest] + 0.04 * sizes.max(), "v", color=VALIDATION, ms=7,
                      label="richest")  # fmt: skip
            axes.set(title=ROWS.get(name, name), xlabel="cluster")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", **GRID)
            axes.set_axisbelow(True)
        panels[0].set_ylabel("subtomograms")
        _legend_above(figure, panels[0])
    return figure


def shells(recovery: Scores) -> Any:
    """Draw Fourier shell correlations with the truth: of averages, and the mean of single subtomograms."""
    with house_style():
        figure = _new(10.2, 3.9)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, rows, styles, title in (
            (left, recovery.get("average", {}), AVERAGES, "averages at true orientations"),
            (right, recovery["single"], SINGLES, "single subtomograms, mean"),
        ):
            for key, row in rows.items():
                label, color, style = styles[key]
                axes.plot(
                    10 * np.array(row["fsc"]["frequency"]), np.array(row["fsc"]["correlation"], np.float64),
                    color=color, ls=style, lw=1.6, label=label,
                )  # fmt: skip
            for level in (0.5, 0.143):
                axes.axhline(level, color=QUIET, lw=0.9, ls=":")
            axes.set(ylim=(-0.25, 1.02), title=title, xlabel="spatial frequency, 1/nm")
            axes.grid(**GRID)
            if rows:
                axes.legend(frameon=False, fontsize=8)
        left.set_ylabel("Fourier shell correlation")
    return figure


def slices(rows: Sequence[Volume], voxel_size_angstrom: float) -> Any:
    """Draw xy slices of densities below each other, each on its own grey scale, objects bright."""
    middle = rows[0].density_ZYX.shape[0] // 2
    step = max(1, round(middle * 0.7 / (SLICES // 2)))
    chosen = [z for z in range(middle - SLICES // 2 * step, middle + SLICES // 2 * step + 1, step) if z >= 0]
    with house_style():
        figure = _new(1.8 + 1.25 * len(chosen), 0.5 + 1.32 * len(rows))
        grid = figure.subplots(len(rows), len(chosen), squeeze=False)
        for number, (row, volume) in enumerate(zip(grid, rows, strict=True)):
            values = np.asarray(volume.density_ZYX, np.float64)
            limits = np.percentile(values, [1, 100])
            if limits[0] == limits[1]:
                limits = np.array([limits[0] - 1, limits[1] + 1])
            for axes, z in zip(row, chosen, strict=True):
                axes.imshow(values[z], cmap="gray", origin="lower", vmin=limits[0], vmax=limits[1])
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if number == 0:
                    axes.set_title(f"{(z - middle) * voxel_size_angstrom / 10:.0f} nm", fontsize=8)
            row[0].set_ylabel(volume.words.replace(", ", ",\n"), fontsize=8)
    return figure
