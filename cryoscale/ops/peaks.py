"""Local maxima, thresholds, and suppression of peaks that are too close."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryoscale.errors import DataError

# Face and edge neighbours of a voxel: the 3 x 3 x 3 cube without its centre and its eight corners.
_NEIGHBOURS = [o for o in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, o)) < 3]

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
    # The neighbours along x and z are tested everywhere, which is quick; the survivors look up the others.
    peak = np.empty(score.shape, dtype=bool)
    for z in range(len(score)):
        plane = score[z]
        row = peak[z]
        row[:, 0] = plane[:, 0] == plane[:, 0]
        np.greater(plane[:, 1:], plane[:, :-1], out=row[:, 1:])
        row[:, :-1] &= plane[:, :-1] > plane[:, 1:]
        if z > 0:
            row &= plane > score[z - 1]
        if z + 1 < len(score):
            row &= plane > score[z + 1]
    flat = np.flatnonzero(peak)
    values, centre = score.ravel(), score.ravel()[flat]
    index = np.stack(np.unravel_index(flat, score.shape), axis=1)
    for offset in _NEIGHBOURS:
        place = index + offset
        inside = np.all((place >= 0) & (place < score.shape), axis=1)
        jump = (offset[0] * score.shape[1] + offset[1]) * score.shape[2] + offset[2]
        good = ~inside | (centre > values[np.where(inside, flat + jump, flat)])
        flat, centre, index = flat[good], centre[good], index[good]
    return index.astype(np.int64)


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
