"""Found positions against true ones: counts that add up over tomograms, and the scores made of them.

Shape suffixes: R random draws, N picks, K matched pairs, M true positions, 3 coordinates z, y, x (Å).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.evaluate.matching import (
    ThresholdCurve,
    augmenting_hits,
    curve_from_hits,
    f1_of,
    f_beta_of,
    match_points,
)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BEST = (100, 300, 1000, 3000)
BETA = 4.0  # of the CZII challenge: recall counts four times as much as precision
CHANCE = ("precision", "recall", "f1", "f_beta4")  # compared with random places
CURVE_POINTS = 200  # points of a precision-recall curve that are kept for plots


@dataclass(frozen=True)
class Pairs:
    """A one-to-one matching as counts and distances: those of several tomograms can be added.

    Parameters
    ----------
    n_found, n_truth : int
        Found positions, and true ones.
    distance_K : (K,) float64
        Of each matched pair, Å.
    """

    n_found: int
    n_truth: int
    distance_K: Floats

    @classmethod
    def between(cls, found_N3: npt.ArrayLike, truth_M3: npt.ArrayLike, radius: float) -> Pairs:
        """Match found positions with true ones; see `match_points`."""
        match = match_points(found_N3, truth_M3, radius)
        return cls(match.n_picks, match.n_truth, match.distance_K)

    @classmethod
    def together(cls, parts: Sequence[Pairs]) -> Pairs:
        """Add the pairs of several tomograms."""
        distances = np.concatenate([p.distance_K for p in parts]) if parts else np.empty(0)
        return cls(sum(p.n_found for p in parts), sum(p.n_truth for p in parts), distances)

    @property
    def hits(self) -> int:
        """Matched pairs."""
        return len(self.distance_K)

    def scores(self) -> dict[str, Any]:
        """Return plain values: counts, precision, recall, F1, F-beta, and localisation errors."""
        d = self.distance_K
        return {
            "found": self.n_found, "truth": self.n_truth, "matched": self.hits,
            "precision": self.hits / self.n_found if self.n_found else 0.0,
            "recall": self.hits / self.n_truth if self.n_truth else 0.0,
            "f1": f1_of(self.hits, self.n_found, self.n_truth),
            "f_beta4": f_beta_of(self.hits, self.n_found, self.n_truth, BETA),
            "mean_error_angstrom": float(d.mean()) if len(d) else None,
            "median_error_angstrom": float(np.median(d)) if len(d) else None,
            "rms_error_angstrom": float(np.sqrt((d**2).mean())) if len(d) else None,
        }  # fmt: skip


@dataclass(frozen=True)
class Detection:
    """The picks against the positions of one class (or of all), one to one.

    Parameters
    ----------
    pairs : Pairs
        Of all picks.
    score_N : (N,) float64
        Of each pick, larger is better.
    match_N, hit_N : (N,) bool
        Whether a pick is matched, and whether it makes the matching larger when picks come by falling score.
    first_N : (N,) bool
        Whether a pick lies in the first half of its tomogram.
    n_first : int
        True positions in that half.
    random_R : tuple of Pairs
        As many picks at random places of the tomogram against the same truth, several times.
    """

    pairs: Pairs
    score_N: Floats
    match_N: Bools
    hit_N: Bools
    first_N: Bools
    n_first: int
    random_R: tuple[Pairs, ...]

    @classmethod
    def together(cls, parts: Sequence[Detection]) -> Detection:
        """Join the detections of several tomograms; rows follow each other."""
        return cls(
            Pairs.together([p.pairs for p in parts]),
            np.concatenate([p.score_N for p in parts]),
            np.concatenate([p.match_N for p in parts]),
            np.concatenate([p.hit_N for p in parts]),
            np.concatenate([p.first_N for p in parts]),
            sum(p.n_first for p in parts),
            tuple(map(Pairs.together, zip(*(p.random_R for p in parts), strict=True))),
        )

    def of_nothing(self) -> Detection:
        """Return the same picks against a class without positions."""
        none_N = np.zeros(len(self.score_N), np.bool_)
        nothing = Pairs(self.pairs.n_found, 0, np.empty(0))
        random_R = (nothing,) * len(self.random_R)
        return Detection(nothing, self.score_N, none_N, none_N, self.first_N, 0, random_R)

    @property
    def curve(self) -> ThresholdCurve:
        """Precision and recall at every threshold.

        A threshold keeps the best picks of each tomogram, and no pair spans two of them: so the counts of the
        tomograms add up to the largest matching of all.
        """
        order = np.argsort(-self.score_N, kind="stable")
        return curve_from_hits(self.score_N[order], self.hit_N[order], self.pairs.n_truth)

    @property
    def halves(self) -> tuple[int, int]:
        """True positions in the first and in the second half."""
        return self.n_first, self.pairs.n_truth - self.n_first

    def scores(self) -> dict[str, Any]:
        """Return plain values: those of all picks, of thresholds on the score, and of random places."""
        draws = [random.scores() for random in self.random_R]
        chance = {key: np.array([draw[key] for draw in draws]) for key in CHANCE}
        return {
            **self.pairs.scores(),
            **_threshold_scores(self.curve),
            **{f"random_{key}": float(values.mean()) for key, values in chance.items()},
            **{f"random_{key}_sd": float(values.std()) for key, values in chance.items()},
        }


def detect(
    picks_N3: npt.ArrayLike,
    score_N: npt.ArrayLike,
    truth_M3: npt.ArrayLike,
    radius: float,
    *,
    middle_x: float,
    random_RN3: npt.ArrayLike,
) -> Detection:
    """Match the picks of a tomogram with true positions.

    Parameters
    ----------
    picks_N3, score_N : (N, 3), (N,) float
        Positions, Å, and scores.
    truth_M3 : (M, 3) float
        True positions, Å.
    radius : float
        Largest distance of a pair, Å.
    middle_x : float
        Where the first half of the tomogram ends, Å.
    random_RN3 : (R, N, 3) float
        As many places drawn at random in the tomogram, several times.
    """
    picks = np.asarray(picks_N3, np.float64).reshape(-1, 3)
    truth = np.asarray(truth_M3, np.float64).reshape(-1, 3)
    scores = np.asarray(score_N, np.float64)
    match = match_points(picks, truth, radius)
    order = np.argsort(-scores, kind="stable")
    hit_N = np.zeros(len(picks), np.bool_)
    hit_N[order] = augmenting_hits(picks[order], truth, radius)
    return Detection(
        Pairs(match.n_picks, match.n_truth, match.distance_K),
        scores,
        match.is_match_N,
        hit_N,
        picks[:, 2] < middle_x,
        int((truth[:, 2] < middle_x).sum()),
        tuple(Pairs.between(random_N3, truth, radius) for random_N3 in np.asarray(random_RN3, np.float64)),
    )


def _threshold_scores(curve: ThresholdCurve) -> dict[str, Any]:
    """Score what thresholds on the score reach; the best K picks are those of all tomograms together."""
    best = int(curve.f1_T.argmax()) if len(curve.f1_T) else None
    among = {str(k): _recall_at(curve, k) for k in BEST if len(curve.kept_T) and k <= curve.kept_T[-1]}
    return {
        "average_precision": curve.average_precision,
        "recall_among_best": among,
        "best_threshold_f1": curve.best_f1,
        "best_threshold": None if best is None else float(curve.threshold_T[best]),
        "best_threshold_precision": None if best is None else float(curve.precision_T[best]),
        "best_threshold_recall": None if best is None else float(curve.recall_T[best]),
        "best_threshold_f_beta4": float(curve.f_beta_T(BETA).max(initial=0.0)),
        "curve": _thinned(curve),
    }


def _recall_at(curve: ThresholdCurve, most: int) -> float:
    """Return the recall of the strictest threshold that keeps at least so many picks (more, with ties)."""
    return float(curve.recall_T[np.searchsorted(curve.kept_T, most)])


def _thinned(curve: ThresholdCurve) -> dict[str, list[float]]:
    """Return points of the precision-recall curve, evenly over the thresholds, its ends included."""
    n = len(curve.threshold_T)
    if not n:
        return {"recall": [], "precision": []}
    rows = np.unique(np.linspace(0, n - 1, min(n, CURVE_POINTS)).round().astype(np.int64))
    return {
        "recall": np.round(curve.recall_T[rows], 6).tolist(),
        "precision": np.round(curve.precision_T[rows], 6).tolist(),
    }
