"""Densities against what their formulas promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.shapes import CONTOUR, KINDS, blur_sigma_voxels, density, kind_of, particle_density


@pytest.mark.parametrize("name", KINDS)
def test_a_density_peaks_at_one_and_stays_in_its_bounding_sphere(name: str) -> None:
    voxel = 10.0
    volume = density(name, voxel)
    assert volume.dtype == np.float32
    assert volume.max() == 1
    assert volume.min() >= 0
    middle = volume.shape[0] // 2
    z, y, x = np.indices(volume.shape) - middle
    outside = np.sqrt(z**2 + y**2 + x**2) * voxel > KINDS[name].radius_angstrom + 1.5 * voxel
    assert volume[outside].max() < CONTOUR
    assert max(volume[0].max(), volume[:, 0].max(), volume[:, :, 0].max()) < 0.01


@pytest.mark.parametrize("name", KINDS)
def test_size_does_not_depend_on_the_voxel(name: str) -> None:
    volumes = [float((density(name, v, resolution_angstrom=30.0) > 0.5).sum()) * v**3 for v in (6.0, 10.0)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)


def test_kinds_differ() -> None:
    sizes = {
        n: float((density(n, 10.0) > CONTOUR).sum()) for n in ("ribosome", "barrel", "ball", "rod", "ring")
    }
    assert sizes["ribosome"] > 1.8 * sizes["barrel"] > 2 * sizes["ball"]
    middle = {n: density(n, 6.0, resolution_angstrom=12.0) for n in ("ring", "shell", "rod")}
    centre = {n: float(v[tuple(s // 2 for s in v.shape)]) for n, v in middle.items()}
    assert centre["ring"] < 0.05
    assert centre["shell"] < 0.05
    assert centre["rod"] > 0.9


def test_a_turn_by_ninety_degrees_is_a_turn_of_the_array() -> None:
    # xyz of the particle's z axis goes to x: the array's z and x axes change places (with a sign).
    turn = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    np.testing.assert_allclose(turn @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    plain = particle_density("ribosome", 10.0)
    turned = particle_density("ribosome", 10.0, rotation_33=turn)
    np.testing.assert_allclose(turned, plain.transpose(2, 1, 0)[::-1], atol=1e-4)
    assert not np.allclose(turned, plain.transpose(2, 1, 0), atol=1e-2)  # the stalk shows which side is which


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_offset_moves_the_centre_of_mass(axis: int) -> None:
    offset = [0.0, 0.0, 0.0]
    offset[axis] = 0.4
    plain, moved = (particle_density("barrel", 10.0, offset_zyx=o) for o in ((0, 0, 0), tuple(offset)))
    grid = np.indices(plain.shape).astype(float)
    shift = [(g * moved).sum() / moved.sum() - (g * plain).sum() / plain.sum() for g in grid]
    np.testing.assert_allclose(shift, offset, atol=0.03)


def test_the_low_pass_leaves_one_over_e_at_its_resolution() -> None:
    sigma = blur_sigma_voxels(40.0, 10.0) * 10.0
    assert np.exp(-2 * (np.pi * sigma / 40.0) ** 2) == pytest.approx(np.exp(-1))


def test_an_unknown_kind_names_the_known() -> None:
    with pytest.raises(ConfigurationError, match="ribosome, barrel"):
        kind_of("virus")
