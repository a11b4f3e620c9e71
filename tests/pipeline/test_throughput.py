"""The trial run of `cryoscale bench`: every stage is timed, and the words rest on the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryoscale.cli import run_command
from cryoscale.config import RunConfig
from cryoscale.errors import ConfigurationError
from cryoscale.formats.mrc import write_mrc
from cryoscale.geometry import Box, Zyx
from cryoscale.pipeline.advice import bound_of, forecast, suggestions
from cryoscale.pipeline.throughput import STAGES, StageRate, Trial, middle, try_out
from cryoscale.runtime.ceilings import Ceilings, measure_ceilings

SMALL = [
    "pick.radius_angstrom=30", "pick.threshold_rule=score", "pick.threshold=0", "patch.size_voxels=8",
    "encoder.channels=2", "encoder.dimension=4", "encoder.invariant_weight=0", "segmenter.channels=2",
]  # fmt: skip
CEILINGS = Ceilings(1e9, 1e9, 1e10, 1e11, 3e11, 0.0)


def trial(*rates: StageRate, **more: object) -> Trial:
    shape = Zyx(10, 10, 10)
    config = RunConfig().model_copy(
        update={"execution": RunConfig().execution.model_copy(update={"dask_workers": 2})}
    )
    return replace(Trial(shape, Zyx(20, 10, 10), 5, rates, {}, (), config), **more)  # type: ignore[arg-type]


@given(
    shape=st.tuples(*[st.integers(1, 700)] * 3),
    voxels=st.integers(300_000, 100_000_000),
)
def test_the_piece_is_inside_and_small_enough(shape: tuple[int, int, int], voxels: int) -> None:
    box = middle(Zyx.of(shape), voxels)
    assert box.intersect(Box.whole(Zyx.of(shape))) == box
    assert not box.empty
    assert box.voxels <= voxels


def test_a_small_tomogram_stays_whole() -> None:
    assert middle(Zyx(100, 200, 300), 6_000_000) == Box.whole(Zyx(100, 200, 300))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tomogram.mrc"
    write_mrc(path, np.random.default_rng(0).standard_normal((48, 64, 64), dtype=np.float32), 10.0)
    return path


def test_every_stage_is_timed_and_nothing_is_left(
    noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoscale.runtime.ceilings._DISK_BYTES", 2**20)
    monkeypatch.setattr("cryoscale.runtime.ceilings._SIDE", 64)
    words = [word for setting in SMALL for word in ("--set", setting)]
    assert run_command(["bench", str(noisy), "--folder", str(tmp_path), "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found["stages"]] == list(STAGES)
    assert all(row["rate"] > 0 for row in found["stages"])
    assert found["piece"] == found["tomogram"] == [48, 64, 64]
    assert set(found["network_seconds_per_patch"]) == {"float32", "bfloat16"}
    assert found["ceilings"]["float32"] > 0
    assert list(tmp_path.iterdir()) == []


def test_too_few_picks_are_named(noisy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="picks were found"):
        try_out(tmp_path, noisy, [*SMALL, "pick.max_picks=10"], voxels=10**7)


def test_a_tomogram_that_cannot_be_ingested_says_why(tmp_path: Path) -> None:
    source = tmp_path / "bad.mrc"
    volume = np.random.default_rng(0).standard_normal((32, 32, 32), dtype=np.float32)
    volume[3, 4, 5] = np.nan
    write_mrc(source, volume, 10.0)
    found = try_out(tmp_path / "trial", source, SMALL, voxels=10**7)
    assert found.rates == ()
    assert "NaN" in found.failures[0]


def test_a_missing_tomogram_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["bench", str(tmp_path / "no.mrc")]) == 2
    assert "no.mrc" in capsys.readouterr().err


def test_what_bounds_a_stage_is_the_larger_part() -> None:
    slow_disk = StageRate("pick", 1.0, "Mvoxel", 10.0, 8.0, "reading the store")
    assert bound_of(slow_disk) == "reading the store (80% of its time)"
    fast_disk = replace(slow_disk, besides=1.0)
    assert bound_of(fast_disk).startswith("the filter (reading the store alone: 10%")
    assert bound_of(StageRate("cluster", 1.0, "row", 1.0)) == "distances"


def test_the_forecast_scales_with_the_tomogram_and_the_workers() -> None:
    rates = (StageRate("pick", 1.0, "Mvoxel", 10.0), StageRate("segment", 1.0, "Mvoxel", 10.0),
             StageRate("train_encoder", 1.0, "patch x epoch", 99.0))  # fmt: skip
    assert forecast(trial(*rates)) == {"pick": 10.0, "segment": 20.0}  # twice the voxels; two Dask workers


def test_suggestions_rest_on_numbers() -> None:
    waiting = StageRate("pick", 2000.0, "Mvoxel", 10.0, 8.0, "reading the store")
    assert any("faster disk" in said for said in suggestions(trial(waiting), CEILINGS))
    computing = replace(waiting, besides=0.1)
    assert not any("faster disk" in said for said in suggestions(trial(computing), CEILINGS))
    twice = {"float32": 2e-3, "bfloat16": 1e-3}
    asked = trial(computing, network_seconds=twice)
    asked = replace(asked, config=_with_precision("float32"))
    assert any("2.0 times as fast" in said for said in suggestions(asked, CEILINGS))
    assert not any(
        "inference_precision" in said
        for said in suggestions(replace(asked, config=_with_precision("bfloat16")), CEILINGS)
    )


def _with_precision(precision: str) -> RunConfig:
    config = RunConfig()
    encoder = config.encoder.model_copy(update={"inference_precision": precision})
    return config.model_copy(update={"encoder": encoder})


def test_ceilings_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryoscale.runtime.ceilings._DISK_BYTES", 2**16)
    monkeypatch.setattr("cryoscale.runtime.ceilings._MEMORY_BYTES", 2**20)
    monkeypatch.setattr("cryoscale.runtime.ceilings._SIDE", 32)
    found = measure_ceilings(tmp_path / "new")
    assert min(found.write, found.read, found.copy, found.float32, found.bfloat16) > 0
    assert list((tmp_path / "new").iterdir()) == []
