"""Shell invariants: what turns do not change, and what they do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoscale.models.invariants import ShellInvariants
from cryoscale.simulate.shapes import particle_density


def of(volume: np.ndarray) -> np.ndarray:
    patch = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
    with torch.no_grad():
        return ShellInvariants(volume.shape)(patch)[0].numpy()


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
def test_quarter_turns_and_mirrors_change_nothing(axes: tuple[int, int]) -> None:
    volume = np.random.default_rng(0).normal(size=(13, 13, 13))
    expected = of(volume)
    np.testing.assert_allclose(of(np.rot90(volume, axes=axes)), expected, atol=2e-4)
    np.testing.assert_allclose(of(volume[:, ::-1]), expected, atol=2e-4)


def test_any_turn_changes_them_far_less_than_another_particle_does() -> None:
    def turned(kind: str, seed: int) -> np.ndarray:
        turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
        return particle_density(kind, 14.0, rotation_33=turn)

    def same_box(volume: np.ndarray, side: int = 23) -> np.ndarray:
        spare = (volume.shape[0] - side) // 2
        return (
            volume[spare : spare + side, spare : spare + side, spare : spare + side]
            if spare >= 0
            else np.pad(volume, -spare)
        )

    rods = [of(same_box(turned("rod", seed))) for seed in range(5)]
    barrel = of(same_box(turned("barrel", 9)))
    among = max(np.linalg.norm(a - rods[0]) for a in rods[1:])
    assert among < 0.35 * np.linalg.norm(barrel - rods[0])


def test_the_sign_of_the_density_shows() -> None:
    volume = particle_density("ball", 14.0)
    assert of(-volume)[::5] == pytest.approx(-of(volume)[::5], abs=1e-5)
    assert of(volume)[0] > 0


def test_non_cubic_and_even_boxes() -> None:
    module = ShellInvariants((16, 24, 20))
    assert module(torch.zeros(3, 1, 16, 24, 20)).shape == (3, module.count)
    even = np.zeros((16, 16, 16))
    even[8, 8, 8] = 1  # the particle's place: no shell sees a direction there
    directions = np.delete(of(even).reshape(-1, 5), 0, axis=1)
    assert np.abs(directions[1:]).max() < 1e-3
