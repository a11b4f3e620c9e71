"""The 24 rotations of a cube, and 48 symmetries with mirror images, as exact index operations.

A box with unequal sides keeps only the symmetries that preserve its shape. Index 0 changes nothing; the
rotations come first, so an index below the number of rotations means the same with and without flips.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Zyx

_Symmetry = tuple[tuple[int, ...], tuple[int, ...]]


def symmetry_count(size: int | Sequence[int], flips: bool = False) -> int:
    """Return how many symmetries a box of this extent has: 24 rotations for a cube, 48 with `flips`."""
    return len(_symmetries(Zyx.of(size), flips))


def transform(patches: npt.NDArray[np.generic], index: int) -> npt.NDArray[np.generic]:
    """Turn (or mirror) patches by one of the symmetries of their box.

    Parameters
    ----------
    patches : (N, Z, Y, X) or (N, C, Z, Y, X), or one (Z, Y, X)
        The last three axes are turned.
    index : int
        From 0 (nothing changes) to ``symmetry_count(size, flips) - 1``; the caller draws it, with its seed.

    Returns
    -------
    turned : same shape and type
        A new contiguous array; the same numbers at other places.
    """
    size = Zyx.of(patches.shape[-3:])
    known = _symmetries(size, True)
    if not 0 <= index < len(known):
        raise ConfigurationError(f"a box of {tuple(size)} has symmetries 0 to {len(known) - 1}, not {index}.")
    order, signs = known[index]
    lead = patches.ndim - 3
    turned = patches.transpose(*range(lead), *(lead + axis for axis in order))
    z, y, x = (slice(None, None, sign) for sign in signs)
    return np.ascontiguousarray(turned[..., z, y, x])


@lru_cache(maxsize=64)
def _symmetries(size: Zyx, flips: bool) -> tuple[_Symmetry, ...]:
    """List (order of axes, direction of each) that keep the shape, rotations before mirror images."""
    rotations: list[_Symmetry] = []
    mirrors: list[_Symmetry] = []
    for order in itertools.permutations(range(3)):
        if tuple(size[axis] for axis in order) != tuple(size):
            continue
        for signs in itertools.product((1, -1), repeat=3):
            # A signed permutation matrix is a rotation if its determinant is +1.
            determinant = round(float(np.linalg.det(np.eye(3)[list(order)]))) * int(np.prod(signs))
            (rotations if determinant > 0 else mirrors).append((order, signs))
    return tuple(rotations + mirrors if flips else rotations)
