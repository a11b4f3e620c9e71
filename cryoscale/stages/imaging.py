"""What both routes from a scene to a tomogram share: settings, seeds, and what is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.simulate import SimulateConfig
from cryoscale.data.access import Access

if TYPE_CHECKING:
    from cryoscale.simulate.imaging import Imaging

Floats = npt.NDArray[np.float32]
SPARE_BYTES = 128 * 2**20
KINDS = ("signal", "noise")
"""Projections of both are kept apart until the ratio of their variances can be set."""


def imaging_of(simulation: SimulateConfig) -> Imaging:
    """Translate the table `[simulate.imaging]`."""
    from cryoscale.simulate.imaging import Imaging

    values = simulation.imaging.model_dump(exclude={"route"})
    if values["defocus_micrometre"] == "none":
        values["defocus_micrometre"] = None
    return Imaging(**values)


class Measured:
    """The signal-to-noise ratio of a finished tomogram: by regression on its filtered signal, in parts."""

    def __init__(self) -> None:
        self._sums = np.zeros(6)

    def add(self, signal_ZYX: Floats, volume_ZYX: Floats) -> None:
        """Take in a part of the filtered signal, without noise, and the same part of the tomogram."""
        for signal_YX, volume_YX in zip(signal_ZYX, volume_ZYX, strict=True):
            s, v = signal_YX.astype(np.float64), volume_YX.astype(np.float64)
            self._sums += s.size, s.sum(), v.sum(), (s * s).sum(), (v * v).sum(), (s * v).sum()

    @property
    def snr(self) -> float:
        """Variance that the signal explains over the variance that it does not."""
        n, s, v, ss, vv, sv = self._sums
        signal, volume, both = ss - s * s / n, vv - v * v / n, sv - s * v / n
        explained = both * both / signal if signal > 0 else 0.0
        return float(explained / (volume - explained)) if volume > explained else float("inf")


def noise_seed(access: Access) -> int:
    """Return the seed of a tomogram's noise: not that of its packing; the same in each variant."""
    simulation = access.simulation()
    parts = [simulation.seed, simulation.number_of(access.tomogram), 1]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def write_facts(access: Access, realised: float) -> dict[str, Any]:
    """Write beside the tomogram how it was imaged, and return what goes into the ledger."""
    simulation = access.simulation()
    facts = {
        "realised_snr": realised, "seed": simulation.seed, "number": simulation.number_of(access.tomogram),
        "imaging": simulation.imaging.model_dump(mode="json"),
    }  # fmt: skip
    access.output().write_toml(f"{access.tomogram}.toml", facts)
    return {"realised_snr": realised}
