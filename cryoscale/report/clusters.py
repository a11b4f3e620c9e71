"""The page of clusters: a contact sheet for each, what was measured of it, and where its members lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.arrays import read_arrays
from cryoscale.data.rows import read_assignments, read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram
from cryoscale.errors import CryoscaleError, StateError
from cryoscale.report.collect import Choice
from cryoscale.report.figures import PlaceFigure
from cryoscale.report.groups import Groups
from cryoscale.report.tiles import central_slice, gray_png, scaled, slices_of, strip

MEMBERS_SHOWN = 12


@dataclass(frozen=True)
class Assignments:
    """Cluster ids of every tomogram that has them, and how many members each cluster has where."""

    tomograms: tuple[str, ...]
    ids: tuple[npt.NDArray[np.int32], ...]
    counts_TK: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One strip of a contact sheet."""

    label: str
    file: str
    alt: str


@dataclass(frozen=True)
class ClusterSheet:
    """What the page shows of one cluster."""

    number: int
    size: int
    share: float
    tomograms: int
    color: str
    group: str
    kind: str
    reasons: list[tuple[str, str]]
    selected: str
    thumb: str
    rows: list[Row]
    place: str
    place_tomogram: str


def read_all_assignments(run: Run, tomograms: Sequence[str], n_clusters: int) -> Assignments:
    """Read the cluster ids of all tomograms; those not assigned yet are left out."""
    names, ids, counts = [], [], []
    for name in tomograms:
        try:
            own = read_assignments(run.assignments, name)[0]
        except StateError:
            continue
        names.append(name)
        ids.append(own)
        counts.append(np.bincount(own[(own >= 0) & (own < n_clusters)], minlength=n_clusters))
    table = np.stack(counts) if counts else np.zeros((0, n_clusters), np.int64)
    return Assignments(tuple(names), tuple(ids), table.astype(np.int64))


def make_sheets(
    run: Run, choice: Choice, assignments: Assignments, groups: Groups, save: Callable[[str, bytes], None]
) -> list[ClusterSheet]:
    """Draw the contact sheets of all clusters, sorted by id.

    Parameters
    ----------
    save : callable
        Takes the name of a picture and its bytes.
    """
    arrays = read_review(run, choice)
    places = _Places(run, assignments)
    total = max(1, int(assignments.counts_TK.sum()))
    selected = _selected_names(choice)
    sheets = []
    for k in range(choice.n_clusters):
        counts_T = assignments.counts_TK[:, k]
        reasons = dict((choice.suggestion or {}).get("reasons", {}).get(str(k), {}))
        kind = str(reasons.pop("kind", ""))
        thumb, rows = _pictures(k, arrays, save) if arrays else ("", [])
        place, where = places.draw(k, _member_color(groups, k), save)
        sheets.append(
            ClusterSheet(
                number=k, size=int(counts_T.sum()), share=float(counts_T.sum() / total),
                tomograms=int((counts_T > 0).sum()), color=groups.hex_of(k),
                group=groups.names[int(groups.group_K[k])], kind=kind,
                reasons=[(key, f"{value:g}") for key, value in reasons.items()],
                selected=selected.get(k, ""), thumb=thumb, rows=rows, place=place, place_tomogram=where,
            )
        )  # fmt: skip
    return sheets


def read_review(run: Run, choice: Choice) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of the review stage; empty before it ran for this clustering."""
    if not choice.reviewed:
        return {}
    try:
        arrays = read_arrays(run.folder.child("clusters", "review"), "review.safetensors")
    except CryoscaleError:
        return {}
    return arrays if len(arrays["decoded"]) == choice.n_clusters else {}


def _member_color(groups: Groups, k: int) -> npt.NDArray[np.float64]:
    """Return the colour of members on the map; those of no group are dark, since all picks are grey there."""
    group = int(groups.group_K[k])
    return np.full(3, 0.25) if group == len(groups.names) - 1 else groups.rgb[group]


def _selected_names(choice: Choice) -> dict[int, str]:
    if choice.chosen is None:
        return {}
    return {cluster: name for name, clusters in choice.chosen.classes for cluster in clusters}


def _pictures(
    k: int, arrays: dict[str, npt.NDArray[Any]], save: Callable[[str, bytes], None]
) -> tuple[str, list[Row]]:
    def keep(name: str, tiles: list[npt.NDArray[np.uint8]], side: int = 48) -> str:
        file = f"clusters/{k:04d}-{name}.png"
        save(file, gray_png(strip(tiles, side)))
        return file

    decoded, mean, smooth = (arrays[name][k] for name in ("decoded", "mean", "smooth"))
    averaged, shown = int(arrays["averaged"][k]), min(int(arrays["shown"][k]), MEMBERS_SHOWN)
    thumb = keep("thumb", [central_slice(decoded), central_slice(smooth)], side=64)
    rows = [Row("decoded centre", keep("decoded", slices_of(decoded)), f"z slices of decoded centre {k}")]
    if averaged:
        alt = f"z slices of the mean of {averaged} members of cluster {k}"
        rows += [
            Row(f"mean of {averaged}", keep("mean", slices_of(mean)), alt),
            Row("the same, smoothed", keep("smooth", slices_of(smooth)), alt + ", smoothed"),
        ]
    if shown:
        tiles = [scaled(member) for member in arrays["members"][k][:shown]]
        rows.append(
            Row(f"{shown} members", keep("members", tiles), f"Central slices of {shown} members of {k}")
        )
    return thumb, rows


class _Places:
    """Draws where members lie, in the tomogram that has most of them; each table is read once."""

    def __init__(self, run: Run, assignments: Assignments) -> None:
        self.run, self.assignments = run, assignments
        self.figure = PlaceFigure()
        self._known: dict[int, tuple[npt.NDArray[np.float64], tuple[float, ...]] | None] = {}

    def draw(
        self, k: int, color: npt.NDArray[np.float64], save: Callable[[str, bytes], None]
    ) -> tuple[str, str]:
        counts_T = self.assignments.counts_TK[:, k]
        if not counts_T.any():
            return "", ""
        t = int(np.argmax(counts_T))
        found = self._positions(t)
        if found is None or len(found[0]) != len(self.assignments.ids[t]):
            return "", ""
        file = f"clusters/{k:04d}-place.png"
        save(
            file,
            self.figure.render(found[0], self.assignments.ids[t] == k, found[1], counts_T, color.tolist()),
        )
        return file, self.assignments.tomograms[t]

    def _positions(self, t: int) -> tuple[npt.NDArray[np.float64], tuple[float, ...]] | None:
        if t not in self._known:
            name = self.assignments.tomograms[t]
            try:
                picks = read_picks(self.run.picks, name)
                level = Tomogram(self.run.tomogram(name)).facts.levels[0]
            except StateError:
                self._known[t] = None
            else:
                size = tuple(n * level.voxel_size_angstrom / 10 for n in level.shape)
                self._known[t] = (picks.positions_N3 / 10, size)
        return self._known[t]
