"""The page of one tomogram: what is known of it, and its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cryoscale.config import RunConfig
from cryoscale.data.classes import Classes, read_classes
from cryoscale.data.clusters import PALETTE
from cryoscale.data.rows import Picks, read_assignments, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import Table, read_table
from cryoscale.data.tomogram import LabelVolume, Tomogram, TomogramFacts
from cryoscale.errors import CryoscaleError, StateError
from cryoscale.report import figures
from cryoscale.report.figures import Markers, View
from cryoscale.report.groups import Groups, hex_color
from cryoscale.report.slices import Slicer, matches, slab_of_interest, slicer_for
from cryoscale.report.tiles import gray_png

SERIES = 5  # xy slices shown beside the central ones
PICK_COLOR = (230, 159, 0)
THUMB = 120  # pixels of the small picture on the first page

T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """A picture on a page: its file under `images/`, what it shows, in words too."""

    file: str
    alt: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ClassRow:
    """Objects of one class in one tomogram."""

    name: str
    color: str
    instances: int
    median_nm3: float | None
    low_nm3: float | None
    high_nm3: float | None


@dataclass(frozen=True)
class PickRow:
    """Picks that a network gave one class."""

    name: str
    color: str
    picks: int
    median_probability: float | None


@dataclass(frozen=True)
class TomogramPage:
    """Everything on the page of a tomogram."""

    name: str
    facts: list[tuple[str, str]]
    classes: list[ClassRow]
    pictures: list[Picture]
    problems: list[str]
    classified: list[PickRow] = field(default_factory=list)


@dataclass(frozen=True)
class TomogramArtifacts:
    """What stands on storage for one tomogram; None for what does not."""

    tomogram: Tomogram
    picks: Picks | None
    cluster_ids_N: npt.NDArray[np.int32] | None
    labels: LabelVolume | None
    instances: Table | None
    threshold: float | None
    candidates: int | None
    classes: Classes | None = None

    @property
    def facts(self) -> TomogramFacts:
        """What ingest recorded."""
        return self.tomogram.facts


def open_artifacts(
    run: Run, config: RunConfig, name: str, pick_value: dict[str, Any]
) -> TomogramArtifacts | None:
    """Open what a tomogram has so far; None before it is ingested."""
    tomogram = Tomogram(run.tomogram(name))
    if _or_none(lambda: tomogram.facts) is None:
        return None
    picks = _or_none(lambda: read_picks(run.picks, name))
    assigned = _or_none(lambda: read_assignments(run.assignments, name))
    ids = assigned[0] if assigned and picks is not None and len(assigned[0]) == len(picks) else None
    labels = LabelVolume(run.tomogram(name), config.segment.labels)
    instances = _or_none(lambda: read_table(run.instances, f"{name}.parquet"))
    usable = labels if matches(tomogram.facts, labels) else None
    return TomogramArtifacts(
        tomogram, picks, ids, usable, instances if usable else None, pick_value.get("threshold"),
        pick_value.get("candidates"), _classes_of(run, name, picks),
    )  # fmt: skip


def _classes_of(run: Run, name: str, picks: Picks | None) -> Classes | None:
    """Read what a network says the picks are; None where there is nothing, or it is of other picks."""
    found = _or_none(lambda: read_classes(run.classes, name))
    return found if found is not None and picks is not None and len(found) == len(picks) else None


def _or_none(read: Callable[[], T]) -> T | None:
    """Return None for an artifact that is not there yet; damage is still an error."""
    try:
        return read()
    except StateError:
        return None


def pick_radius_nm(config: RunConfig, facts: TomogramFacts) -> float:
    """Return the radius that circles are drawn with.

    As configured; for widths in voxels the radius of the ball that answers most strongly, sqrt(3) times the
    narrow sigma; for imported positions half the box's half.
    """
    pick = config.pick
    if pick.radius_angstrom is not None:
        return pick.radius_angstrom / 10
    voxel_nm = facts.levels[facts.level_for(config.run.working_voxel_size_angstrom)].voxel_size_angstrom / 10
    if pick.positions:
        return min(config.patch.box) / 4 * voxel_nm
    smooth = 2.0 if pick.smooth_sigma_voxels is None else pick.smooth_sigma_voxels
    return math.sqrt(3) * math.hypot(smooth, pick.sigma_voxels or 5.0) * voxel_nm


@dataclass
class Album:
    """Saves the pictures of a page under names that start with `prefix`, and remembers them in order."""

    prefix: str
    save: Callable[[str, bytes], None]
    pictures: list[Picture] = field(default_factory=list)

    def add(
        self, kind: str, figure: Any, alt: str, caption: str, legend: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Save a figure and put it on the page."""
        file = f"{self.prefix}/{kind}.png"
        self.save(file, figures.png_bytes(figure))
        self.pictures.append(Picture(file, alt, caption, legend))

    def thumb(self, view: View) -> None:
        """Save a small picture for the first page."""
        step = -(-max(view.image_UV.shape) // THUMB)
        low, high = figures.contrast_limits(view.image_UV)
        small = np.clip((view.image_UV[::step, ::step][::-1] - low) / (high - low), 0, 1)
        self.save(f"{self.prefix}/thumb.png", gray_png(np.rint(small * 255).astype(np.uint8)))


def make_page(
    name: str,
    prefix: str,
    artifacts: TomogramArtifacts,
    config: RunConfig,
    groups: Groups | None,
    save: Callable[[str, bytes], None],
) -> TomogramPage:
    """Draw the pictures of a tomogram and return its page.

    Parameters
    ----------
    prefix : str
        Start of the names of its pictures.
    save : callable
        Takes the name of a picture and its bytes.
    """
    album, problems = Album(prefix, save), []
    try:
        _draw(artifacts, config, groups, album)
    except CryoscaleError as error:
        problems.append(str(error))
    facts = _facts(artifacts, pick_radius_nm(config, artifacts.facts))
    return TomogramPage(name, facts, _classes(artifacts), album.pictures, problems, _pick_rows(artifacts))


def _draw(artifacts: TomogramArtifacts, config: RunConfig, groups: Groups | None, album: Album) -> None:
    radius = pick_radius_nm(config, artifacts.facts)
    slicer = slicer_for(artifacts.tomogram, artifacts.labels, radius)
    views = _central(slicer)
    where = ", ".join(f"{n} = {views[k].at_nm:.0f} nm" for n, k in (("z", "yx"), ("y", "zx"), ("x", "yz")))
    slab = f"{where}; each is the mean of {slicer.thickness_nm:.1f} nm, smoothed by a pixel"
    album.thumb(views["yx"])
    album.add("plain", figures.ortho_figure(views), "Three central slices", f"Central slices at {slab}.")
    markers: Markers | None = None
    legend: tuple[tuple[str, str], ...] = ()
    if artifacts.picks is not None and len(artifacts.picks):
        positions = artifacts.picks.positions_N3 / 10
        plain = np.broadcast_to(np.array(PICK_COLOR) / 255, (len(positions), 3))
        markers = Markers(positions, radius, plain)
        near = f"Circles of the pick radius ({radius:.1f} nm) around picks within one radius of the slice."
        figure = figures.ortho_figure(views, markers=markers)
        album.add("picks", figure, "Central slices with picks circled", near)
        if groups is not None and artifacts.cluster_ids_N is not None:
            member_N = groups.of(artifacts.cluster_ids_N)
            markers = Markers(positions, radius, groups.rgb[member_N], member_N == len(groups.names) - 1)
            counts = np.bincount(member_N, minlength=len(groups.names))
            legend = tuple(
                (f"{name} ({count})", hex_color(color))
                for name, color, count in zip(groups.names, groups.colors, counts, strict=True)
            )
            figure = figures.ortho_figure(views, markers=markers)
            album.add(
                "groups",
                figure,
                "Central slices with picks coloured by group",
                f"Picks by {groups.what}.",
                legend,
            )
        if artifacts.classes is not None:
            markers, legend = _classified(artifacts.classes, positions, radius)
            figure = figures.ortho_figure(views, markers=markers)
            words = "Picks by the class that the network gives them."
            album.add("classes", figure, "Central slices with picks coloured by class", words, legend)
    colors, label_legend = _label_colors(artifacts)
    if colors is not None:
        figure = figures.ortho_figure(views, label_colors=colors)
        name = config.segment.labels
        album.add("labels", figure, "Central slices with labels", f"Label volume “{name}”.", label_legend)
    _draw_rest(artifacts, slicer, markers, colors, label_legend or legend, album)


def _classified(
    classes: Classes, positions_N3: npt.NDArray[np.float64], radius: float
) -> tuple[Markers, tuple[tuple[str, str], ...]]:
    """Return circles in the colours of the classes of picks, and their legend."""
    rgb_K3 = np.array([PALETTE[k % len(PALETTE)] for k in range(len(classes.names))], np.float64) / 255
    counts = np.bincount(classes.ids_N, minlength=len(classes.names))
    legend = tuple(
        (f"{name} ({count})", hex_color(PALETTE[k % len(PALETTE)]))
        for k, (name, count) in enumerate(zip(classes.names, counts, strict=True))
    )
    return Markers(positions_N3, radius, rgb_K3[classes.ids_N]), legend


def _pick_rows(artifacts: TomogramArtifacts) -> list[PickRow]:
    if artifacts.classes is None:
        return []
    found, rows = artifacts.classes, []
    for k, name in enumerate(found.names):
        sure = found.probability_N[found.ids_N == k]
        middle = float(np.median(sure)) if len(sure) else None
        rows.append(PickRow(name, hex_color(PALETTE[k % len(PALETTE)]), len(sure), middle))
    return rows


def _draw_rest(
    artifacts: TomogramArtifacts,
    slicer: Slicer,
    markers: Markers | None,
    colors: npt.NDArray[np.float64] | None,
    legend: tuple[tuple[str, str], ...],
    album: Album,
) -> None:
    low, high = slab_of_interest(artifacts.facts)
    places = [low + (high - low) * (n + 0.5) / SERIES for n in range(SERIES)]
    views = [slicer.view(0, place) for place in places]
    shown = None if colors is not None else markers  # labels and circles together hide the density
    figure = figures.series_figure(views, markers=shown, label_colors=colors)
    below = "labels" if colors is not None else ("picks" if shown is not None else "")
    caption = f"{SERIES} xy slices" + (f", plain and with {below}." if below else ".")
    album.add("series", figure, f"{SERIES} xy slices from below to above", caption, legend if below else ())
    if artifacts.picks is not None and len(artifacts.picks):
        figure = figures.score_histogram(artifacts.picks.scores_N, artifacts.threshold)
        from_ = f" of {artifacts.candidates} candidates" if artifacts.candidates is not None else ""
        caption = f"Scores of {len(artifacts.picks)} picks{from_}; what is left of the threshold was dropped."
        album.add("scores", figure, "Histogram of pick scores", caption)


def _central(slicer: Slicer) -> dict[str, figures.View]:
    level = slicer.tomogram.facts.levels[slicer.level]
    middle = [(n - 1) / 2 * slicer.voxel_nm + level.origin_angstrom / 10 for n in level.shape]
    middle[0] = sum(slab_of_interest(slicer.tomogram.facts)) / 2
    views = [slicer.view(axis, middle[axis]) for axis in range(3)]
    return {view.axes: view for view in views}


def _label_colors(
    artifacts: TomogramArtifacts,
) -> tuple[npt.NDArray[np.float64] | None, tuple[tuple[str, str], ...]]:
    if artifacts.labels is None:
        return None, ()
    facts = artifacts.labels.facts
    legend = tuple((n, hex_color(c)) for n, c in zip(facts.class_names, facts.colors, strict=True))
    return np.array(facts.colors, np.float64).reshape(-1, 3) / 255, legend


def _facts(artifacts: TomogramArtifacts, radius_nm: float) -> list[tuple[str, str]]:
    facts = artifacts.facts
    first, moments = facts.levels[0], facts.statistics[0]
    size = " × ".join(f"{n * first.voxel_size_angstrom / 10:.0f}" for n in first.shape)
    z_range = f"{facts.z_range[0]} to {facts.z_range[1]}" if facts.z_range else "all"
    rows = [
        ("source", str(facts.source.get("path", "unknown"))),
        ("shape (z, y, x)", " × ".join(str(n) for n in first.shape) + f" voxels, {size} nm"),
        ("voxel size", f"{first.voxel_size_angstrom:g} Å"),
        ("levels", ", ".join(f"{level.voxel_size_angstrom:g} Å" for level in facts.levels)),
        ("stored as", str(facts.source.get("dtype", "unknown"))),
        ("contrast", f"objects are {facts.contrast}: {facts.contrast_reason}"),
        ("robust mean, sd", f"{moments.mean:.4g}, {moments.sd:.4g}"),
        ("suggested z-range", f"{z_range}: {facts.z_range_reason}" if facts.z_range_reason else z_range),
    ]
    if artifacts.picks is not None:
        rows.append(("picks", f"{len(artifacts.picks)}, radius {radius_nm:.1f} nm"))
    if artifacts.instances is not None:
        rows.append(("objects in the label volume", str(len(artifacts.instances["voxels"]))))
    return rows


def _classes(artifacts: TomogramArtifacts) -> list[ClassRow]:
    if artifacts.labels is None or artifacts.instances is None:
        return []
    facts, table = artifacts.labels.facts, artifacts.instances
    rows = []
    for value, (name, color) in enumerate(zip(facts.class_names, facts.colors, strict=True), start=1):
        sizes = table["volume_nm3"][table["class_value"] == value].astype(np.float64)
        spread = np.percentile(sizes, [50, 10, 90]).tolist() if len(sizes) else [None, None, None]
        rows.append(ClassRow(name, hex_color(color), len(sizes), *spread))
    return rows
