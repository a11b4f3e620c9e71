"""Orientations in STAR files, against RELION's own matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import starfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cryoscale.formats.points_write import relion_angles, write_star


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's A(rot, tilt, psi), written out: from xyz of the reference to xyz of the particle."""
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.radians([rot, tilt, psi])), np.sin(np.radians([rot, tilt, psi]))
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


@given(st.integers(0, 2**32 - 1))
def test_angles_are_those_of_relion(seed: int) -> None:
    turns = Rotation.random(4, rng=np.random.default_rng(seed))
    for angles, matrix in zip(relion_angles(turns.as_quat()), turns.as_matrix(), strict=True):
        np.testing.assert_allclose(relion_matrix(*angles), matrix, atol=1e-9)


def test_no_turn_and_turns_about_the_beam() -> None:
    turns = Rotation.from_rotvec([[0, 0, 0], [0, 0, 30], [0, 0, 180]], degrees=True)
    for angles, matrix in zip(relion_angles(turns.as_quat()), turns.as_matrix(), strict=True):
        np.testing.assert_allclose(relion_matrix(*angles), matrix, atol=1e-9)
    assert relion_angles(np.empty((0, 4))).shape == (0, 3)


def test_the_file_holds_them(tmp_path: Path) -> None:
    turns = Rotation.random(3, rng=np.random.default_rng(0))
    write_star(
        tmp_path / "p.star", np.ones((3, 3)), tomogram="t", shape=(4, 4, 4), voxel_size_angstrom=2.0,
        quaternion_N4=turns.as_quat(),
    )  # fmt: skip
    table = starfile.read(tmp_path / "p.star")
    columns = table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    np.testing.assert_allclose(columns, relion_angles(turns.as_quat()), atol=2e-3)
