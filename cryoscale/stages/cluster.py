"""Cluster: k-means over the encodings of all tomograms, frozen once made."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.access import Access
from cryoscale.data.clusters import CENTERS, StoredClustering
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
        if card := _finished(access, lengths):
            return _facts(card)
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
            "encoder": access.upstream.get("train_encoder", ""),
            "n_clusters": len(fitted.centers_KF),
            "inertia": float(fitted.inertia),
            "iterations": int(fitted.n_iter),
            "seed": config.seed,
            "lineage": lineage,
            "tomograms": list(access.tomograms),
            "upstream": dict(access.upstream),
            "rows": lengths,
            "rule": "ids by size, largest first; on a re-fit matching clusters keep the earlier ids",
        }
        digest = folder.save(stored, card)
        return _facts({**card, "centers_sha256": digest})

    def bytes_needed(self, access: Access) -> int:
        """Bound what all workers hold together: the rows once, their chunks on the way, and the sample."""
        config = access.config.cluster
        shapes = [access.encodings(tomogram).shape for tomogram in access.tomograms]
        rows, features = sum(n for n, _ in shapes), max(f for _, f in shapes)
        sample = min(rows, max(config.sample_rows, config.n_clusters))
        # The rows in float32; and while they are joined, or the sample is clustered in float64, copies.
        passing = max(rows * features * 4, sample * (features * 8 * 5 + config.n_clusters * 8))
        chunk = min(rows, ROWS_PER_BLOCK) * (features + config.n_clusters) * 8 * 4
        return rows * features * 4 + passing + chunk + 384 * 2**20


def _finished(access: Access, lengths: list[int]) -> dict[str, Any] | None:
    """Return the card of an undamaged clustering of these rows that only its seal is missing of."""
    folder = access.clusters()
    if not folder.exists:
        return None
    card = folder.card
    told = [card.get(name) for name in ("key", "tomograms", "upstream", "rows")]
    if told != [access.key, list(access.tomograms), dict(access.upstream), lengths]:
        return None
    with contextlib.suppress(FileNotFoundError):
        digest = hashlib.sha256(folder.folder.read_bytes(CENTERS)).hexdigest()
        return card if digest == card["centers_sha256"] else None
    return None


def _facts(card: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger says of a clustering, from its card alone."""
    return {"hash": card["centers_sha256"], "inertia": card["inertia"], "n_clusters": card["n_clusters"]}


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
