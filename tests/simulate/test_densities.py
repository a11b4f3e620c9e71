"""Densities from maps and shapes: centre, radius, resolution and grey scale, whatever the map's own were."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError, FormatError
from cryoscale.formats.mrc import MrcVolume
from cryoscale.geometry import Box
from cryoscale.simulate.densities import Density, density_from_map, density_from_shape
from cryoscale.simulate.shapes import CONTOUR, KINDS, density
from cryoscale.simulate.spheres import bounding_sphere, surface_points

DATA = (
    Path(os.environ.get("CRYOSCALE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "densities"
)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA} (CRYOSCALE_TEST_DATA)")


def blobs(
    shape: tuple[int, int, int], voxel: float, *balls: tuple[tuple[float, float, float], float]
) -> npt.NDArray[np.float32]:
    """Soft balls at places z, y, x (Å), with their radii (Å)."""
    grid = np.stack(np.indices(shape), axis=-1) * voxel
    total = np.zeros(shape)
    for centre, radius in balls:
        distance = np.sqrt(((grid - np.array(centre)) ** 2).sum(axis=-1))
        total = np.maximum(total, np.clip(0.5 - (distance - radius) / 12.0, 0, 1))
    return total.astype(np.float32)


DUMBBELL = (((70.0, 90.0, 100.0), 40.0), ((150.0, 110.0, 100.0), 30.0))


def of_blobs(voxel: float = 4.0, wanted: float = 8.0, **options: float) -> Density:
    shape = tuple(int(n / voxel) for n in (240, 200, 200))
    volume = blobs((shape[0], shape[1], shape[2]), voxel, *DUMBBELL)
    return density_from_map(volume, voxel, name="two", voxel_size_angstrom=wanted, **options)


def correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_the_middle_voxel_is_the_centre_of_the_bounding_sphere() -> None:
    made = of_blobs(resolution_angstrom=16.0)
    side = made.volume_ZYX.shape[0]
    assert made.volume_ZYX.shape == (side, side, side)
    assert side % 2 == 1
    assert made.volume_ZYX.dtype == np.float32
    places = np.argwhere(made.mask_ZYX) * 8.0 - side // 2 * 8.0
    reach = np.sqrt((places**2).sum(axis=1)).max()
    assert made.radius_angstrom - 8.0 < reach <= made.radius_angstrom
    # Two balls: the sphere spans both, its ends where the contour is, some Å beyond their radii.
    (first, r1), (second, r2) = DUMBBELL
    apart = np.array(second) - np.array(first)
    length = np.sqrt((apart**2).sum())
    centre = np.array(first) + apart / length * (length + r2 - r1) / 2
    np.testing.assert_allclose(made.centre_zyx_angstrom, centre, atol=1.5)
    assert made.radius_angstrom == pytest.approx((length + r1 + r2) / 2 + 4, abs=3)


def test_nothing_is_cut_off() -> None:
    made = of_blobs(resolution_angstrom=40.0)
    faces = [np.take(made.volume_ZYX, side, axis=axis).max() for axis in range(3) for side in (0, -1)]
    assert max(faces) < 0.02 * made.volume_ZYX.max()
    coarse = of_blobs(voxel=4.0, wanted=20.0)
    mass = float(made.volume_ZYX.sum()) * 8**3, float(coarse.volume_ZYX.sum()) * 20**3
    assert mass[0] == pytest.approx(mass[1], rel=0.02)


@pytest.mark.parametrize("factor", [1.0, 30.0, 1e-3])
@pytest.mark.parametrize("background", [0.0, -0.4, 7.0])
def test_grey_scale_and_background_of_the_file_do_not_matter(factor: float, background: float) -> None:
    volume = blobs((60, 50, 50), 4.0, *DUMBBELL)
    wanted = {"name": "two", "voxel_size_angstrom": 8.0}
    plain = density_from_map(volume, 4.0, **wanted)
    scaled = density_from_map((volume + background) * factor, 4.0, **wanted)
    np.testing.assert_allclose(scaled.volume_ZYX, plain.volume_ZYX, atol=2e-5)
    assert scaled.radius_angstrom == pytest.approx(plain.radius_angstrom, abs=0.01)


def test_the_inside_is_one_and_small_molecules_are_blurred_to_less() -> None:
    sizes = {}
    for radius in (12.0, 35.0, 70.0):
        volume = blobs((60, 60, 60), 4.0, ((118.0, 118.0, 118.0), radius))
        made = density_from_map(volume, 4.0, name="ball", voxel_size_angstrom=10.0, resolution_angstrom=40.0)
        sizes[radius] = float(made.volume_ZYX.max())
    assert sizes[70.0] == pytest.approx(1.0, abs=0.04)
    assert sizes[35.0] == pytest.approx(1.03, abs=0.06)
    assert sizes[12.0] < 0.75 * sizes[70.0]


@pytest.mark.parametrize(("voxel", "wanted"), [(4.0, 8.0), (5.0, 8.0), (8.0, 8.0), (3.0, 12.5), (8.0, 5.0)])
def test_the_voxel_size_of_the_file_does_not_matter(voxel: float, wanted: float) -> None:
    fine = of_blobs(voxel=2.5, wanted=wanted, resolution_angstrom=30.0)
    made = of_blobs(voxel=voxel, wanted=wanted, resolution_angstrom=30.0)
    assert made.radius_angstrom == pytest.approx(fine.radius_angstrom, abs=1.5)
    assert made.volume_ZYX.shape == fine.volume_ZYX.shape
    # Sideways the sphere around two balls is loosely held: some Å change its radius by next to nothing.
    assert correlation(made.volume_ZYX, fine.volume_ZYX) > 0.995
    assert made.volume_ZYX.max() == pytest.approx(fine.volume_ZYX.max(), rel=0.03)


def test_the_low_pass_is_a_gaussian_with_one_over_e_at_the_resolution() -> None:
    # Against an exact Gaussian: a wide one, blurred, has a width of the root of the sum of squares.
    grid = (np.indices((60, 60, 60)) - 30.0) * 4.0
    width, resolution = 20.0, 40.0
    volume = np.exp(-(grid**2).sum(axis=0) / (2 * width**2)).astype(np.float32)
    made = density_from_map(volume, 4.0, name="g", voxel_size_angstrom=10.0, resolution_angstrom=resolution)
    line = made.volume_ZYX[made.volume_ZYX.shape[0] // 2, made.volume_ZYX.shape[0] // 2]
    line = line / line.max()
    x = (np.arange(len(line)) - len(line) // 2) * 10.0
    blurred = np.hypot(width, resolution / (np.pi * np.sqrt(2)))
    inside = np.abs(x) < 50
    np.testing.assert_allclose(line[inside], np.exp(-(x**2) / (2 * blurred**2))[inside], atol=2e-3)


def test_no_finer_than_the_map_holds() -> None:
    volume = blobs((24, 20, 20), 10.0, *DUMBBELL)
    made = density_from_map(volume, 10.0, name="two", voxel_size_angstrom=3.0)
    assert made.resolution_angstrom == 20.0


def test_a_molecule_at_the_face_of_its_map_does_not_come_in_on_the_other_side() -> None:
    at_the_face = blobs((40, 40, 40), 4.0, ((40.0, 80.0, 80.0), 30.0))
    in_the_middle = blobs((40, 40, 40), 4.0, ((80.0, 80.0, 80.0), 30.0))
    wanted = {"name": "ball", "voxel_size_angstrom": 8.0, "resolution_angstrom": 40.0}
    first, second = (density_from_map(v, 4.0, **wanted) for v in (at_the_face, in_the_middle))
    np.testing.assert_allclose(first.volume_ZYX, second.volume_ZYX, atol=2e-3)
    assert first.centre_zyx_angstrom[0] == pytest.approx(40, abs=0.5)


def test_a_long_molecule_in_a_slim_map_stays_alone() -> None:
    balls = [((z, 30.0, 30.0), 20.0) for z in (40.0, 80.0, 120.0, 160.0, 200.0)]
    wide = [((z, 130.0, 130.0), 20.0) for z in (40.0, 80.0, 120.0, 160.0, 200.0)]
    wanted = {"name": "rod", "voxel_size_angstrom": 8.0, "resolution_angstrom": 24.0}
    slim = density_from_map(blobs((60, 15, 15), 4.0, *balls), 4.0, **wanted)
    large = density_from_map(blobs((60, 65, 65), 4.0, *wide), 4.0, **wanted)
    assert slim.volume_ZYX.shape[0] * 8 > 4 * 15 * 4
    assert float(slim.volume_ZYX.sum()) == pytest.approx(float(large.volume_ZYX.sum()), rel=2e-3)
    # The ends are round: sideways they hold the sphere to within an eighth of a voxel only.
    assert correlation(slim.volume_ZYX, large.volume_ZYX) > 0.98
    np.testing.assert_allclose(slim.centre_zyx_angstrom, (120, 30, 30), atol=5)


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (np.zeros((8, 8, 8)), "flat"),
        (np.full((8, 8, 8), 3.0), "flat"),
        (np.where(np.indices((8, 8, 8))[0] == 4, np.nan, 1.0), "not finite"),
        (np.where(np.indices((8, 8, 8))[0] == 4, np.inf, 1.0), "not finite"),
        (np.ones((8, 8)), "three axes"),
        (-blobs((20, 20, 20), 10.0, ((95.0, 95.0, 95.0), 40.0)), "darker"),
    ],
)
def test_maps_that_are_none_are_refused_by_name(volume: npt.NDArray[np.floating], words: str) -> None:
    with pytest.raises(FormatError, match=f"'odd'.*{words}"):
        density_from_map(volume, 10.0, name="odd", voxel_size_angstrom=10.0)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least two voxels"):
        of_blobs(wanted=10.0, resolution_angstrom=15.0)
    with pytest.raises(ConfigurationError, match="voxel size"):
        of_blobs(wanted=0.0)
    with pytest.raises(FormatError, match="voxel size is 0"):
        density_from_map(blobs((9, 9, 9), 4.0), 0.0, name="x", voxel_size_angstrom=8.0)


@pytest.mark.parametrize("name", KINDS)
def test_a_shape_is_its_formula_recentred(name: str) -> None:
    made = density_from_shape(name, voxel_size_angstrom=10.0, resolution_angstrom=40.0)
    assert (made.contrast, made.least_share) == (KINDS[name].contrast, KINDS[name].least_share)
    assert made.sha256 == ""
    plain = density(name, 10.0, resolution_angstrom=40.0)
    mass = float((made.volume_ZYX / made.volume_ZYX.max()).sum())
    assert mass == pytest.approx(float(plain.sum()), rel=0.05)
    # The sphere reaches no further than the formula's, but for the blur, whose contour lies outside.
    off = float(np.sqrt((np.array(made.centre_zyx_angstrom) ** 2).sum()))
    assert made.radius_angstrom < KINDS[name].radius_angstrom + 13
    assert made.radius_angstrom + off > 0.75 * KINDS[name].radius_angstrom
    places = (np.argwhere(plain > CONTOUR) - plain.shape[0] // 2) * 10.0 - made.centre_zyx_angstrom
    assert np.sqrt((places**2).sum(axis=1)).max() < made.radius_angstrom + 5


def test_surface_points_lie_on_the_contour() -> None:
    grid = np.indices((21, 21, 21)) - 10.0
    volume = np.maximum(0, 12 - np.sqrt((grid**2).sum(axis=0))).astype(np.float32)
    points = surface_points(volume, 5.0)
    assert len(points) > 300
    distance = np.sqrt(((points - 10) ** 2).sum(axis=1))
    np.testing.assert_allclose(distance, 7, atol=0.04)
    cut = surface_points(volume[10:], 5.0)  # cut open: the face closes it
    assert (cut[:, 0] < 0).any()


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 10_000), st.sampled_from(["ball", "flat", "line", "same"]))
def test_the_bounding_sphere_is_the_smallest(count: int, seed: int, form: str) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)) * 10
    if form == "flat":
        points[:, 0] = 3.0
    if form in ("line", "same"):
        points[:, 1:] = 1.0
    if form == "same":
        points[:] = points[0]
    centre, radius = bounding_sphere(points)
    distance = np.sqrt(((points - centre) ** 2).sum(axis=1))
    assert distance.max() <= radius + 1e-6
    # No sphere around the same points is smaller: moving the centre anywhere only makes it larger.
    for step in rng.normal(size=(30, 3)):
        for size in (1e-3, 1e-1, 1.0):
            moved = centre + size * step
            assert np.sqrt(((points - moved) ** 2).sum(axis=1)).max() >= radius - 1e-6


def test_the_bounding_sphere_turns_with_its_points() -> None:
    points = np.random.default_rng(1).uniform(-5, 5, (500, 3))
    turn = Rotation.from_rotvec([0.3, 1.0, -0.4])
    (centre, radius), (turned, same) = bounding_sphere(points), bounding_sphere(turn.apply(points))
    assert same == pytest.approx(radius, rel=1e-9)
    np.testing.assert_allclose(turned, turn.apply(centre), atol=1e-6)


@needs_data
def test_maps_of_molecules_are_alike_in_grey_scale() -> None:
    made = {}
    for path in sorted(DATA.glob("*.mrc")):
        with MrcVolume(path) as volume:
            data, voxel = volume.read(Box.whole(volume.shape)), volume.header.voxel_size_angstrom
        assert voxel is not None
        made[path.stem] = density_from_map(
            data, voxel, name=path.stem, voxel_size_angstrom=10.0, resolution_angstrom=40.0
        )
    assert len(made) == 25
    within = {name: float(d.volume_ZYX[d.mask_ZYX].mean()) for name, d in made.items()}
    assert 0.4 < min(within.values()) < max(within.values()) < 0.8  # the files: a factor of 30
    assert min(float(d.volume_ZYX.min()) for d in made.values()) == 0
    assert made["6qzp"].radius_angstrom == pytest.approx(162, abs=3)  # a eukaryotic ribosome: 30 nm and more
    assert made["1s3x"].radius_angstrom < 40 < made["1bxn"].radius_angstrom < 75
    assert all(0.1 < d.filling < 0.9 for d in made.values())
