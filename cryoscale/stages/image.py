"""Image: from a scene to a tomogram by transfer functions in Fourier space, the direct route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryoscale.data.access import Access
from cryoscale.geometry import Box, Zyx
from cryoscale.stages.base import WholeStage
from cryoscale.stages.imaging import SPARE_BYTES, Measured, imaging_of, noise_seed, write_facts
from cryoscale.stages.networks import worker_threads

VOLUMES = 4  # of float32, held at most: the tomogram, the scene, its transform, and what an FFT works in


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
        from cryoscale.simulate.imaging import filter_signal, image

        simulation = access.simulation()
        scene = simulation.scene
        signal_ZYX = access.scene("signal").read(0, Box.whole(scene.shape))
        imaging, size, workers = imaging_of(simulation), scene.voxel_size_angstrom, worker_threads()
        volume_ZYX, _ = image(
            signal_ZYX, size, imaging, seed=noise_seed(access), workers=workers, overwrite=True
        )
        signal_ZYX = access.scene("signal").read(0, Box.whole(scene.shape))
        measured = Measured()
        filtered_ZYX = filter_signal(signal_ZYX, size, imaging, workers=workers, overwrite=True)
        measured.add(filtered_ZYX, volume_ZYX)
        del signal_ZYX, filtered_ZYX
        folder = access.output()
        Path(folder.path()).mkdir(parents=True, exist_ok=True)
        for name in ("_tilts.mrc", "_tilts.rawtlt"):  # of the other route
            folder.delete(f"{access.tomogram}{name}")
        write_mrc(folder.path(f"{access.tomogram}.mrc"), volume_ZYX, scene.voxel_size_angstrom)
        return write_facts(access, measured.snr)
