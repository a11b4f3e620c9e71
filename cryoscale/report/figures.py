"""Figures of the report: arrays in, matplotlib figures and PNG bytes out.

No words of the person's (names of tomograms and classes) enter a picture: they stand in the page, where they
are escaped and can be searched. Lengths are in nm; the origin is at the lower left, as in 3dmod.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 9, "figure.dpi": 100, "savefig.dpi": 100,
    "text.usetex": False, "axes.unicode_minus": False, "image.interpolation": "nearest",
}  # fmt: skip
TRAIN, VALIDATION, ACCENT, QUIET = "#0072b2", "#d55e00", "#009e73", "#8a8a8a"  # Okabe and Ito 2008
CURVES = 4  # side by side
CURVE_NAMES = {
    "cls_loss": "class: loss", "cls_accuracy": "class: accuracy", "seg_loss": "mask: loss",
    "seg_accuracy": "mask: accuracy", "seg_iou": "mask: mIoU", "rec_error": "density: squared error",
}  # fmt: skip
LOW, HIGH = 0.5, 99.5  # percentiles of a slice that become black and white


@dataclass(frozen=True)
class View:
    """One slice of a tomogram, ready to be shown.

    Parameters
    ----------
    axes : str
        Which axes go up and across: "yx", "zx" or "yz".
    image_UV : (U, V) float32
        Density, first axis upwards.
    pixel_nm : float
        Side of a pixel.
    origin_nm : float
        Centre of the first pixel, the same along both axes.
    at_nm : float
        Where the slice lies along the axis that is not shown.
    labels_UV : (U, V) int, optional
        Class values on the same pixels.
    """

    axes: str
    image_UV: npt.NDArray[np.float32]
    pixel_nm: float
    origin_nm: float
    at_nm: float
    labels_UV: npt.NDArray[np.integer[Any]] | None = None

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top of the picture, nm."""
        low = self.origin_nm - self.pixel_nm / 2
        up, across = self.image_UV.shape
        return low, low + across * self.pixel_nm, low, low + up * self.pixel_nm

    @property
    def size_nm(self) -> tuple[float, float]:
        """Height and width."""
        left, right, bottom, top = self.extent
        return top - bottom, right - left


@dataclass(frozen=True)
class Markers:
    """Picks to be circled.

    Parameters
    ----------
    positions_N3 : (N, 3) float
        Positions (z, y, x), nm.
    radius_nm : float
        Radius of all circles.
    colors_N3 : (N, 3) float
        Colours in 0..1.
    quiet_N : (N,) bool, optional
        Picks drawn faintly, below the others.
    """

    positions_N3: npt.NDArray[np.float64]
    radius_nm: float
    colors_N3: npt.NDArray[np.float64]
    quiet_N: npt.NDArray[np.bool_] | None = None


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw with our settings whatever the person's matplotlibrc says, so that pictures are reproducible."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"})
        yield


