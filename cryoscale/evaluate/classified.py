"""Classes that a network gave to picks against those of the particles that the picks are matched with.

Shape suffixes: N picks, C names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.data.classes import Classes
from cryoscale.evaluate.segmentation import SegmentationScores, confusion

Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Classified:
    """Picks of one tomogram, or of several.

    Parameters
    ----------
    found_N : (N,) str
        The likeliest class by the network.
    true_N : (N,) str
        Class of the particle that a pick is matched with; `nothing` for those without one.
    known : tuple of str
        The classes that the network knows.
    nothing : str
        The word for no particle.
    """

    found_N: Names
    true_N: Names
    known: tuple[str, ...]
    nothing: str

    @classmethod
    def of(cls, found: Classes, true_N: Names, nothing: str) -> Classified:
        """Put what a network says beside what is true."""
        return cls(found.names_N.astype(str), true_N, found.names, nothing)

    @classmethod
    def together(cls, parts: Sequence[Classified]) -> Classified:
        """Join tomograms."""
        return cls(
            np.concatenate([part.found_N for part in parts]),
            np.concatenate([part.true_N for part in parts]),
            tuple(dict.fromkeys(name for part in parts for name in part.known)),
            parts[0].nothing,
        )

    def scores(self) -> dict[str, Any]:
        """Score them.

        Returns
        -------
        scores : dict
            `picks`; `matched`, those with a particle; `unknown`, those of them whose class the network does
            not know; `object_accuracy`, the share of right classes among the matched ones of a known class,
            with `random_object_accuracy` (the same answers, shuffled); `by_class`: `truth` and `found`
            (picks), `precision` (of all picks that got the class), `recall` (of matched picks), `f1`;
            `confusion`: names and counts, rows are truth.
        """
        matched_N = self.true_N != self.nothing
        names = list(dict.fromkeys([self.nothing, *self.known, *np.unique(self.true_N[matched_N]).tolist()]))
        number = {name: row for row, name in enumerate(names)}
        counts_CC = confusion(
            np.array([number[name] for name in self.true_N.tolist()], np.int64),
            np.array([number[name] for name in self.found_N.tolist()], np.int64),
            len(names),
        )
        rows = [number[name] for name in self.known]
        among = SegmentationScores(counts_CC[np.ix_(rows, rows)].astype(np.float64))
        return {
            "picks": len(self.found_N), "matched": int(matched_N.sum()),
            "unknown": int((matched_N & ~np.isin(self.true_N, self.known)).sum()),
            "object_accuracy": _plain(among.pixel_accuracy),
            "random_object_accuracy": _plain(among.by_chance().pixel_accuracy),
            "by_class": {name: _of_class(counts_CC, number[name]) for name in names[1:]},
            "confusion": {"names": names, "counts": counts_CC.tolist()},
        }  # fmt: skip


def _of_class(counts_CC: npt.NDArray[np.int64], row: int) -> dict[str, Any]:
    hits, truth, found = int(counts_CC[row, row]), int(counts_CC[row].sum()), int(counts_CC[:, row].sum())
    return {
        "truth": truth, "found": found, "precision": hits / found if found else None,
        "recall": hits / truth if truth else None,
        "f1": 2 * hits / (truth + found) if truth + found else None,
    }  # fmt: skip


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
