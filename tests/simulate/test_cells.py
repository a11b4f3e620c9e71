"""A cell: truth where the volume has it, the same from the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.cells import Cell, demo_cells, simulate_cell
from cryoscale.simulate.scene import MEMBRANE, build_scene
from cryoscale.simulate.shapes import CONTOUR, kind_of, particle_density

SMALL: dict[str, Any] = {
    "shape": (48, 80, 84),
    "voxel_size_angstrom": 14.0,
    "copies": {"ribosome": 5, "rod": 6, "ball": 6},
    "vesicles": 1,
}


@pytest.fixture(scope="module")
def cell() -> Cell:
    return simulate_cell(**SMALL, snr=0.1, seed=7)


@pytest.fixture(scope="module")
def demo() -> Cell:
    return demo_cells(1, seed=0)[0]


def test_the_same_seed_gives_the_same_bytes(cell: Cell) -> None:
    again = simulate_cell(**SMALL, snr=0.1, seed=7)
    other = simulate_cell(**SMALL, snr=0.1, seed=8)
    np.testing.assert_array_equal(cell.volume_ZYX, again.volume_ZYX)
    np.testing.assert_array_equal(cell.labels_ZYX, again.labels_ZYX)
    for name, column in cell.picks.items():
        np.testing.assert_array_equal(column, again.picks[name])
    assert not np.array_equal(cell.volume_ZYX, other.volume_ZYX)
    assert not np.array_equal(cell.positions_N3, other.positions_N3)
    # nine tenths of the variance is noise: a shared stream would show
    assert abs(np.corrcoef(cell.volume_ZYX.ravel(), other.volume_ZYX.ravel())[0, 1]) < 0.1


def test_the_parameters_make_the_cell_again(cell: Cell) -> None:
    np.testing.assert_array_equal(simulate_cell(**cell.parameters).volume_ZYX, cell.volume_ZYX)


def test_types_and_counts(cell: Cell) -> None:
    assert cell.volume_ZYX.dtype == np.float32
    assert cell.labels_ZYX.dtype == np.uint8
    assert cell.class_names == ("background", "ribosome", "rod", "ball", MEMBRANE)
    assert np.bincount(cell.picks["kind"]).tolist() == [0, 5, 6, 6]
    assert set(np.unique(cell.labels_ZYX)) == {0, 1, 2, 3, 4}
    assert cell.picks["orientation"].shape == (17, 4)
    assert len(cell.positions_of("rod")) == 6
    assert cell.realised_snr == pytest.approx(0.1, rel=1e-3)


def test_particles_keep_off_the_faces(demo: Cell) -> None:
    voxels = demo.positions_N3 / demo.voxel_size_angstrom
    assert voxels.min() >= 8
    assert (voxels <= np.array(demo.volume_ZYX.shape) - 1 - 8).all()


def test_labels_are_the_contour_of_each_particle(cell: Cell) -> None:
    """Paint one particle anew from the pick table alone; its mask must be where the label volume has it."""
    for row in (0, 6, 12):
        position = cell.positions_N3[row] / 14.0
        nearest = np.rint(position).astype(int)
        name = cell.class_names[cell.picks["kind"][row]]
        turn = Rotation.from_quat(cell.picks["orientation"][row]).as_matrix()
        stamp = particle_density(name, 14.0, rotation_33=turn, offset_zyx=tuple(position - nearest))
        inside = np.argwhere(stamp > CONTOUR * stamp.max()) - stamp.shape[0] // 2 + nearest
        fits = ((inside >= 0) & (inside < cell.labels_ZYX.shape)).all(axis=1)
        own = cell.scene.instances_ZYX[tuple(inside[fits].T)] == row + 1
        assert own.mean() > 0.95  # neighbours may take a voxel at the rim
        assert (cell.scene.instances_ZYX == row + 1).sum() <= fits.sum()


def test_instances_and_labels_agree(cell: Cell) -> None:
    for row, kind in enumerate(cell.picks["kind"]):
        assert set(np.unique(cell.labels_ZYX[cell.scene.instances_ZYX == row + 1])) == {kind}
    assert ((cell.labels_ZYX > 0) == (cell.scene.instances_ZYX > 0)).all()


def test_centres_of_mass_are_the_positions() -> None:
    scene = build_scene((40, 60, 60), 14.0, {"barrel": 8}, margin_angstrom=140.0, seed=1)
    for row in range(8):
        mask = scene.instances_ZYX == row + 1
        centre = np.array(ndimage.center_of_mass(scene.signal_ZYX * mask)) * 14.0
        np.testing.assert_allclose(centre, scene.positions_N3[row], atol=3.0)


def test_balls_differ_in_their_load_and_barrels_do_not() -> None:
    scene = build_scene((48, 90, 90), 14.0, {"ball": 12, "barrel": 6}, margin_angstrom=140.0, seed=2)
    peaks = np.array([scene.signal_ZYX[scene.instances_ZYX == row + 1].max() for row in range(18)])
    assert peaks[:12].max() > 1.6 * peaks[:12].min()
    assert peaks[12:].max() < 1.3 * peaks[12:].min()


def test_a_vesicle_is_two_dark_leaflets() -> None:
    scene = build_scene((80, 80, 80), 7.0, {}, vesicles=1, vesicle_radius_angstrom=(150, 160), seed=0)
    shell = scene.shells[0]
    grid = np.stack(np.meshgrid(*(np.arange(80) * 7.0,) * 3, indexing="ij"), -1)
    depth = np.linalg.norm(grid - shell.centre, axis=-1) - shell.radius
    profile = [float(scene.signal_ZYX[np.abs(depth - d) < 3].mean()) for d in (-20, 0, 20, 60)]
    assert profile[0] > 1.5 * profile[1]
    assert profile[2] > 1.5 * profile[1]
    assert profile[3] < 0.01
    assert (scene.labels_ZYX[np.abs(depth) < 20] == 1).all()
    assert (scene.labels_ZYX[np.abs(depth) > 45] == 0).all()


def test_particles_are_dark_after_smoothing(demo: Cell) -> None:
    smooth = ndimage.gaussian_filter(demo.volume_ZYX, 2.0)
    background = smooth[ndimage.binary_erosion(demo.labels_ZYX == 0, iterations=3)]
    for name in demo.class_names[1:-1]:
        voxels = np.rint(demo.positions_of(name) / demo.voxel_size_angstrom).astype(int)
        depth = (background.mean() - smooth[tuple(voxels.T)]) / background.std()
        assert depth.mean() > 1
    membrane = smooth[ndimage.binary_erosion(demo.labels_ZYX == len(demo.class_names) - 1, iterations=2)]
    assert membrane.mean() < background.mean() - background.std()


def test_the_demo_is_what_it_says(demo: Cell) -> None:
    assert demo.volume_ZYX.shape == (64, 192, 192)
    assert len(demo.class_names) == 5
    assert demo.realised_snr == pytest.approx(0.1, rel=1e-3)
    box = 16 * demo.voxel_size_angstrom
    for name in demo.class_names[1:-1]:
        assert 2 * kind_of(name).radius_angstrom <= box


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"copies": {"ghost": 1}}, "ghost"),
        ({"copies": {"rod": -1}}, "negative"),
        ({"copies": {"ribosome": 500}}, "only"),
        ({"shape": (10, 50, 50)}, "do not go into"),
        ({"snr": -1.0}, "signal-to-noise"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        simulate_cell(**{**SMALL, "seed": 0, **changes})
