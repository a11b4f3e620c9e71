"""K-means over encodings that lie in many chunks: fit once, freeze, assign for ever.

Legend of the shape suffixes: N items, F numbers of an encoding, K clusters.

Lloyd's iterations run in dask-ml, on whichever dask scheduler is active. What dask-ml leaves undone is done
here: a good start (k-means++ of scikit-learn on a fixed sample, several restarts), clusters that became
empty, the inertia, and ids that mean something. The order of rows and the sizes of the chunks are part of the
result's last bits: keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.clustering import ROWS, Clustering, assign, match_to, nearest, standardised

__all__ = ["Clustering", "assign", "fit_kmeans", "match_to"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Chunk = Callable[[], Array] | Array

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
        Stop when the squared shift of all centres together, in standardised units, falls below it.
    init : (K, F) float, optional
        Start here (encoding units), for example from an earlier clustering; then nothing is sampled.
    sample_rows : int
        Rows, drawn without replacement, on which starts are tried.
    restarts : int
        Starts tried on the sample; the one with the smallest inertia there is kept.

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
    Rows are held in memory once, as float32, spread over the scheduler's workers.
    """
    loaded = _Rows(chunks, lengths)
    if loaded.total < n_clusters:
        raise DataError(
            f"{loaded.total} encodings are fewer than n_clusters = {n_clusters}.",
            remedy="Lower n_clusters, or pick more.",
        )
    if n_clusters < 1 or max_iter < 1 or restarts < 1:
        raise ConfigurationError(
            f"n_clusters = {n_clusters}, max_iter = {max_iter}, restarts = {restarts} must be at least 1."
        )
    mean_F, scale_F = _standards(loaded, standardise)
    if init is None:
        rows = loaded.sample(min(loaded.total, max(sample_rows, n_clusters)), seed)
        starts_KF = _start(standardised(rows, mean_F, scale_F), n_clusters, seed, restarts)
    else:
        starts_KF = _given_start(init, n_clusters, mean_F, scale_F)
    centers_KF, counts_K, inertia, n_iter = _lloyd(loaded, mean_F, scale_F, starts_KF, max_iter, tol)
    centers_KF = mean_F + centers_KF * np.where(np.isfinite(scale_F), scale_F, 0.0)
    order = np.lexsort((*centers_KF.T[::-1], -counts_K))
    return Clustering(centers_KF[order], mean_F, scale_F, counts_K[order], inertia, n_iter)


class _Rows:
    """The chunks as dask sees them."""

    def __init__(self, chunks: Sequence[Chunk], lengths: Sequence[int] | None) -> None:
        import dask

        if lengths is None:
            if any(callable(chunk) for chunk in chunks):
                raise ConfigurationError("Chunks that are loaded need their lengths.")
            lengths = [len(chunk) for chunk in chunks]  # type: ignore[arg-type]
        if len(lengths) != len(chunks):
            raise ConfigurationError(f"{len(chunks)} chunks with {len(lengths)} lengths.")
        kept = [(chunk, n) for chunk, n in zip(chunks, lengths, strict=True) if n > 0]
        self.lengths = [int(n) for _, n in kept]
        self.total = sum(self.lengths)
        self.parts = [dask.delayed(_load, pure=False)(chunk, n) for chunk, n in kept]

    def sample(self, size: int, seed: int) -> Array:
        """Load `size` rows, drawn without replacement, in their order."""
        import dask

        drawn = np.sort(np.random.default_rng(seed).choice(self.total, size=size, replace=False))
        starts = np.cumsum([0, *self.lengths])
        cuts = np.searchsorted(drawn, starts)
        wanted = [
            dask.delayed(np.take)(part, drawn[cuts[i] : cuts[i + 1]] - starts[i], axis=0)
            for i, part in enumerate(self.parts)
            if cuts[i] < cuts[i + 1]
        ]
        return np.concatenate(dask.compute(*wanted))


def _load(chunk: Chunk, length: int) -> Array:
    rows_NF = np.asarray(chunk() if callable(chunk) else chunk)
    if rows_NF.ndim != 2 or len(rows_NF) != length:
        raise DataError(f"A chunk of encodings has shape {rows_NF.shape}, expected {length} rows.")
    return rows_NF


def _standards(rows: _Rows, standardise: bool) -> tuple[Floats, Floats]:
    """Mean and scale of each feature, float64, merged over the chunks in their order (Chan et al. 1983)."""
    import dask

    count = 0
    mean_F: Floats = np.zeros(1)
    squares_F: Floats = np.zeros(1)
    for n, chunk_mean_F, chunk_squares_F in dask.compute(*[dask.delayed(_moments)(p) for p in rows.parts]):
        if count and mean_F.shape != chunk_mean_F.shape:
            raise DataError(f"Chunks of {len(mean_F)} and of {len(chunk_mean_F)} features.")
        delta_F = chunk_mean_F - mean_F
        squares_F = squares_F + chunk_squares_F + delta_F**2 * (count * n / (count + n))
        mean_F = mean_F + delta_F * (n / (count + n))
        count += n
    sd_F = np.sqrt(squares_F / count)
    if not standardise:
        sd_F = np.where(sd_F > 0, np.sqrt(np.mean(sd_F**2)), 0.0)
    alive_F = sd_F > DEAD_SHARE * max(float(sd_F.max()), 1e-30)
    return mean_F, np.where(alive_F, sd_F, np.inf)


