"""A scene: particles and membranes in place, as a density and as truth, before any microscope.

Shape suffixes: Z, Y, X voxels; N particles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Box, Zyx
from cryoscale.simulate.packing import Shell, pack_spheres, place_shells, random_quaternions
from cryoscale.simulate.shapes import CONTOUR, blur_sigma_voxels, kind_of, particle_density

LEAFLET_OFFSET_ANGSTROM = 20.0
"""From the middle of a bilayer to the head groups of a leaflet: they lie about 40 Å apart."""

LEAFLET_SIGMA_ANGSTROM = 7.0
"""Spread of the head groups about their leaflet."""

MEMBRANE_CLEARANCE_ANGSTROM = 45.0
"""From the middle of a bilayer to where particles may begin."""

MEMBRANE = "membrane"


@dataclass(frozen=True)
class Scene:
    """What stands where.

    Parameters
    ----------
    signal_ZYX : (Z, Y, X) float32
        Scattering above ice; objects positive.
    labels_ZYX : (Z, Y, X) uint8
        0 background, n the n-th class name.
    instances_ZYX : (Z, Y, X) uint16
        0 background, then 1 + row of the particle; membranes follow the particles.
    positions_N3 : (N, 3) float64
        z, y, x in Å.
    kind_N : (N,) uint8
        Class value of each particle.
    quaternion_N4 : (N, 4) float64
        x, y, z, w; turns xyz of the particle's frame into xyz of the volume.
    class_names : tuple of str
        Name by class value; 0 is ``"background"``, the last is ``"membrane"``.
    shells : tuple of Shell
        The vesicles.
    """

    signal_ZYX: npt.NDArray[np.float32]
    labels_ZYX: npt.NDArray[np.uint8]
    instances_ZYX: npt.NDArray[np.uint16]
    positions_N3: npt.NDArray[np.float64]
    kind_N: npt.NDArray[np.uint8]
    quaternion_N4: npt.NDArray[np.float64]
    class_names: tuple[str, ...]
    shells: tuple[Shell, ...]


def build_scene(
    shape: Sequence[int],
    voxel_size_angstrom: float,
    copies: Mapping[str, int],
    *,
    vesicles: int = 0,
    vesicle_radius_angstrom: tuple[float, float] = (200.0, 330.0),
    membrane_contrast: float = 1.0,
    margin_angstrom: float | Sequence[float] = 0.0,
    resolution_angstrom: float | None = None,
    seed: int,
) -> Scene:
    """Pack particles and vesicles at random and paint them.

    Parameters
    ----------
    shape : three ints
        Extent, voxels.
    voxel_size_angstrom : float
        Voxel size, Å.
    copies : dict
        Kind to number of copies.
    vesicles : int
        Number of vesicles.
    vesicle_radius_angstrom : two floats
        Smallest and largest radius of a vesicle, Å.
    membrane_contrast : float
        Scattering of a leaflet's head groups, relative to protein.
    margin_angstrom : float or three floats
        Least distance of a particle's centre from the faces, Å, along z, y, x.
    resolution_angstrom : float, optional
        As in `particle_density`.
    seed : int
        Seed of all chance here.

    Raises
    ------
    ConfigurationError
        Unknown kind, impossible numbers, or no room.
    """
    extent = Zyx.of(shape)
    names = [name for name in copies for _ in range(_count(name, copies[name]))]
    size = (np.array(extent) - 1) * voxel_size_angstrom
    margin = _checked_margin(size, margin_angstrom, particles=len(names) + vesicles, kinds=len(copies))
    rng = np.random.default_rng(seed)
    shells = place_shells(
        vesicles,
        radius_range=vesicle_radius_angstrom,
        half_thickness=MEMBRANE_CLEARANCE_ANGSTROM,
        extent=size,
        rng=rng,
    )
    radii = [kind_of(name).radius_angstrom for name in names]
    positions_N3 = pack_spheres(radii, low=margin, high=size - margin, rng=rng, shells=shells)
    quaternion_N4 = random_quaternions(len(names), rng)
    share_N = rng.uniform([kind_of(name).least_share for name in names], 1.0)
    class_names = ("background", *copies, MEMBRANE)
    kind_N = np.array([class_names.index(name) for name in names], dtype=np.uint8)
    canvas = _Canvas(extent, voxel_size_angstrom, resolution_angstrom)
    for row, name in enumerate(names):
        canvas.paint_particle(
            row, name, int(kind_N[row]), positions_N3[row], quaternion_N4[row], share_N[row]
        )
    for number, shell in enumerate(shells):
        canvas.paint_shell(len(names) + number, shell, len(class_names) - 1, membrane_contrast)
    volumes = canvas.signal_ZYX, canvas.labels_ZYX, canvas.instances_ZYX
    return Scene(*volumes, positions_N3, kind_N, quaternion_N4, class_names, tuple(shells))


def _checked_margin(
    size: npt.NDArray[np.float64], margin_angstrom: float | Sequence[float], *, particles: int, kinds: int
) -> npt.NDArray[np.float64]:
    """Return the margin along each axis; refuse no room, and more than the labels can count."""
    margin = np.broadcast_to(np.asarray(margin_angstrom, dtype=np.float64), 3)
    if (size - 2 * margin <= 0).any() or kinds > 250 or particles > 65_000:
        raise ConfigurationError(
            f"{particles} particles and vesicles of {kinds} kinds do not go into a volume of "
            f"{size.tolist()} Å with margins {margin.tolist()} Å.",
            remedy="Use a larger volume, a smaller margin or fewer copies (at most 65000 of 250 kinds).",
        )
    return margin


def _count(name: str, copies: int) -> int:
    """Check one entry of `copies`."""
    kind_of(name)
    if copies < 0:
        raise ConfigurationError(f"the number of copies of '{name}' is {copies}; it cannot be negative.")
    return copies


class _Canvas:
    """The three volumes that a scene is painted on."""

    def __init__(self, shape: Zyx, voxel_size_angstrom: float, resolution_angstrom: float | None) -> None:
        self.shape = shape
        self.voxel = voxel_size_angstrom
        self.resolution = 3 * voxel_size_angstrom if resolution_angstrom is None else resolution_angstrom
        self.signal_ZYX = np.zeros(shape, np.float32)
        self.labels_ZYX = np.zeros(shape, np.uint8)
        self.instances_ZYX = np.zeros(shape, np.uint16)

    def _paint(
        self, origin: Sequence[int], stamp_ZYX: npt.NDArray[np.float32], contrast: float
    ) -> Box | None:
        """Add a stamp whose first voxel is at `origin`; return the part of the volume that it meets."""
        box = Box.of(origin, [o + n for o, n in zip(origin, stamp_ZYX.shape, strict=True)])
        meets = box.intersect(Box.whole(self.shape))
        if meets.empty:
            return None
        part = stamp_ZYX[meets.relative_to(origin).slices]
        self.signal_ZYX[meets.slices] += np.float32(contrast) * part
        return meets

    def paint_particle(
        self,
        row: int,
        name: str,
        value: int,
        position: npt.NDArray[np.float64],
        quaternion: npt.NDArray[np.float64],
        share: float,
    ) -> None:
        """Add one particle; a voxel is its own where its density exceeds the contour."""
        nearest = np.rint(position / self.voxel).astype(int)
        z, y, x = (float(v) for v in position / self.voxel - nearest)
        stamp_ZYX = particle_density(
            name,
            self.voxel,
            resolution_angstrom=self.resolution,
            rotation_33=Rotation.from_quat(quaternion).as_matrix(),
            offset_zyx=(z, y, x),
        )
        origin = [int(n) - stamp_ZYX.shape[0] // 2 for n in nearest]
        box = self._paint(origin, stamp_ZYX, share * kind_of(name).contrast)
        if box is not None:
            mask = stamp_ZYX[box.relative_to(origin).slices] > CONTOUR * stamp_ZYX.max()
            self.labels_ZYX[box.slices][mask] = value
            self.instances_ZYX[box.slices][mask] = row + 1

    def paint_shell(self, row: int, shell: Shell, value: int, contrast: float) -> None:
        """Add one vesicle's bilayer: two Gaussian leaflets, blurred like everything else."""
        blur = blur_sigma_voxels(self.resolution, self.voxel) * self.voxel
        sigma = float(np.hypot(LEAFLET_SIGMA_ANGSTROM, blur))
        # Painted at the height that a leaflet of full contrast keeps after the blur.
        reach = shell.radius + LEAFLET_OFFSET_ANGSTROM + 4 * sigma
        first = [int(np.floor((c - reach) / self.voxel)) for c in shell.centre]
        last = [int(np.ceil((c + reach) / self.voxel)) + 1 for c in shell.centre]
        box = Box.of(first, last).intersect(Box.whole(self.shape))
        if box.empty:
            return
        lines = [
            (np.arange(a, b) * self.voxel - c).astype(np.float32)
            for a, b, c in zip(box.start, box.stop, shell.centre, strict=True)
        ]
        z, y, x = np.meshgrid(*lines, indexing="ij", sparse=True)
        depth = np.sqrt(z * z + y * y + x * x) - np.float32(shell.radius)
        leaflets = sum(
            np.exp(-0.5 * ((depth - s * LEAFLET_OFFSET_ANGSTROM) / np.float32(sigma)) ** 2) for s in (-1, 1)
        )
        self.signal_ZYX[box.slices] += np.float32(contrast) * leaflets
        mask = (leaflets > CONTOUR * leaflets.max()) | (np.abs(depth) < LEAFLET_OFFSET_ANGSTROM)
        self.labels_ZYX[box.slices][mask] = value
        self.instances_ZYX[box.slices][mask] = row + 1
