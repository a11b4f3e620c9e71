"""Shell invariants: what turns do not change, and what they do."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoscale.models.invariants import ShellInvariants, basis_bytes, invariant_count
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


def test_the_basis_is_harmonics_on_shells_column_by_column() -> None:
    """Against scipy's harmonics, built whole: shells of norm 1, the orders of a degree side by side."""
    from scipy.special import sph_harm_y

    box = (8, 12, 10)
    z, y, x = np.meshgrid(*[np.arange(n) - n // 2 for n in box], indexing="ij")
    radius = np.sqrt(z * z + y * y + x * x)
    theta, phi = np.arccos(z / np.maximum(radius, 1e-9)), np.arctan2(y, x)
    columns = []
    for at in (1.25, 2.75):
        shell = np.exp(-0.5 * ((radius - at) / 0.8) ** 2)
        shell /= np.linalg.norm(shell)
        for degree in range(3):
            for order in range(degree + 1):
                wave = np.asarray(sph_harm_y(degree, order, theta, phi))
                wave[radius == 0] *= degree == 0
                parts = [wave.real] if order == 0 else [2**0.5 * wave.real, 2**0.5 * wave.imag]
                columns += [(part * shell).ravel() for part in parts]
    module = ShellInvariants(box, degrees=2)
    np.testing.assert_allclose(module.basis_VB.numpy(), np.stack(columns, axis=1), atol=1e-6)
    assert module.count == invariant_count(box, 2) == 6
    assert basis_bytes(box, module.count, 2) == module.basis_VB.numel() * 4


def test_building_takes_little_more_than_the_basis() -> None:
    ShellInvariants((8, 8, 8))
    tracemalloc.start()
    try:
        module = ShellInvariants((32, 32, 32))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert module.basis_VB.numel() * 4 <= peak < 1.3 * module.basis_VB.numel() * 4


def test_shells_are_where_they_are_asked_for() -> None:
    box = (16, 16, 16)
    assert ShellInvariants(box, shell_voxels=3.0).count == invariant_count(box, shell_voxels=3.0) == 10
    default, wide = ShellInvariants(box), ShellInvariants(box, width_voxels=1.2)
    assert default.count == wide.count
    assert not torch.allclose(default.basis_VB, wide.basis_VB)
