"""Carbon with a round edge and a grain that does not show how the volume was cut; gold; lamellae."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.config.simulate import SurroundingsConfig
from cryoscale.errors import ConfigurationError
from cryoscale.geometry import Box
from cryoscale.simulate.surroundings import (
    EDGE_CONTOUR,
    Carbon,
    Gold,
    grain,
    lamella,
    occupancy,
    place_carbon,
    tiles_of,
)

SIZE = np.array((1500.0, 3000.0, 4000.0))
CARBON = Carbon((0.0, 100.0), 800.0, 400.0, 200.0, 1.5)
GOLD = Gold(np.array([[100.0, 100.0, 100.0], [300.0, 200.0, 400.0]]), 50.0, 15.0)


@pytest.mark.parametrize("seed", range(8))
def test_the_film_enters_from_one_side(seed: int) -> None:
    film = place_carbon(SurroundingsConfig(carbon_edge=True), SIZE, np.random.default_rng(seed))
    assert film is not None
    y, x = np.meshgrid(np.linspace(0, 3000, 40), np.linspace(0, 4000, 40), indexing="ij")
    inside = film.depth(np.full(y.shape, film.height), y, x) < 0
    assert 0.03 < inside.mean() < 0.4
    sides = [inside[0].mean(), inside[-1].mean(), inside[:, 0].mean(), inside[:, -1].mean()]
    assert sum(side > 0.6 for side in sides) == 1
    assert film.height - 100 >= 0
    assert place_carbon(SurroundingsConfig(), SIZE, np.random.default_rng(seed)) is None


def test_a_film_thicker_than_the_ice_is_refused() -> None:
    config = SurroundingsConfig(carbon_edge=True, carbon_thickness_angstrom=500.0, border_angstrom=600.0)
    with pytest.raises(ConfigurationError, match="thicker than the ice"):
        place_carbon(config, SIZE, np.random.default_rng(0))


@pytest.mark.parametrize("thing", [CARBON, GOLD])
def test_the_direction_is_the_gradient_of_the_distance(thing: Carbon | Gold) -> None:
    points = np.random.default_rng(0).uniform(0, 1000, (500, 3))
    distance, way = thing.approach(points)
    outside = distance > 1
    grown = thing.approach(points + 0.01 * way)[0]
    np.testing.assert_allclose(grown[outside], distance[outside] + 0.01, atol=1e-5)


def test_descriptions_make_them_again() -> None:
    assert Carbon.from_dict(CARBON.to_dict()) == CARBON
    np.testing.assert_array_equal(Gold.from_dict(GOLD.to_dict()).centres_N3, GOLD.centres_N3)


def test_an_edge_is_blurred_and_its_contour_is_a_fifth() -> None:
    depth = np.linspace(-100, 100, 2001)
    filled = occupancy(depth, 10.0)
    assert (np.diff(filled) <= 0).all()
    assert np.interp(0.0, depth, filled) == pytest.approx(0.5)
    assert np.interp(EDGE_CONTOUR * 10, depth, filled) == pytest.approx(0.2, abs=1e-4)
    assert filled[0] == 1
    assert filled[-1] == 0


def test_a_lamella_is_empty_beyond_its_faces() -> None:
    assert (lamella(0, 50, 10.0, 490.0, 0.0, 5.0) == 1).all()
    share = lamella(0, 50, 10.0, 490.0, 100.0, 5.0)
    assert (share[:8] == 0).all()
    assert (share[-8:] == 0).all()
    assert (share[13:-13] == 1).all()
    np.testing.assert_allclose(share, share[::-1], atol=1e-12)
    np.testing.assert_array_equal(lamella(7, 20, 10.0, 490.0, 100.0, 5.0), share[7:20])


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(-20, 100)] * 3), st.tuples(*[st.integers(1, 60)] * 3), st.floats(0.3, 2.0))
def test_grain_does_not_depend_on_the_box(
    start: tuple[int, ...], shape: tuple[int, ...], sigma: float
) -> None:
    box = Box.of(start, np.add(start, shape))
    wide = box.grow((3, 1, 5))
    whole = grain(3, wide, sigma)
    np.testing.assert_array_equal(grain(3, box, sigma), whole[box.relative_to(wide.start).slices])


def test_grain_has_unit_variance_and_its_seed() -> None:
    box = Box.of((0, 0, 0), (64, 64, 128))
    for sigma in (0.5, 1.0):
        noise = grain(1, box, sigma)
        assert noise.std() == pytest.approx(1, abs=0.03)
        assert abs(noise.mean()) < 0.05
    assert abs(np.corrcoef(grain(1, box, 0.5).ravel(), grain(2, box, 0.5).ravel())[0, 1]) < 0.02
    left, right = noise[..., :64], noise[..., 64:]  # two tiles do not repeat each other
    assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.05


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(-40, 90)] * 3), st.tuples(*[st.integers(1, 70)] * 3))
def test_tiles_cover_a_box_once(start: tuple[int, ...], shape: tuple[int, ...]) -> None:
    box = Box.of(start, np.add(start, shape))
    count = np.zeros(box.shape, int)
    for tile in tiles_of(box, 32):
        count[tile.relative_to(box.start).slices] += 1
        assert all(a // 32 == (b - 1) // 32 for a, b in zip(tile.start, tile.stop, strict=True))
    assert (count == 1).all()
