"""What a plan promises per worker is what a worker takes at most, measured."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cryoscale.data.run import Run
from cryoscale.formats.mrc_write import MrcWriter
from cryoscale.testing.phantoms import small_run

SHAPE = (256, 384, 512)  # 200 MB in float32


def measure(place: str, step: str) -> tuple[int, int]:
    """Do the blocks of a stage in this fresh process and report the promise and the growth of its memory."""
    from cryoscale.pipeline.order import steps_for
    from cryoscale.pipeline.units import UnitGraph
    from cryoscale.runtime.memory import peak_bytes, reset_peak

    run = Run.at(place)
    graph = UnitGraph(run, run.config, steps_for(run.config), {})
    unit = graph.units[step, "big"]
    for name in ("identify", "ingest"):
        graph.units[name, "big"].state, graph.units[name, "big"].identity = "sealed", "x"
    unit.key = "k"
    access = graph.access_for(unit)
    stage: Any = unit.step.stage
    plan = stage.plan(access)
    stage.create(access)
    with stage.open_worker(access) as function:
        function(plan.phases[0][-1])  # libraries load and threads start with the first block
        reset_peak()
        before = peak_bytes()
        for phase in plan.phases:
            for block in phase:
                function(block)
    if step == "ingest":
        stage.seal(access)
    return plan.bytes_per_worker, peak_bytes() - before


@pytest.fixture(scope="module")
def big_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(0)
    with MrcWriter(folder / "big.mrc", SHAPE, np.float32, 10.0) as writer:
        for _ in range(0, SHAPE[0], 32):
            writer.write(rng.normal(size=(32, *SHAPE[1:])).astype(np.float32))
    words = ["execution.block_voxels=128", "ingest.chunk=64", "ingest.shard=128", "ingest.levels=3"]
    return small_run(folder / "run", [folder / "big.mrc"], *words)


@pytest.mark.slow
def test_blocks_keep_the_promise(big_run: Run) -> None:
    context = multiprocessing.get_context("spawn")
    for step in ("ingest", "pick"):
        with context.Pool(1) as pool:
            promised, grown = pool.apply(measure, (big_run.folder.url, step))
        assert 0 < grown <= promised, f"{step}: {grown / 1e6:.0f} MB taken, {promised / 1e6:.0f} MB promised"


@pytest.mark.slow
def test_promises_do_not_grow_with_the_tomogram(tmp_path: Path) -> None:
    from cryoscale.pipeline.order import steps_for
    from cryoscale.pipeline.units import UnitGraph

    promises = []
    for name, depth in (("small", 256), ("large", 2048)):
        path = tmp_path / f"{name}.mrc"
        with MrcWriter(path, (256, 256, 256), np.float32, 10.0) as writer:
            for _ in range(0, 256, 64):
                writer.write(np.zeros((64, 256, 256), np.float32))
        data = bytearray(path.read_bytes()[:1024])
        data[8:12] = depth.to_bytes(4, "little")
        data[36:40] = depth.to_bytes(4, "little")
        data[48:52] = np.float32(depth * 10.0).tobytes()
        with path.open("r+b") as stream:  # as large as it says, but sparse
            stream.write(data)
            stream.truncate(1024 + depth * 256 * 256 * 4)
        run = small_run(tmp_path / f"run-{name}", [path], "execution.block_voxels=128", "ingest.shard=128",
                        "ingest.chunk=64")  # fmt: skip
        graph = UnitGraph(run, run.config, steps_for(run.config), {})
        unit = graph.units["ingest", name]
        unit.key = "k"
        promises.append(unit.step.stage.plan(graph.access_for(unit)).bytes_per_worker)
    assert promises[0] == promises[1]
