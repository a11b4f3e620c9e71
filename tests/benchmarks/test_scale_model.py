"""The model of a large project: its sums, and that its rates are those of the report it names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.requests import count_requests, table
from benchmarks.scale_model import (
    REPORT,
    SOURCES,
    Prices,
    Project,
    Rates,
    blocks_per_tomogram,
    main,
    model,
    parse,
    requests,
    storage,
)

ROOT = Path(__file__).parents[2]
PRICES = Prices(cpu_hour=0.04, gpu_hour=2.0, put=5e-6, get=4e-7, gb_month=0.02, months=2)


def row(case: str, contestant: str) -> list[str]:
    """Find a row of the report, as its cells."""
    text = (ROOT / REPORT).read_text().split(f"### {case}\n", 1)[1].split("\n### ", 1)[0]
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {contestant} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("case", "contestant", "rate"),
    [
        ("store.ingest", "ours, best", Rates().ingest * 4 * 2 / 1e9),
        ("picking.stage", "ours: Zarr to parquet", Rates().pick / 1e6),
        ("encoding.stage", "the stage", Rates().encode * 2),
        ("segmentation.dense", "cryoscale, tiles", Rates().segment * 2 / 1e6),
        ("training.autoencoder", "ours, best", Rates().train),
        ("kmeans.iteration", "ours", Rates().kmeans * 2 / 1e6),
    ],
)
def test_rates_are_those_of_the_report(case: str, contestant: str, rate: float) -> None:
    assert float(row(case, contestant)[3]) == pytest.approx(rate)
    assert any(case in source and contestant in source for source in SOURCES.values())


def test_every_rate_has_a_source() -> None:
    assert set(SOURCES) == set(Rates.__dataclass_fields__)


def test_work_is_shared_and_fits_wait() -> None:
    one, two = (model(Project(cores=n), PRICES)["hours"] for n in (100, 200))
    assert one["work"] == pytest.approx(2 * two["work"])
    assert 0.9 * one["fits"] < two["fits"] < one["fits"]  # a training is not shared


def test_everything_but_fits_grows_with_the_tomograms() -> None:
    few, many = Project(tomograms=100), Project(tomograms=1000)
    for name, number in requests(few).items():
        assert requests(many)[name] == pytest.approx(10 * number)
    assert model(many, PRICES)["total_gb"] == pytest.approx(10 * model(few, PRICES)["total_gb"])
    assert model(many, PRICES)["hours"]["work"] == pytest.approx(10 * model(few, PRICES)["hours"]["work"])


def test_a_slow_driver_is_what_bounds() -> None:
    result = model(Project(cores=4096, driver_us=1e6), PRICES)
    assert result["bound"] == "driver"
    assert result["hours"]["work"] == pytest.approx(result["blocks"] * 1.0 / 3600)


def test_gpus_take_what_has_a_rate() -> None:
    rates = Rates(gpu_segment=1e8)
    result = model(Project(gpus=4, rates=rates), PRICES)
    assert set(result["seconds"]["segment"]) == {"gpu"}
    assert set(result["seconds"]["encode"]) == {"core"}
    assert result["money_per_tomogram"]["gpus"] > 0


def test_money_is_the_sum_of_what_has_a_price() -> None:
    project = Project(tomograms=10)
    assert model(project, Prices())["money"] == 0
    result = model(project, PRICES)
    asked = result["requests"]
    paid = (asked["put"] + asked["list"]) * PRICES.put + asked["get"] * PRICES.get
    assert result["money_per_tomogram"]["requests"] * 10 == pytest.approx(paid)
    gb = sum(storage(project).values()) * 10 / 1e9
    assert result["money_per_tomogram"]["storage"] * 10 == pytest.approx(gb * 0.02 * 2)


def test_blocks_of_a_volume() -> None:
    project = replace(Project(), voxels=(512, 512, 512), block=256, picks=4096)
    assert blocks_per_tomogram(project) == pytest.approx(8 * (1 + 1 / 8 + 1 / 64 + 1 / 512) + 3 * 8 + 1)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--tomograms", "10", "--cpu-hour", "0.04"])
    said = capsys.readouterr().out
    assert "10 tomograms" in said
    assert "never measured" in said
    main(["--json", "--voxels", "64", "64", "64"])
    assert json.loads(capsys.readouterr().out)["bytes"]["tomogram"] > 64**3 * 4
    with pytest.raises(SystemExit):
        parse(["--gpus", "4"])


@pytest.mark.slow
def test_requests_of_a_real_run_grow_with_its_shards() -> None:
    small, large = (count_requests(shards, 2) for shards in (2, 3))
    assert small["failures"] == large["failures"] == 0

    def asked(counts: dict[str, object], kind: str) -> int:
        stages = counts["requests"]
        assert isinstance(stages, dict)
        return sum(kinds.get(kind, 0) for parts in stages.values() for kinds in parts.values())

    assert asked(large, "write") - asked(small, "write") <= 2 * 4 * (large["shards"] - small["shards"])
    assert asked(large, "read") - asked(small, "read") <= 2 * 60 * (large["shards"] - small["shards"])
    assert "| ingest |" in table(large)
