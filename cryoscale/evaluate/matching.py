"""Picks against true positions, one to one within a radius.

Shape suffixes: N picks, M true positions, 3 coordinates (z, y, x, any one unit), T thresholds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """A one-to-one matching of picks with true positions.

    Parameters
    ----------
    pick_K, truth_K : (K,) int64
        Rows of the matched pairs, by rising pick row.
    distance_K : (K,) float64
        Their distances.
    n_picks, n_truth : int
        How many there were.
    """

    pick_K: Ints
    truth_K: Ints
    distance_K: Floats
    n_picks: int
    n_truth: int

    @property
    def precision(self) -> float:
        """Matched picks over picks; 0 without picks."""
        return len(self.pick_K) / self.n_picks if self.n_picks else 0.0

    @property
    def recall(self) -> float:
        """Matched true positions over true positions; 0 without any."""
        return len(self.pick_K) / self.n_truth if self.n_truth else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return f1_of(len(self.pick_K), self.n_picks, self.n_truth)

    def f_beta(self, beta: float) -> float:
        """F-beta; see `f_beta_of`."""
        return f_beta_of(len(self.pick_K), self.n_picks, self.n_truth, beta)

    @property
    def is_match_N(self) -> npt.NDArray[np.bool_]:
        """Whether each pick is matched."""
        mask = np.zeros(self.n_picks, dtype=np.bool_)
        mask[self.pick_K] = True
        return mask


def f1_of(hits: float, picks: float, truth: float) -> float:
    """Return 2 hits / (picks + truth): F1 from counts; 0 when there is nothing."""
    return float(2 * hits / (picks + truth)) if picks + truth else 0.0


def f_beta_of(hits: float, picks: float, truth: float, beta: float) -> float:
    """Return F-beta from counts: recall weighs `beta` times as much as precision; 0 when there is nothing.

    (1 + beta^2) hits / (picks + beta^2 truth), van Rijsbergen 1979. The CZII object identification challenge
    scored picks by beta = 4.
    """
    below = picks + beta**2 * truth
    return float((1 + beta**2) * hits / below) if below else 0.0


def match_points(picks_N3: npt.ArrayLike, truth_M3: npt.ArrayLike, radius: float) -> Match:
    """Match as many pairs within a radius as possible, at the least total distance.

    Parameters
    ----------
    picks_N3, truth_M3 : (N, 3), (M, 3) float
        Positions in one unit.
    radius : float
        Largest distance of a pair, inclusive.

    Returns
    -------
    match : Match
        Exact: no other matching has more pairs, or as many at a smaller total distance.

    Raises
    ------
    ConfigurationError
        Positions that are not finite (N, 3), or a radius not above 0.

    Notes
    -----
    One sparse assignment problem (Jonker and Volgenant 1987): each pick may also stay alone, at a price above
    what any rearrangement of distances could save.
    """
    picks, truth = _points(picks_N3, "picks"), _points(truth_M3, "true positions")
    rows, columns, distances = _candidates(picks, truth, radius)
    active, row = np.unique(rows, return_inverse=True)
    if not len(active):
        empty = np.empty(0, np.int64)
        return Match(empty, empty, np.empty(0), len(picks), len(truth))
    # Explicit zeros would vanish from a sparse matrix: all prices are lifted by the radius.
    alone = 2 * radius + radius * (min(len(active), len(truth)) + 1)
    prices = np.concatenate([distances + radius, np.full(len(active), alone)])
    i = np.concatenate([row, np.arange(len(active))])
    j = np.concatenate([columns, len(truth) + np.arange(len(active))])
    graph = sparse.csr_array((prices, (i, j)), shape=(len(active), len(truth) + len(active)))
    r, c = min_weight_full_bipartite_matching(graph)
    real = c < len(truth)
    pick_K, truth_K = active[r[real]].astype(np.int64), c[real].astype(np.int64)
    distance_K = np.linalg.norm(picks[pick_K] - truth[truth_K], axis=1)
    return Match(pick_K, truth_K, distance_K, len(picks), len(truth))


def _points(points: npt.ArrayLike, what: str) -> Floats:
    """Check an array of positions."""
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return np.empty((0, 3))
    if array.ndim != 2 or array.shape[1] != 3 or not np.isfinite(array).all():
        raise ConfigurationError(f"the {what} must be finite and of shape (N, 3), got {array.shape}.")
    return array


def _candidates(picks: Floats, truth: Floats, radius: float) -> tuple[Ints, Ints, Floats]:
    """Return all pairs within the radius: pick rows (rising), truth rows, distances."""
    if not (radius > 0 and np.isfinite(radius)):
        raise ConfigurationError(f"the matching radius must be above 0, got {radius}.")
    if not len(picks) or not len(truth):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    near = cKDTree(truth).query_ball_point(picks, radius, return_sorted=True)
    counts = np.fromiter((len(n) for n in near), np.int64, len(near))
    rows = np.repeat(np.arange(len(picks)), counts)
    columns = np.fromiter((t for n in near for t in n), np.int64, int(counts.sum()))
    return rows, columns, np.linalg.norm(picks[rows] - truth[columns], axis=1)


@dataclass(frozen=True)
class ThresholdCurve:
    """Precision and recall at every threshold of a score, from strict to loose.

    Parameters
    ----------
    threshold_T : (T,) float64
        Falling; picks with this score or a larger one are kept.
    kept_T, hits_T : (T,) int64
        Picks kept, and the largest possible number of pairs among them.
    n_truth : int
        True positions.
    """

    threshold_T: Floats
    kept_T: Ints
    hits_T: Ints
    n_truth: int

    @property
    def precision_T(self) -> Floats:
        """Precision at each threshold."""
        return self.hits_T / self.kept_T

    @property
    def recall_T(self) -> Floats:
        """Recall at each threshold."""
        return self.hits_T / max(1, self.n_truth)

    @property
    def f1_T(self) -> Floats:
        """F1 at each threshold."""
        return 2 * self.hits_T / (self.kept_T + self.n_truth)

    def f_beta_T(self, beta: float) -> Floats:
        """F-beta at each threshold; see `f_beta_of`."""
        return (1 + beta**2) * self.hits_T / (self.kept_T + beta**2 * self.n_truth)

    @property
    def best_f1(self) -> float:
        """The best F1 that a threshold reaches."""
        return float(self.f1_T.max(initial=0.0))

    @property
    def best_threshold(self) -> float:
        """The strictest threshold that reaches `best_f1`; infinite without picks."""
        return float(self.threshold_T[self.f1_T.argmax()]) if len(self.threshold_T) else float("inf")

    @property
    def average_precision(self) -> float:
        """Sum of precision times the step in recall, as in scikit-learn, but over all of the truth."""
        steps = np.diff(self.recall_T, prepend=0.0)
        return float((steps * self.precision_T).sum())


def score_threshold_curve(
    picks_N3: npt.ArrayLike, score_N: npt.ArrayLike, truth_M3: npt.ArrayLike, radius: float
) -> ThresholdCurve:
    """Match the best-scored picks with the truth at every threshold.

    Parameters
    ----------
    picks_N3 : (N, 3) float
        Positions.
    score_N : (N,) float
        Larger is better.
    truth_M3 : (M, 3) float
        True positions.
    radius : float
        Largest distance of a pair.

    Returns
    -------
    curve : ThresholdCurve
        `hits_T` is exact: the size of a maximum matching of the picks kept at each threshold.

    Raises
    ------
    ConfigurationError
        As `match_points`; or scores that are not one finite number per pick.
    """
    picks, truth = _points(picks_N3, "picks"), _points(truth_M3, "true positions")
    scores = np.asarray(score_N, dtype=np.float64)
    if scores.shape != (len(picks),) or not np.isfinite(scores).all():
        raise ConfigurationError(
            f"expected {len(picks)} finite scores, got an array of shape {scores.shape}."
        )
    order = np.argsort(-scores, kind="stable")
    hit_N = augmenting_hits(picks[order], truth, radius)
    return curve_from_hits(scores[order], hit_N, len(truth))


def curve_from_hits(score_N: Floats, hit_N: npt.NDArray[np.bool_], n_truth: int) -> ThresholdCurve:
    """Make a curve from picks in falling order of score and whether each adds a pair.

    Equal scores stand or fall together.
    """
    last_of_ties = np.append(score_N[1:] != score_N[:-1], True)[: len(score_N)]
    ends = np.flatnonzero(last_of_ties)
    return ThresholdCurve(score_N[ends], ends + 1, np.cumsum(hit_N)[ends].astype(np.int64), n_truth)


def augmenting_hits(picks_N3: Floats, truth_M3: Floats, radius: float) -> npt.NDArray[np.bool_]:
    """Return whether each pick, taken in the order given, makes the largest possible matching larger.

    By augmenting paths (Berge 1957): the sets of picks that can be matched together form a matroid, so the
    running count is the maximum for every prefix.
    """
    rows, columns, distances = _candidates(picks_N3, truth_M3, radius)
    by_distance = np.lexsort((distances, rows))
    starts = np.searchsorted(rows, np.arange(len(picks_N3) + 1))
    grower = _Grower(columns[by_distance], starts)
    return np.array([grower.add(n) for n in range(len(picks_N3))], dtype=np.bool_)


class _Grower:
    """A matching that grows pick by pick.

    `exhausted` holds the true positions that a search without success went through: their owners reach
    nothing beyond them, now or later, so no search needs to enter again: the whole stays near linear.
    """

    def __init__(self, neighbours: Ints, starts: Ints) -> None:
        self.neighbours, self.starts = neighbours, starts
        self.owner: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.exhausted: set[int] = set()

    def add(self, pick: int) -> bool:
        """Find room for one more pick, moving others if need be; say whether there was any."""
        came_from: dict[int, int] = {}
        queue = deque([pick])
        while queue:
            current = queue.popleft()
            for target in self.neighbours[self.starts[current] : self.starts[current + 1]].tolist():
                if target in came_from or target in self.exhausted:
                    continue
                came_from[target] = current
                if target not in self.owner:
                    self._shift(target, pick, came_from)
                    return True
                queue.append(self.owner[target])
        self.exhausted.update(came_from)
        return False

    def _shift(self, target: int, pick: int, came_from: dict[int, int]) -> None:
        """Give the free target to the pick that reached it, its old one to the pick before, and so on."""
        while True:
            taker = came_from[target]
            left = self.held.get(taker)
            self.owner[target], self.held[taker] = taker, target
            if taker == pick:
                return
            target = cast("int", left)  # only the new pick comes without one
