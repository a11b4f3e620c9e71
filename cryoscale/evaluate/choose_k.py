"""How many clusters: several indices over a list of k, and how far labels repeat between fits.

No index settles k where the data has no clear clusters; each is given beside what it would be without any, or
is None where its rule is met nowhere.

Shape suffixes: N items, F numbers of an encoding, K entries of the list of k, B references, R repeats.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KScores:
    """Scores over numbers of clusters; NaN where k = 1 has none.

    Parameters
    ----------
    k_K : (K,) int64
        The list, rising.
    inertia_K : (K,) float64
        Sum of squared distances to the nearest centre.
    gap_K, gap_error_K : (K,) float64
        Gap statistic, and its standard error s_k with the error of the simulation in it.
    calinski_harabasz_K : (K,) float64
        Larger is better.
    davies_bouldin_K : (K,) float64
        Smaller is better.
    silhouette_K : (K,) float64
        Larger is better; on a sample.
    stability_K, stability_error_K : (K,) float64
        Mean adjusted Rand index between fits on two random halves, each assigned to all rows; standard error
        of the mean.
    reference_stability_K : (K,) float64
        The same for a uniform reference without clusters.
    rows : int
        How many encodings were used.
    """

    k_K: Ints
    inertia_K: Floats
    gap_K: Floats
    gap_error_K: Floats
    calinski_harabasz_K: Floats
    davies_bouldin_K: Floats
    silhouette_K: Floats
    stability_K: Floats
    stability_error_K: Floats
    reference_stability_K: Floats
    rows: int

    @property
    def best_gap(self) -> int | None:
        """Smallest k of the list whose gap is at least the next one's less its error; else None."""
        reached = self.gap_K[:-1] >= self.gap_K[1:] - self.gap_error_K[1:]
        return int(self.k_K[np.argmax(reached)]) if reached.any() else None

    @property
    def largest_gap(self) -> int:
        """Smallest k whose gap is within one error of the largest gap.

        The rule of `best_gap` stops at the first pause. Clusters that are all equally far apart, as many can
        be in many dimensions, have one at k = 1, since every split but the last gains little. This rule has
        the opposite fault: beyond the true number the gap may go on rising a little.
        """
        top = int(np.argmax(self.gap_K))
        within = self.gap_K >= self.gap_K[top] - self.gap_error_K[top]
        return int(self.k_K[np.argmax(within)])

    @property
    def best_calinski_harabasz(self) -> int | None:
        """K of the largest Calinski-Harabasz index."""
        return self._best(self.calinski_harabasz_K)

    @property
    def best_davies_bouldin(self) -> int | None:
        """K of the smallest Davies-Bouldin index."""
        return self._best(-self.davies_bouldin_K)

    @property
    def best_silhouette(self) -> int | None:
        """K of the largest silhouette."""
        return self._best(self.silhouette_K)

    @property
    def best_stability(self) -> int | None:
        """K whose labels repeat best beyond what those of the reference do."""
        return self._best(self.stability_K - self.reference_stability_K)

    def _best(self, value_K: Floats) -> int | None:
        finite = np.isfinite(value_K)
        return int(self.k_K[finite][np.argmax(value_K[finite])]) if finite.any() else None


def score_k(
    encodings_NF: npt.ArrayLike,
    ks: Sequence[int],
    *,
    references: int = 10,
    stability_repeats: int = 5,
    n_init: int = 3,
    sample_rows: int = 5000,
    standardise: bool = True,
    seed: int = 0,
) -> KScores:
    """Score numbers of clusters by k-means on a sample of encodings.

    Parameters
    ----------
    encodings_NF : (N, F) float
        Encodings.
    ks : sequence of int
        Numbers of clusters, each from 1 to a fifth of the rows used. The gap rule compares neighbours in this
        list: make it dense near the numbers in question.
    references : int
        Uniform reference sets of the gap statistic, 2 at least.
    stability_repeats : int
        Pairs of halves; 0 leaves stability out (NaN).
    n_init : int
        Starts of each k-means fit; the best is kept. References get the same. Time grows with starts times
        references: the defaults take half a minute of one core for eleven k up to 200 in 5000 rows of 32.
    sample_rows : int
        Rows used, drawn by seed.
    standardise : bool
        Divide each feature by its standard deviation, as the clustering of a run does.
    seed : int
        Of everything.

    Returns
    -------
    scores : KScores

    Raises
    ------
    ConfigurationError
        A list that is empty or goes beyond the rows, too few references.
    DataError
        Encodings that are not finite, or fewer different ones than the largest k.

    Notes
    -----
    Gap: Tibshirani, Walther and Hastie 2001, doi:10.1111/1467-9868.00293, with references uniform over the
    box aligned with the principal axes (their choice b) and the rule of one standard error. In many
    dimensions a box is a poor stand-in for a cloud without clusters: its corners hold most of its volume.
    Calinski and Harabasz 1974, doi:10.1080/03610927408827101. Davies and Bouldin 1979,
    doi:10.1109/TPAMI.1979.4766909. Silhouette: Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7. Stability:
    after Ben-Hur, Elisseeff and Guyon 2002, doi:10.1142/9789812799623_0002, with the index of Hubert and
    Arabie 1985, doi:10.1007/BF01908075.
    """
    import sklearn.cluster  # noqa: F401  # only libraries that are loaded already are limited below
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    k_K = np.unique(np.asarray(list(ks), dtype=np.int64))
    rng = np.random.default_rng(seed)
    rows_NF = _rows(encodings_NF, sample_rows, standardise, rng)
    if not len(k_K) or k_K[0] < 1 or k_K[-1] > len(rows_NF) // 5 or references < 2 or n_init < 1:
        raise ConfigurationError(
            f"numbers of clusters must be from 1 to {len(rows_NF) // 5} (a fifth of {len(rows_NF)} rows), "
            f"references at least 2, starts at least 1; got {k_K.tolist()}, {references}, {n_init}."
        )
    if len(np.unique(rows_NF, axis=0)) < max(k_K[-1], 2):
        raise DataError(f"there are fewer different encodings than {max(k_K[-1], 2)} clusters.")
    # One thread: fits of this size gain little by more, lose much on a busy machine, and would not repeat.
    with threadpool_limits(limits=1):
        return _scores(rows_NF, k_K, references, stability_repeats, _Fitter(n_init, rng))


