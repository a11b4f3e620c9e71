"""Local maxima, thresholds, and suppression of peaks that are too close."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryoscale.errors import DataError

# Face and edge neighbours of a voxel: the 3 x 3 x 3 cube without its centre and its eight corners.
NEIGHBOURS = [o for o in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, o)) < 3]

# Scores compared at once by `local_maxima`: with what is made of them they stay in the processor's cache.
_IN_CACHE = 200_000

# Bounds the memory of one round of suppression: 32 bytes per pair.
_MOST_PAIRS = 8_000_000
_ROUND = 65_536


def local_maxima(score_ZYX: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Find voxels that are strictly greater than their 18 face and edge neighbours.

    Parameters
    ----------
    score_ZYX : (Z, Y, X) float
        Neighbours outside the array are ignored; NaN is never a maximum and hides its neighbours.

    Returns
    -------
    positions_N3 : (N, 3) int64
        Voxels z, y, x in raster order. Plateaus have no maximum.
    """
    score = np.asarray(score_ZYX)
    if not score.size:
        return np.empty((0, 3), dtype=np.int64)
    n_z, n_y, n_x = score.shape
    found = []
    # A few planes at a time, with a layer around them that no voxel can lie below.
    planes = max(1, _IN_CACHE // ((n_y + 2) * (n_x + 2)) - 2)
    padded = np.full((min(planes, n_z) + 2, n_y + 2, n_x + 2), -np.inf, dtype=score.dtype)
    scratch = maxima_scratch(padded.size)
    for start in range(0, n_z, planes):
        low, high = max(start - 1, 0), min(start + planes + 1, n_z)
        here = padded[: min(start + planes, n_z) - start + 2]
        here[[0, -1]] = -np.inf
        here[low - start + 1 : high - start + 1, 1:-1, 1:-1] = score[low:high]
        found.append(maxima_inside(here, scratch) + np.array([start - 1, -1, -1]))
    return np.concatenate(found)


def maxima_inside(
    score_ZYX: npt.NDArray[np.float32], scratch: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Find local maxima as `local_maxima` does, but not in the outermost layer of the array.

    Parameters
    ----------
    score_ZYX : (Z, Y, X) float
        Contiguous; at least three voxels along each axis. The outermost layer is looked at, not searched.
    scratch : (3, N) bool, optional
        From `maxima_scratch`.

    Returns
    -------
    positions_N3 : (N, 3) int64
        Voxels z, y, x of the array, in raster order.

    Notes
    -----
    One comparison per axis tells both sides: a voxel stays if it is greater than the one before and the next
    is not greater than it. Rows run on into each other, which only matters in the outermost layer. What
    survives, one voxel in a hundred or so, is compared with all its neighbours.
    """
    _, n_y, n_x = score_ZYX.shape
    flat = score_ZYX.reshape(-1)
    steps = (n_y * n_x, n_x, 1)
    first = sum(steps)
    last = len(flat) - first
    rises, turns, peaks = scratch if scratch is not None else maxima_scratch(len(flat))
    peaks[last - first :] = False  # words are looked at whole
    peak, turn = peaks[: last - first], turns[: last - first]
    for step in steps:
        # rise[i]: voxel first - step + i is lower than the one a step on.
        rise = np.greater(
            flat[first : last + step], flat[first - step : last], out=rises[: last - first + step]
        )
        if step == steps[0]:
            np.greater(rise[:-step], rise[step:], out=peak)
        else:
            np.greater(rise[:-step], rise[step:], out=turn)
            np.logical_and(peak, turn, out=peak)
    place = _true_places(peaks) + first
    x, y = place % n_x, place // n_x % n_y
    place = place[(x > 0) & (x < n_x - 1) & (y > 0) & (y < n_y - 1)]
    around = np.array([sum(o * step for o, step in zip(offset, steps, strict=True)) for offset in NEIGHBOURS])
    highest = flat[place[:, None] + around].max(axis=1)  # NaN if one of them is
    place = place[flat[place] > highest]
    return np.stack(np.unravel_index(place, score_ZYX.shape), axis=1).astype(np.int64)


def maxima_scratch(voxels: int) -> npt.NDArray[np.bool_]:
    """Make the room that `maxima_inside` needs for an array of so many voxels, to be used again."""
    return np.zeros((3, -(-voxels // 8) * 8), dtype=bool)


def _true_places(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return where a sparse mask, of a multiple of eight voxels, is true: words first, then their bytes."""
    words = np.flatnonzero(mask.view(np.uint64) != 0)
    row, byte = np.nonzero(mask.reshape(-1, 8)[words])
    return np.asarray(words[row] * 8 + byte, dtype=np.int64)


def range_threshold(scores_N: npt.ArrayLike, t: float = 3.0) -> float:
    """Return the threshold of the original tools, m + t (M - m) / 20 with M the best and m the worst score.

    It needs the scores of the whole tomogram: a reduction after the blocks. Without scores it is infinite.
    """
    scores = np.asarray(scores_N, dtype=np.float64)
    if not scores.size:
        return float("inf")
    worst, best = float(scores.min()), float(scores.max())
    return worst + t * (best - worst) / 20.0


def noise_threshold(noise_scores_N: npt.ArrayLike, k: float) -> float:
    """Return mean + k sd of peak scores found in noise (see `noise_volume`)."""
    scores = np.asarray(noise_scores_N, dtype=np.float64)
    if not scores.size:
        raise DataError("the noise volume gave no peak.", remedy="Make it larger than the filter's width.")
    return float(scores.mean() + k * scores.std())


def noise_volume(sample_N: npt.ArrayLike, shape: tuple[int, int, int], seed: int) -> npt.NDArray[np.float32]:
    """Return a volume of voxels drawn at random from a sample: same grey values, no structure.

    Parameters
    ----------
    sample_N : (N,) float
        Grey values of the tomogram.
    shape : three int
        Extent of the volume.
    seed : int
        Same seed, same volume.
    """
    sample = np.asarray(sample_N, dtype=np.float32).ravel()
    if not sample.size:
        raise DataError("no voxels to draw noise from.")
    return np.random.default_rng(seed).choice(sample, size=tuple(shape))


def suppress(
    positions_N3: npt.ArrayLike, scores_N: npt.ArrayLike, min_distance: float
) -> npt.NDArray[np.int64]:
    """Keep the best peaks so that no two are closer than `min_distance`: greedy, best first.

    Parameters
    ----------
    positions_N3 : (N, 3) int or float
        Positions z, y, x.
    scores_N : (N,) float
        Larger is better. Equal scores are taken in the order of position z, y, x, whatever the input order.
    min_distance : float
        In the units of the positions. A later peak at exactly this distance stays.

    Returns
    -------
    kept : (M,) int64
        Indices into the input, best first.

    Raises
    ------
    DataError
        A score or a position is not finite.
    """
    positions = np.asarray(positions_N3, dtype=np.float64).reshape(-1, 3)
    scores = np.asarray(scores_N, dtype=np.float64).ravel()
    if not (np.isfinite(scores).all() and np.isfinite(positions).all()):
        raise DataError("peaks with scores or positions that are not finite cannot be ranked.")
    z, y, x = positions.T
    order = np.lexsort((x, y, z, -scores)).astype(np.int64)
    if min_distance <= 0 or not len(order):
        return order
    kept = np.empty(0, dtype=np.int64)
    # Rounds of descending rank: each drops what is too near to earlier winners, then ranks itself.
    pending = [order[i : i + _ROUND] for i in range(0, len(order), _ROUND)][::-1]
    while pending:
        ranked = pending.pop()
        if len(kept):
            near, _ = cKDTree(positions[kept]).query(
                positions[ranked], distance_upper_bound=min_distance * 1.001
            )
            ranked = ranked[near >= min_distance]
        if not len(ranked):
            continue
        tree = cKDTree(positions[ranked])
        if len(ranked) > 1 and tree.count_neighbors(tree, min_distance) > _MOST_PAIRS:
            half = len(ranked) // 2
            pending += [ranked[half:], ranked[:half]]
            continue
        kept = np.concatenate([kept, ranked[_greedy(tree, min_distance)]])
    return kept


def _greedy(tree: cKDTree, min_distance: float) -> npt.NDArray[np.bool_]:
    """Return which points of a tree stay, taken in the order of their index."""
    points = np.asarray(tree.data)
    keep = np.ones(len(points), dtype=bool)
    pairs = tree.query_pairs(min_distance * (1.0 + 1e-9), output_type="ndarray")
    distance = np.sqrt(((points[pairs[:, 0]] - points[pairs[:, 1]]) ** 2).sum(axis=1))
    pairs = np.sort(pairs[distance < min_distance], axis=1)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    first = np.searchsorted(pairs[:, 0], np.arange(len(points) + 1))
    later = pairs[:, 1]
    for index in np.unique(pairs[:, 0]):
        if keep[index]:
            keep[later[first[index] : first[index + 1]]] = False
    return keep
