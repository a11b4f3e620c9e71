"""Filaments keep apart; their walls, strands and repeats have the right sizes."""

from __future__ import annotations

import numpy as np
import pytest

from cryoscale.config.simulate import FilamentConfig, MembraneConfig
from cryoscale.errors import ConfigurationError
from cryoscale.simulate.filaments import Filament, place_filaments
from cryoscale.simulate.membranes import HEAD_SURFACE_ANGSTROM, nearest_membrane, place_membranes

SIZE = np.array((1500.0, 3000.0, 3000.0))
TUBE = Filament("microtubule", (500.0, 600.0, 700.0), (0.0, 0.6, 0.8), (0.0, -0.8, 0.6), 9000.0)
ACTIN = Filament("actin", (500.0, 600.0, 700.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), 1e8)


@pytest.mark.parametrize("seed", range(3))
def test_filaments_keep_off_each_other_and_off_membranes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    membranes = place_membranes(MembraneConfig(vesicles=2, planes=1), SIZE, rng)
    config = FilamentConfig(microtubules=3, actin=4)
    filaments = place_filaments(config, SIZE, rng, membranes=membranes)
    assert [f.kind for f in filaments] == ["microtubule"] * 3 + ["actin"] * 4
    for n, one in enumerate(filaments):
        axis = one.axis(np.arange(-4000.0, 4000.0, 5.0))
        axis = axis[((axis > 0) & (axis < SIZE)).all(axis=1)]
        assert len(axis) * 5 > 0.5 * 3000  # it runs through the volume
        for other in filaments[:n]:
            assert other.approach(axis)[0].min() > one.radius_angstrom
        assert nearest_membrane(membranes, axis)[0].min() > one.radius_angstrom + HEAD_SURFACE_ANGSTROM


def test_the_axis_is_where_the_distance_is_nothing() -> None:
    along = np.linspace(-3000, 3000, 50)
    points = TUBE.axis(along)
    np.testing.assert_allclose(TUBE.distance(*points.T), 0, atol=1e-6)
    np.testing.assert_allclose(TUBE.local(*points.T)[2], along, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.diff(points, axis=0), axis=1), np.diff(along), rtol=1e-3)
    # it bends by the sagitta of its arc
    chord = (points[0] + points[-1]) / 2
    assert np.linalg.norm(chord - TUBE.middle) == pytest.approx(9000 * (1 - np.cos(3000 / 9000)), rel=1e-6)


@pytest.mark.parametrize("filament", [TUBE, ACTIN])
def test_the_direction_is_the_gradient_of_the_distance(filament: Filament) -> None:
    points = np.array(filament.middle) + np.random.default_rng(0).uniform(-400, 400, (300, 3))
    distance, way = filament.approach(points)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), 1, atol=1e-9)
    np.testing.assert_allclose(filament.approach(points + 0.01 * way)[0], distance + 0.01, atol=1e-5)


def ring(filament: Filament, radius: float, turns: np.ndarray, along: float) -> np.ndarray:
    """Points around a filament's axis, by its own frame."""
    normal, binormal = np.array(filament.normal), np.cross(filament.tangent, filament.normal)
    angle = along / filament.bend_angstrom
    radial = normal * np.cos(angle) + np.array(filament.tangent) * np.sin(angle)
    centre = filament.axis(np.array([along]))[0]
    return centre + radius * (np.outer(np.cos(turns), radial) + np.outer(np.sin(turns), binormal))


def test_a_microtubule_is_a_tube_of_thirteen_protofilaments() -> None:
    turns = np.linspace(0, 2 * np.pi, 520, endpoint=False)
    mean = [
        TUBE.density(*ring(TUBE, r, turns, 300.0).T, 6.0).mean() for r in (20.0, 85.0, 105.0, 125.0, 150.0)
    ]
    assert mean[0] < 0.01
    assert mean[4] < 0.01
    assert mean[2] == pytest.approx(1.0, abs=0.1)
    assert mean[1] == pytest.approx(0.5, abs=0.05)
    assert mean[3] == pytest.approx(0.5, abs=0.05)
    around = np.abs(np.fft.rfft(TUBE.density(*ring(TUBE, 105.0, turns, 300.0).T, 6.0)))
    assert around[1:].argmax() + 1 == 13
    coarse = np.abs(np.fft.rfft(TUBE.density(*ring(TUBE, 105.0, turns, 300.0).T, 25.0)))
    assert coarse[13] < 1e-9 * coarse[0]  # what the resolution does not hold is not there


def test_tubulin_repeats_every_four_nanometres() -> None:
    along = np.arange(0.0, 41.0 * 16, 1.0)
    line = np.array([TUBE.density(*ring(TUBE, 105.0, np.array([0.3]), s).T, 5.0)[0] for s in along])
    assert np.abs(np.fft.rfft(line))[1:].argmax() + 1 == 16


def test_actin_is_seven_nanometres_wide_and_crosses_over() -> None:
    turns = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    axis = [ring(ACTIN, r, turns, s) for r, s in ((17.0, 0.0), (17.0, 180.0), (17.0, 360.0), (60.0, 0.0))]
    start, half, full, outside = (ACTIN.density(*points.T, 5.0) for points in axis)
    assert outside.max() < 0.05 * start.max()
    # two strands: two maxima, turned by a quarter halfway to the crossover
    two = [np.angle(np.fft.fft(profile)[2]) / 2 for profile in (start, half, full)]
    assert abs(two[1] - two[0]) == pytest.approx(np.pi / 2, abs=0.1)
    assert abs(np.angle(np.exp(2j * (two[2] - two[0])))) < 0.1


def test_a_description_makes_the_filament_again() -> None:
    (filament,) = place_filaments(FilamentConfig(actin=1), SIZE, np.random.default_rng(0))
    assert Filament.from_dict(filament.to_dict()) == filament


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"only \d+ of 200 filaments of kind 'microtubule'"):
        place_filaments(FilamentConfig(microtubules=200), SIZE, np.random.default_rng(0), attempts=200)
