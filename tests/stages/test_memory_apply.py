"""What applying a network promises per worker is what a worker takes at most, loading included."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cryoscale.data.run import Run
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.testing.phantoms import small_run
from tests.pipeline.driving import drive
from tests.stages.applied import access_of, install, network

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (64, 160, 300)
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "tiles": ({"name": "ssn3d-ed", "n_classes": 3, "channels": 8}, {}, ['segment.windows="tiles"']),
    "windows": ({"name": "edss3d", "n_classes": 6, "channels": 8}, {},
                ['segment.windows="box"', "segment.overlap_voxels=4", "segment.probabilities=true"]),
    "picks": ({"name": "dsm-net", "n_classes": 9, "channels": 4}, {"particles": {"names": list("abcdefghi")}},
              ["segment.mode=picks", "segment.densities=true", "segment.probabilities=true"]),
    "slices": ({"name": "unet2d", "n_classes": 3, "channels": 8},
               {"slices": {"axis": "y", "tile": 512, "neighbours": 0}}, ["segment.overlap_voxels=0"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder: Path = tmp_path_factory.mktemp("memory")
    write_mrc(folder / "big.mrc", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), 10.0)
    run = small_run(folder / "run", [folder / "big.mrc"], "execution.block_voxels=256", "ingest.chunk=64",
                    "ingest.shard=128", "patch.size_voxels=32", "pick.max_picks=150")  # fmt: skip
    assert not drive(run, until="pick").failures
    return run


def measure(place: str, words: list[str]) -> tuple[int, int]:
    """Apply the network in this fresh process; return the promise and the growth of its memory."""
    import torch

    from cryoscale.inference.engine import open_engine
    from cryoscale.runtime.memory import peak_bytes, reset_peak
    from cryoscale.stages.apply import ApplyStage

    with open_engine(torch.nn.Conv3d(1, 1, 3), input_shape=(1, 8, 8, 8), batch=1) as engine:
        engine.run(np.zeros((1, 1, 8, 8, 8), np.float32))  # libraries load
    access, stage = access_of(Run.at(place), *words, tomogram="big"), ApplyStage()
    plan = stage.plan(access)
    stage.create(access)
    reset_peak()
    before = peak_bytes()
    with stage.open_worker(access) as function:
        for phase in plan.phases:
            for block in phase:
                function(block)
    return plan.bytes_per_worker, peak_bytes() - before


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_blocks_keep_the_promise(noisy_run: Run, way: str) -> None:
    architecture, card, words = WAYS[way]
    install(noisy_run, network(**architecture), box=32, **card)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        promised, grown = pool.apply(measure, (noisy_run.folder.url, words))
    assert 0 < grown <= promised, f"{grown / 1e6:.0f} MB taken, {promised / 1e6:.0f} MB promised"
    assert promised < 3e9, "a promise that no machine keeps says nothing"
