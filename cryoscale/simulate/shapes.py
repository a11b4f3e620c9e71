"""Macromolecule-like densities from formulas alone: no file, any voxel size, any orientation.

Each kind is a function of coordinates in its own frame, so a particle is sampled where it stands and as it is
turned, without interpolating a stored map. Sizes follow the molecules that they stand in for.

Shape suffixes: N points, 3 coordinates **x, y, z** of the particle's frame in Å, ZYX a volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from cryoscale.errors import ConfigurationError

Floats = npt.NDArray[np.float32]

CONTOUR = 0.2
"""Fraction of a particle's greatest density that bounds it (Pei, Xu, Frazier, Alber 2016)."""


@dataclass(frozen=True)
class Kind:
    """One kind of particle.

    Parameters
    ----------
    name : str
        As in `KINDS`.
    radius_angstrom : float
        Radius of the bounding sphere about the origin, Å, before any blur.
    contrast : float
        Scattering above the surrounding ice, relative to protein. RNA is denser than protein.
    solid : callable
        From points (N, 3) xyz in Å and the width of the soft edge in Å to densities (N,), at most 1.
    least_share : float
        Copies differ: each has between this share and all of the contrast, uniformly.
    """

    name: str
    radius_angstrom: float
    contrast: float
    solid: Callable[[Floats, float], Floats]
    least_share: float = 1.0


def _inside(distance: Floats, edge: float) -> Floats:
    """Turn a signed distance (negative inside) into occupancy with an edge one voxel wide."""
    occupancy: Floats = np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1)
    return occupancy


def _ellipsoid(
    points_N3: Floats, centre: tuple[float, float, float], axes: tuple[float, float, float]
) -> Floats:
    """Signed distance to an ellipsoid, to first order."""
    middle: Floats = np.array(centre, dtype=np.float32)
    scale: Floats = np.array(axes, dtype=np.float32)
    scaled: Floats = (points_N3 - middle) / scale
    distance: Floats = (_length(scaled) - 1) * np.float32(min(axes))
    return distance


def _length(points_N3: Floats) -> Floats:
    """Return the distance of each point from the origin."""
    length: Floats = np.sqrt(np.einsum("ni,ni->n", points_N3, points_N3))
    return length


def _cylinder(points_N3: Floats, radius: float, half_length: float) -> Floats:
    """Signed distance to a cylinder along z."""
    radial = np.hypot(points_N3[:, 0], points_N3[:, 1]) - np.float32(radius)
    distance: Floats = np.maximum(radial, np.abs(points_N3[:, 2]) - np.float32(half_length))
    return distance


def _ribosome(points_N3: Floats, edge: float) -> Floats:
    """Return two lobes with a cleft, 21 nm across, like a bacterial ribosome."""
    large = _inside(_ellipsoid(points_N3, (0, 0, -24), (96, 88, 78)), edge)
    stalk = _inside(_ellipsoid(points_N3, (72, 0, 20), (34, 24, 24)), edge)
    small = _inside(_ellipsoid(points_N3, (-12, 0, 70), (84, 52, 32)), edge)
    cleft = _inside(_cylinder((points_N3 - np.array((0, 0, 46), np.float32))[:, [0, 2, 1]], 11, 120), edge)
    lobes: Floats = np.maximum(np.maximum(large, stalk), np.float32(0.9) * small)
    return lobes * (1 - np.float32(0.7) * cleft)


def _barrel(points_N3: Floats, edge: float) -> Floats:
    """Return a hollow cylinder 15 nm long and 11.5 nm wide, with three chambers, like a 20S proteasome."""
    wall = _inside(_cylinder(points_N3, 57, 75), edge)
    bulge = 1 + np.float32(0.6) * np.cos(points_N3[:, 2] * np.float32(2 * math.pi / 50))
    channel = _inside(np.hypot(points_N3[:, 0], points_N3[:, 1]) - np.float32(16) * bulge, edge)
    return wall * (1 - channel)


def _ring(points_N3: Floats, edge: float) -> Floats:
    """Return a thick ring 17 nm wide with a hole of 6.5 nm."""
    tube = np.hypot(np.hypot(points_N3[:, 0], points_N3[:, 1]) - np.float32(58), points_N3[:, 2])
    return _inside(tube - np.float32(26), edge)


def _rod(points_N3: Floats, edge: float) -> Floats:
    """Return a rod 21 nm long and 6 nm wide with a knob at one end."""
    shaft = _inside(_cylinder(points_N3, 30, 98), edge)
    knob = _inside(_ellipsoid(points_N3, (0, 0, 72), (44, 44, 32)), edge)
    both: Floats = np.maximum(shaft, knob)
    return both


