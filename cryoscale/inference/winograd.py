"""Fewer multiplications for a 3-wide convolution along one axis, by polynomials (Winograd).

A tile of `m` outputs of a kernel of 3 needs `m + 2` inputs. Direct convolution takes 3 m products for it,
Winograd's way F(m, 3) takes m + 2:

    y = A^T [(G g) * (B^T d)]        d: m + 2 inputs, g: 3 weights, y: m outputs

With the other two axes and the channels left as they are, each of the m + 2 products becomes a whole
convolution over these, with the weights G g, which are made once. That is half of the products for m = 4, two
thirds for m = 2. B^T and A^T only add planes up, so they cost little where planes lie one after the other:
along the first axis, z.

Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", doi:10.1109/CVPR.2016.435.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_G = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


# Arrays, since a graph takes factors of its own type only.
_TWO, _FOUR, _FIVE, _EIGHT = (np.array(factor, np.float32) for factor in (2, 4, 5, 8))


def tile_of(length: int) -> int:
    """Return the outputs of a tile along an axis of this even length: 4 where that divides it, else 2."""
    return 4 if length % 4 == 0 else 2


def transform_weights(weights_OIZYX: npt.NDArray[np.float32], tile: int) -> list[npt.NDArray[np.float32]]:
    """Return G g along z: `tile` + 2 arrays (O, I, 1, Y, X).

    Parameters
    ----------
    weights_OIZYX : (O, I, 3, Y, X) float32
        Of a convolution (torch's sense: not flipped).
    tile : {2, 4}
        Outputs of a tile.
    """
    mixed = np.tensordot(np.array(_G[tile]), weights_OIZYX.astype(np.float64), axes=(1, 2))
    return [np.ascontiguousarray(part[:, :, None], dtype=np.float32) for part in mixed]


def transform_inputs(d: Sequence[Any]) -> list[Any]:
    """Return B^T d; the terms are anything that adds and takes a factor: arrays, nodes of a graph."""
    if len(d) == 4:
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    even, odd = d[4] - d[2] * _FOUR, d[3] - d[1] * _FOUR
    far, near = d[4] - d[2], (d[3] - d[1]) * _TWO
    return [
        d[0] * _FOUR - d[2] * _FIVE + d[4],
        even + odd,
        even - odd,
        far + near,
        far - near,
        d[1] * _FOUR - d[3] * _FIVE + d[5],
    ]


def transform_outputs(m: Sequence[Any]) -> list[Any]:
    """Return A^T m: the outputs of a tile, first to last."""
    total, difference = m[1] + m[2], m[1] - m[2]
    if len(m) == 4:
        return [m[0] + total, difference - m[3]]
    wide, skew = m[3] + m[4], m[3] - m[4]
    return [
        m[0] + total + wide,
        difference + skew * _TWO,
        total + wide * _FOUR,
        difference + skew * _EIGHT + m[5],
    ]
