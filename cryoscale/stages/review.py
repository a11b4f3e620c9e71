"""Review: what a person needs to choose clusters, and a suggestion with its measured reasons."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.arrays import write_arrays
from cryoscale.data.clusters import PALETTE, SUGGESTION
from cryoscale.ops.gaussian import smooth_exact
from cryoscale.ops.shape import ShapeMeasures, measure_shape
from cryoscale.stages.base import WholeStage
from cryoscale.stages.networks import open_decoder
from cryoscale.stages.patching import PatchReader

BACKGROUND_DEPTH = 0.5  # of the 90th percentile over clusters: shallower ones are called background
SURFACE_PLANARITY = 0.4  # flatter objects are called surfaces
GLOBULAR_OFFSET = 0.35  # half boxes; an object further off its patch's centre is not what was picked


class ReviewStage(WholeStage):
    """From assignments to decoded centres, averages, members of each cluster, and a suggestion."""

    name = "review"
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
        kinds = classify_shapes(measures)
        arrays = {
            "decoded": decoded, "mean": mean.astype(np.float32), "smooth": smooth, "members": members,
            "shown": shown, "counts": counts_TK.astype(np.int64), "averaged": averaged,
        }  # fmt: skip
        write_arrays(access.output(), "review.safetensors", arrays)
        suggestion = _suggestion(kinds, measures, str(card["centers_sha256"]))
        access.clusters().folder.write_toml(SUGGESTION, suggestion)
        return {kind: kinds.count(kind) for kind in ("surface", "globular", "background")}

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
        for start in range(0, len(rows), 512):
            part = slice(start, start + 512)
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


def _chosen_members(access: Access, counts_TK: npt.NDArray[np.int64], most: int) -> Any:
    """Draw members of each cluster over all tomograms in proportion, seeded; yield them by tomogram."""
    total_K = counts_TK.sum(axis=0)
    for tomogram, counts_K in zip(access.tomograms, counts_TK, strict=True):
        ids = access.assignments(tomogram)[0]
        rng = np.random.default_rng([access.config.cluster.seed, len(ids)])
        rows = []
        for cluster in np.flatnonzero(counts_K):
            share = -(-most * int(counts_K[cluster]) // int(total_K[cluster]))
            mine = np.flatnonzero(ids == cluster)
            rows.append(np.sort(rng.choice(mine, size=min(share, len(mine)), replace=False)))
        if rows:
            chosen = np.sort(np.concatenate(rows))
            yield tomogram, chosen, ids[chosen]


def classify_shapes(measures: list[ShapeMeasures]) -> list[str]:
    """Call each decoded centre surface, globular or background, by the thresholds at the file's top."""
    strong = float(np.percentile([m.depth for m in measures], 90))
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
