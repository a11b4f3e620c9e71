"""The result does not depend on how the work is cut into blocks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryoscale.data.ledger import unit_states
from cryoscale.data.run import Run
from cryoscale.stages import segment
from cryoscale.testing.artifacts import artifact_digest, differences
from cryoscale.testing.phantoms import small_run, write_phantom
from tests.conftest import SELECTION
from tests.pipeline.driving import drive, settle

WIDE = ("segmenter.level=-0.8", "segmenter.background_share=0.05")
ALL_BUT_THE_LARGEST = b"[classes.particle]\nclusters = [1, 2, 3, 4]\n"


@pytest.fixture(scope="module")
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one tomogram wider than a filter tile (128) and than a shard of labels (256)."""
    folder = tmp_path_factory.mktemp("wide")
    source = write_phantom(folder / "wide.mrc", (24, 40, 272), seed=3, count=200)
    run = small_run(folder / "run", [source], "execution.block_voxels=32", *WIDE)
    run.clusters.folder.write_bytes("selection.toml", ALL_BUT_THE_LARGEST)
    ended = drive(run)
    assert not ended.failures
    assert ended.ran["pick"] > 2, "one block: the test would say nothing"
    assert len([t for t in ended.tasks if t.stage == "segment" and t.block >= 0]) >= 3
    (found,) = [s.value["instances"] for s in unit_states(run.ledger) if s.stage == "instances"]
    assert found > 10, "no label: the test would say nothing"
    return run


@pytest.mark.parametrize("edge", [64, 256])
def test_artifacts_are_the_same_for_any_block(wide_run: Run, tmp_path: Path, edge: int) -> None:
    source = Path(wide_run.config.inputs[0].path)
    run = small_run(tmp_path / "run", [source], f"execution.block_voxels={edge}", *WIDE)
    run.clusters.folder.write_bytes("selection.toml", ALL_BUT_THE_LARGEST)
    ended = drive(run)
    assert not ended.failures
    assert not differences(artifact_digest(wide_run), artifact_digest(run))


@pytest.mark.parametrize("mode", ["picks", "decoded"])
def test_other_modes_of_segment_run_and_do_not_depend_on_blocks(
    wide_run: Run, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(wide_run.folder.url, tmp_path / "run")
    run = Run.at(tmp_path / "run")
    digests = []
    for shard in (256, 64):  # blocks are unions of shards
        monkeypatch.setattr(segment, "SHARD", shard)
        settle(run, f"segment.mode={mode}", "execution.block_voxels=64", f"segment.labels={mode}{shard}")
        ended = drive(run)
        assert not ended.failures
        assert "segment" in ended.stages
        digests.append(artifact_digest(run)["instances/wide.parquet"])
    assert digests[0] == digests[1]
    assert digests[0] != artifact_digest(wide_run)["instances/wide.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["dask", "ray"])
def test_artifacts_are_the_same_for_any_executor(
    finished_run: Run, make_run: Callable[..., Run], executor: str
) -> None:
    from cryoscale.pipeline.driver import Options, run_pipeline

    run = make_run()
    run.clusters.folder.write_bytes("selection.toml", SELECTION.encode())
    assert not run_pipeline(run, Options(executor=executor)).failures
    assert not differences(artifact_digest(finished_run), artifact_digest(run))
