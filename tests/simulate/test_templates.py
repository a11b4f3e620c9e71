"""Stamps: turned and shifted densities against formulas, exact turns and a finer reference."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError, LayoutError
from cryoscale.simulate.densities import Density, density_from_shape
from cryoscale.simulate.shapes import KINDS, particle_density
from cryoscale.simulate.templates import Template, Templates, oversampled, rotation_matrix

IDENTITY = (0.0, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def ribosome() -> Density:
    return density_from_shape("ribosome", voxel_size_angstrom=10.0, resolution_angstrom=40.0)


@pytest.fixture(scope="module")
def template(ribosome: Density) -> Template:
    return Template(ribosome)


def error(made: npt.NDArray[np.floating], wanted: npt.NDArray[np.floating]) -> float:
    """Root mean square of the difference over that of what was wanted."""
    return float(np.sqrt(((made - wanted) ** 2).mean() / (wanted**2).mean()))


def test_an_unturned_stamp_is_the_density(template: Template, ribosome: Density) -> None:
    stamp = template.stamp(IDENTITY)
    assert stamp.dtype == np.float32
    assert stamp.shape == ribosome.volume_ZYX.shape == template.shape
    assert error(stamp, ribosome.volume_ZYX) < 0.01


@pytest.mark.parametrize(("axis", "planes"), [("x", (0, 1)), ("y", (2, 0)), ("z", (1, 2))])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_turns_of_the_array(
    template: Template, axis: str, planes: tuple[int, int], quarters: int
) -> None:
    # A turn about z takes x to y: from the last axis of the array towards the middle one.
    stamp = template.stamp(Rotation.from_euler(axis, 90 * quarters, degrees=True).as_quat())
    plain = template.stamp(IDENTITY)
    np.testing.assert_allclose(stamp, np.rot90(plain, quarters, axes=planes[::-1]), atol=1e-3)
    if quarters != 2:
        assert error(np.rot90(plain, quarters, axes=planes), stamp) > 0.1  # the other way round is seen


@pytest.mark.parametrize("name", KINDS)
def test_stamps_are_what_the_formula_gives(name: str) -> None:
    made = density_from_shape(name, voxel_size_angstrom=10.0, resolution_angstrom=40.0)
    template = Template(made)
    rng = np.random.default_rng(3)
    half = template.shape[0] // 2
    for turn in Rotation.random(3, random_state=5):
        offset = rng.uniform(-0.5, 0.5, 3)
        stamp = template.stamp(turn.as_quat(), offset)
        # The formula's origin is not the centre of the sphere; from there to it, turned, in voxels z, y, x.
        origin = offset - turn.apply(made.centre_zyx_angstrom[::-1])[::-1] / 10.0
        nearest = np.rint(origin).astype(int)
        wanted = particle_density(
            name, 10.0, resolution_angstrom=40.0, rotation_33=turn.as_matrix(),
            offset_zyx=tuple(origin - nearest),
        )  # fmt: skip
        wanted = np.pad(wanted, 12)
        start = wanted.shape[0] // 2 - nearest - half
        wanted = wanted[tuple(slice(s, s + 2 * half + 1) for s in start)]
        assert np.corrcoef(stamp.ravel(), wanted.ravel())[0, 1] > 0.9995
        assert float(stamp.sum()) == pytest.approx(float(wanted.sum()), rel=0.025)


def test_stamps_agree_with_a_cubic_spline_on_a_finer_grid() -> None:
    small = density_from_shape("ribosome", voxel_size_angstrom=16.0, resolution_angstrom=64.0)
    template = Template(small)
    half = template.shape[0] // 2
    fine = ndimage.zoom(np.pad(small.volume_ZYX, 1), 4, order=5, grid_mode=True, mode="grid-constant")
    spline = ndimage.spline_filter(fine, 3)
    grid = np.indices(template.shape).reshape(3, -1) - half
    errors = []
    for number, turn in enumerate(Rotation.random(4, random_state=8)):
        offset = np.random.default_rng(number).uniform(-0.5, 0.5, 3)
        places = turn.inv().apply((grid.T - offset)[:, ::-1])[:, ::-1]
        fine_places = (places + half + 1) * 4 + 1.5  # zoom in grid mode: centres of voxels
        wanted = ndimage.map_coordinates(spline, fine_places.T, order=3, prefilter=False)
        wanted = wanted.reshape(template.shape)
        wanted[(grid**2).sum(axis=0).reshape(template.shape) > half * half] = 0
        made = template.stamp(turn.as_quat(), offset)
        errors.append(error(made, wanted))
        assert float(made.sum()) == pytest.approx(float(wanted.sum()), rel=2e-3)
    assert max(errors) < 0.002, errors


def test_an_offset_moves_the_centre_of_mass(template: Template) -> None:
    plain = template.stamp(IDENTITY)
    middle = ndimage.center_of_mass(plain)
    for offset in np.eye(3) * 0.5:
        moved = ndimage.center_of_mass(template.stamp(IDENTITY, offset))
        np.testing.assert_allclose(np.subtract(moved, middle), offset, atol=0.01)


def test_a_stamp_depends_on_nothing_but_its_arguments(ribosome: Density) -> None:
    quaternion, offset = (0.3, -0.5, 0.1, 0.8), (0.2, -0.4, 0.5)
    first = Template(ribosome)
    before = first.stamp(quaternion, offset)
    for other in Rotation.random(5, random_state=1).as_quat():
        first.stamp(other)
    again = first.stamp(quaternion, offset)
    fresh = Template(ribosome).stamp(np.array(quaternion), np.array(offset))
    assert before.tobytes() == again.tobytes() == fresh.tobytes()
    before[:] = 7  # what is handed out is the receiver's
    assert first.stamp(quaternion, offset).tobytes() == again.tobytes()


def test_the_length_of_a_quaternion_does_not_matter(template: Template) -> None:
    quaternion = np.array([0.3, -0.5, 0.1, 0.8])
    np.testing.assert_allclose(template.stamp(quaternion), template.stamp(quaternion * 3), atol=1e-6)
    np.testing.assert_allclose(template.stamp(quaternion), template.stamp(-quaternion), atol=1e-6)


def test_rotation_matrices_are_those_of_scipy() -> None:
    for turn in Rotation.random(20, random_state=4):
        np.testing.assert_allclose(rotation_matrix(turn.as_quat()), turn.as_matrix(), atol=1e-12)


def test_bad_orientations_and_offsets_are_refused(template: Template) -> None:
    with pytest.raises(LayoutError, match="half a voxel"):
        template.stamp(IDENTITY, (0.0, 0.6, 0.0))
    with pytest.raises(LayoutError, match="half a voxel"):
        template.stamp(IDENTITY, (0.0, np.nan, 0.0))
    for quaternion in ((0.0, 0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0)):
        with pytest.raises(LayoutError, match="quaternion"):
            template.stamp(quaternion)


def test_templates_are_made_once_and_by_name(ribosome: Density) -> None:
    ball = density_from_shape("ball", voxel_size_angstrom=10.0)
    templates = Templates([ribosome, ball])
    assert templates["ball"] is templates["ball"]
    assert templates.stamp("ball", IDENTITY).shape == ball.volume_ZYX.shape
    assert templates["ribosome"].nbytes < 10_000_000
    with pytest.raises(ConfigurationError, match="two densities have the name 'ball'"):
        Templates([ball, ball])


def test_the_finer_grid_passes_through_the_voxels(ribosome: Density) -> None:
    fine = oversampled(ribosome.volume_ZYX, 3, margin=2)
    side = ribosome.volume_ZYX.shape[0]
    assert fine.shape == ((side + 4) * 3,) * 3
    assert (
        error(fine[6 : 6 + 3 * side : 3, 6 : 6 + 3 * side : 3, 6 : 6 + 3 * side : 3], ribosome.volume_ZYX)
        < 0.01
    )
    assert float(fine.sum()) / 27 == pytest.approx(float(ribosome.volume_ZYX.sum()), rel=1e-3)


def test_stamps_are_quick(template: Template) -> None:
    began = time.process_time()
    for quaternion in Rotation.random(100, random_state=2).as_quat():
        template.stamp(quaternion, (0.1, 0.2, 0.3))
    # Measured: about 1 ms each. 10,000 in two minutes would be 12 ms; shared machines are slow.
    assert time.process_time() - began < 2.0