def _ball(points_N3: Floats, edge: float) -> Floats:
    """Return a ball 12 nm wide with a dense core of 7.6 nm, like ferritin with its iron.

    The core of ferrihydrite scatters about six times as much above ice as protein does.
    """
    length = _length(points_N3)
    core, coat = _inside(length - np.float32(38), edge), _inside(length - np.float32(60), edge)
    both: Floats = np.maximum(core, np.float32(1 / 6) * coat)
    return both


def _shell(points_N3: Floats, edge: float) -> Floats:
    """Return a hollow ball 22 nm wide with a wall of 3.8 nm, like an encapsulin or a small capsid."""
    length = _length(points_N3)
    return _inside(np.maximum(length - np.float32(108), np.float32(70) - length), edge)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("ribosome", 108.0, 1.4, _ribosome),
        Kind("barrel", 95.0, 1.0, _barrel),
        Kind("ring", 86.0, 1.0, _ring),
        Kind("rod", 106.0, 1.0, _rod),
        Kind("ball", 62.0, 6.0, _ball, 0.3),
        Kind("shell", 110.0, 1.0, _shell),
    )
}
"""All kinds by name."""


def kind_of(name: str) -> Kind:
    """Return a kind by its name.

    Raises
    ------
    ConfigurationError
        There is no such kind.
    """
    if name not in KINDS:
        raise ConfigurationError(
            f"there is no kind of particle '{name}'.", remedy=f"Use one of {', '.join(KINDS)}."
        )
    return KINDS[name]


def blur_sigma_voxels(resolution_angstrom: float, voxel_size_angstrom: float) -> float:
    """Return the Gaussian width that passes 1/e of the amplitude at a resolution, voxels.

    exp(-(k d)^2) in Fourier space is a Gaussian of width d / (pi sqrt 2) in real space.
    """
    return resolution_angstrom / (math.pi * math.sqrt(2)) / voxel_size_angstrom


def particle_density(
    name: str,
    voxel_size_angstrom: float,
    *,
    resolution_angstrom: float | None = None,
    rotation_33: npt.NDArray[np.float64] | None = None,
    offset_zyx: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Floats:
    """Sample one turned particle on a cube of voxels, low-passed, without scaling.

    Parameters
    ----------
    name : str
        As in `KINDS`.
    voxel_size_angstrom : float
        Voxel size, Å.
    resolution_angstrom : float, optional
        Where the low-pass leaves 1/e of the amplitude, Å; three voxels by default.
    rotation_33 : (3, 3) float, optional
        Turns xyz of the particle's frame into xyz of the volume.
    offset_zyx : three floats
        Where the particle's origin lies beyond the middle voxel, voxels, each within half a voxel.

    Returns
    -------
    density_ZYX : (S, S, S) float32
        S is odd; the middle voxel is S // 2. Occupancy, 1 inside a large solid.
    """
    kind = kind_of(name)
    resolution = 3 * voxel_size_angstrom if resolution_angstrom is None else resolution_angstrom
    sigma = blur_sigma_voxels(resolution, voxel_size_angstrom)
    half = math.ceil(kind.radius_angstrom / voxel_size_angstrom + 3 * sigma + 1)
    line = np.arange(-half, half + 1, dtype=np.float32)
    z, y, x = np.meshgrid(*(line - np.float32(o) for o in offset_zyx), indexing="ij")
    points_N3 = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1) * np.float32(voxel_size_angstrom)
    if rotation_33 is not None:
        points_N3 = points_N3 @ rotation_33.astype(np.float32)  # the inverse turn, applied to rows
    solid_ZYX = kind.solid(points_N3, voxel_size_angstrom).reshape(z.shape)
    blurred: Floats = ndimage.gaussian_filter(solid_ZYX, sigma, mode="constant", truncate=4.0)
    return blurred


def density(name: str, voxel_size_angstrom: float, *, resolution_angstrom: float | None = None) -> Floats:
    """Return one kind's density in its own frame, low-passed, greatest value 1.

    Parameters
    ----------
    name : str
        As in `KINDS`.
    voxel_size_angstrom : float
        Voxel size, Å.
    resolution_angstrom : float, optional
        Where the low-pass leaves 1/e of the amplitude, Å; three voxels by default.

    Returns
    -------
    density_ZYX : (S, S, S) float32
        The particle's origin is the middle voxel, S // 2.
    """
    volume_ZYX = particle_density(name, voxel_size_angstrom, resolution_angstrom=resolution_angstrom)
    scaled_ZYX: Floats = volume_ZYX / volume_ZYX.max()
    return scaled_ZYX
