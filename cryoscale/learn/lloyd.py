"""Lloyd's step on rows in memory: exact labels from fast float32 products, and sums without rounding.

Legend of the shape suffixes: N rows, B rows of a tile, F numbers of an encoding, E these and two more,
K clusters, M rows that lie far out.

Nothing here depends on how rows are cut into chunks, on their order, on the number of threads or on the BLAS:

- A label is the nearest centre by float64 differences. Products in float32 find it; where they cannot tell
  two centres apart within their error, the differences decide (the bound: Higham 2002, section 3.1,
  doi:10.1137/1.9780898718027).
- Rows are rounded to multiples of a quantum that is so large that float64 adds them without any further
  rounding (Demmel and Nguyen 2013, doi:10.1109/ARITH.2013.9). The order of additions does not matter then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array
from scipy.spatial.distance import cdist

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

TILE = 768  # rows whose products with 100 centres stay in the second cache of a core
SUMMED = 10 * TILE  # rows that are converted to float64 at once
UNIT = 2.0**-24  # of rounding in float32
FINEST = 2.0**-24  # no quantum is smaller: float32 has no more digits around 1


def quantum(total: int, spread: float) -> float:
    """Return the power of two to whose multiples rows are rounded.

    Parameters
    ----------
    total : int
        How many rows there are.
    spread : float
        The largest root mean square of a feature over all rows, in the units of the rows.

    Returns
    -------
    quantum : float
        Any sum of such rows is a multiple of it and below 2^53 of it, since the absolute values of N numbers
        add up to at most N times their root mean square: float64 holds all partial sums exactly.
    """
    bound = max(total * (spread + 1.0), 1.0)  # 1: what rounding and merging of moments may add, generously
    return max(FINEST, 2.0 ** (math.ceil(math.log2(bound)) - 52))


def prepared(rows_NF: Array, mean_F: Singles, inverse_F: Singles, step: float) -> Singles:
    """Bring rows into standardised units, round them to multiples of `step`, and extend them.

    Parameters
    ----------
    rows_NF : (N, F) float
    mean_F, inverse_F : (F,) float32
        A row becomes (row - mean) * inverse.
    step : float
        As `quantum` returns it.

    Returns
    -------
    rows_NE : (N, F + 2) float32
        As `extended` makes them.
    """
    out_NE = np.empty((len(rows_NF), len(mean_F) + 2), np.float32)
    # Powers of two: dividing by the step and multiplying with it round nothing, in float32 either.
    whole_F = inverse_F * np.float32(1.0 / step)
    for start in range(0, len(rows_NF), TILE):
        part = slice(start, start + TILE)
        tile_BF = (rows_NF[part] - mean_F.astype(rows_NF.dtype)).astype(np.float32, copy=False)
        tile_BF *= whole_F
        np.rint(tile_BF, out=tile_BF)
        tile_BF *= np.float32(step)
        extended(tile_BF, out_NE[part])
    return out_NE


def extended(rows_NF: Array, out_NE: Singles | None = None) -> Singles:
    """Put two columns behind rows: ones, by which a product adds a constant, and the norm of the row."""
    if out_NE is None:
        out_NE = np.empty((len(rows_NF), rows_NF.shape[1] + 2), np.float32)
    out_NE[:, :-2] = rows_NF
    out_NE[:, -2] = 1.0
    # A little too long rather than too short: it bounds errors.
    norm_N = np.sqrt(np.einsum("nf,nf->n", rows_NF, rows_NF))
    out_NE[:, -1] = norm_N * np.asarray(1.0 + (rows_NF.shape[1] + 4) * UNIT, norm_N.dtype)
    return out_NE


@dataclass(frozen=True)
class Totals:
    """What a step adds up; two of them can be added, in any order, with the same result.

    Attributes
    ----------
    sums_KF : (K, F) float64
        Sum of the rows of each cluster, exact.
    counts_K : (K,) int64
    """

    sums_KF: Floats
    counts_K: npt.NDArray[np.int64]

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.sums_KF + other.sums_KF, self.counts_K + other.counts_K)

    def means(self, before_KF: Floats) -> Floats:
        """Return the new centres; those without members stay where they were."""
        lonely_K1 = (self.counts_K == 0)[:, None]
        return np.where(lonely_K1, before_KF, self.sums_KF / np.maximum(self.counts_K, 1)[:, None])


@dataclass(frozen=True)
class Summary:
    """How rows lie around centres; two of them can be added, in any order, with the same result.

    Attributes
    ----------
    counts_K : (K,) int64
    inertia : Fraction
        Sum of squared distances, each rounded to float64, without any further rounding.
    """

    counts_K: npt.NDArray[np.int64]
    inertia: Fraction

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.counts_K + other.counts_K, self.inertia + other.inertia)


@dataclass(frozen=True)
class Farthest:
    """Rows far from their centres, farthest first, and in their order where they are equally far.

    Attributes
    ----------
    squared_M : (M,) float64
        Squared distances.
    rows_MF : (M, F) float32
    """

    squared_M: Floats
    rows_MF: Singles

    def __add__(self, other: Farthest) -> Farthest:
        """Put those of later rows behind; nothing is dropped."""
        squared_M = np.concatenate([self.squared_M, other.squared_M])
        order = np.argsort(-squared_M, kind="stable")
        return Farthest(squared_M[order], np.concatenate([self.rows_MF, other.rows_MF])[order])

    def first(self, most: int) -> Farthest:
        """Keep that many."""
        return Farthest(self.squared_M[:most], self.rows_MF[:most])


def summary(rows_NE: Singles, centers_KF: Floats) -> Summary:
    """Say how rows (as `prepared` returns them) lie around centres in standardised units."""
    counts_K, inertia = np.zeros(len(centers_KF), np.int64), Fraction(0)
    for _, ids_N, squared_N in _distances(rows_NE, centers_KF):
        counts_K += np.bincount(ids_N, minlength=len(centers_KF))
        inertia += exact_sum(squared_N)
    return Summary(counts_K, inertia)


def farthest(rows_NE: Singles, centers_KF: Floats, most: int) -> Farthest:
    """Find the rows that lie farthest from their nearest centres, at most so many."""
    found = Farthest(np.empty(0), np.empty((0, centers_KF.shape[1]), np.float32))
    for part_NE, _, squared_N in _distances(rows_NE, centers_KF):
        found = (found + Farthest(squared_N, part_NE[:, :-2])).first(most)
    return found


def _distances(rows_NE: Singles, centers_KF: Floats) -> Iterator[tuple[Singles, Ids, Floats]]:
    """Yield rows, the ids of their nearest centres and the squared distances, some thousand at a time."""
    centers = Centers(centers_KF)
    for start in range(0, len(rows_NE), SUMMED):
        part_NE = rows_NE[start : start + SUMMED]
        ids_N = centers.nearest(part_NE)
        yield part_NE, ids_N, squared_to(part_NE[:, :-2].astype(np.float64), centers.exact_KF, ids_N)


def squared_to(rows_NF: Floats, centers_KF: Floats, ids_N: Array) -> Floats:
    """Return each row's squared distance to the centre of that id, by differences."""
    away_NF = rows_NF - centers_KF[ids_N]
    away_NF *= away_NF
    squared_N: Floats = away_NF.sum(axis=1)
    return squared_N


