"""Small boxes around picks: where they lie, cutting them out, and putting them back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cryoscale.errors import LayoutError
from cryoscale.geometry import Box, Zyx

Float32 = npt.NDArray[np.float32]


def patch_box(centre: Sequence[int], size: int | Sequence[int]) -> Box:
    """Return the box of a patch: from ``c - s // 2`` to ``c - s // 2 + s``, half open."""
    extent = Zyx.of(size)
    start = [int(c) - s // 2 for c, s in zip(centre, extent, strict=True)]
    return Box.of(start, [a + s for a, s in zip(start, extent, strict=True)])


def fits(centres_N3: npt.ArrayLike, size: int | Sequence[int], shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Tell which patches lie wholly inside a volume.

    Parameters
    ----------
    centres_N3 : (N, 3) int
        Centre voxels z, y, x.
    size, shape : int or three int
        Extent of a patch, and of the volume, voxels.
    """
    extent = np.array(Zyx.of(size))
    start = np.asarray(centres_N3, dtype=np.int64).reshape(-1, 3) - extent // 2
    return np.asarray(np.all((start >= 0) & (start + extent <= np.array(Zyx.of(shape))), axis=1))


def cut(
    volume_ZYX: npt.NDArray[np.generic],
    centres_N3: npt.ArrayLike,
    size: int | Sequence[int],
    origin: Sequence[int] = (0, 0, 0),
    *,
    out: Float32 | None = None,
) -> Float32:
    """Cut patches out of a volume, or out of a part of one.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float
        Density.
    centres_N3 : (N, 3) int
        Centre voxels z, y, x in the coordinates of the whole volume.
    size : int or three int
        Extent of a patch, voxels.
    origin : three int
        The voxel of the whole volume that `volume_ZYX[0, 0, 0]` is.
    out : (N, Z, Y, X) float32, optional
        Where to write.

    Returns
    -------
    patches_NZYX : (N, Z, Y, X) float32

    Raises
    ------
    LayoutError
        A patch leaves the array; select with `fits` first.
    """
    extent = Zyx.of(size)
    centres = np.asarray(centres_N3, dtype=np.int64).reshape(-1, 3)
    starts = centres - np.array(origin, dtype=np.int64) - np.array(extent) // 2
    stops = starts + np.array(extent)
    outside = np.any((starts < 0) | (stops > np.array(volume_ZYX.shape)), axis=1)
    if outside.any():
        worst, count = tuple(centres[outside][0].tolist()), int(outside.sum())
        raise LayoutError(
            f"the patch of {tuple(extent)} around voxel {worst} leaves the array of shape {volume_ZYX.shape} "
            f"at {tuple(origin)}; {count} of {len(centres)} patches do"
        )
    if out is None:
        out = np.empty((len(centres), *extent), dtype=np.float32)
    for row, ((z0, y0, x0), (z1, y1, x1)) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        out[row] = volume_ZYX[z0:z1, y0:y1, x0:x1]
    return out


def embed_mean(
    patches_NZYX: npt.NDArray[np.generic],
    centres_N3: npt.ArrayLike,
    shape: Sequence[int],
    origin: Sequence[int] = (0, 0, 0),
) -> tuple[Float32, npt.NDArray[np.int32]]:
    """Put patches back at their places in a volume; where they overlap, take their mean.

    Parameters
    ----------
    patches_NZYX : (N, Z, Y, X) float
        Patches, for example cluster averages or a model's output.
    centres_N3 : (N, 3) int
        Centre voxels z, y, x in the coordinates of the whole volume.
    shape : three int
        Extent of the volume, or of the part of it, that is filled; what lies outside is cut off.
    origin : three int
        The voxel of the whole volume where that part begins.

    Returns
    -------
    mean_ZYX : (Z, Y, X) float32
        Zero where no patch lies.
    count_ZYX : (Z, Y, X) int32
        How many patches cover each voxel.
    """
    centres = np.asarray(centres_N3, dtype=np.int64).reshape(-1, 3)
    if len(centres) != len(patches_NZYX):
        raise LayoutError(f"{len(patches_NZYX)} patches for {len(centres)} centres")
    whole = Box.whole(shape)
    total = np.zeros(whole.shape, dtype=np.float32)
    count = np.zeros(whole.shape, dtype=np.int32)
    for patch_ZYX, centre in zip(patches_NZYX, centres.tolist(), strict=True):
        box = patch_box(centre, patch_ZYX.shape).relative_to(origin)
        inside = box.intersect(whole)
        if inside.empty:
            continue
        total[inside.slices] += patch_ZYX[inside.relative_to(box.start).slices]
        count[inside.slices] += 1
    np.divide(total, count, out=total, where=count > 0)
    return total, count
