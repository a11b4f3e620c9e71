"""Painting: the same voxels however the volume is cut, labels where things are, particles on their own."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.config.simulate import (
    FilamentConfig,
    MembraneConfig,
    ParticlesConfig,
    SceneConfig,
    SurroundingsConfig,
)
from cryoscale.errors import LayoutError
from cryoscale.geometry import Box, Grid
from cryoscale.simulate.densities import density_from_shape
from cryoscale.simulate.painting import (
    Labels,
    Signal,
    paint_box,
    particle_alone,
    particle_mask,
    rows_meeting,
)
from cryoscale.simulate.placed import Placed
from cryoscale.simulate.placing import place_scene
from cryoscale.simulate.templates import Templates
from cryoscale.stages.paint import BYTES_PER_VOXEL, SPARE_BYTES

VOXEL = 14.0
KINDS = ("ribosome", "ball", "ring")
STAMPS = Templates(density_from_shape(name, voxel_size_angstrom=VOXEL) for name in KINDS)
RADII = {name: d.radius_angstrom for name, d in STAMPS.densities.items()}
RICH = SceneConfig(
    shape=(66, 120, 130),
    voxel_size_angstrom=VOXEL,
    particles=(
        ParticlesConfig(density="ribosome", copies=15),
        ParticlesConfig(density="ball", copies=15, placement="at", contrast=2.0),
        ParticlesConfig(density="ring", copies=15, least_share=0.5),
    ),
    membranes=MembraneConfig(vesicles=1, planes=1),
    filaments=FilamentConfig(microtubules=1, actin=1),
    surroundings=SurroundingsConfig(carbon_edge=True, gold_beads=3, border_angstrom=60.0),
)


@pytest.fixture(scope="module")
def placed() -> Placed:
    return place_scene(RICH, RADII, seed=1, contrasts={"ball": 6.0}, least_shares={"ball": 0.3})


@pytest.fixture(scope="module")
def whole(placed: Placed) -> tuple[Signal, Labels]:
    return paint_box(placed, STAMPS, Box.whole(placed.shape))


def coordinates(placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels' places (Z, Y, X, 3), Å, and z alone."""
    lines = (np.arange(n) * placed.voxel_size_angstrom for n in placed.shape)
    points = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    return points, points[..., 0]


