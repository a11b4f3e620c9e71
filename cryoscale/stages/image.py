"""Image: from a scene to a tomogram by transfer functions in Fourier space, the direct route."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryoscale.data.access import Access
from cryoscale.geometry import Box, Zyx
from cryoscale.stages.base import WholeStage
from cryoscale.stages.imaging import SPARE_BYTES, imaging_of, noise_seed, write_facts

VOLUMES = 4  # of float32, held at most: the scene, its transform and what an FFT works in (measured: 3.2)


class ImageStage(WholeStage):
    """From a noise-free scene to `simulated/<tomogram>.mrc`, and the signal-to-noise ratio that came out."""

    name = "image"
    reads = frozenset({"scene"})
    writes = "simulated"

    def bytes_needed(self, access: Access) -> int:
        """Promise a multiple of the volume: filtering a whole tomogram is global by nature."""
        return VOLUMES * 4 * Zyx.of(access.simulation().scene.shape).voxels + SPARE_BYTES

    def compute(self, access: Access) -> dict[str, Any]:
        """Filter signal and noise, and write the tomogram with objects dark."""
        from cryoscale.formats.mrc import write_mrc
        from cryoscale.simulate.imaging import image

        simulation = access.simulation()
        scene = simulation.scene
        signal_ZYX = access.scene("signal").read(0, Box.whole(scene.shape))
        volume_ZYX, realised = image(
            signal_ZYX,
            scene.voxel_size_angstrom,
            imaging_of(simulation),
            seed=noise_seed(access),
            workers=len(os.sched_getaffinity(0)),
            overwrite=True,
        )
        folder = access.output()
        Path(folder.path()).mkdir(parents=True, exist_ok=True)
        write_mrc(folder.path(f"{access.tomogram}.mrc"), volume_ZYX, scene.voxel_size_angstrom)
        return write_facts(access, realised)
