"""Small volumes with known content, and the files and runs made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.run import Run
from cryoscale.formats.mrc_write import write_mrc

VOXEL_SIZE_ANGSTROM = 10.0


def blobs(
    shape: Sequence[int],
    *,
    seed: int,
    count: int = 40,
    radius: float = 2.5,
    noise: float = 0.3,
    depth: float = 1.0,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Make a volume of dark Gaussian blobs of two sizes in white noise.

    Parameters
    ----------
    shape : three int
        Extent z, y, x, voxels; at least 5 along each axis.
    seed : int
        Same seed, same volume.
    count : int
        Blobs; every second one is 1.6 times wider.
    radius : float
        Width (sigma) of the narrow ones, voxels.
    noise, depth : float
        Standard deviation of the noise, and how dark a blob is.

    Returns
    -------
    volume_ZYX : (Z, Y, X) float32
        Background 0, blobs down to `-depth`.
    centres_N3 : (N, 3) int64
        Voxels z, y, x.
    """
    rng = np.random.default_rng(seed)
    volume = rng.normal(0.0, noise, tuple(shape)).astype(np.float32)
    centres = np.stack([rng.integers(2, n - 2, count) for n in shape], axis=1)
    for number, centre in enumerate(centres):
        sigma = radius * (1.6 if number % 2 else 1.0)
        reach = int(4 * sigma)
        low = np.maximum(centre - reach, 0)
        high = np.minimum(centre + reach + 1, shape)
        axes = [np.arange(a, b) - c for a, b, c in zip(low, high, centre, strict=True)]
        squared = sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij", sparse=True))
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        volume[box] -= (depth * np.exp(-squared / (2 * sigma**2))).astype(np.float32)
    return volume, centres


def write_phantom(path: Path, shape: Sequence[int], *, seed: int, count: int = 40) -> Path:
    """Write a volume of `blobs` as MRC (mode 2, 10 Å)."""
    write_mrc(path, blobs(shape, seed=seed, count=count)[0], VOXEL_SIZE_ANGSTROM)
    return path


SMALL_SETTINGS = (
    "ingest.chunk=16", "ingest.shard=32", "ingest.contrast=dark", "ingest.levels=2",
    "pick.radius_angstrom=45", "pick.min_distance_angstrom=60", "pick.threshold=0",
    "patch.size_voxels=8", "patch.smooth_sigma_voxels=1",
    "encoder.dimension=4", "encoder.channels=2", "encoder.epochs=4", "encoder.threads=1",
    "cluster.n_clusters=5", "cluster.restarts=2",
    "segmenter.channels=4", "segmenter.epochs=12", "segmenter.threads=1",
    "segmenter.learning_rate=0.02", "segmenter.batch_size=8", "segmenter.background_share=0.3",
    "segmenter.shift=0", "segmenter.ignore_unselected=false",  # four channels learn centred objects only

    "segment.overlap_voxels=0", "instances.min_voxels=4",
    "execution.block_voxels=32", "execution.memory_budget=4GB",
    "execution.pauses=2", "execution.pause_seconds=0.01",
)  # fmt: skip
"""`--set` words that take a run of tiny volumes through every stage in seconds."""


def small_run(place: Path, sources: Sequence[Path], *settings: str) -> Run:
    """Write the `run.toml` of a run over small volumes; `settings` come after `SMALL_SETTINGS`."""
    config = apply_settings(RunConfig(), [*SMALL_SETTINGS, *settings])
    inputs = tuple(SourceConfig(name=path.stem, path=str(path)) for path in sorted(sources))
    run = Run.at(place)
    run.save_config(config.model_copy(update={"inputs": inputs}))
    return run
