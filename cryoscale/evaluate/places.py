"""Places where picks of a tomogram can be: what chance is compared with.

Shape suffixes: R draws, N places, 3 coordinates z, y, x (Å).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryoscale.data.run import Run
from cryoscale.data.tomogram import Tomogram

Floats = npt.NDArray[np.float64]

DRAWS = 20


@dataclass(frozen=True)
class Places:
    """A box to draw from, and the seed of the draws.

    Parameters
    ----------
    low_3, high_3 : (3,) float64
        Its corners, Å.
    seed : tuple of int
        Another one for each tomogram, so that pooled draws are independent.
    """

    low_3: Floats
    high_3: Floats
    seed: tuple[int, ...]

    def draw(self, n: int, repeats: int = DRAWS) -> Floats:
        """Draw (R, N, 3) places."""
        return np.random.default_rng(self.seed).uniform(self.low_3, self.high_3, (repeats, n, 3))


def places_for_picks(run: Run, tomogram: str, seed: int) -> Places:
    """Return where picks can be: whole patches lie inside the tomogram, and `pick.z_range` holds.

    Parameters
    ----------
    seed : int
        Joined with the number of the tomogram among those that have picks.
    """
    config, facts = run.config, Tomogram(run.tomogram(tomogram)).facts
    base = facts.levels[0]
    working = facts.levels[facts.level_for(config.run.working_voxel_size_angstrom)]
    low_3, high_3 = base.to_angstrom(np.zeros(3)), base.to_angstrom(np.array(base.shape) - 1)
    margin_3 = np.array(config.patch.box) // 2 * working.voxel_size_angstrom
    margin_3 = np.minimum(margin_3, (high_3 - low_3) / 2)  # a tomogram of one patch
    low_3, high_3 = low_3 + margin_3, high_3 - margin_3
    asked = facts.z_range if config.pick.z_range == "auto" else config.pick.z_range
    if asked is not None and not isinstance(asked, str):
        first, last = (float(base.to_angstrom(np.full(3, z))[0]) for z in (asked[0], asked[1] - 1))
        low_3[0], high_3[0] = np.clip([first, last], low_3[0], high_3[0])
    names = sorted(run.picks.names())
    return Places(low_3, high_3, (seed, names.index(f"{tomogram}.parquet")))
