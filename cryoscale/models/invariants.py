"""Numbers of a patch that do not change when the particle turns: powers of spherical harmonics by shell.

An autoencoder's code of a particle depends on its orientation, so one kind of particle lies in many places
of the space of codes. The density on a shell around the patch's centre, written as a sum of spherical
harmonics, has a power in each degree that no rotation changes (Kazhdan, Funkhouser, Rusinkiewicz 2003,
"Rotation invariant spherical harmonic representation of 3D shape descriptors"). The missing wedge does not
turn with the particle, so in tomograms less dependence is left, not none. There is nothing to train.

Shape suffixes: N patches, V voxels, B waves (shell, degree, order), I invariants (shell, degree).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import lpmv
from torch import Tensor, nn

DEGREES = 4
SHELL_VOXELS = 1.5
"""From one shell to the next."""
WIDTH_VOXELS = 0.8
"""Of a shell, a Gaussian's sd."""


class ShellInvariants(nn.Module):
    """Patches (N, 1, Z, Y, X) to invariants (N, I): shell by shell, degree by degree.

    The weights of a shell have norm 1. So degree 0 is the projection of the density on the shell's unit
    vector, with its sign; for the same density it grows with the root of the shell's number of voxels. Each
    further degree is the root of its power.

    Parameters
    ----------
    box : three ints
        Extent of a patch, voxels; the particle is at voxel side // 2.
    degrees : int
        Greatest degree of the harmonics.
    shell_voxels, width_voxels : float
        From one shell to the next, and a shell's sd.
    """

    basis_VB: Tensor
    sums_BI: Tensor

    def __init__(
        self,
        box: Sequence[int],
        degrees: int = DEGREES,
        shell_voxels: float = SHELL_VOXELS,
        width_voxels: float = WIDTH_VOXELS,
    ) -> None:
        super().__init__()
        self.degrees, self.shell_voxels, self.width_voxels = degrees, shell_voxels, width_voxels
        self.count = invariant_count(box, degrees, shell_voxels)
        shells = _shells(box, shell_voxels, width_voxels)
        waves = (degrees + 1) ** 2  # of a shell
        # Wave by wave into its place: the basis is large, and there is never more than a column besides.
        basis_VB = np.empty((math.prod(box), len(shells) * waves), np.float32)
        for number, wave_V in enumerate(_harmonics(box, degrees)):
            for shell, shell_V in enumerate(shells):
                basis_VB[:, shell * waves + number] = wave_V * shell_V
        groups = [2 * degree + 1 for degree in range(degrees + 1)] * len(shells)
        sums_BI = np.repeat(np.eye(self.count, dtype=np.float32), groups, axis=0)
        self.register_buffer("basis_VB", torch.from_numpy(basis_VB))
        self.register_buffer("sums_BI", torch.from_numpy(sums_BI))

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Return the invariants."""
        waves_NB = patches_NCZYX.flatten(1) @ self.basis_VB
        powers_NI = torch.sqrt(torch.clamp((waves_NB * waves_NB) @ self.sums_BI, min=0))
        # Degree 0 has one wave: its sign says whether a shell is dark or bright.
        first = torch.arange(self.count, device=powers_NI.device) % (self.degrees + 1) == 0
        signed_NI = waves_NB @ self.sums_BI
        return torch.where(first, signed_NI, powers_NI)


def invariant_count(box: Sequence[int], degrees: int = DEGREES, shell_voxels: float = SHELL_VOXELS) -> int:
    """Return how many invariants a patch has, without computing any."""
    return len(_radii(box, shell_voxels)) * (degrees + 1)


def basis_bytes(box: Sequence[int], count: int, degrees: int) -> int:
    """Return the size of the basis for so many invariants: each degree l of a shell has 2 l + 1 waves."""
    return math.prod(box) * count * (degrees + 1) * 4


def _radii(box: Sequence[int], shell_voxels: float) -> npt.NDArray[np.float64]:
    """Return the radius of each shell, from the middle out to the nearest face."""
    return np.arange(shell_voxels / 2 + 0.5, min(box) / 2, shell_voxels, dtype=np.float64)


def _grid(box: Sequence[int]) -> tuple[npt.NDArray[np.float64], ...]:
    """Return z, y, x of each voxel from the particle's place, (V,) each."""
    lines = [np.arange(side, dtype=np.float64) - side // 2 for side in box]
    z, y, x = np.meshgrid(*lines, indexing="ij")
    return z.ravel(), y.ravel(), x.ravel()


def _shells(box: Sequence[int], shell_voxels: float, width_voxels: float) -> list[npt.NDArray[np.float64]]:
    """Return the weights (V,) of each shell, of norm 1."""
    z, y, x = _grid(box)
    radius_V = np.sqrt(z * z + y * y + x * x)
    shells = []
    for radius in _radii(box, shell_voxels):
        weight_V = np.exp(-0.5 * ((radius_V - radius) / width_voxels) ** 2)
        shells.append(weight_V / np.sqrt((weight_V**2).sum()))
    return shells


def _harmonics(box: Sequence[int], degrees: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the 2 l + 1 real spherical harmonics of each degree l at each voxel, (V,) each."""
    z, y, x = _grid(box)
    middle = int(np.ravel_multi_index([side // 2 for side in box], tuple(box)))
    cosine_V = z / np.maximum(np.sqrt(z * z + y * y + x * x), 1e-9)
    azimuth_V = np.arctan2(y, x)
    for degree in range(degrees + 1):
        for order in range(degree + 1):
            ratio = math.factorial(degree - order) / math.factorial(degree + order)
            norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio)
            polar_V = norm * lpmv(order, degree, cosine_V)
            if degree:
                polar_V[middle] = 0  # it has no direction
            if order == 0:
                yield polar_V
            else:
                for turn in (np.cos, np.sin):
                    yield math.sqrt(2) * polar_V * turn(order * azimuth_V)
