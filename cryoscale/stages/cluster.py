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
from cryoscale.runtime.memory import available_bytes, cpu_count, parse_bytes
from cryoscale.stages.base import WholeStage

ROWS_PER_LOAD = 16 * ROWS_PER_BLOCK  # opening an array costs about as much as reading one block of it
INTERPRETER = 410 * 2**20  # of a worker that computes nothing
SHARE = 0.4  # of the memory that is available, where no budget is set: model workers may hold the rest


class ClusterStage(WholeStage):
    """From encodings to cluster centres; ids by size, or kept from an earlier clustering on a re-fit."""

    name = "cluster"
    version = 2
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
            engine=config.engine,
            in_memory=_memory(access)[1],
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
        """Bound what all workers hold together: the rows, if they fit the budget, chunks, and the sample."""
        return _memory(access)[0]


def _memory(access: Access) -> tuple[int, bool]:
    """Bound the bytes that all workers hold together, and tell whether the rows are held among them.

    Rows that do not fit the budget are loaded again by each iteration; the result is the same.
    """
    config, execution = access.config.cluster, access.config.execution
    shapes = [access.encodings(tomogram).shape for tomogram in access.tomograms]
    rows, features = sum(n for n, _ in shapes), max(f for _, f in shapes)
    workers = execution.dask_workers or cpu_count()
    sample = min(rows, max(config.sample_rows, config.n_clusters))
    tried = sample * (features * 4 * 3 + config.n_clusters // 4 + 64) * (min(workers, config.restarts) + 1)
    # Two chunks as they were read, one of them prepared, or in float64 for its moments.
    passing = min(rows, ROWS_PER_LOAD) * (features * 40 + config.n_clusters // 4) * workers
    others = max(tried, passing) + 384 * 2**20
    if execution.memory_budget is None:
        budget = int(SHARE * available_bytes())
    else:
        budget = (parse_bytes(execution.memory_budget) - INTERPRETER) * workers
    # Rows in float32 with two more columns each; some are there twice while they are put together.
    held = int(rows * (features + 2) * 4 * 1.1)
    if config.engine == "dask-ml":
        return others + 2 * held, True
    return (others + held, True) if others + held <= budget else (others, False)


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
        for start in range(0, rows, ROWS_PER_LOAD):
            stop = min(start + ROWS_PER_LOAD, rows)
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
