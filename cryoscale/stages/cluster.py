"""Cluster: k-means over the encodings of all tomograms, frozen once made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.clusters import StoredClustering
from cryoscale.data.rows import ROWS_PER_BLOCK, Encodings
from cryoscale.errors import NothingToDoError
from cryoscale.stages.base import WholeStage


class ClusterStage(WholeStage):
    """From encodings to cluster centres; ids by size, or kept from an earlier clustering on a re-fit."""

    name = "cluster"
    reads = frozenset({"encodings"})
    writes = "clusters"
    needs_client = True

    def compute(self, access: Access) -> dict[str, Any]:
        """Fit and write the clustering.

        Raises
        ------
        NothingToDoError
            Fewer encodings than clusters.
        """
        from cryoscale.learn.clustering import Clustering, match_to
        from cryoscale.learn.kmeans import fit_kmeans

        config = access.config.cluster
        chunks, lengths = _chunks(access)
        if sum(lengths) < config.n_clusters:
            raise NothingToDoError(
                f"{sum(lengths)} encodings cannot make cluster.n_clusters = {config.n_clusters} clusters.",
                remedy="Ask for fewer clusters, or lower pick.threshold.",
            )
        fitted = fit_kmeans(
            chunks,
            lengths,
            n_clusters=config.n_clusters,
            seed=config.seed,
            standardise=config.standardise,
            max_iter=config.max_iterations,
            restarts=config.restarts,
            sample_rows=config.sample_rows,
        )
        folder = access.clusters()
        lineage: list[str] = []
        if access.earlier:
            old = folder.load_earlier(access.earlier)
            earlier = Clustering(
                centers_KF=old.centers_KF, mean_F=old.mean_F, scale_F=old.scale_F, counts_K=old.counts_K,
                inertia=0.0, n_iter=0,
            )  # fmt: skip
            fitted = match_to(earlier, fitted)
            lineage = folder.lineage_of(access.earlier)
        stored = StoredClustering(fitted.centers_KF, fitted.mean_F, fitted.scale_F, fitted.counts_K)
        card = {
            "key": access.key,
            "n_clusters": len(fitted.centers_KF),
            "inertia": float(fitted.inertia),
            "iterations": int(fitted.n_iter),
            "seed": config.seed,
            "lineage": lineage,
            "tomograms": list(access.tomograms),
            "rows": lengths,
            "rule": "ids by size, largest first; on a re-fit matching clusters keep the earlier ids",
        }
        digest = folder.save(stored, card)
        return {"hash": digest, "inertia": float(fitted.inertia), "n_clusters": len(fitted.centers_KF)}


def _chunks(access: Access) -> tuple[list[Callable[[], npt.NDArray[np.float32]]], list[int]]:
    """List loaders of fixed ranges of rows over all tomograms, in order."""
    loaders: list[Callable[[], npt.NDArray[np.float32]]] = []
    lengths = []
    for tomogram in access.tomograms:
        encodings = access.encodings(tomogram)
        rows, _ = encodings.shape
        for start in range(0, rows, ROWS_PER_BLOCK):
            stop = min(start + ROWS_PER_BLOCK, rows)
            loaders.append(RowLoader(encodings, start, stop))
            lengths.append(stop - start)
    return loaders, lengths


class RowLoader:
    """Loads rows when called; picklable, so that a Dask worker reads what it computes on."""

    def __init__(self, encodings: Encodings, start: int, stop: int) -> None:
        self.encodings, self.start, self.stop = encodings, start, stop

    def __call__(self) -> npt.NDArray[np.float32]:
        """Read the rows."""
        return self.encodings.read(self.start, self.stop)