def exact_sum(values: Floats) -> Fraction:
    """Add up float64 numbers without rounding."""
    if not len(values):
        return Fraction(0)
    mantissa_N, exponent_N = np.frexp(values)
    whole_N = (mantissa_N * 2.0**53).astype(np.int64)
    # Two halves, since a sum of numbers of 53 bits may not fit into 64.
    high_N, low_N = whole_N >> 26, whole_N & (2**26 - 1)
    smallest = int(exponent_N.min())
    total = 0
    for exponent in np.flatnonzero(np.bincount(exponent_N - smallest)).tolist():
        equal_N = exponent_N == smallest + exponent
        number = (int(high_N.sum(where=equal_N)) << 26) + int(low_N.sum(where=equal_N))
        total += number << exponent
    return total * Fraction(2) ** (smallest - 53)


def totals(rows_NE: Singles, centers_KF: Floats) -> Totals:
    """Give each row to its nearest centre and add up the rows of each cluster.

    Parameters
    ----------
    rows_NE : (N, F + 2) float32
        As `prepared` returns them.
    centers_KF : (K, F) float64
        In standardised units.
    """
    centers = Centers(centers_KF)
    sums_KE = np.zeros((len(centers_KF), rows_NE.shape[1]))
    buffer_NE = np.empty((min(SUMMED, len(rows_NE)), rows_NE.shape[1]))
    for start in range(0, len(rows_NE), SUMMED):
        part_NE = rows_NE[start : start + SUMMED]
        exact_NE = buffer_NE[: len(part_NE)]
        np.copyto(exact_NE, part_NE)
        ids_N = centers.nearest(part_NE)
        # One entry per column: the product adds each row to its cluster, and its one to the count.
        shape = (len(centers_KF), len(ids_N))
        member_KN = csc_array((np.ones(len(ids_N)), ids_N, np.arange(len(ids_N) + 1)), shape=shape)
        sums_KE += member_KN @ exact_NE
    return Totals(sums_KE[:, :-2].copy(), sums_KE[:, -2].astype(np.int64))


