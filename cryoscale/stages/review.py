"""Review: what a person needs to choose clusters, and a suggestion with its measured reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.arrays import write_arrays
from cryoscale.data.clusters import PALETTE, SUGGESTION
from cryoscale.geometry import Zyx
from cryoscale.ops.gaussian import smooth_exact
from cryoscale.ops.shape import ShapeMeasures, measure_shape
from cryoscale.stages.base import WholeStage
from cryoscale.stages.networks import network_bytes, open_decoder
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.training import sample_rows

PATCHES = 512  # in memory at once
MOST_TOMOGRAMS = 64  # members are drawn from so many at most, and from one more for a cluster without any
BACKGROUND_DEPTH = 0.5  # of the 90th percentile over picks: clusters shallower than that are background
SURFACE_PLANARITY = 0.4  # flatter objects are called surfaces
GLOBULAR_OFFSET = 0.35  # half boxes; an object further off its patch's centre is not what was picked


class ReviewStage(WholeStage):
    """From assignments to decoded centres, averages, members of each cluster, and a suggestion."""

    name = "review"
    version = 4
    engine = "model"
    reads = frozenset({"tomogram", "picks", "encoder", "clusters", "assignments"})
    writes = "review"

    def compute(self, access: Access) -> dict[str, Any]:
        """Write `clusters/review/review.safetensors` and `clusters/suggestion.toml`."""
        config = access.config.review
        card = access.clusters().card
        n_clusters, box = int(card["n_clusters"]), access.config.patch.box
        counts_TK = np.stack(
            [np.bincount(access.assignments(t)[0], minlength=n_clusters) for t in access.tomograms]
        )
        with open_decoder(access) as decoder:
            decoded = decoder.run(access.clusters().load().centers_KF)[:, 0]
        mean = np.zeros((n_clusters, *box), np.float64)
        averaged = np.zeros(n_clusters, np.int64)
        members = np.zeros((n_clusters, config.members_shown, *box[1:]), np.float32)
        shown = np.zeros(n_clusters, np.int64)
        for tomogram, rows, ids in _chosen_members(access, counts_TK, config.members_averaged):
            self._add(access, tomogram, rows, ids, mean, averaged, members, shown)
        mean /= np.maximum(averaged, 1)[:, None, None, None]
        smooth = np.stack([smooth_exact(m.astype(np.float32), config.smooth_sigma_voxels) for m in mean])
        measures = [measure_shape(patch) for patch in decoded]
        kinds = classify_shapes(measures, counts_TK.sum(axis=0))
        arrays: dict[str, npt.NDArray[Any]] = {
            "decoded": decoded, "mean": mean.astype(np.float32), "smooth": smooth, "members": members,
            "shown": shown, "counts": counts_TK.astype(np.int64), "averaged": averaged,
        }  # fmt: skip
        write_arrays(access.output(), "review.safetensors", arrays)
        suggestion = _suggestion(kinds, measures, str(card["centers_sha256"]))
        access.clusters().folder.write_toml(SUGGESTION, suggestion)
        return {kind: kinds.count(kind) for kind in ("surface", "globular", "background")}

    def bytes_needed(self, access: Access) -> int:
        """Bound what is shown of all clusters, and the patches on their way into the averages."""
        config, box = access.config.review, Zyx.of(access.config.patch.box)
        n_clusters = int(access.clusters().card["n_clusters"])
        shown = config.members_shown * box.y * box.x * 4
        of_clusters = n_clusters * (box.voxels * (8 + 4 * 5) + shown * 3)  # arrays, and twice in their file
        channels = int(access.model("encoder").card["architecture"]["channels"])
        gather = max(PatchReader.for_access(access, t).bytes_per_gather() for t in access.tomograms)
        passing = max(gather + PATCHES * box.voxels * 4, network_bytes(access, box.voxels, channels))
        counts = 8 * n_clusters * len(access.tomograms)
        tables = 24 * max(access.pick_count(t) for t in access.tomograms)
        return of_clusters + passing + counts + tables + 256 * 2**20

    def _add(
        self,
        access: Access,
        tomogram: str,
        rows: npt.NDArray[np.int64],
        ids: npt.NDArray[np.int32],
        mean: npt.NDArray[np.float64],
        averaged: npt.NDArray[np.int64],
        members: npt.NDArray[np.float32],
        shown: npt.NDArray[np.int64],
    ) -> None:
        """Add some members of a tomogram to the averages, as raw patches, and show the first of them."""
        raw = PatchReader(
            access.open_tomogram(tomogram),
            access.working_level(tomogram),
            access.config.patch.model_copy(update={"smooth_sigma_voxels": 0.0}),
        )
        seen = PatchReader.for_access(access, tomogram)
        centres = raw.voxels(access.picks(tomogram).positions_N3[rows])
        for start in range(0, len(rows), PATCHES):
            part = slice(start, start + PATCHES)
            np.add.at(mean, ids[part], raw.gather(centres[part]))
            np.add.at(averaged, ids[part], 1)
        for cluster in np.unique(ids):
            free = members.shape[1] - int(shown[cluster])
            mine = np.flatnonzero(ids == cluster)[:free]
            if len(mine):
                patches = seen.gather(centres[mine])
                members[cluster, shown[cluster] : shown[cluster] + len(mine)] = patches[
                    :, patches.shape[1] // 2
                ]
                shown[cluster] += len(mine)


def _chosen_members(
    access: Access, counts_TK: npt.NDArray[np.int64], most: int
) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
    """Draw members of each cluster, seeded, none preferred; yield rows and cluster ids by tomogram."""
    seed = access.config.cluster.seed
    visited = visited_tomograms(counts_TK, seed)
    drawn = draw_members(counts_TK[visited], most, seed)
    for tomogram, wanted in zip([access.tomograms[t] for t in visited], drawn, strict=True):
        if not any(map(len, wanted)):
            continue
        ids = access.assignments(tomogram)[0]
        rows = [np.flatnonzero(ids == cluster)[mine] for cluster, mine in enumerate(wanted) if len(mine)]
        chosen = np.sort(np.concatenate(rows))
        yield tomogram, chosen, ids[chosen]


def visited_tomograms(
    counts_TK: npt.NDArray[np.int64], seed: int, most: int = MOST_TOMOGRAMS
) -> npt.NDArray[np.int64]:
    """Choose the tomograms whose members are looked at, ascending.

    Parameters
    ----------
    counts_TK : (T, K) int
        Members of each cluster in each tomogram.
    seed : int
    most : int
        So many are drawn; each cluster that none of them holds adds the tomogram with most of its members.
    """
    tomograms = len(counts_TK)
    if tomograms <= most:
        return np.arange(tomograms)
    drawn = np.random.default_rng([seed, tomograms]).choice(tomograms, size=most, replace=False)
    missing = np.flatnonzero((counts_TK[drawn].sum(axis=0) == 0) & (counts_TK.sum(axis=0) > 0))
    return np.union1d(drawn, counts_TK[:, missing].argmax(axis=0))


def draw_members(counts_TK: npt.NDArray[np.int64], most: int, seed: int) -> list[list[npt.NDArray[np.int64]]]:
    """Draw at most `most` members of each cluster over all tomograms, without preference for any.

    Returns
    -------
    drawn : list (T) of list (K) of (n,) int
        Which of the cluster's members in that tomogram, counted from 0, ascending.
    """
    by_cluster = [
        sample_rows(counts_T.tolist(), most, seed + 7919 * cluster)
        for cluster, counts_T in enumerate(counts_TK.T)
    ]
    return [list(of_tomogram) for of_tomogram in zip(*by_cluster, strict=True)]


def classify_shapes(measures: list[ShapeMeasures], counts_K: npt.NDArray[np.int64]) -> list[str]:
    """Call each decoded centre surface, globular or background, by the thresholds at the file's top.

    The scale of depth is set by picks, not by clusters: a few gold beads with clusters of their own must not
    make everything else look like background.
    """
    depths = np.array([m.depth for m in measures])
    deepest = np.argsort(-depths, kind="stable")
    reached = np.cumsum(counts_K[deepest]) >= 0.1 * counts_K.sum()
    strong = float(depths[deepest[int(reached.argmax())]])
    kinds = []
    for m in measures:
        if m.depth < BACKGROUND_DEPTH * strong:
            kinds.append("background")
        elif m.planarity >= SURFACE_PLANARITY:
            kinds.append("surface")
        elif m.offset <= GLOBULAR_OFFSET:
            kinds.append("globular")
        else:
            kinds.append("background")
    return kinds


def _suggestion(kinds: list[str], measures: list[ShapeMeasures], clustering: str) -> dict[str, Any]:
    """Return the tables of `suggestion.toml`: a selection, and the measures of every cluster beside it."""
    classes = {}
    for number, kind in enumerate(("surface", "globular")):
        clusters = [i for i, k in enumerate(kinds) if k == kind]
        if clusters:
            color = "#{:02x}{:02x}{:02x}".format(*PALETTE[number])
            classes[kind] = {"clusters": clusters, "color": color}
    reasons = {
        str(i): {"kind": kind, **{key: round(value, 3) for key, value in asdict(m).items()}}
        for i, (kind, m) in enumerate(zip(kinds, measures, strict=True))
    }
    return {"clustering": clustering, "classes": classes, "reasons": reasons}
