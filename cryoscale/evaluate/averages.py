"""Averages of particles whose turns are known: what structure the found particles of a class hold.

Shape suffixes: N particles, K shells, 4 quaternion x, y, z, w, 3 coordinates z, y, x unless said otherwise,
ZYX a volume, `ZYX` of a Fourier mask in the layout of `scipy.fft.rfftn`: (Z, Y, X // 2 + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError
from cryoscale.evaluate.matching import match_points
from cryoscale.evaluate.structures import ShellCorrelation, fourier_shell_correlation, measured_by_tilts

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ReadPatch = Callable[[int], npt.NDArray[np.floating]]


def on_grid(density_ZYX: npt.NDArray[np.floating], shape: Sequence[int]) -> npt.NDArray[np.floating]:
    """Crop or pad a density so that its middle voxel, side // 2, is the middle voxel of another shape."""
    placed = np.zeros(tuple(shape), dtype=density_ZYX.dtype)
    source, target = [], []
    for n, m in zip(density_ZYX.shape, shape, strict=True):
        before, after = min(n // 2, m // 2), min(n - n // 2, m - m // 2)
        source.append(slice(n // 2 - before, n // 2 + after))
        target.append(slice(m // 2 - before, m // 2 + after))
    placed[tuple(target)] = density_ZYX[tuple(source)]
    return placed


def turned_back(
    patch_ZYX: npt.NDArray[np.floating],
    quaternion_4: npt.ArrayLike,
    offset_3: npt.ArrayLike = (0.0, 0.0, 0.0),
    *,
    order: int = 3,
) -> Floats:
    """Resample the surroundings of a particle in the particle's own frame.

    Parameters
    ----------
    patch_ZYX : (Z, Y, X) float
        Cut around the particle; its middle voxel is shape // 2.
    quaternion_4 : x, y, z, w
        Turns xyz of the particle's frame into xyz of the volume.
    offset_3 : z, y, x
        Where the particle's origin lies beyond the middle voxel, voxels.
    order : int
        Of the spline: 1 linear, 3 cubic.

    Returns
    -------
    turned_ZYX : (Z, Y, X) float64
        What lies outside of the patch is the mean of its faces: corners are worth little.
    """
    # Axes are z, y, x here, so the matrix for x, y, z is read backwards.
    matrix_33 = Rotation.from_quat(np.asarray(quaternion_4, dtype=np.float64)).as_matrix()[::-1, ::-1]
    middle = np.array([n // 2 for n in patch_ZYX.shape], dtype=np.float64)
    start = middle + np.asarray(offset_3, dtype=np.float64) - matrix_33 @ middle
    patch = np.asarray(patch_ZYX, dtype=np.float64)
    faces = [patch.take(side, axis=axis).mean() for axis in range(3) for side in (0, -1)]
    turned: Floats = ndimage.affine_transform(
        patch, matrix_33, start, order=order, mode="constant", cval=float(np.mean(faces))
    )
    return turned


@dataclass(frozen=True)
class ParticleAverage:
    """The average of particles, and of two random halves of them.

    Parameters
    ----------
    average_ZYX, first_ZYX, second_ZYX : (Z, Y, X) float64
        In the particle's frame; objects as in the patches, or positive if these were said to be dark.
    first_weight_ZYX, second_weight_ZYX : (Z, Y, X // 2 + 1) float64
        How many particles of each half measured a Fourier voxel.
    n_particles : int
        How many there were.
    """

    average_ZYX: Floats
    first_ZYX: Floats
    second_ZYX: Floats
    first_weight_ZYX: Floats
    second_weight_ZYX: Floats
    n_particles: int

    def half_correlation(
        self, voxel_size_angstrom: float, *, mask: npt.ArrayLike | None = None
    ) -> ShellCorrelation:
        """Correlate the two halves; read its resolution at 0.143."""
        measured = (self.first_weight_ZYX > 0) & (self.second_weight_ZYX > 0)
        return fourier_shell_correlation(
            self.first_ZYX, self.second_ZYX, voxel_size_angstrom, mask=mask, measured=measured
        )

    def correlation_with(
        self,
        truth_ZYX: npt.NDArray[np.floating],
        voxel_size_angstrom: float,
        *,
        mask: npt.ArrayLike | None = None,
    ) -> ShellCorrelation:
        """Correlate the average with a true density in the particle's frame; read its resolution at 0.5.

        The truth is cropped or padded about its middle voxel. A contrast transfer function that was not
        corrected turns the sign of whole bands of frequencies, which counts against the average.
        """
        truth_ZYX = on_grid(truth_ZYX, self.average_ZYX.shape)
        measured = self.first_weight_ZYX + self.second_weight_ZYX > 0
        return fourier_shell_correlation(
            self.average_ZYX, truth_ZYX, voxel_size_angstrom, mask=mask, measured=measured
        )


def average_particles(
    patches: ReadPatch | Sequence[npt.NDArray[np.floating]] | npt.NDArray[np.floating],
    quaternion_N4: npt.ArrayLike,
    offsets_N3: npt.ArrayLike | None = None,
    *,
    tilts_degrees: tuple[float, float] | None = None,
    dark: bool = False,
    order: int = 3,
    seed: int = 0,
) -> ParticleAverage:
    """Turn particles back by known orientations and average them, one at a time.

    Parameters
    ----------
    patches : callable, or sequence of (Z, Y, X)
        `patches(n)` or `patches[n]` is the patch of particle n; all of one shape. One is held at a time.
    quaternion_N4 : (N, 4) float
        x, y, z, w; turns xyz of the particle's frame into xyz of the volume (see `true_orientations`).
    offsets_N3 : (N, 3) float, optional
        Where a particle's origin lies beyond its patch's middle voxel shape // 2; z, y, x in voxels.
    tilts_degrees : two floats, optional
        Tilt range about y. Then each Fourier voxel is averaged over the particles that measured it, and is 0
        where none did. Without, all particles count everywhere.
    dark : bool
        Objects are dark (negative) in the patches, as in every tomogram: the averages are inverted.
    order : int
        Spline order of the resampling.
    seed : int
        Of the split into halves.

    Returns
    -------
    average : ParticleAverage

    Raises
    ------
    ConfigurationError
        Fewer than two particles, or orientations, offsets and patches that do not fit together.

    Notes
    -----
    Averaging with the weights of what was measured: Förster et al. 2005, doi:10.1073/pnas.0409178102.
    """
    read = patches if callable(patches) else patches.__getitem__
    quaternions = np.asarray(quaternion_N4, dtype=np.float64)
    n = len(quaternions)
    offsets = np.zeros((n, 3)) if offsets_N3 is None else np.asarray(offsets_N3, dtype=np.float64)
    given = n if callable(patches) else len(patches)
    if quaternions.shape != (n, 4) or offsets.shape != (n, 3) or given != n or n < 2:
        raise ConfigurationError(
            f"an average needs two particles at least, each with a patch and x, y, z, w; got {given} "
            f"patches, quaternions {quaternions.shape}, offsets {offsets.shape}."
        )
    half_N = np.random.default_rng(seed).permutation(n) % 2
    halves = [_Sum.like(np.shape(read(0)), tilts_degrees) for _ in range(2)]
    for i in range(n):
        patch_ZYX = np.asarray(read(i))
        if patch_ZYX.shape != halves[0].shape:
            raise ConfigurationError(f"patch {i} has shape {patch_ZYX.shape}, the first {halves[0].shape}.")
        turned_ZYX = turned_back(patch_ZYX, quaternions[i], offsets[i], order=order)
        halves[half_N[i]].add(-turned_ZYX if dark else turned_ZYX, quaternions[i])
    first, second = halves
    both = _Sum(
        first.shape, None, first.spectrum_ZYX + second.spectrum_ZYX, first.weight_ZYX + second.weight_ZYX
    )
    return ParticleAverage(both.mean(), first.mean(), second.mean(), first.weight_ZYX, second.weight_ZYX, n)


@dataclass
class _Sum:
    """Sum of spectra, and how many were measured, Fourier voxel by Fourier voxel."""

    shape: tuple[int, ...]
    tilts_degrees: tuple[float, float] | None
    spectrum_ZYX: npt.NDArray[np.complex128]
    weight_ZYX: Floats

    @classmethod
    def like(cls, shape: tuple[int, ...], tilts_degrees: tuple[float, float] | None) -> _Sum:
        half = (*shape[:2], shape[2] // 2 + 1)
        return cls(shape, tilts_degrees, np.zeros(half, np.complex128), np.zeros(half))

    def add(self, turned_ZYX: Floats, quaternion_4: Floats) -> None:
        """Add one particle in its own frame."""
        spectrum_ZYX = fft.rfftn(turned_ZYX)
        if self.tilts_degrees is None:
            self.spectrum_ZYX += spectrum_ZYX
            self.weight_ZYX += 1
            return
        matrix_33 = Rotation.from_quat(quaternion_4).as_matrix()
        measured_ZYX = measured_by_tilts(self.shape, self.tilts_degrees, rotation_33=matrix_33)
        self.spectrum_ZYX += spectrum_ZYX * measured_ZYX
        self.weight_ZYX += measured_ZYX

    def mean(self) -> Floats:
        """Return the average."""
        average: Floats = fft.irfftn(self.spectrum_ZYX / np.maximum(self.weight_ZYX, 1), s=self.shape)
        return average


def true_orientations(
    picks_N3: npt.ArrayLike,
    truth_M3: npt.ArrayLike,
    quaternion_M4: npt.ArrayLike,
    radius: float,
    *,
    seed: int = 0,
) -> tuple[Floats, Floats, Bools]:
    """Give each pick the turn and place of the true particle that it is matched with.

    Picks without a match get a random turn and no offset: averaged with the others they blur, as they should
    when the question is what structure all the picks of a cluster hold.

    Parameters
    ----------
    picks_N3, truth_M3 : (N, 3), (M, 3) float
        Positions z, y, x in **voxels** (patches are cut around rounded picks: round them first).
    quaternion_M4 : (M, 4) float
        x, y, z, w of the true particles.
    radius : float
        Largest distance of a pair, voxels; matching is one to one.
    seed : int
        Of the random turns.

    Returns
    -------
    quaternion_N4, offsets_N3, is_match_N : arrays
        As `average_particles` takes them; which picks are matched.
    """
    picks, truth = np.asarray(picks_N3, dtype=np.float64), np.asarray(truth_M3, dtype=np.float64)
    match = match_points(picks, truth, radius)
    quaternion_N4 = Rotation.random(match.n_picks, rng=np.random.default_rng(seed)).as_quat()
    quaternion_N4[match.pick_K] = np.asarray(quaternion_M4, dtype=np.float64)[match.truth_K]
    offsets_N3 = np.zeros((match.n_picks, 3))
    offsets_N3[match.pick_K] = truth[match.truth_K] - picks[match.pick_K]
    return quaternion_N4, offsets_N3, match.is_match_N