class Centers:
    """Centres made ready for finding the nearest one of many rows.

    Parameters
    ----------
    centers_KF : (K, F) float64
    """

    def __init__(self, centers_KF: Floats) -> None:
        self.exact_KF = np.ascontiguousarray(centers_KF, dtype=np.float64)
        clusters, features = self.exact_KF.shape
        squares_K = (self.exact_KF**2).sum(axis=1)
        zeros_K1 = np.zeros((clusters, 1))  # for the norm of the row
        weights_KE = np.concatenate([-2.0 * self.exact_KF, squares_K[:, None], zeros_K1], axis=1)
        self.weights_KE = weights_KE.astype(np.float32)
        # Rounding of rows and weights, of F + 2 products and sums in any order, and of the threshold itself;
        # twice, since it may move one score up and another one down.
        far = math.sqrt(float(squares_K.max(initial=0.0)))
        share = 2 * 1.01 * (features + 8) * UNIT
        self.error = np.float32(share * far * far), np.float32(share * 2.0 * far)
        small = np.uint8 if clusters <= 255 else np.uint16 if clusters <= 65535 else np.uint32
        self.numbers_K1 = np.arange(clusters, dtype=small)[:, None]
        # Made once: fresh pages cost more than what is computed in them. So one thread at a time.
        shape = clusters, TILE
        self._space = np.empty(shape, np.float32), np.empty(shape, bool), np.empty(shape, small)

    def nearest(self, rows_NE: Singles, exact_NF: Floats | None = None) -> Ids:
        """Return the nearest centre of each row, the lowest id where several are equally near.

        Parameters
        ----------
        rows_NE : (N, F + 2) float32
            As `extended` makes them.
        exact_NF : (N, F) float64, optional
            The rows before they were rounded to float32, if they were.
        """
        ids_N = np.empty(len(rows_NE), np.int32)
        unsure: list[Array] = []
        for start in range(0, len(rows_NE), TILE):
            tile_BE = rows_NE[start : start + TILE]
            ids_N[start : start + TILE], unsure_B = self._tile(tile_BE)
            if len(unsure_B):
                unsure.append(unsure_B + start)
        for part in _batches(unsure):
            rows_BF = rows_NE[part, :-2] if exact_NF is None else exact_NF[part]
            squared_BK = cdist(rows_BF.astype(np.float64), self.exact_KF, metric="sqeuclidean")
            ids_N[part] = squared_BK.argmin(axis=1)
        return ids_N

    def _tile(self, tile_BE: Singles) -> tuple[Array, Array]:
        """Return ids, and the places of rows that have several centres within the error of the products."""
        scores_KB, near_KB, marked_KB = self._space
        if len(tile_BE) < TILE:
            scores_KB, near_KB, marked_KB = (space[:, : len(tile_BE)] for space in self._space)
        np.matmul(self.weights_KE, tile_BE.T, out=scores_KB)  # squared distance less the row's own square
        limit_B = tile_BE[:, -1] * self.error[1] + self.error[0]
        limit_B += np.minimum.reduce(scores_KB, axis=0)
        np.less_equal(scores_KB, limit_B, out=near_KB)
        near_KB = near_KB.view(np.uint8)
        ids_B = np.maximum.reduce(np.multiply(near_KB, self.numbers_K1, out=marked_KB), axis=0)
        count_B = np.add.reduce(near_KB, axis=0, dtype=marked_KB.dtype)
        return ids_B, np.flatnonzero(count_B != 1)


def _batches(unsure: list[Array]) -> Iterator[Array]:
    """Put the doubtful rows of many tiles together, a tile's number at a time."""
    rows = np.concatenate(unsure) if unsure else np.empty(0, np.int64)
    for start in range(0, len(rows), TILE):
        yield rows[start : start + TILE]
