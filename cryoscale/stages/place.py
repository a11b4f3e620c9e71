"""Place: decide what stands where in a simulated tomogram."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cryoscale.data.access import Access
from cryoscale.data.truth import write_truth
from cryoscale.stages.base import WholeStage
from cryoscale.stages.templates import entries_of


class PlaceStage(WholeStage):
    """From the settings and the sizes of the densities to one row per particle, and all else there is."""

    name = "place"
    reads = frozenset({"densities"})
    writes = "truth"

    def compute(self, access: Access) -> dict[str, Any]:
        """Pack particles without overlap among membranes, filaments, carbon and gold; write the rows.

        Raises
        ------
        ConfigurationError
            There is no room for them; the message says how much was reached.
        """
        from cryoscale.formats.points_write import write_star
        from cryoscale.simulate.placing import place_scene

        simulation = access.simulation()
        scene = simulation.scene
        seed = [simulation.seed, simulation.number_of(access.tomogram)]
        entries = entries_of(access)

        def of_each(fact: str) -> dict[str, float]:
            return {density: float(entry[fact]) for density, entry in entries.items()}

        placed = place_scene(
            scene, of_each("radius_angstrom"), seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
            contrasts=of_each("contrast"), least_shares=of_each("least_share"),
        )  # fmt: skip
        truth = placed.to_truth()
        settings = {
            "recipe": simulation.recipe, "seed": simulation.seed,
            "number": simulation.number_of(access.tomogram), "scene": scene.model_dump(mode="json"),
        }  # fmt: skip
        folder = access.output()
        truth.notes["simulate"] = _without_none(settings)
        write_truth(folder, access.tomogram, truth)
        if folder.is_local:
            write_star(
                Path(folder.path(f"{access.tomogram}.star")), truth.positions_N3, tomogram=access.tomogram,
                shape=scene.shape, voxel_size_angstrom=scene.voxel_size_angstrom,
                class_number_N=truth.class_N, quaternion_N4=truth.quaternion_N4,
            )  # fmt: skip
        counts = {name: int(truth.of_class(name).sum()) for name in truth.particle_classes}
        return {"particles": len(truth), "copies": counts}


def _without_none(value: Any) -> Any:
    """TOML has no null: leave those keys out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
