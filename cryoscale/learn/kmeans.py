"""K-means over encodings that lie in many chunks: fit once, freeze, assign for ever.

Legend of the shape suffixes: N items, F numbers of an encoding, K clusters.

Lloyd's iterations run on whichever dask scheduler is active: by our own reduction (`learn.lloyd`), or by
dask-ml. Around both stands what neither does: a good start (k-means++ of scikit-learn on a fixed sample,
several restarts), clusters that became empty, the inertia, and ids that mean something. Mean and scale, and
with dask-ml everything, depend in their last bits on the order of rows and the sizes of chunks: keep them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.clustering import Clustering, assign, match_to
from cryoscale.learn.lloyd import quantum
from cryoscale.learn.passes import Chunk, DaskMLPasses, OwnPasses, Passes, Rows, Units

__all__ = ["Clustering", "assign", "fit_kmeans", "match_to"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Engine = Literal["lloyd", "dask-ml"]

REPAIRS = 10
DEAD_SHARE = 1e-6  # a feature whose sd is below this share of the largest sd is constant


def fit_kmeans(
    chunks: Sequence[Chunk],
    lengths: Sequence[int] | None = None,
    *,
    n_clusters: int,
    seed: int = 0,
    standardise: bool = True,
    max_iter: int = 300,
    tol: float = 1e-4,
    init: Array | None = None,
    sample_rows: int = 100_000,
    restarts: int = 10,
    engine: Engine = "lloyd",
    in_memory: bool = True,
) -> Clustering:
    """Cluster encodings that need not fit into one memory.

    Parameters
    ----------
    chunks : sequence of arrays (n, F), or of callables that load one
        Callables run in the active dask scheduler's workers, so they must be picklable there. Empty chunks
        are allowed.
    lengths : sequence of int, optional
        Rows of each chunk; needed for callables.
    n_clusters : int
        K.
    seed : int
        Of the sample and of k-means++.
    standardise : bool
        Divide each feature by its standard deviation. If not, all are divided by one number (the root of the
        mean variance), which leaves distances as they are and gives `tol` a meaning.
    max_iter : int
        Of Lloyd, per repair.
    tol : float
        Stop when the squared shift of all centres together, in standardised units, falls to it. This is what
        scikit-learn's `tol` means, since the mean variance of standardised features is 1.
    init : (K, F) float, optional
        Start here (encoding units), for example from an earlier clustering; then nothing is sampled.
    sample_rows : int
        Rows, drawn without replacement, on which starts are tried.
    restarts : int
        Starts tried on the sample; the one with the smallest inertia there is kept.
    engine : {"lloyd", "dask-ml"}
        What iterates over all rows.
    in_memory : bool
        Hold the rows in the workers' memory; otherwise each iteration loads the chunks again ("lloyd" only).

    Returns
    -------
    clustering : Clustering

    Raises
    ------
    DataError
        Fewer rows than clusters, fewer different rows than clusters, or encodings that are not finite.
    ConfigurationError
        Arguments that do not fit each other.

    Notes
    -----
    In memory, rows are held once, as float32, spread over the scheduler's workers. Otherwise a worker holds
    two chunks at a time: one that it computes on and the next one, which it loads meanwhile.
    """
    rows = Rows(chunks, lengths)
    if rows.total < n_clusters:
        raise DataError(
            f"{rows.total} encodings are fewer than n_clusters = {n_clusters}.",
            remedy="Lower n_clusters, or pick more.",
        )
    if n_clusters < 1 or max_iter < 1 or restarts < 1:
        raise ConfigurationError(
            f"n_clusters = {n_clusters}, max_iter = {max_iter}, restarts = {restarts} must be at least 1."
        )
    if engine == "dask-ml" and not in_memory:
        raise ConfigurationError(
            "dask-ml needs the encodings in memory.",
            remedy='Set cluster.engine = "lloyd", or raise execution.memory_budget.',
        )
    # Tasks run side by side, here or in workers that have one thread each: no product takes more than one.
    with threadpool_limits(limits=1):
        mean_F, scale_F, spread = _standards(rows, standardise)
        units = Units(mean_F, scale_F, quantum(rows.total, spread))
        if init is None:
            sample = rows.sample(min(rows.total, max(sample_rows, n_clusters)), seed)
            starts_KF = _start(sample, units, n_clusters, seed, restarts)
        else:
            starts_KF = _given_start(init, n_clusters, units)
        own = engine == "lloyd"
        passes: Passes = OwnPasses(rows, units, in_memory=in_memory) if own else DaskMLPasses(rows, units)
        centers_KF, counts_K, inertia, n_iter = _fit(passes, starts_KF, max_iter, tol)
    centers_KF = units.back(centers_KF)
    order = np.lexsort((*centers_KF.T[::-1], -counts_K))
    return Clustering(centers_KF[order], mean_F, scale_F, counts_K[order], inertia, n_iter)


def _standards(rows: Rows, standardise: bool) -> tuple[Floats, Floats, float]:
    """Mean, scale and largest spread of the features, float64.

    Moments are merged over the chunks in their order (Chan et al. 1983).
    """
    import dask

    count = 0
    mean_F: Floats = np.zeros(1)
    squares_F: Floats = np.zeros(1)
    for n, chunk_mean_F, chunk_squares_F in dask.compute(*[dask.delayed(_moments)(p) for p in rows.parts()]):
        if count and mean_F.shape != chunk_mean_F.shape:
            raise DataError(f"Chunks of {len(mean_F)} and of {len(chunk_mean_F)} features.")
        delta_F = chunk_mean_F - mean_F
        squares_F = squares_F + chunk_squares_F + delta_F**2 * (count * n / (count + n))
        mean_F = mean_F + delta_F * (n / (count + n))
        count += n
    sd_F = scale_F = np.sqrt(squares_F / count)
    if not standardise:
        scale_F = np.where(sd_F > 0, np.sqrt(np.mean(sd_F**2)), 0.0)
    alive_F = scale_F > DEAD_SHARE * max(float(scale_F.max()), 1e-30)
    scale_F = np.where(alive_F, scale_F, np.inf)
    return mean_F, scale_F, float((sd_F / scale_F).max())


def _moments(rows_NF: Array) -> tuple[int, Floats, Floats]:
    rows_NF = rows_NF.astype(np.float64)
    if not np.isfinite(rows_NF).all():
        raise DataError("Encodings hold NaN or infinity.", remedy="Check the weights, and encode again.")
    mean_F = rows_NF.mean(axis=0)
    return len(rows_NF), mean_F, ((rows_NF - mean_F) ** 2).sum(axis=0)


def _start(sample: Any, units: Units, n_clusters: int, seed: int, restarts: int) -> Floats:
    """Centres of the best of several k-means runs on a (delayed) sample, one task each."""
    import dask

    rows = dask.delayed(_plain)(sample, units)
    # As scikit-learn draws the seeds of its restarts.
    seeds = np.random.RandomState(seed).randint(np.iinfo(np.int32).max, size=restarts).tolist()
    runs = [dask.delayed(_tried)(rows, n_clusters, one) for one in seeds]
    total, distinct, *found = dask.compute(dask.delayed(len)(rows), dask.delayed(_distinct)(rows), *runs)
    if distinct < n_clusters:
        raise DataError(
            f"Only {distinct} of {total} encodings differ, fewer than n_clusters = {n_clusters}.",
            remedy="Lower n_clusters, or see whether the encoder's units are dead.",
        )
    centers_KF: Floats = min(found, key=lambda run: run[0])[1].astype(np.float64)
    return centers_KF


def _plain(rows_NF: Array, units: Units) -> Array:
    return np.ascontiguousarray(units.prepare(rows_NF)[:, :-2])


def _distinct(rows_NF: Array) -> int:
    return len(np.unique(rows_NF, axis=0))


def _tried(rows_NF: Array, n_clusters: int, seed: int) -> tuple[float, Array]:
    """Inertia and centres of one run of scikit-learn."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    # With more threads scikit-learn adds partial sums in the order in which they arrive.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # of rows that do not differ, which we say ourselves
        run = KMeans(n_clusters, n_init=1, random_state=seed, algorithm="lloyd").fit(rows_NF)
    return float(run.inertia_), run.cluster_centers_


