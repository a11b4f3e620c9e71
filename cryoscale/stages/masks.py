"""What of a decoded patch is object: one rule for the masks of the training and for decoded labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cryoscale.ops.shape import otsu_level

OTSU_ROWS = 512  # patches whose histogram gives the level
HIGHEST_LEVEL = -1e-3  # of Otsu's, sd: objects are darker than the median


def class_level(decoded: npt.NDArray[np.float32], given: float | None) -> float:
    """Return below what value a voxel of a decoded patch is object, sd of the smoothed tomogram.

    Parameters
    ----------
    decoded : (N, Z, Y, X) float32
        Members of the class; a stride over them where there are many.
    given : float, optional
        `segmenter.level`, which counts; Otsu's level otherwise.

    Returns
    -------
    level : float
        Negative: objects are darker than the tomogram's median, whatever the histogram of the members says.
    """
    if given is not None:
        return given
    return min(otsu_level(decoded[:: -(-len(decoded) // OTSU_ROWS)]), HIGHEST_LEVEL)
