"""Results that are of an earlier state of a run: they are left out of the scores, with a word on why.

A run that was begun again after a change holds old results until their stage has had its turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cryoscale.data.ledger import ALL, unit_states
from cryoscale.data.rows import read_assignments
from cryoscale.data.run import Run


@dataclass
class Stale:
    """What of a tomogram's results is older than what it was made from.

    Parameters
    ----------
    run : Run
        Where the results are.
    tomogram : str
        Which.
    finished : dict
        (stage, unit) to when it was last done; see `finished_units`.
    left_out : list of str
        Filled by the questions: what is not scored, why, and what to do.
    """

    run: Run
    tomogram: str
    finished: dict[tuple[str, str], float]
    left_out: list[str] = field(default_factory=list)

    def cluster_ids(self, n_picks: int) -> npt.NDArray[np.int64] | None:
        """Read the clusters of the picks; None where there are none, or they are of others."""
        if not self.run.clusters.exists or not self.run.assignments.exists(f"{self.tomogram}.parquet"):
            return None
        ids_N = read_assignments(self.run.assignments, self.tomogram)[0].astype(np.int64)
        n_clusters = int(self.run.clusters.card["n_clusters"])
        reason = self._newer("assign", "pick", "encode", "cluster")
        if len(ids_N) != n_picks:
            reason = f"there are {len(ids_N)} of them, and {n_picks} picks"
        elif n_picks and not 0 <= ids_N.min() <= ids_N.max() < n_clusters:
            reason = f"they name cluster {ids_N.max()}, and there are clusters 0 to {n_clusters - 1}"
        return None if self._told("clusters of the picks", reason) else ids_N

    def labels(self) -> bool:
        """Whether the label volume is of another network, or of picks that are gone."""
        return self._told("label volume", self._labels_reason())

    def classes(self, rows: int, picks: int) -> bool:
        """Whether the classes of picks are of another network, or of other picks."""
        reason = self._newer("classify", "pick", "train_supervised")
        if rows != picks:
            reason = f"there are {rows} of them, and {picks} picks"
        return self._told("classes of the picks", reason)

    def instances(self) -> bool:
        """Whether the objects are of another label volume."""
        reason = self._newer("instances", "segment") or self._labels_reason()
        return self._told("instances", reason)

    def _labels_reason(self) -> str:
        supervised = self.run.config.supervised
        if supervised.model is not None:
            return self._newer("segment", "train_supervised", "pick")
        earlier = ["train_segmenter"]
        if self.run.config.segmenter.weights is None:  # else labels do not come from picks
            earlier += ["pick", "cluster"]
        return self._newer("segment", *earlier)

    def _newer(self, stage: str, *earlier: str) -> str:
        """Name the stages that were done after one that reads what they make."""
        own = self.finished.get((stage, self.tomogram))
        if own is None:
            return ""
        newer = [
            name
            for name in earlier
            if any(self.finished.get((name, unit), 0.0) > own for unit in (self.tomogram, ALL))
        ]
        return f"{' and '.join(newer)} was done again after {stage}" if newer else ""

    def _told(self, what: str, reason: str) -> bool:
        if reason:
            self.left_out.append(
                f"{what} of '{self.tomogram}': {reason}. Bring the run up to date with: "
                f"cryoscale run {self.run.folder.url}"
            )
        return bool(reason)


def finished_units(run: Run) -> dict[tuple[str, str], float]:
    """Return when each stage of each tomogram, or of the whole run, was last done."""
    finished: dict[tuple[str, str], float] = {}
    for state in unit_states(run.ledger):
        if state.state in ("done", "empty"):
            key = state.stage, state.unit
            finished[key] = max(finished.get(key, 0.0), state.finished)
    return finished