def _scores(rows_NF: Floats, k_K: Ints, references: int, repeats: int, fitter: _Fitter) -> KScores:
    """Fit the rows and the references, and score both."""
    rng = fitter.rng
    log_reference_BK = np.empty((references, len(k_K)))
    for b in range(references):
        uniform_NF = uniform_reference(rows_NF, rng)
        log_reference_BK[b] = [np.log(fitter.fit(uniform_NF, k).inertia_) for k in k_K]
    fits = [fitter.fit(rows_NF, k) for k in k_K]
    inertia_K = np.array([fit.inertia_ for fit in fits])
    tiny = np.finfo(np.float64).tiny
    gap_K = log_reference_BK.mean(axis=0) - np.log(np.maximum(inertia_K, tiny))
    indices = np.array([_indices(rows_NF, fit.labels_, rng) for fit in fits]).T
    own_RK = _stability(rows_NF, k_K, repeats, fitter)
    uniform_RK = _stability(uniform_reference(rows_NF, rng), k_K, repeats, fitter)
    return KScores(
        k_K, inertia_K, gap_K, log_reference_BK.std(axis=0) * np.sqrt(1 + 1 / references),
        indices[0], indices[1], indices[2],
        own_RK.mean(axis=0), own_RK.std(axis=0) / np.sqrt(max(repeats, 1)),
        uniform_RK.mean(axis=0), len(rows_NF),
    )  # fmt: skip


def _rows(encodings: npt.ArrayLike, sample_rows: int, standardise: bool, rng: np.random.Generator) -> Floats:
    """Check, draw and scale the rows."""
    rows_NF = np.asarray(encodings)
    if rows_NF.ndim != 2 or not rows_NF.size:
        raise ConfigurationError(f"expected encodings (N, F), got shape {rows_NF.shape}.")
    if not np.isfinite(rows_NF).all():
        raise DataError("some encodings are not finite.")
    if len(rows_NF) > sample_rows:
        rows_NF = rows_NF[np.sort(rng.choice(len(rows_NF), sample_rows, replace=False))]
    rows_NF = rows_NF.astype(np.float64)
    rows_NF -= rows_NF.mean(axis=0)
    if standardise:
        sd_F = rows_NF.std(axis=0)
        rows_NF /= np.where(sd_F > 1e-6 * sd_F.max(), sd_F, 1.0)
    return rows_NF


def uniform_reference(rows_NF: Floats, rng: np.random.Generator) -> Floats:
    """Draw as many rows uniformly over the box aligned with the principal axes of the data."""
    mean_F = rows_NF.mean(axis=0)
    _, _, axes_FF = np.linalg.svd(rows_NF - mean_F, full_matrices=False)
    along_NF = (rows_NF - mean_F) @ axes_FF.T
    drawn_NF = rng.uniform(along_NF.min(axis=0), along_NF.max(axis=0), along_NF.shape)
    reference_NF: Floats = drawn_NF @ axes_FF + mean_F
    return reference_NF


class _Fitter:
    """K-means fits with seeds of their own, in the order in which they are asked for."""

    def __init__(self, n_init: int, rng: np.random.Generator) -> None:
        self.n_init = n_init
        self.rng = rng

    def fit(self, rows_NF: Floats, k: int) -> Any:
        """Return a fitted scikit-learn KMeans."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        seed = int(self.rng.integers(2**31))
        with warnings.catch_warnings():
            # A half may hold fewer different rows than clusters; some then stay empty, which does no harm.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return KMeans(int(k), n_init=self.n_init, random_state=seed).fit(rows_NF)


def _indices(
    rows_NF: Floats, labels_N: npt.NDArray[np.integer], rng: np.random.Generator, sample: int = 1000
) -> tuple[float, float, float]:
    """Calinski-Harabasz and Davies-Bouldin of all rows, the silhouette of a sample."""
    from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

    if labels_N.max() == 0:
        return np.nan, np.nan, np.nan
    chosen = rng.choice(len(rows_NF), min(sample, len(rows_NF)), replace=False)
    enough = 1 < len(np.unique(labels_N[chosen])) < len(chosen)
    return (
        float(calinski_harabasz_score(rows_NF, labels_N)),
        float(davies_bouldin_score(rows_NF, labels_N)),
        float(silhouette_score(rows_NF[chosen], labels_N[chosen])) if enough else np.nan,
    )


def _stability(rows_NF: Floats, k_K: Ints, repeats: int, fitter: _Fitter) -> Floats:
    """Return the Rand index of two fits on random halves, over all rows; NaN for one cluster."""
    from sklearn.metrics import adjusted_rand_score

    scores_RK = np.full((max(repeats, 1), len(k_K)), np.nan)
    for r in range(repeats):
        order_N = fitter.rng.permutation(len(rows_NF))
        halves = np.array_split(order_N, 2)
        for i, k in enumerate(k_K):
            if k > 1:
                labels = [fitter.fit(rows_NF[half], k).predict(rows_NF) for half in halves]
                scores_RK[r, i] = adjusted_rand_score(*labels)
    return scores_RK
