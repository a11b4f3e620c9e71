"""Small cellular tomograms with truth, for the demo, for tests, and for measuring what a method finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.simulate.imaging import Imaging, image
from cryoscale.simulate.scene import Scene, build_scene

DEMO_SHAPE = (64, 192, 192)
DEMO_VOXEL_SIZE_ANGSTROM = 14.0
DEMO_COPIES: dict[str, int] = {"ribosome": 100, "barrel": 120, "ball": 100}
DEMO_VESICLES = 5


@dataclass(frozen=True)
class Cell:
    """One simulated tomogram and the truth about it.

    Parameters
    ----------
    volume_ZYX : (Z, Y, X) float32
        The tomogram; objects dark.
    labels_ZYX : (Z, Y, X) uint8
        0 background, then one value per kind, membranes last.
    picks : dict
        Columns ``z, y, x`` (float64, Å), ``kind`` (uint8, the label value), ``orientation`` ((N, 4) float64,
        quaternion x, y, z, w).
    class_names : tuple of str
        Name by label value.
    voxel_size_angstrom : float
        Voxel size, Å.
    realised_snr : float
        Signal variance over noise variance, as measured.
    parameters : dict
        The arguments of `simulate_cell` that make the same cell again.
    scene : Scene
        The noise-free density and the instances.
    """

    volume_ZYX: npt.NDArray[np.float32]
    labels_ZYX: npt.NDArray[np.uint8]
    picks: dict[str, npt.NDArray[Any]]
    class_names: tuple[str, ...]
    voxel_size_angstrom: float
    realised_snr: float
    parameters: dict[str, Any]
    scene: Scene

    @property
    def positions_N3(self) -> npt.NDArray[np.float64]:
        """Positions of all particles, z, y, x in Å."""
        return self.scene.positions_N3

    def positions_of(self, name: str) -> npt.NDArray[np.float64]:
        """Positions of one kind, z, y, x in Å."""
        chosen: npt.NDArray[np.bool_] = self.scene.kind_N == self.class_names.index(name)
        return self.scene.positions_N3[chosen]


def simulate_cell(
    *,
    shape: Sequence[int],
    voxel_size_angstrom: float,
    copies: Mapping[str, int],
    vesicles: int = 0,
    snr: float = 0.1,
    wedge_degrees: float = 60.0,
    seed: int,
    ice_margin_angstrom: float = 112.0,
    membrane_contrast: float = 1.5,
    defocus_micrometre: float | None = 4.0,
    envelope: float = 1.0,
) -> Cell:
    """Simulate one tomogram.

    Parameters
    ----------
    shape : three ints
        Extent, voxels.
    voxel_size_angstrom : float
        Voxel size, Å.
    copies : dict
        Kind (see `cryoscale.simulate.shapes.KINDS`) to number of copies.
    vesicles : int
        Number of vesicles.
    snr : float
        Variance of the filtered signal over that of all noise.
    wedge_degrees : float
        Largest tilt to either side; 90 means no missing wedge.
    seed : int
        The same seed gives the same cell.
    ice_margin_angstrom : float
        Least distance of a particle's centre from every face, Å: a box around it then stays inside.
    membrane_contrast, defocus_micrometre, envelope : float
        As in `build_scene` and `Imaging`. Membranes are darker than pure lipid: they carry proteins.

    Raises
    ------
    ConfigurationError
        Unknown kind, impossible numbers, or no room.
    """
    parameters = {**locals(), "copies": dict(copies)}
    imaging = _imaging(snr, wedge_degrees, defocus_micrometre, envelope)
    scene = build_scene(
        shape,
        voxel_size_angstrom,
        copies,
        vesicles=vesicles,
        membrane_contrast=membrane_contrast,
        margin_angstrom=ice_margin_angstrom,
        seed=seed,
    )
    # The noise must not share its stream with the packing: another seed, derived from the same one.
    noise_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])
    volume_ZYX, realised = image(scene.signal_ZYX, voxel_size_angstrom, imaging, seed=noise_seed)
    z, y, x = scene.positions_N3.T
    picks = {"z": z, "y": y, "x": x, "kind": scene.kind_N, "orientation": scene.quaternion_N4}
    names = scene.class_names
    return Cell(volume_ZYX, scene.labels_ZYX, picks, names, voxel_size_angstrom, realised, parameters, scene)


def _imaging(snr: float, wedge_degrees: float, defocus_micrometre: float | None, envelope: float) -> Imaging:
    """Return settings where one Gaussian limits everything, the detector's noise as well as the signal."""
    tilts = {"tilt_min_degrees": -wedge_degrees, "tilt_max_degrees": wedge_degrees}
    imaging = Imaging(snr, **tilts, defocus_micrometre=defocus_micrometre, envelope=envelope)
    return replace(imaging, envelope=math.inf, mtf_at_nyquist=max(math.exp(-(envelope**-2)), 1e-30))


def demo_cells(n: int = 3, seed: int = 0) -> list[Cell]:
    """Simulate the cells of the demo: three kinds of particle, vesicles, SNR 0.1, a missing wedge.

    Boxes of 16 voxels (22 nm) hold any of the particles. Ribosomes are large and dense, barrels hollow and
    light; balls are small, with an iron core of varying load, so that no threshold on a blob filter tells
    ribosomes from balls. Defocus 4 micrometres. The envelope reaches 1/e at Nyquist, not at 0.4 of it as in
    the papers, whose voxels were 10 Å: so the two leaflets of a membrane stay apart.
    """
    return [
        simulate_cell(
            shape=DEMO_SHAPE,
            voxel_size_angstrom=DEMO_VOXEL_SIZE_ANGSTROM,
            copies=DEMO_COPIES,
            vesicles=DEMO_VESICLES,
            snr=0.1,
            seed=seed * 1000 + number,
        )
        for number in range(n)
    ]
