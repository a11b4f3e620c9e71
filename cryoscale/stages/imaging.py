"""What both routes from a scene to a tomogram share: settings, seeds, and what is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cryoscale.config.simulate import SimulateConfig
from cryoscale.data.access import Access

if TYPE_CHECKING:
    from cryoscale.simulate.imaging import Imaging

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


def noise_seed(access: Access) -> int:
    """Return the seed of a tomogram's noise: not that of its packing; the same in each variant."""
    simulation = access.simulation()
    parts = [simulation.seed, simulation.number_of(access.tomogram), 1]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def write_facts(access: Access, realised: float) -> dict[str, Any]:
    """Write beside the tomogram how it was imaged, and return what goes into the ledger."""
    imaging = access.simulation().imaging
    facts = {"realised_snr": realised, "imaging": imaging.model_dump(mode="json")}
    access.output().write_toml(f"{access.tomogram}.toml", facts)
    return {"realised_snr": realised}
