"""How far a fully convolutional network looks: a walk back from an aligned tile of its output to its input.

A tile covers voxels [0, n) of an axis, n divisible by the network's alignment; on a grid 2^k times as coarse
it covers [0, n / 2^k). Each step back says how many voxels of its input are needed before and after the tile,
given how many of its output are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reach:
    """What is needed beyond a tile on one grid, voxels of that grid: `before` its first, `after` its last."""

    before: int = 0
    after: int = 0

    def conv(self, kernel: int = 3, times: int = 1) -> Reach:
        """Go back through 'same' convolutions."""
        radius = kernel // 2 * times
        return Reach(self.before + radius, self.after + radius)

    def pool(self) -> Reach:
        """Go back through a pooling of 2: to the finer grid."""
        return Reach(2 * self.before, 2 * self.after)

    def strided_conv(self) -> Reach:
        """Go back through a convolution of kernel 3 and stride 2: result j looks at 2 j - 1, 2 j, 2 j + 1."""
        return Reach(2 * self.before + 1, 2 * self.after)

    def nearest(self) -> Reach:
        """Go back through doubling by nearest neighbours: to the coarser grid, whole voxels of it."""
        return Reach(-(-self.before // 2), -(-self.after // 2))

    def linear(self) -> Reach:
        """Go back through linear doubling: 2 j leans on j - 1 and j, 2 j + 1 on j and j + 1."""
        return Reach(self.before // 2 + 1, self.after // 2 + 1)

    def deconv(self) -> Reach:
        """Go back through a deconvolution of kernel 3 and stride 2: 2 j sees j, 2 j + 1 sees j and j + 1."""
        return Reach(-(-self.before // 2), self.after // 2 + 1)

    def __or__(self, other: Reach) -> Reach:
        """Join two ways to the same grid."""
        return Reach(max(self.before, other.before), max(self.after, other.after))

    @property
    def halo(self) -> int:
        """The larger of both, which is what has to be there on every side."""
        return max(self.before, self.after)
