"""Nothing overlaps, nothing leaves its box, rotations are uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from scipy.spatial.transform import Rotation

from cryoscale.errors import ConfigurationError
from cryoscale.simulate.packing import CellGrid, Shell, pack_spheres, place_shells, random_quaternions


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(5, 40), min_size=1, max_size=40), st.integers(0, 2**32))
def test_spheres_never_overlap(radii: list[float], seed: int) -> None:
    shells = [Shell((200.0, 200.0, 200.0), 100.0, 10.0)]
    low, high = (20.0, 30.0, 40.0), (400.0, 420.0, 380.0)
    centres = pack_spheres(radii, low=low, high=high, rng=np.random.default_rng(seed), shells=shells)
    assert (centres >= low).all()
    assert (centres <= high).all()
    gaps = squareform(pdist(centres)) - np.add.outer(radii, radii)
    assert gaps[~np.eye(len(radii), dtype=bool)].min(initial=0.0) >= -1e-9
    to_membrane = np.abs(np.linalg.norm(centres - 200.0, axis=1) - 100.0)
    assert (to_membrane >= np.array(radii) + 10.0 - 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_the_grid_agrees_with_looking_at_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid, added = CellGrid(20.0), []
    for position, radius in zip(rng.uniform(-50, 50, (60, 3)), rng.uniform(1, 10, 60), strict=True):
        free = all(np.linalg.norm(position - p) >= radius + r for p, r in added)
        assert grid.free(position, radius) == free
        if free:
            grid.add(position, radius)
            added.append((position, radius))


def test_what_does_not_fit_is_said() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match=r"only \d+ of 100 particles"):
        pack_spheres([50.0] * 100, low=(0, 0, 0), high=(200, 200, 200), rng=rng, attempts=50)
    with pytest.raises(ConfigurationError, match=r"only \d+ of 50 vesicles"):
        place_shells(
            50, radius_range=(90, 100), half_thickness=10, extent=(300, 300, 300), rng=rng, attempts=50
        )


def test_vesicles_keep_apart() -> None:
    rng = np.random.default_rng(3)
    shells = place_shells(6, radius_range=(50, 90), half_thickness=20, extent=(500, 900, 900), rng=rng)
    for n, a in enumerate(shells):
        assert 50 <= a.radius <= 90
        for b in shells[:n]:
            assert np.linalg.norm(np.subtract(a.centre, b.centre)) > a.radius + b.radius + 40


def test_rotations_are_uniform() -> None:
    quaternions = random_quaternions(4000, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1)
    turned = Rotation.from_quat(quaternions).apply([0, 0, 1])
    for axis in range(3):  # Archimedes: each coordinate of a uniform direction is uniform in [-1, 1]
        assert stats.kstest(turned[:, axis], stats.uniform(-1, 2).cdf).pvalue > 0.001
    angles = Rotation.from_quat(quaternions).magnitude()
    density = lambda a: (a - np.sin(a)) / np.pi  # noqa: E731  # of the angle of a uniform rotation
    assert stats.kstest(angles, density).pvalue > 0.001
