"""Assign: each encoding of a tomogram to its nearest cluster centre; no fit is renewed."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.rows import ROWS_PER_BLOCK, write_assignments
from cryoscale.errors import StateError
from cryoscale.stages.base import WholeStage

ROWS_PER_LOAD = 16 * ROWS_PER_BLOCK


class AssignStage(WholeStage):
    """From encodings and centres to one cluster id and distance per pick."""

    name = "assign"
    version = 2
    reads = frozenset({"encodings", "clusters"})
    writes = "assignments"

    def bytes_needed(self, access: Access) -> int:
        """Bound the ids and distances with their table, and one block of rows."""
        rows, features = access.encodings().shape
        clusters = int(access.clusters().card["n_clusters"])
        return rows * 8 * 4 + min(rows, ROWS_PER_LOAD) * (features * 20 + clusters) + 128 * 2**20

    def compute(self, access: Access) -> dict[str, Any]:
        """Write `assignments/<tomogram>.parquet`."""
        from cryoscale.learn.clustering import Clustering, assign

        stored = access.clusters().load()
        encodings = access.encodings()
        rows, dimension = encodings.shape
        if dimension != stored.centers_KF.shape[1]:
            raise StateError(
                f"the encodings of '{access.tomogram}' have {dimension} features, the clustering "
                f"{stored.centers_KF.shape[1]}.",
                remedy="Run the encode stage again, or re-fit the clustering (run --refit).",
            )
        clustering = Clustering(
            centers_KF=stored.centers_KF, mean_F=stored.mean_F, scale_F=stored.scale_F,
            counts_K=stored.counts_K, inertia=0.0, n_iter=0,
        )  # fmt: skip
        ids, distances = np.empty(rows, np.int32), np.empty(rows, np.float32)
        for start in range(0, rows, ROWS_PER_LOAD):
            part = slice(start, min(start + ROWS_PER_LOAD, rows))
            ids[part], distances[part] = assign(encodings.read(part.start, part.stop), clustering)
        write_assignments(access.output(), access.tomogram, ids, distances)
        return {"rows": rows, "empty": rows == 0}
