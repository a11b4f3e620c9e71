from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoscale.errors import ConfigurationError, LayoutError
from cryoscale.geometry import Box, Grid
from cryoscale.ops import multirate
from cryoscale.ops.dog import (
    Dog,
    candidates_halo,
    difference_of_gaussians,
    dog_candidates,
    required_read,
    tile_voxels,
    working_bytes,
)
from cryoscale.ops.gaussian import smooth_exact
from cryoscale.ops.peaks import local_maxima

DOG = Dog(sigma=1.2, ratio=1.3, smooth_sigma=0.5)


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_widths_compose():
    dog = Dog.of_paper()
    assert dog.narrow == pytest.approx(math.sqrt(4 + 25))
    assert dog.wide == pytest.approx(math.sqrt(4 + 5.5**2))
    assert dog.halo == 36
    assert candidates_halo(dog) == 48
    volume = noise((20, 22, 24))
    smooth = smooth_exact(volume, 2.0)
    by_steps = smooth_exact(smooth, 5.0) - smooth_exact(smooth, 5.5)
    np.testing.assert_allclose(difference_of_gaussians(volume, dog), by_steps, atol=1e-6)


def test_radius_gives_the_narrow_width():
    assert Dog.of_radius(6.0).narrow == pytest.approx(6.0 / math.sqrt(3.0))
    assert Dog.of_radius(6.0, smooth_sigma=1.0).narrow == pytest.approx(6.0 / math.sqrt(3.0))


