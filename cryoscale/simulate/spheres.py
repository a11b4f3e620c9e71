"""The sphere that bounds a density: points on its surface, and the smallest sphere around them.

Shape suffixes: N points; 3 coordinates z, y, x.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull, QhullError

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]


def surface_points(volume_ZYX: Floats, level: float) -> Points:
    """Return where the edges of the voxel grid cross a contour, by linear interpolation.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float32
        A density; it counts as 0 beyond its faces.
    level : float
        The contour, above 0 and below the greatest density.

    Returns
    -------
    points_N3 : (N, 3) float64
        Positions z, y, x in voxels.
    """
    padded_ZYX = np.pad(volume_ZYX, 1)
    found = []
    for axis in range(3):
        moved = np.moveaxis(padded_ZYX, axis, 0)
        low, high = moved[:-1], moved[1:]
        place = np.nonzero((low > level) != (high > level))
        first = low[place].astype(np.float64)
        along = place[0] + (level - first) / (high[place] - first)
        columns = [along, *(p.astype(np.float64) for p in place[1:])]
        columns.insert(axis, columns.pop(0))
        found.append(np.stack(columns, axis=1))
    return np.concatenate(found) - 1


def bounding_sphere(points_N3: Points) -> tuple[Points, float]:
    """Return centre and radius of the smallest sphere around points, exactly.

    The points that carry the sphere are exchanged, the farthest outside coming in, until none is outside; the
    radius grows each time, so it ends. After Gärtner 1999, doi:10.1007/3-540-48481-7_29.
    """
    points_N3 = np.asarray(points_N3, dtype=np.float64)
    if len(points_N3) > 16:
        try:
            points_N3 = points_N3[np.sort(ConvexHull(points_N3).vertices)]
        except QhullError:  # flat: all of them count
            points_N3 = np.unique(points_N3, axis=0)
    middle = points_N3.mean(axis=0)
    first = int(np.argmax(((points_N3 - middle) ** 2).sum(axis=1)))
    support, centre, radius = points_N3[[first]], points_N3[first], 0.0
    for _ in range(1000):
        distance_N = np.sqrt(((points_N3 - centre) ** 2).sum(axis=1))
        farthest = int(np.argmax(distance_N))
        if distance_N[farthest] <= radius * (1 + 1e-10) + 1e-12:
            break
        support, centre, radius = _carried_by(np.vstack([support, points_N3[farthest]]))
    return centre, radius


def _carried_by(points_N3: Points) -> tuple[Points, Points, float]:
    """Return the smallest sphere around at most five points, and which of them lie on it."""
    best: tuple[Points, Points, float] | None = None
    for size in range(1, min(4, len(points_N3)) + 1):
        for chosen in itertools.combinations(range(len(points_N3)), size):
            support = points_N3[list(chosen)]
            # The centre lies in the flat through the support, equally far from all of it.
            arms = support[1:] - support[0]
            solution = np.linalg.lstsq(2 * arms, (arms**2).sum(axis=1), rcond=None)[0] if size > 1 else 0.0
            centre = support[0] + solution
            radius = float(np.sqrt(((support - centre) ** 2).sum(axis=1)).max())
            reach = float(np.sqrt(((points_N3 - centre) ** 2).sum(axis=1)).max())
            if reach <= radius * (1 + 1e-9) + 1e-12 and (best is None or radius < best[2]):
                best = support, centre, radius
    if best is None:  # numerically degenerate: a sphere that surely holds them all
        centre = points_N3.mean(axis=0)
        best = points_N3, centre, float(np.sqrt(((points_N3 - centre) ** 2).sum(axis=1)).max())
    return best