def _given_start(init: Array, n_clusters: int, units: Units) -> Floats:
    init = np.asarray(init)
    if init.shape != (n_clusters, len(units.mean_F)):
        raise ConfigurationError(f"init has shape {init.shape}, expected {(n_clusters, len(units.mean_F))}.")
    return units.of(init)


def _fit(
    passes: Passes, centers_KF: Floats, max_iter: int, tol: float
) -> tuple[Floats, npt.NDArray[np.int64], float, int]:
    """Iterate over all rows; a cluster without members is moved to the farthest row, and Lloyd runs again.

    A cluster may lose its members and win others as the centres move: then nothing is to be repaired, and
    Lloyd goes on.
    """
    iterations = 0
    for attempt in range(REPAIRS + 1):
        centers_KF, more, settled = passes.iterate(centers_KF, max_iter, tol)
        iterations += more
        found = passes.summary(centers_KF)
        if found.counts_K.all() and not settled and attempt < REPAIRS:
            continue
        if found.counts_K.all():
            return centers_KF, found.counts_K, float(found.inertia), iterations
        empty_M = np.flatnonzero(found.counts_K == 0)
        centers_KF = _refilled(centers_KF, empty_M, passes.farthest(centers_KF, len(centers_KF)).rows_MF)
    raise DataError(
        f"{len(empty_M)} of {len(centers_KF)} clusters stay empty: too few encodings differ.",
        remedy="Lower n_clusters, or see whether the encoder's units are dead.",
    )


def _refilled(centers_KF: Floats, empty_M: Array, far_MF: Array) -> Floats:
    """Move empty clusters onto the rows that lie farthest from their centres, one after the other."""
    centers_KF = centers_KF.copy()
    taken: list[Array] = []
    for empty in empty_M:
        fresh = next((row for row in far_MF if not any(np.array_equal(row, t) for t in taken)), None)
        if fresh is not None:
            taken.append(fresh)
            centers_KF[empty] = fresh
    return centers_KF