def test_a_ball_answers_most_strongly_at_its_own_width():
    z, y, x = np.indices((61, 61, 61)) - 30
    ball = (z * z + y * y + x * x <= 10.0**2).astype(np.float32)
    narrow = np.arange(3.5, 8.5, 0.25)
    response = []
    for sigma in narrow:
        # scale-normalised: the difference of close Gaussians is proportional to sigma^2 times the Laplacian
        dog = Dog(float(sigma), 1.02)
        response.append(difference_of_gaussians(ball, dog)[30, 30, 30])
    assert narrow[int(np.argmax(response))] == pytest.approx(10 / math.sqrt(3), abs=0.3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dog(0.0), "sigma > 0"),
        (lambda: Dog(math.nan), "sigma > 0"),
        (lambda: Dog(2.0, 1.0), "above 1"),
        (lambda: Dog.of_radius(2.0, smooth_sigma=2.0), "larger particles"),
    ],
)
def test_impossible_widths_are_refused(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_dark_blobs_are_found_at_their_centres():
    volume = np.zeros((40, 50, 60), dtype=np.float32)
    centres = np.array([(10, 12, 14), (20, 30, 45), (33, 8, 50)])
    z, y, x = np.indices(volume.shape)
    for c in centres:
        volume -= np.exp(-((z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2) / (2 * 2.0**2))
    whole = Box.whole(volume.shape)
    positions, scores = dog_candidates(volume, whole, whole, volume.shape, Dog.of_radius(4.0), tile=16)
    best = positions[np.argsort(scores)[-3:]]
    assert {tuple(p) for p in best.tolist()} == {tuple(c) for c in centres.tolist()}
    assert np.sort(scores)[-3] > 0


WIDE = [Dog(3.6, 1.1), Dog.of_paper(), Dog(7.2, 1.2), Dog(4.0, 2.0), Dog(12.0, 1.05)]
WIDE_IDS = ["by 2", "paper: by 3", "by 4", "wide ratio", "by 6"]


@pytest.mark.parametrize("dog", WIDE, ids=WIDE_IDS)
@pytest.mark.parametrize("shape", [(70, 101, 113), (5, 64, 40), (1, 1, 150)])
def test_the_coarse_grid_gives_the_scores_and_maxima_of_the_exact_filter(dog, shape):
    assert dog.thinned
    volume, whole = noise(shape, 3), Box.whole(shape)
    positions, scores = dog_candidates(volume, whole, whole, shape, dog, tile=48)
    expected, exact = exact_maxima(volume, dog)
    found, truth = {tuple(p) for p in positions.tolist()}, {tuple(p) for p in expected.tolist()}
    assert len(truth) > 0 or shape == (5, 64, 40)
    np.testing.assert_allclose(scores, exact[tuple(positions.T)], atol=1.5e-5 * exact.std())
    # A maximum may move to a neighbour that is as high within the error.
    for place in found ^ truth:
        box = Box.of(place, [v + 1 for v in place]).grow(1).intersect(whole)
        assert np.diff(np.sort(exact[box.slices].ravel())).min() < 4e-5 * exact.std()
    assert len(found ^ truth) <= max(2, len(truth) // 100)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 60), st.integers(20, 150), st.integers(20, 150)),
    edge=st.tuples(st.integers(20, 70), st.integers(30, 90), st.integers(30, 90)),
    tile=st.integers(30, 110),
    seed=st.integers(0, 999),
    dog=st.sampled_from(WIDE[:4]),
)
def test_any_division_into_cores_gives_the_same_bits_on_the_coarse_grid(shape, edge, tile, seed, dog):
    same_bits_for_any_cores(shape, edge, tile, seed, dog)


def test_a_constant_and_a_slope_leave_no_score_on_the_coarse_grid():
    shape = (40, 50, 60)
    whole, dog = Box.whole(shape), Dog(4.0)
    volume = np.full(shape, 3.0, np.float32)
    axes = multirate.plan_for(shape, dog.narrow, dog.wide, 128)
    for brick, score in multirate.brick_scores(volume, whole, whole, axes):
        inside = brick.grow(1).intersect(whole)
        assert np.abs(score[inside.relative_to(brick.grow(1).start).slices]).max() < 2e-6


def test_whole_tiles_read_their_halo_and_no_more():
    shape, dog = (300, 600, 600), Dog.of_paper()
    tile = tile_voxels(shape, dog)
    assert tile == (144, 144, 144)
    core = Box.of((0, 144, 288), (144, 288, 432))
    read = required_read(core, shape, dog)
    assert read == core.grow(candidates_halo(dog)).intersect(Box.whole(shape))
    small = Box.of(read.start, [read.stop.z, read.stop.y, read.stop.x - 1])
    with pytest.raises(LayoutError, match="axis x"):
        dog_candidates(np.zeros(small.shape, np.float32), small, core, shape, dog)
    with pytest.raises(LayoutError, match="the array has shape"):
        dog_candidates(np.zeros((3, 3, 3), np.float32), read, core, shape, dog)


def exact_maxima(volume, dog):
    score = difference_of_gaussians(-volume, dog)
    return local_maxima(score), score


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 34), st.integers(10, 34), st.integers(10, 34)),
    tile=st.integers(6, 20),
    seed=st.integers(0, 999),
    sigma=st.floats(0.9, 2.5),
)
def test_tiles_find_the_maxima_of_the_exact_filter(shape, tile, seed, sigma):
    volume, dog, whole = noise(shape, seed), Dog(sigma, 1.3), Box.whole(shape)
    positions, scores = dog_candidates(volume, whole, whole, shape, dog, tile)
    expected, exact = exact_maxima(volume, dog)
    tolerance = 1e-5 * exact.std() + 1e-7
    np.testing.assert_allclose(scores, exact[tuple(positions.T)], atol=tolerance)
    # Neighbours that tie within rounding may go either way, at seams as anywhere else.
    found, truth = {tuple(p) for p in positions.tolist()}, {tuple(p) for p in expected.tolist()}
    for place in found ^ truth:
        box = Box.of(place, [v + 1 for v in place]).grow(1).intersect(whole)
        around = np.sort(exact[box.slices].ravel())[::-1]
        assert np.min(np.abs(np.diff(around))) < 3 * tolerance
    assert len(found ^ truth) <= max(1, len(truth) // 50)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(4, 40), st.integers(10, 40), st.integers(10, 40)),
    edge=st.tuples(st.integers(3, 40), st.integers(5, 40), st.integers(5, 40)),
    tile=st.integers(7, 20),
    seed=st.integers(0, 999),
)
def test_any_division_into_cores_gives_the_same_bits(shape, edge, tile, seed):
    same_bits_for_any_cores(shape, edge, tile, seed, DOG)


