"""Densities of macromolecules, all alike: centred, low-passed, on one voxel size and one grey scale.

A map is taken as its Fourier coefficients, so low-pass, new voxel size and new centre are one step, exact for
what both grids can hold, without aliasing. Negative ringing is clipped away at the end.

The grey scale: the inside of a molecule is 1, measured as the sum over the map divided by the volume that the
molecule fills. Programs that make maps count in electrons, volts or anything else (factors of 30 between
two files are common), but protein is packed equally densely in all molecules, so this is the same physical
quantity in all of them, and in the procedural kinds. What it fills is what is denser than half the mean
density that its mass finds around itself: blur leaves that surface where it is. The scale is measured at one
fixed, fine resolution, `SCALE_RESOLUTION_ANGSTROM`, not at the wanted one: so a small molecule is blurred to
a lower peak than a large one, as in a microscope.

Shape suffixes: N voxels; 3 coordinates z, y, x; K frequencies; S voxels along the side of a cube.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

from cryoscale.errors import ConfigurationError, FormatError
from cryoscale.geometry import fast_length
from cryoscale.simulate.shapes import CONTOUR, blur_sigma_voxels, kind_of, particle_density
from cryoscale.simulate.spheres import bounding_sphere, surface_points

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Triple = tuple[float, float, float]

SCALE_RESOLUTION_ANGSTROM = 20.0
"""Where the grey scale is measured: finer than tomograms show, coarser than gaps between side chains."""

SKIRT_SIGMAS = 3.0
"""How far beyond the bounding sphere a density is kept, in widths of the low-pass."""


@dataclass(frozen=True)
class Density:
    """One macromolecule, ready to be turned and painted.

    Parameters
    ----------
    name : str
        As it was asked for, or the stem of its file.
    volume_ZYX : (S, S, S) float32
        S is odd. The middle voxel S // 2 is the centre of the bounding sphere. Not negative; about 1 within
        a large molecule; 0 beyond the sphere that touches the faces.
    voxel_size_angstrom : float
        Voxel size, Å.
    radius_angstrom : float
        Radius of the smallest sphere around all that is denser than the contour, Å.
    resolution_angstrom : float
        Where the low-pass leaves 1/e of the amplitude, Å.
    centre_zyx_angstrom : three floats
        The centre of the sphere in the coordinates of the source, Å: atoms' coordinates, or distance from the
        first voxel of a map.
    source : str
        Where it comes from, in words.
    sha256 : str
        Of the file; empty for a procedural kind.
    contrast : float
        Factor on the density when it is painted.
    least_share : float
        Copies differ: each has between this share and all of the contrast, uniformly.
    """

    name: str
    volume_ZYX: Floats
    voxel_size_angstrom: float
    radius_angstrom: float
    resolution_angstrom: float
    centre_zyx_angstrom: Triple
    source: str = ""
    sha256: str = ""
    contrast: float = 1.0
    least_share: float = 1.0

    @property
    def contour(self) -> float:
        """The density that bounds the particle: `CONTOUR` times the greatest."""
        return CONTOUR * float(self.volume_ZYX.max())

    @property
    def mask_ZYX(self) -> npt.NDArray[np.bool_]:
        """Voxels denser than the contour."""
        mask: npt.NDArray[np.bool_] = self.volume_ZYX > np.float32(self.contour)
        return mask

    @property
    def volume_angstrom3(self) -> float:
        """What is within the contour, Å^3."""
        return int(np.count_nonzero(self.mask_ZYX)) * self.voxel_size_angstrom**3

    @property
    def filling(self) -> float:
        """What is within the contour as a fraction of the bounding sphere."""
        return self.volume_angstrom3 / (4 / 3 * math.pi * self.radius_angstrom**3)


def density_from_map(
    volume_ZYX: npt.NDArray[Any],
    map_voxel_size_angstrom: float,
    *,
    name: str,
    voxel_size_angstrom: float,
    resolution_angstrom: float | None = None,
    blurred_by_angstrom: float = 0.0,
    origin_zyx_angstrom: Triple = (0.0, 0.0, 0.0),
    source: str = "",
    sha256: str = "",
    contrast: float = 1.0,
    least_share: float = 1.0,
) -> Density:
    """Bring a map to the wanted voxel size and resolution, and to the common centre and grey scale.

    What the map holds around the molecule counts as its surroundings: the median of the six faces is taken
    off, so maps whose mean was set to 0 are fine.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) numbers
        Molecules bright.
    map_voxel_size_angstrom : float
        Voxel size of the map, Å.
    name : str
        Name of the density, for messages too.
    voxel_size_angstrom : float
        Wanted voxel size, Å.
    resolution_angstrom : float, optional
        Where the low-pass leaves 1/e of the amplitude, Å; three voxels by default. No finer than two voxels
        of the map: it holds no more.
    blurred_by_angstrom : float
        Width of a Gaussian blur that the map has already, Å: the low-pass is narrower by that much.
    origin_zyx_angstrom : three floats
        Coordinates of the map's first voxel, Å.
    source, sha256, contrast, least_share
        As in `Density`.

    Raises
    ------
    ConfigurationError
        Voxel size or resolution make no sense.
    FormatError
        The map is not three-dimensional, flat, not finite, or holds dark molecules.
    """
    resolution = _checked_resolution(resolution_angstrom, voxel_size_angstrom)
    resolution = max(resolution, 2 * map_voxel_size_angstrom)
    map_ZYX = _checked_map(volume_ZYX, map_voxel_size_angstrom, name)
    margin = max(resolution, SCALE_RESOLUTION_ANGSTROM) + 2 * voxel_size_angstrom
    spectrum = _Spectrum(map_ZYX, map_voxel_size_angstrom, margin, blurred_by_angstrom)
    scale = _inside(spectrum, name)
    centre, radius, volume_SSS = _centred(spectrum, voxel_size_angstrom, resolution, resolution, name)
    z, y, x = (float(c + o) for c, o in zip(centre, origin_zyx_angstrom, strict=True))
    return Density(
        name, volume_SSS / np.float32(scale), voxel_size_angstrom, radius, resolution, (z, y, x),
        source, sha256, contrast, least_share,
    )  # fmt: skip


def density_from_shape(
    name: str, *, voxel_size_angstrom: float, resolution_angstrom: float | None = None
) -> Density:
    """Make a density of a procedural kind; its grey scale is occupancy, its contrast that of the kind.

    Parameters
    ----------
    name : str
        As in `cryoscale.simulate.shapes.KINDS`.
    voxel_size_angstrom : float
        Voxel size, Å.
    resolution_angstrom : float, optional
        Where the low-pass leaves 1/e of the amplitude, Å; three voxels by default.

    Raises
    ------
    ConfigurationError
        There is no such kind, or voxel size or resolution make no sense.
    """
    kind = kind_of(name)
    resolution = _checked_resolution(resolution_angstrom, voxel_size_angstrom)
    fine = voxel_size_angstrom / 2  # sampled finer than wanted, for nothing to be lost in the shift
    volume_ZYX = particle_density(name, fine, resolution_angstrom=resolution)
    spectrum = _Spectrum(volume_ZYX, fine, 2 * voxel_size_angstrom)  # it holds its skirt already
    centre, radius, volume_SSS = _centred(spectrum, voxel_size_angstrom, 0.0, resolution, name)
    z, y, x = (float(c - s // 2 * fine) for c, s in zip(centre, volume_ZYX.shape, strict=True))
    return Density(
        name, volume_SSS, voxel_size_angstrom, radius, resolution, (z, y, x),
        f"procedural kind '{name}'", "", kind.contrast, kind.least_share,
    )  # fmt: skip


def _checked_resolution(resolution: float | None, voxel: float) -> float:
    """Return the resolution, three voxels by default; refuse what a grid cannot hold."""
    if not (voxel > 0 and math.isfinite(voxel)):
        raise ConfigurationError(f"the voxel size must be above 0, got {voxel} Å.")
    wanted = 3 * voxel if resolution is None else resolution
    if not 2 * voxel <= wanted < math.inf:
        raise ConfigurationError(
            f"densities at a resolution of {wanted:g} Å do not fit on voxels of {voxel:g} Å.",
            remedy=f"Use a resolution of at least two voxels ({2 * voxel:g} Å), or smaller voxels.",
        )
    return wanted


def _checked_map(volume_ZYX: npt.NDArray[Any], voxel: float, name: str) -> Floats:
    """Return the map as float32 above its surroundings; refuse what is no map of a bright molecule."""
    if volume_ZYX.ndim != 3 or min(volume_ZYX.shape) < 2:
        raise FormatError(f"density '{name}': a map has three axes, this one has shape {volume_ZYX.shape}.")
    if not (voxel > 0 and math.isfinite(voxel)):
        raise FormatError(f"density '{name}': the voxel size is {voxel} Å.", remedy="Set it in the file.")
    map_ZYX = np.array(volume_ZYX, dtype=np.float32)
    if not np.isfinite(map_ZYX).all():
        raise FormatError(f"density '{name}': the map holds values that are not finite.")
    if map_ZYX.min() == map_ZYX.max():
        raise FormatError(f"density '{name}': the map is flat; every voxel is {map_ZYX.flat[0]:g}.")
    faces = [np.take(map_ZYX, side, axis=axis).ravel() for axis in range(3) for side in (0, -1)]
    map_ZYX -= np.median(np.concatenate(faces))
    if -map_ZYX.min() > map_ZYX.max():
        raise FormatError(
            f"density '{name}': the molecule seems to be darker than its surroundings.",
            remedy="Multiply the map by -1.",
        )
    return map_ZYX


class _Spectrum:
    """A map as Fourier coefficients, to be sampled at any place and pitch.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float32
        The map; 0 around it.
    voxel : float
        Its voxel size, Å.
    margin : float
        How far beyond the faces a low-pass may carry density, Å; farther out samples are 0.
    blurred_by : float
        Width of the blur that it has already, Å.
    """

    def __init__(self, volume_ZYX: Floats, voxel: float, margin: float, blurred_by: float = 0.0) -> None:
        self.shape = volume_ZYX.shape
        self.voxel = voxel
        self.blurred_by = blurred_by
        # The transform is periodic: the margin keeps what is blurred beyond one face off the other.
        self.pad = math.ceil(margin / voxel)
        self.padded = tuple(fast_length(n + 2 * self.pad) for n in self.shape)
        self.coefficients = fft.rfftn(volume_ZYX, s=self.padded)

    def sample(
        self,
        start: Sequence[float] | Points,
        pitch: float,
        counts: Sequence[int],
        resolution: float,
        finest: float,
    ) -> Floats:
        """Sample the low-passed map on a grid.

        Parameters
        ----------
        start : three floats
            First grid point, Å from the first voxel.
        pitch : float
            Distance of grid points, Å.
        counts : three ints
            Grid points along each axis.
        resolution : float
            Of the low-pass, Å.
        finest : float
            Voxel size, Å: nothing beyond its Nyquist frequency is kept.
        """
        values: npt.NDArray[Any] = self.coefficients
        # Beyond the band along an axis nothing is kept, so it is not even summed up.
        matrices = []
        for axis in range(3):
            kept_K, matrix_KS = self._waves(
                axis, start[axis] + np.arange(counts[axis]) * pitch, resolution, finest
            )
            values = np.take(values, kept_K, axis=axis)
            matrices.append(matrix_KS)
        for matrix_KS in reversed(matrices):  # x first: each step puts its axis in front
            values = np.tensordot(matrix_KS, values, axes=(0, 2))
        result: Floats = np.ascontiguousarray(values.real, dtype=np.float32)
        return result

    def _waves(
        self, axis: int, places_S: npt.NDArray[np.floating], resolution: float, finest: float
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.complex64]]:
        """Return which coefficients count along an axis, and their waves at the places, low-passed."""
        n = self.padded[axis]
        half = axis == 2
        k = (fft.rfftfreq if half else fft.fftfreq)(n, self.voxel)
        kept_K = np.flatnonzero(np.abs(k) < 0.5 / max(finest, self.voxel))
        k_K = k[kept_K]
        # A Gaussian of width s in space is exp(-2 (pi k s)^2): what the map has already is taken off.
        square = resolution**2 - 2 * (math.pi * self.blurred_by) ** 2
        weight_K = np.exp(-max(0.0, square) * k_K**2) / n
        if half:  # each stands for its mirror image too, but the mean
            weight_K[k_K > 0] *= 2
        waves_KS = weight_K[:, None] * np.exp(2j * math.pi * k_K[:, None] * places_S)
        reach = self.pad * self.voxel
        beyond = (places_S < -reach) | (places_S > (self.shape[axis] - 1) * self.voxel + reach)
        waves_KS[:, beyond] = 0
        return kept_K, waves_KS.astype(np.complex64)

    def whole(self, pitch: float, resolution: float, finest: float) -> tuple[Points, Floats]:
        """Sample the map and its margin; return the first grid point, Å, and the values, not negative."""
        margin = self.pad * self.voxel
        counts = [math.ceil((n * self.voxel + 2 * margin) / pitch) for n in self.shape]
        values_ZYX = self.sample([-margin] * 3, pitch, counts, resolution, finest)
        return np.full(3, -margin), np.maximum(values_ZYX, 0)


def _inside(spectrum: _Spectrum, name: str) -> float:
    """Return the density of the inside of the molecule, at the resolution of the grey scale."""
    finest = SCALE_RESOLUTION_ANGSTROM / 3
    _, values_ZYX = spectrum.whole(finest, SCALE_RESOLUTION_ANGSTROM, finest)
    peak = values_ZYX.max()
    if not peak > 0:
        raise FormatError(f"density '{name}': nothing is left of the map at 20 Å; it is noise, or empty.")
    within_N = values_ZYX[values_ZYX > CONTOUR * peak].astype(np.float64)
    typical = (within_N**2).sum() / within_N.sum()
    # What is fainter than a tenth is blur of next to nothing, or noise around the molecule.
    mass = values_ZYX[values_ZYX > typical / 10].sum(dtype=np.float64)
    return float(mass / np.count_nonzero(values_ZYX > typical / 2))


def _centred(
    spectrum: _Spectrum, voxel: float, low_pass: float, resolution: float, name: str
) -> tuple[Points, float, Floats]:
    """Find the bounding sphere of the contour and sample the map around its centre.

    Returns
    -------
    centre_3, radius : (3,) float64, float
        Of the sphere, Å from the first voxel.
    volume_SSS : (S, S, S) float32
        The centre is the middle voxel.
    """
    start, fine_ZYX = spectrum.whole(voxel / 2, low_pass, voxel)
    peak = float(fine_ZYX.max())
    if not peak > 0:
        raise FormatError(f"density '{name}': nothing is left of the map at {resolution:g} Å.")
    points_N3 = surface_points(fine_ZYX, CONTOUR * peak) * (voxel / 2) + start
    centre, radius = bounding_sphere(points_N3)
    skirt = SKIRT_SIGMAS * blur_sigma_voxels(resolution, voxel)
    half = math.ceil(radius / voxel + skirt)
    side = 2 * half + 1
    volume_SSS = spectrum.sample(centre - half * voxel, voxel, (side,) * 3, low_pass, voxel)
    z, y, x = np.ogrid[-half : half + 1, -half : half + 1, -half : half + 1]
    volume_SSS[(z * z + y * y + x * x > half * half) | (volume_SSS < 0)] = 0
    return centre, radius, volume_SSS
