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
from collections.abc import Sequence

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
    """Patches (N, 1, Z, Y, X) to invariants (N, I): the mean of each shell, then the root of each power.

    Parameters
    ----------
    box : three ints
        Extent of a patch, voxels; the particle is at voxel side // 2.
    degrees : int
        Greatest degree of the harmonics.
    """

    basis_VB: Tensor
    sums_BI: Tensor

    def __init__(self, box: Sequence[int], degrees: int = DEGREES) -> None:
        super().__init__()
        columns, groups = [], []
        for shell_V in _shells(box):
            for degree in range(degrees + 1):
                harmonics_VM = _harmonics(box, degree)
                columns.append(harmonics_VM * shell_V[:, None])
                groups.append(harmonics_VM.shape[1])
        self.count = len(groups)
        sums_BI = np.repeat(np.eye(self.count), groups, axis=0)
        self.register_buffer("basis_VB", torch.from_numpy(np.hstack(columns).astype(np.float32)))
        self.register_buffer("sums_BI", torch.from_numpy(sums_BI.astype(np.float32)))
        self.degrees = degrees

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Return the invariants."""
        waves_NB = patches_NCZYX.flatten(1) @ self.basis_VB
        powers_NI = torch.sqrt(torch.clamp((waves_NB * waves_NB) @ self.sums_BI, min=0))
        # Degree 0 has one wave: its sign says whether a shell is dark or bright.
        first = torch.arange(self.count, device=powers_NI.device) % (self.degrees + 1) == 0
        signed_NI = waves_NB @ self.sums_BI
        return torch.where(first, signed_NI, powers_NI)


def _grid(box: Sequence[int]) -> tuple[npt.NDArray[np.float64], ...]:
    """Return z, y, x of each voxel from the particle's place, (V,) each."""
    lines = [np.arange(side, dtype=np.float64) - side // 2 for side in box]
    z, y, x = np.meshgrid(*lines, indexing="ij")
    return z.ravel(), y.ravel(), x.ravel()


def _shells(box: Sequence[int]) -> list[npt.NDArray[np.float64]]:
    """Return the weights (V,) of each shell, of norm 1, from the middle out to the nearest face."""
    z, y, x = _grid(box)
    radius_V = np.sqrt(z * z + y * y + x * x)
    shells = []
    for radius in np.arange(SHELL_VOXELS / 2 + 0.5, min(box) / 2, SHELL_VOXELS):
        weight_V = np.exp(-0.5 * ((radius_V - radius) / WIDTH_VOXELS) ** 2)
        shells.append(weight_V / np.sqrt((weight_V**2).sum()))
    return shells


def _harmonics(box: Sequence[int], degree: int) -> npt.NDArray[np.float64]:
    """Return the 2 l + 1 real spherical harmonics of one degree at each voxel, (V, 2 l + 1)."""
    z, y, x = _grid(box)
    radius_V = np.maximum(np.sqrt(z * z + y * y + x * x), 1e-9)
    azimuth_V = np.arctan2(y, x)
    columns = []
    for order in range(degree + 1):
        ratio = math.factorial(degree - order) / math.factorial(degree + order)
        norm = math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio)
        polar_V = norm * lpmv(order, degree, z / radius_V)
        if order == 0:
            columns.append(polar_V)
        else:
            columns += [math.sqrt(2) * polar_V * f(order * azimuth_V) for f in (np.cos, np.sin)]
    harmonics_VM = np.stack(columns, axis=1)
    if degree:
        harmonics_VM[(z == 0) & (y == 0) & (x == 0)] = 0  # the middle has no direction
    return harmonics_VM