def same_bits_for_any_cores(shape, edge, tile, seed, dog):
    volume, whole = noise(shape, seed), Box.whole(shape)
    together = dog_candidates(volume, whole, whole, shape, dog, tile)
    positions, scores = [], []
    for core in Grid.of(shape, edge).boxes():
        read = required_read(core, shape, dog, tile)
        part = dog_candidates(volume[read.slices].copy(), read, core, shape, dog, tile)
        positions.append(part[0])
        scores.append(part[1])
    joined, values = np.concatenate(positions), np.concatenate(scores)
    order = np.lexsort(joined.T[::-1])
    np.testing.assert_array_equal(joined[order], together[0])
    np.testing.assert_array_equal(values[order].view(np.int32), together[1].view(np.int32))
    assert len(values) > 0


def test_required_read_is_core_plus_halo_for_unions_of_tiles():
    shape, tile = (256, 512, 512), 64
    core = Box.of((64, 128, 448), (128, 256, 512))
    halo = candidates_halo(DOG)
    assert required_read(core, shape, DOG, tile) == core.grow(halo).intersect(Box.whole(shape))


def test_one_voxel_less_than_required_is_refused():
    shape = (40, 40, 40)
    volume, core = noise(shape), Box.of((16, 16, 16), (24, 24, 24))
    read = required_read(core, shape, DOG, 8)
    assert read.shape == core.grow(candidates_halo(DOG)).shape
    small = Box.of(read.start, [read.stop.z, read.stop.y, read.stop.x - 1])
    with pytest.raises(LayoutError, match="axis x"):
        dog_candidates(volume[small.slices], small, core, shape, DOG, 8)


def test_a_constant_volume_has_no_candidates():
    shape = (20, 20, 20)
    positions, scores = dog_candidates(
        np.zeros(shape, dtype=np.float32), Box.whole(shape), Box.whole(shape), shape, DOG, 8
    )
    assert positions.shape == (0, 3)
    assert scores.shape == (0,)
    assert positions.dtype == np.int64
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    "dog", [Dog.of_paper(), Dog(0.5), Dog(1.5), Dog(12.0)], ids=["paper", "narrow", "middle", "wide"]
)
def test_memory_stays_below_the_promise(dog):
    shape, whole = (96, 100, 90), Box.whole((96, 100, 90))
    volume = noise(shape)
    dog_candidates(volume[:20, :20, :20], Box.whole((20,) * 3), Box.whole((20,) * 3), (20,) * 3, dog)
    tracemalloc.start()
    try:
        dog_candidates(volume, whole, whole, shape, dog, 90)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    promise = working_bytes(shape, dog, 90)
    assert promise / 4 < peak < promise


@pytest.mark.parametrize("dog", [Dog.of_paper(), Dog(8.0), Dog(2.0)], ids=str)
def test_threads_of_products_change_no_bit(dog):
    """One process has all cores, a Dask worker has one: the picks must be the same."""
    from threadpoolctl import threadpool_limits

    shape = (96, 150, 130)
    volume = np.random.default_rng(3).standard_normal(shape, dtype=np.float32)
    whole, found = Box.whole(shape), []
    for threads in (1, 2, 4):
        with threadpool_limits(threads):
            found.append(dog_candidates(volume, whole, whole, shape, dog))
    for positions_N3, scores_N in found[1:]:
        np.testing.assert_array_equal(positions_N3, found[0][0])
        np.testing.assert_array_equal(scores_N, found[0][1])
