"""Crowded packings: the papers' densities are reached, nothing overlaps, everything stays in its room."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from cryoscale.simulate.crowding import Barrier, PackingError, Room, overlapping, pack_crowded, touching


def open_room(count: int, low: float, high: np.ndarray, barriers: tuple[Barrier, ...] = ()) -> Room:
    lows, highs = np.full((count, 3), low), np.broadcast_to(high, (count, 3)).astype(float)
    return Room(lows, highs, barriers, lambda rows, rng: rng.uniform(lows[rows], highs[rows]))


def least_gap(centres: np.ndarray, radii: np.ndarray) -> float:
    """Brute force over all pairs."""
    first, second = np.triu_indices(len(radii), 1)
    return float((pdist(centres) - radii[first] - radii[second]).min(initial=np.inf))


def mixed_radii(count: int, fraction: float, volume: float, rng: np.random.Generator) -> np.ndarray:
    radii = rng.uniform(50, 130, count)
    return radii * (fraction * volume / (4 / 3 * np.pi * (radii**3).sum())) ** (1 / 3)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.4, 0.5, 0.58])
def test_fractions_are_reached_without_overlap(fraction: float) -> None:
    rng = np.random.default_rng(1)
    size = np.array((1500.0, 1800.0, 1800.0))
    radii = mixed_radii(500, fraction, float(size.prod()), rng)
    centres = pack_crowded(radii, open_room(500, 60.0, size - 60), rng)
    assert least_gap(centres, radii) >= 0
    assert (centres >= 60).all()
    assert (centres <= size - 60).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.floats(0.05, 0.5), st.integers(0, 2**32))
def test_never_an_overlap_nor_a_barrier_broken(count: int, fraction: float, seed: int) -> None:
    """Half of the spheres are bound to a band about a plane, the others keep off it."""
    rng = np.random.default_rng(seed)
    size = np.full(3, 600.0)
    radii = mixed_radii(count, fraction * 0.6, float(size.prod()), rng)
    bound = np.arange(count) % 2 == 0

    def approach(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        off = points[:, 2] - 300.0
        return np.abs(off), np.where(off < 0, -1.0, 1.0)[:, None] * np.array([[0.0, 0.0, 1.0]])

    barrier = Barrier(approach, radii + 20.0, np.where(bound, radii + 40.0, np.inf))
    try:
        centres = pack_crowded(radii, open_room(count, 0.0, size, (barrier,)), rng)
    except PackingError:
        assume(False)  # a sphere that is bound to the band may be larger than half of the box
    assert least_gap(centres, radii) >= 0
    off = np.abs(centres[:, 2] - 300.0)
    assert (off >= radii + 20).all()
    assert (off[bound] <= radii[bound] + 40).all()


def test_what_does_not_fit_says_what_does() -> None:
    rng = np.random.default_rng(2)
    size = np.full(3, 1000.0)
    radii = np.full(250, 90.0)  # 76 % of the box
    with pytest.raises(PackingError, match=r"only \d+ spheres") as caught:
        pack_crowded(radii, open_room(250, 90.0, size - 90), rng)
    placed, missing = caught.value.placed, caught.value.missing
    assert sorted([*placed, *missing]) == list(range(250))
    # dense packings of equal spheres in a box of this size hold about 55 % of it
    assert 0.4 < len(placed) * 4 / 3 * np.pi * 90**3 / 1e9 < 0.64
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert (again.placed == placed).all()


def test_no_place_at_all() -> None:
    barrier = Barrier(lambda p: (np.zeros(len(p)), np.ones_like(p)), np.full(3, 5.0), np.full(3, np.inf))
    with pytest.raises(PackingError) as caught:
        pack_crowded([1.0] * 3, open_room(3, 0.0, np.full(3, 50.0), (barrier,)), np.random.default_rng(0))
    assert caught.value.missing.tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_packing() -> None:
    size = np.full(3, 900.0)
    radii = mixed_radii(120, 0.5, float(size.prod()), np.random.default_rng(0))
    once, again, other = (
        pack_crowded(radii, open_room(120, 40.0, size - 40), np.random.default_rng(seed))
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 40))
def test_overlaps_agree_with_looking_at_all_pairs(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 60, (n, 3)), rng.uniform(0, 60, (m, 3))
    ra, rb = rng.uniform(1, 12, n), rng.uniform(1, 12, m)
    hit = np.linalg.norm(a[:, None] - b[None], axis=-1) < ra[:, None] + rb[None]
    assert sorted(zip(*touching(a, ra, b, rb), strict=True)) == sorted(zip(*np.nonzero(hit), strict=True))
    own = np.triu(np.linalg.norm(a[:, None] - a[None], axis=-1) < ra[:, None] + ra[None], 1)
    assert sorted(map(tuple, overlapping(a, ra))) == sorted(zip(*np.nonzero(own), strict=True))