def _moments(rows_NF: Array) -> tuple[int, Floats, Floats]:
    rows_NF = rows_NF.astype(np.float64)
    if not np.isfinite(rows_NF).all():
        raise DataError("Encodings hold NaN or infinity.", remedy="Check the weights, and encode again.")
    mean_F = rows_NF.mean(axis=0)
    return len(rows_NF), mean_F, ((rows_NF - mean_F) ** 2).sum(axis=0)


def _start(sample_NF: Floats, n_clusters: int, seed: int, restarts: int) -> Floats:
    """Centres of the best of several k-means runs on a sample."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    distinct = len(np.unique(sample_NF, axis=0))
    if distinct < n_clusters:
        raise DataError(
            f"Only {distinct} of {len(sample_NF)} encodings differ, fewer than n_clusters = {n_clusters}.",
            remedy="Lower n_clusters, or see whether the encoder's units are dead.",
        )
    # With more threads scikit-learn adds partial sums in the order in which they arrive.
    with threadpool_limits(limits=1):
        best = KMeans(n_clusters, n_init=restarts, random_state=seed, algorithm="lloyd").fit(sample_NF)
    centers_KF: Floats = best.cluster_centers_
    return centers_KF


def _given_start(init: Array, n_clusters: int, mean_F: Floats, scale_F: Floats) -> Floats:
    init = np.asarray(init)
    if init.shape != (n_clusters, len(mean_F)):
        raise ConfigurationError(f"init has shape {init.shape}, expected {(n_clusters, len(mean_F))}.")
    return standardised(init, mean_F, scale_F)


def _lloyd(
    rows: _Rows, mean_F: Floats, scale_F: Floats, centers_KF: Floats, max_iter: int, tol: float
) -> tuple[Floats, npt.NDArray[np.int64], float, int]:
    """Iterate over all rows; a cluster without members is moved to the farthest row, and Lloyd runs again."""
    import dask
    import dask.array as da
    from dask_ml.cluster import KMeans

    standardise = dask.delayed(_as_float32)
    parts = [
        da.from_delayed(standardise(part, mean_F, scale_F), (n, len(mean_F)), dtype=np.float32)
        for part, n in zip(rows.parts, rows.lengths, strict=True)
    ]
    data = da.concatenate(parts).persist()
    blocks = data.to_delayed().ravel()
    iterations = 0
    for _ in range(REPAIRS + 1):
        start_KF = centers_KF.astype(np.float32)
        fitted = KMeans(len(start_KF), init=start_KF, max_iter=max_iter, tol=tol).fit(data)
        iterations += fitted.n_iter_
        centers_KF = np.asarray(fitted.cluster_centers_, dtype=np.float64)
        found = dask.compute(*[dask.delayed(_summary)(block, centers_KF) for block in blocks])
        counts_K = sum(counts for counts, _, _, _ in found)
        if counts_K.all():
            return centers_KF, counts_K, float(sum(part for _, part, _, _ in found)), iterations
        centers_KF = _refilled(centers_KF, counts_K, found)
    raise DataError(
        f"{int((counts_K == 0).sum())} of {len(counts_K)} clusters stay empty: too few encodings differ.",
        remedy="Lower n_clusters, or see whether the encoder's units are dead.",
    )


def _refilled(centers_KF: Floats, counts_K: Array, found: Sequence[Any]) -> Floats:
    """Move empty clusters onto the rows that lie farthest from their centres, one after the other."""
    distances = np.concatenate([far for _, _, far, _ in found])
    candidates = np.concatenate([rows for _, _, _, rows in found])[np.argsort(-distances, kind="stable")]
    centers_KF = centers_KF.copy()
    taken: list[Array] = []
    for empty in np.flatnonzero(counts_K == 0):
        fresh = next((row for row in candidates if not any(np.array_equal(row, t) for t in taken)), None)
        if fresh is not None:
            taken.append(fresh)
            centers_KF[empty] = fresh
    return centers_KF


def _as_float32(rows_NF: Array, mean_F: Floats, scale_F: Floats) -> npt.NDArray[np.float32]:
    return standardised(rows_NF, mean_F, scale_F).astype(np.float32)


def _summary(rows_NF: Array, centers_KF: Floats) -> tuple[Array, float, Array, Array]:
    """Members per cluster, inertia, and the farthest rows (as many as there are clusters) with distances."""
    counts_K, inertia = np.zeros(len(centers_KF), dtype=np.int64), 0.0
    squared = np.empty(len(rows_NF))
    for start in range(0, len(rows_NF), ROWS):
        part = slice(start, start + ROWS)
        ids_N, squared[part] = nearest(rows_NF[part].astype(np.float64), centers_KF)
        counts_K += np.bincount(ids_N, minlength=len(centers_KF))
        inertia += float(squared[part].sum())
    far = np.argsort(-squared, kind="stable")[: len(centers_KF)]
    return counts_K, inertia, squared[far], rows_NF[far]
