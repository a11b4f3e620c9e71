"""The results as pictures: a slice that no network was trained on, what is true there, what each said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.annotation_2d import cells, crops
from benchmarks.annotation_2d.scores import UNKNOWN, Labels
from benchmarks.annotation_2d.sizes import volume_name
from benchmarks.weak_pipeline.runs import SCORED
from cryoscale.data.run import Run

COLORS = ("#ffffff", "#e69f00", "#0072b2", "#cc79a7", "#009e73", "#555555")  # of the six classes
UNKNOWN_COLOR = "#dddddd"


def draw(rows: Sequence[dict[str, Any]], place: Path, out: Path) -> list[Path]:
    """Draw what there are rows and runs of; return the pictures."""
    mpl.use("Agg")
    drawn = []
    mine = [row for row in rows if row["part"] == "cells"]
    if mine and (place / "cells" / "run.toml").exists():
        drawn.append(_cells(mine, place, out / "cells.png"))
    mine = [row for row in rows if row["part"] == "crops"]
    if mine and (place / "crops" / "run" / "run.toml").exists():
        drawn.append(_crops(mine, place, out / "crops.png"))
    return drawn


def _cells(rows: Sequence[dict[str, Any]], place: Path, path: Path) -> Path:
    run = Run.open(place / "cells")
    truth = cells.truth_of(run, SCORED)
    # The plane that shows most of the rarest class there is.
    per_plane = np.stack([(truth == value).sum(axis=(1, 2)) for value in range(1, len(cells.CLASSES))])
    shown = per_plane / np.maximum(per_plane.max(axis=1, keepdims=True), 1)
    plane = int(np.prod(0.05 + shown[per_plane.max(axis=1) > 0], axis=0).argmax())
    panels: list[tuple[str, Labels]] = [("truth", truth[plane])]
    for row in rows:
        if "meaning" in row:
            found = cells.weak_labels(Run.open(place / "weak-cells"), row["row"], row["meaning"])
        else:
            found = cells.labels_of(run, SCORED, volume_name(row["row"]))
        panels.append((f"{row['row']}\nmean F1 {row['mean_f1']:.2f}", found[plane]))
    density = cells.density_of(run, SCORED)[plane]
    _panels(density, f"plane {plane} of the third cell", panels, cells.CLASSES, path)
    return path


def _crops(rows: Sequence[dict[str, Any]], place: Path, path: Path) -> Path:
    run = Run.open(place / "crops" / "run")
    lines = []
    for fitted in crops.DIRECTIONS:
        if not any(row["direction"] == fitted for row in rows):
            continue
        scored, _, truth = crops.fitted_and_scored(place / "crops", fitted)
        plane = int((truth == 1).sum(axis=(1, 2)).argmax())
        panels: list[tuple[str, Labels]] = [("drawn by hand", truth[plane])]
        for row in rows:
            if row["direction"] == fitted:
                found = crops.labels_of(run, scored, row["row"], fitted)[plane]
                title = f"{row['row']}\nF1 {row['f1']['microtubule']:.2f}"
                panels.append((f"{title}, within {crops.TOLERANCE:g}: {row['tolerant']['f1']:.2f}", found))
        lines.append(
            (cells.density_of(run, scored)[plane], f"{scored}, plane {plane}; from {fitted}", panels)
        )
    _lines(lines, ("noise", "microtubule"), path)
    return path


def _panels(
    density: Any, title: str, panels: Sequence[tuple[str, Labels]], classes: Sequence[str], path: Path
) -> None:
    """Draw density and label images, four beside each other, with a legend of the classes."""
    from matplotlib import pyplot as plt

    columns = 4
    lines = -(-(len(panels) + 1) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.1 * columns, 3.8 * lines + 0.4), squeeze=False)
    _show_density(axes.flat[0], density, title)
    for axis, (name, image) in zip(axes.flat[1:], panels, strict=False):
        _show_labels(axis, image, name)
    for axis in axes.flat[len(panels) + 1 :]:
        axis.axis("off")
    _finish(figure, classes, path)


def _lines(
    lines: Sequence[tuple[Any, str, list[tuple[str, Labels]]]], classes: Sequence[str], path: Path
) -> None:
    """Draw one line of density and label images for each."""
    from matplotlib import pyplot as plt

    columns = 1 + max(len(panels) for _, _, panels in lines)
    figure, axes = plt.subplots(len(lines), columns, figsize=(2.5 * columns, 2.9 * len(lines)), squeeze=False)
    for line, (density, title, panels) in zip(axes, lines, strict=True):
        _show_density(line[0], density, title)
        for axis, (name, image) in zip(line[1:], panels, strict=False):
            _show_labels(axis, image, name)
        for axis in line[1 + len(panels) :]:
            axis.axis("off")
    _finish(figure, classes, path)


def _show_density(axis: Any, density: Any, title: str) -> None:
    low, high = np.percentile(density, [1, 99])
    axis.imshow(density, cmap="gray", vmin=low, vmax=high)
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])


def _show_labels(axis: Any, image: Labels, title: str) -> None:
    from matplotlib.colors import ListedColormap

    colors = ListedColormap([*COLORS, UNKNOWN_COLOR])
    axis.imshow(
        np.where(image == UNKNOWN, len(COLORS), image),
        cmap=colors, vmin=0, vmax=len(COLORS), interpolation="nearest",
    )  # fmt: skip
    axis.set_title(title, fontsize=8)
    axis.set(xticks=[], yticks=[])


def _finish(figure: Any, classes: Sequence[str], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    shown = [
        Patch(facecolor=color, edgecolor="k", label=name)
        for color, name in zip(COLORS, classes, strict=False)
    ]
    figure.legend(handles=shown, ncols=len(shown), loc="lower center", fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=90)
    plt.close(figure)
