"""Membranes keep apart, lean as they should, and are two leaflets 40 Å apart."""

from __future__ import annotations

import numpy as np
import pytest

from cryoscale.config.simulate import MembraneConfig
from cryoscale.errors import ConfigurationError
from cryoscale.simulate.membranes import Membrane, nearest_membrane, place_membranes, points_near

SIZE = np.array((1500.0, 3000.0, 3000.0))
VESICLE = Membrane("vesicle", (300.0, 400.0, 500.0), (200.0,), 1.5)
DOUBLE = Membrane("plane", (0.0, 0.6, 0.8), (1500.0, 1750.0), 1.5)


def grid(size: np.ndarray, step: float) -> np.ndarray:
    lines = (np.arange(0, s, step) for s in size)
    return np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize("seed", range(4))
def test_membranes_never_meet_within_the_volume(seed: int) -> None:
    config = MembraneConfig(vesicles=4, double_vesicles=1, planes=1, double_planes=1)
    membranes = place_membranes(config, SIZE, np.random.default_rng(seed))
    assert sorted(m.class_name for m in membranes) == ["double_membrane"] * 2 + ["membrane"] * 5
    points = grid(SIZE, 25.0)
    near = np.stack([m.approach(points)[0] for m in membranes])
    # at no point are two different membranes near: the triangle inequality bounds how near they come
    assert np.sort(near, axis=0)[:2].sum(axis=0).min() > 130


@pytest.mark.parametrize("tilt", [0.0, 20.0, 90.0])
def test_planes_lean_from_the_beam_as_asked(tilt: float) -> None:
    config = MembraneConfig(planes=1, tilt_degrees=tilt)
    leans = []
    for seed in range(60):
        (plane,) = place_membranes(config, SIZE, np.random.default_rng(seed))
        assert np.linalg.norm(plane.anchor) == pytest.approx(1)
        leans.append(np.degrees(np.arcsin(abs(plane.anchor[0]))))
    assert max(leans) <= tilt + 1e-6
    assert max(leans) >= 0.8 * tilt


def test_double_membranes_have_their_gap() -> None:
    config = MembraneConfig(double_planes=1, double_vesicles=1, double_gap_angstrom=300.0)
    for membrane in place_membranes(config, SIZE, np.random.default_rng(0)):
        assert np.diff(membrane.levels) == pytest.approx(300.0)
    assert 200 <= membrane.levels[0] <= 330


@pytest.mark.parametrize("membrane", [VESICLE, DOUBLE])
def test_the_direction_is_the_gradient_of_the_distance(membrane: Membrane) -> None:
    points = np.random.default_rng(0).uniform(0, 1800, (300, 3))
    distance, way = membrane.approach(points)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), 1)
    np.testing.assert_allclose(membrane.approach(points + 0.01 * way)[0], distance + 0.01, atol=1e-6)


def test_leaflets_are_forty_angstrom_apart() -> None:
    depth = np.arange(100.0, 300.0, 0.5)
    profile = VESICLE.density(depth, 9.0)
    peaks = depth[1:-1][(profile[1:-1] > profile[:-2]) & (profile[1:-1] > profile[2:])]
    np.testing.assert_allclose(peaks, (180.0, 220.0), atol=1.0)
    assert profile.max() == pytest.approx(1.5, rel=0.01)
    assert (profile[np.abs(depth - 200) > 20 + 36.1] == 0).all()
    # the contour: beyond it the density is less than a fifth, within it is the membrane's, tails and all
    inside = VESICLE.inside(depth, 9.0)
    assert inside[np.abs(depth - 200) < 20].all()
    np.testing.assert_array_equal(inside[depth > 220], profile[depth > 220] >= 0.2 * profile.max())


def test_points_near_have_their_gap() -> None:
    rng = np.random.default_rng(0)
    gap = rng.uniform(50, 90, 2000)
    points = points_near((VESICLE, DOUBLE), gap, SIZE, rng)
    off = np.stack(
        [
            np.abs(VESICLE.depth(*points.T) - 200),
            *(np.abs(DOUBLE.depth(*points.T) - v) for v in DOUBLE.levels),
        ]
    )
    assert (np.abs(off - gap).min(axis=0) < 1e-6).all()
    assert (nearest_membrane((VESICLE, DOUBLE), points)[0] <= gap + 1e-6).all()
    which = np.abs(off - gap).argmin(axis=0)
    assert (np.bincount(which, minlength=3) > 50).all()


def test_a_description_makes_the_membrane_again() -> None:
    for membrane in (VESICLE, DOUBLE):
        assert Membrane.from_dict(membrane.to_dict()) == membrane


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MembraneConfig(vesicles=400), r"only \d+ of 400 vesicles"),
        (MembraneConfig(planes=50), r"only \d+ of 50 planar membranes"),
        (MembraneConfig(double_planes=30), r"only \d+ of 30 double planar membranes"),
    ],
)
def test_what_does_not_fit_is_said(config: MembraneConfig, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        place_membranes(config, SIZE, np.random.default_rng(0), attempts=300)
