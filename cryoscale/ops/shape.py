"""What the object in a patch looks like: how deep, how flat, how round; and a level that separates it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ShapeMeasures:
    """Measures of the dark object in a patch of canonical density.

    Parameters
    ----------
    depth : float
        Mean of the darkest 5 % of voxels below the patch's median, in sd of the tomogram; larger is stronger.
    planarity, linearity, sphericity : float
        From the eigenvalues a >= b >= c of the object's second moments: (b - c)/a, (a - b)/a, c/a; they
        add up to 1.
    offset : float
        Distance of the object's centre of mass from the patch's centre, in half box widths.
    fill : float
        Share of the patch that is object.
    """

    depth: float
    planarity: float
    linearity: float
    sphericity: float
    offset: float
    fill: float


def measure_shape(patch_ZYX: npt.NDArray[np.floating]) -> ShapeMeasures:
    """Measure the dark object of a patch.

    Parameters
    ----------
    patch_ZYX : (Z, Y, X) float
        Canonical density: objects negative.

    Notes
    -----
    Westin et al. 2002, doi:10.1016/S1361-8415(02)00053-1, for the three measures of a tensor's shape. Voxels
    are weighted by how much darker they are than the midpoint between background and object.
    """
    density = np.float64(np.median(patch_ZYX)) - np.asarray(patch_ZYX, np.float64)
    count = max(1, density.size // 20)
    depth = float(np.partition(density.ravel(), -count)[-count:].mean())
    weight = np.clip(density - 0.5 * depth, 0.0, None)
    total = weight.sum()
    if total <= 0:
        return ShapeMeasures(max(depth, 0.0), 0.0, 0.0, 1.0, 0.0, 0.0)
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in density.shape), indexing="ij"), -1)
    centre = (weight[..., None] * grid).sum(axis=(0, 1, 2)) / total
    away = (grid - centre).reshape(-1, 3)
    moments = (weight.reshape(-1, 1) * away).T @ away / total
    c, b, a = np.clip(np.linalg.eigvalsh(moments), 1e-9, None)
    half = np.array(density.shape) / 2
    return ShapeMeasures(
        depth=depth,
        planarity=float((b - c) / a),
        linearity=float((a - b) / a),
        sphericity=float(c / a),
        offset=float(np.linalg.norm(centre / half)),
        fill=float(np.mean(weight > 0)),
    )


def otsu_level(values_N: npt.NDArray[np.floating], bins: int = 256) -> float:
    """Return the level that best separates values into two groups.

    Notes
    -----
    Otsu 1979, doi:10.1109/TSMC.1979.4310076: the threshold of largest variance between groups.
    """
    counts, edges = np.histogram(np.asarray(values_N, np.float64), bins=bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    best = int(np.nanargmax(np.where(above > 0, between, np.nan))) if above[0] > 0 else 0
    return float(edges[best + 1])