def png_bytes(figure: Any) -> bytes:
    """Render a figure; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with house_style():
        figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _figure(width: float, height: float) -> Any:
    figure = Figure(figsize=(width, height), layout=None)
    FigureCanvasAgg(figure)
    return figure


def ortho_figure(
    views: Mapping[str, View],
    *,
    markers: Markers | None = None,
    label_colors: npt.NDArray[np.float64] | None = None,
) -> Any:
    """Draw the xy slice with the xz slice below it and the yz slice beside it, on one scale.

    Parameters
    ----------
    views : mapping
        Views "yx", "zx" and "yz".
    label_colors : (C, 3) float, optional
        Colours of class values 1..C; None leaves labels out.
    """
    with house_style():
        (ny, nx), nz = views["yx"].size_nm, views["zx"].size_nm[0]
        gap, margin = 0.3, 0.3  # inches
        unit = min(7.6 / (nx + nz), 8.4 / (ny + nz))  # inches per nm
        width, height = (nx + nz) * unit + gap + 2 * margin, (ny + nz) * unit + gap + 2 * margin
        figure = _figure(width, height)
        places = {
            "yx": (margin, margin + nz * unit + gap, nx * unit, ny * unit),
            "zx": (margin, margin, nx * unit, nz * unit),
            "yz": (margin + nx * unit + gap, margin + nz * unit + gap, nz * unit, ny * unit),
        }
        for name, (x, y, w, h) in places.items():
            axes = figure.add_axes((x / width, y / height, w / width, h / height))
            _draw_view(axes, views[name], markers, label_colors)
        _scale_bar(figure.axes[0], views["yx"])
    return figure


def series_figure(
    views: Sequence[View],
    *,
    markers: Markers | None = None,
    label_colors: npt.NDArray[np.float64] | None = None,
) -> Any:
    """Draw slices side by side: plain in the first row, with picks and labels in the second."""
    with house_style():
        rows = 2 if markers is not None or label_colors is not None else 1
        height_nm, width_nm = views[0].size_nm
        tile = 12.6 / len(views)
        tall = tile * height_nm / width_nm
        figure = _figure(12.6, rows * tall + 0.4)
        grid = figure.subplots(rows, len(views), squeeze=False)
        figure.subplots_adjust(0.002, 0.002, 0.998, 1 - 0.3 / (rows * tall + 0.4), wspace=0.02, hspace=0.02)
        for column, view in enumerate(views):
            _draw_view(grid[0, column], view, None, None, named=False)
            grid[0, column].set_title(f"z = {view.at_nm:.0f} nm", pad=3)
            if rows == 2:
                _draw_view(grid[1, column], view, markers, label_colors, named=False)
        _scale_bar(grid[0, 0], views[0])
    return figure


def _draw_view(
    axes: Any,
    view: View,
    markers: Markers | None,
    label_colors: npt.NDArray[np.float64] | None,
    *,
    named: bool = True,
) -> None:
    low, high = contrast_limits(view.image_UV)
    place = {"origin": "lower", "extent": view.extent, "aspect": "equal"}
    axes.imshow(view.image_UV, cmap="gray", vmin=low, vmax=high, **place)
    if label_colors is not None and view.labels_UV is not None:
        axes.imshow(label_overlay(view.labels_UV, label_colors), **place)
    if markers is not None:
        _draw_markers(axes, view, markers)
    axes.set(xticks=[], yticks=[], xlim=view.extent[:2], ylim=view.extent[2:])
    for side in axes.spines.values():
        side.set_visible(False)
    if named:
        axes.set_xlabel(f"{view.axes[1]} →", labelpad=2, color="#444")
        axes.set_ylabel(f"{view.axes[0]} →", labelpad=2, color="#444")


def contrast_limits(image_UV: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return the densities shown black and white: percentiles, so that gold beads do not take the range."""
    low, high = np.percentile(image_UV, [LOW, HIGH])
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def label_overlay(
    labels_UV: npt.NDArray[np.integer[Any]], colors_C3: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return an (U, V, 4) picture of labels: filled faintly, edges strong, background clear."""
    values = np.clip(labels_UV.astype(np.int64), 0, len(colors_C3))
    overlay = np.zeros((*values.shape, 4))
    overlay[..., :3] = np.concatenate([np.zeros((1, 3)), colors_C3])[values]
    edge = np.zeros(values.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            edge |= np.roll(values, step, axis) != values
    overlay[..., 3] = np.where(values > 0, np.where(edge, 0.9, 0.4), 0.0)
    return overlay


def near_slice(view: View, markers: Markers) -> npt.NDArray[np.bool_]:
    """Say which picks lie within one radius of a slice."""
    normal = ({0, 1, 2} - {"zyx".index(axis) for axis in view.axes}).pop()
    return np.abs(markers.positions_N3[:, normal] - view.at_nm) <= markers.radius_nm


def _draw_markers(axes: Any, view: View, markers: Markers) -> None:
    near = near_slice(view, markers)
    quiet = np.zeros(len(near), bool) if markers.quiet_N is None else markers.quiet_N
    # A dark line under the coloured one keeps every colour visible on bright density.
    _draw_circles(axes, view, markers, near & quiet, width=1.9, alpha=0.5, color="black")
    _draw_circles(axes, view, markers, near & quiet, width=0.9, alpha=1.0)
    _draw_circles(axes, view, markers, near & ~quiet, width=3.0, alpha=0.55, color="black")
    _draw_circles(axes, view, markers, near & ~quiet, width=1.7, alpha=1.0)


def _draw_circles(
    axes: Any,
    view: View,
    markers: Markers,
    which: npt.NDArray[np.bool_],
    *,
    width: float,
    alpha: float,
    color: str | None = None,
) -> None:
    up, across = ("zyx".index(axis) for axis in view.axes)
    offsets = markers.positions_N3[which][:, [across, up]]
    if len(offsets):
        side = np.full(len(offsets), 2 * markers.radius_nm)
        edges = markers.colors_N3[which] if color is None else color
        axes.add_collection(
            EllipseCollection(
                side, side, np.zeros(len(side)), units="xy", offsets=offsets, transOffset=axes.transData,
                facecolors="none", edgecolors=edges, linewidths=width, alpha=alpha,
            )
        )  # fmt: skip


def _scale_bar(axes: Any, view: View) -> None:
    """Draw a bar of a round length, about a fifth of the width, in a box at the lower left."""
    left, right, bottom, top = view.extent
    length = round_length((right - left) / 5)
    x, y = left + 0.04 * (right - left), bottom + 0.05 * (top - bottom)
    axes.plot([x, x + length], [y, y], color="black", linewidth=5.5, solid_capstyle="butt")
    axes.plot([x, x + length], [y, y], color="white", linewidth=3.5, solid_capstyle="butt")
    box = {"facecolor": "black", "alpha": 0.65, "edgecolor": "none", "pad": 1.5}
    axes.annotate(
        f"{length:g} nm", (x + length / 2, y), xytext=(0, 6), textcoords="offset points", ha="center",
        va="bottom", color="white", bbox=box, fontsize=8,
    )  # fmt: skip


def round_length(length_nm: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is at most `length_nm`."""
    power = 10.0 ** np.floor(np.log10(length_nm))
    return float(max(step * power for step in (1, 2, 5) if step * power <= length_nm * (1 + 1e-9)))


def score_histogram(scores_N: npt.NDArray[np.floating[Any]], threshold: float | None) -> Any:
    """Draw how many picks have which score, with the threshold."""
    with house_style():
        figure = _figure(6.4, 2.7)
        axes = figure.add_axes((0.1, 0.19, 0.88, 0.74))
        axes.hist(scores_N, bins=min(60, max(10, len(scores_N) // 10)), color=TRAIN)
        if threshold is not None:
            axes.axvline(threshold, color=VALIDATION, linewidth=1.6, linestyle="--")
            axes.annotate(
                f"threshold {threshold:.4g}", (threshold, 1.0), xycoords=("data", "axes fraction"),
                xytext=(5, 2), textcoords="offset points", va="bottom", color=VALIDATION,
            )  # fmt: skip
        axes.set(xlabel="score of the pick (larger is better)", ylabel="picks")
    return figure


def training_curves(
    history: Mapping[str, npt.NDArray[Any]], best_epoch: int | None
) -> tuple[Any, tuple[str, ...]]:
    """Draw each quantity that has a train and a validation column; return the figure and their names."""
    names = tuple(key.removeprefix("train_") for key in history if key.startswith("train_"))
    names = tuple(name for name in names if f"validation_{name}" in history)
    with house_style():
        columns = min(CURVES, max(1, len(names)))
        rows = -(-max(1, len(names)) // columns)
        figure = _figure(4.1 * columns + 0.2, 3.1 * rows)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[max(1, len(names)) :]:
            axes.set_visible(False)
        for axes, name in zip(grid, names, strict=False):
            mark = "o" if len(history["epoch"]) < 40 else None
            axes.plot(
                history["epoch"], history[f"train_{name}"], color=TRAIN, marker=mark, ms=3, label="train"
            )
            axes.plot(
                history["epoch"], history[f"validation_{name}"], color=VALIDATION, linestyle="--",
                marker="s" if mark else None, ms=3, label="validation",
            )  # fmt: skip
            if best_epoch is not None:
                axes.axvline(
                    best_epoch, color=ACCENT, linewidth=1, linestyle=":", label=f"best: {best_epoch}"
                )
            axes.set(title=CURVE_NAMES.get(name, name), xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color="#ddd", linewidth=0.5)
        grid[0].legend(frameon=False, fontsize=8)
        figure.tight_layout()
    return figure, names


class PlaceFigure:
    """Where the members of a cluster lie: xy and xz, all picks in grey, and members per tomogram.

    One figure is kept and its points are replaced, because a hundred new figures take long.
    """

    def __init__(self) -> None:
        with house_style():
            self.figure = _figure(7.2, 2.5)
            self.axes = [
                self.figure.add_axes((0.055, 0.17, 0.27, 0.72)),
                self.figure.add_axes((0.385, 0.17, 0.27, 0.72)),
                self.figure.add_axes((0.74, 0.17, 0.25, 0.72)),
            ]

    def render(
        self,
        positions_nm_N3: npt.NDArray[np.float64],
        member_N: npt.NDArray[np.bool_],
        size_nm: Sequence[float],
        counts_T: npt.NDArray[np.int64],
        color: Sequence[float],
    ) -> bytes:
        """Draw one cluster.

        Parameters
        ----------
        positions_nm_N3 : (N, 3) float
            All picks of the tomogram that is shown.
        member_N : (N,) bool
            Which of them belong to the cluster.
        size_nm : (3,) float
            Extent of the tomogram.
        counts_T : (T,) int
            Members in each tomogram of the run.
        """
        with house_style():
            for axes in self.axes:
                axes.clear()
            for axes, up in zip(self.axes[:2], (1, 0), strict=True):
                others, mine = positions_nm_N3[~member_N], positions_nm_N3[member_N]
                axes.scatter(others[:, 2], others[:, up], s=3, color="#b4b4b4", linewidths=0)
                axes.scatter(mine[:, 2], mine[:, up], s=9, color=[color], edgecolors="black", linewidths=0.3)
                axes.set(xlim=(0, size_nm[2]), ylim=(0, size_nm[up]), aspect="equal")
                axes.set_title("xy, nm" if up == 1 else "xz, nm")
                axes.tick_params(labelsize=7, length=2)
                axes.locator_params(nbins=4)
            self._draw_spread(counts_T)
        return png_bytes(self.figure)

    def _draw_spread(self, counts_T: npt.NDArray[np.int64]) -> None:
        axes, n = self.axes[2], len(counts_T)
        axes.bar(np.arange(1, n + 1), counts_T, width=0.8 if n <= 60 else 1.0, color=TRAIN)
        axes.set(xlim=(0.4, n + 0.6), ylim=(0, max(1, int(counts_T.max(initial=0))) * 1.05))
        axes.set_title("members per tomogram")
        axes.tick_params(labelsize=7, length=2)
        axes.locator_params(axis="both", nbins=5, integer=True)