def test_everything_is_there(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    signal, labels = whole
    assert signal.dtype == np.float32
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == set(range(len(placed.class_names)))
    assert len(placed.class_names) == 9
    for value in range(1, 9):
        assert signal[labels == value].mean() > 5 * np.abs(signal[labels == 0]).mean()


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(-15, 115)] * 3), st.tuples(*[st.integers(1, 50)] * 3))
def test_a_box_is_that_part_of_the_whole(
    placed: Placed, whole: tuple[Signal, Labels], start: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    box = Box.of(start, np.add(start, shape))
    signal, labels = paint_box(placed, STAMPS, box)
    inside = box.intersect(Box.whole(placed.shape))
    if inside.empty:
        return
    here = inside.relative_to(box.start).slices
    np.testing.assert_array_equal(signal[here], whole[0][inside.slices])
    np.testing.assert_array_equal(labels[here], whole[1][inside.slices])


@settings(max_examples=3, deadline=None)
@given(st.tuples(*[st.integers(17, 70)] * 3))
def test_any_cut_gives_the_same_volume(
    placed: Placed, whole: tuple[Signal, Labels], cell: tuple[int, ...]
) -> None:
    signal, labels = np.zeros(placed.shape, np.float32), np.zeros(placed.shape, np.uint8)
    for box in Grid.of(placed.shape, cell).boxes():
        signal[box.slices], labels[box.slices] = paint_box(placed, STAMPS, box)
    assert signal.tobytes() == whole[0].tobytes()
    assert labels.tobytes() == whole[1].tobytes()


def test_painted_from_the_truth_it_is_the_same(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    again = Placed.from_truth(placed.to_truth())
    box = Box.of((10, 20, 30), (50, 90, 100))
    np.testing.assert_array_equal(paint_box(again, STAMPS, box)[0], whole[0][box.slices])


def test_membranes_are_where_the_formulas_say(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    points, z = coordinates(placed)
    depth = np.full(placed.shape, np.inf)
    for membrane in placed.membranes:
        if membrane.kind == "vesicle":
            field = np.linalg.norm(points - membrane.anchor, axis=-1)
        else:
            field = points @ np.array(membrane.anchor)
        depth = np.minimum(depth, np.abs(field - membrane.levels[0]))
    value = placed.value_of("membrane")
    assert placed.carbon is not None
    film = placed.carbon.depth(*np.moveaxis(points, -1, 0))
    ice = (z > 75) & (z < placed.size_angstrom[0] - 75) & (film > 20)
    core = (depth < 20) & ice
    assert core.sum() > 1000
    # blurred skirts of particles that stand at the membrane may take a few voxels
    assert (whole[1][core] == value).mean() > 0.97
    assert (whole[1][(depth > 50)] != value).all()
    beyond = (z < 40) | (z > placed.size_angstrom[0] - 40)
    assert (whole[1][beyond] != value).all()
    quiet = core & (depth > 12)
    assert whole[0][quiet].mean() == pytest.approx(1.5, rel=0.15)


def test_borders_are_empty(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    # a blur of 9 Å reaches 38 Å beyond the face of the lamella at 60 Å
    assert (whole[1][:3] == 0).all()
    assert np.abs(whole[0][0]).max() < 1e-3
    assert np.abs(whole[0][-1]).max() < 1e-3


def test_the_film_and_the_beads(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    points, _ = coordinates(placed)
    assert placed.carbon is not None
    assert placed.gold is not None
    deep = placed.carbon.depth(*np.moveaxis(points, -1, 0)) < -40
    assert (whole[1][deep] == placed.value_of("carbon")).all()
    assert whole[0][deep].mean() == pytest.approx(1.5, abs=0.1)
    assert whole[0][deep].std() == pytest.approx(1.5 * 0.25, rel=0.1)
    for centre in placed.gold.centres_N3:
        ball = np.linalg.norm(points - centre, axis=-1)
        assert (whole[1][ball < 48] == placed.value_of("gold")).all()
        assert whole[0][ball < 15].mean() == pytest.approx(15, rel=0.02)


def test_a_microtubule_is_hollow(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    points, z = coordinates(placed)
    tube = placed.filaments[0]
    assert placed.carbon is not None
    film = placed.carbon.depth(*np.moveaxis(points, -1, 0))
    ice = (z > 90) & (z < placed.size_angstrom[0] - 90) & (film > 40)
    off = tube.distance(*np.moveaxis(points, -1, 0))
    assert (whole[1][ice & (np.abs(off - 105) < 12)] == placed.value_of("microtubule")).mean() > 0.9
    assert (whole[1][ice & (off < 55)] == 0).all()


def test_signal_is_the_sum_of_particles_on_their_own(placed: Placed, whole: tuple[Signal, Labels]) -> None:
    box = Box.whole(placed.shape)
    bare = replace(placed, membranes=(), filaments=(), carbon=None, gold=None)
    signal, labels = paint_box(bare, STAMPS, box)
    total, mask = np.zeros(box.shape, np.float64), np.zeros(box.shape, bool)
    for row in range(len(placed)):
        alone = particle_alone(placed, STAMPS, row, box)
        own = particle_mask(placed, STAMPS, row, box)
        total += alone
        mask |= own
        assert own.any()
        off = np.linalg.norm(np.argwhere(own) * VOXEL - placed.positions_N3[row], axis=1)
        assert off.max() < placed.radius_N[row] + VOXEL
        np.testing.assert_array_equal(own, alone > np.float32(0.2) * alone.max())
    np.testing.assert_allclose(signal, total, atol=1e-5)
    np.testing.assert_array_equal(labels > 0, mask)
    # particles win over everything else
    particles = whole[1][mask]
    assert particles.min() >= 1
    assert particles.max() <= 3


def test_centres_of_mass_are_the_positions(placed: Placed) -> None:
    """Of balls, whose mass is around their centre."""
    for row in range(15, 30):
        nearest = np.rint(placed.positions_N3[row] / VOXEL).astype(int)
        box = Box.of(nearest - 12, nearest + 13)
        alone = particle_alone(placed, STAMPS, row, box).astype(np.float64)
        places = np.stack(
            np.meshgrid(*(np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)), indexing="ij")
        )
        centre = (places * alone).sum(axis=(1, 2, 3)) / alone.sum() * VOXEL
        np.testing.assert_allclose(centre, placed.positions_N3[row], atol=0.5)


def test_rows_that_meet_a_box(placed: Placed) -> None:
    everything = rows_meeting(placed, STAMPS, Box.whole(placed.shape))
    assert everything == list(range(len(placed)))
    box = Box.of((20, 30, 40), (40, 60, 70))
    rows = rows_meeting(placed, STAMPS, box)
    assert 0 < len(rows) < len(placed)
    for row in set(everything) - set(rows):
        assert not particle_alone(placed, STAMPS, row, box).any()
    assert rows_meeting(placed, STAMPS, Box.of((5, 5, 5), (5, 9, 9))) == []


def test_the_promise_of_bytes_holds(placed: Placed) -> None:
    for edge in (40, 96):
        box = Box.of((0, 0, 0), (edge, edge, edge))
        paint_box(placed, STAMPS, box)
        tracemalloc.start()
        paint_box(placed, STAMPS, box)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        bound = 5 * box.voxels + 60e6
        assert (
            peak <= bound <= BYTES_PER_VOXEL * box.voxels + SPARE_BYTES
        )  # the stage's promise, stamps apart


def test_a_stamp_of_another_size_is_a_bug(placed: Placed) -> None:
    class Odd:
        shape = (9, 9, 9)

        def stamp(self, quaternion_xyzw: object, offset_zyx: object) -> Signal:
            return np.ones((11, 11, 11), np.float32)

    with pytest.raises(LayoutError, match="announced"):
        particle_alone(placed, dict.fromkeys(KINDS, Odd()), 0, Box.whole(placed.shape))
