"""Groups of picks for colouring: selected classes, else suggested kinds, else the largest clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.clusters import PALETTE, Selection
from cryoscale.report.collect import Choice

OTHERS = (160, 160, 160)


@dataclass(frozen=True)
class Groups:
    """Names and colours of groups of clusters; the last group holds the others.

    Parameters
    ----------
    what : str
        What the groups are, for captions.
    names : tuple of str
        One per group.
    colors : tuple of (int, int, int)
        One per group, 0..255.
    group_K : (K,) int
        Group of each cluster.
    """

    what: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    group_K: npt.NDArray[np.int64]

    def of(self, ids_N: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the group of each pick."""
        known = (ids_N >= 0) & (ids_N < len(self.group_K))
        return np.where(known, self.group_K[np.where(known, ids_N, 0)], len(self.names) - 1)

    @property
    def rgb(self) -> npt.NDArray[np.float64]:
        """Colours in 0..1."""
        return np.array(self.colors, np.float64) / 255

    def hex_of(self, cluster: int) -> str:
        """Colour of a cluster as in CSS."""
        return hex_color(self.colors[int(self.group_K[cluster])])


def hex_color(color: tuple[int, int, int]) -> str:
    """Write a colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def groups_for(choice: Choice, counts_K: npt.NDArray[np.int64]) -> Groups:
    """Choose the groups that say most at this point of the run."""
    n_clusters = choice.n_clusters
    if choice.chosen is not None:
        return _of_selection(choice.chosen, n_clusters)
    reasons = (choice.suggestion or {}).get("reasons", {})
    kinds = [str(reasons.get(str(cluster), {}).get("kind", "")) for cluster in range(n_clusters)]
    if any(kinds):
        return _of_kinds(kinds)
    largest = np.argsort(-counts_K, kind="stable")[: len(PALETTE) - 1]
    group_K = np.full(n_clusters, len(largest), np.int64)
    group_K[largest] = np.arange(len(largest))
    names = (*(f"cluster {cluster}" for cluster in largest), "other clusters")
    return Groups("the largest clusters", names, (*PALETTE[: len(largest)], OTHERS), group_K)


def _of_selection(selection: Selection, n_clusters: int) -> Groups:
    value_K = selection.class_of_cluster(n_clusters).astype(np.int64)
    group_K = np.where(value_K > 0, value_K - 1, len(selection.classes))
    return Groups(
        "selected classes", (*selection.class_names, "not selected"), (*selection.colors, OTHERS), group_K
    )


def _of_kinds(kinds: list[str]) -> Groups:
    names = [name for name in ("surface", "globular") if name in kinds]
    group_K = np.array([names.index(k) if k in names else len(names) for k in kinds], np.int64)
    colors = tuple(PALETTE[("surface", "globular").index(name)] for name in names)
    return Groups("suggested kinds", (*names, "background"), (*colors, OTHERS), group_K)
