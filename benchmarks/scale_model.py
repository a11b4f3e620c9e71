"""What a project of many tomograms takes: time, storage, requests to an object store, and money.

::

    python -m benchmarks.scale_model --tomograms 10000 --voxels 500 1024 1024 --cores 512 \\
        --cpu-hour 0.04 --put-price 5e-6 --get-price 4e-7 --gb-month 0.023

Every rate is that of a dated report, scaled to one core; every price is an input, none is known here. Rates
of GPUs were never measured: give them (`--gpu-encode`, `--gpu-segment`) to see what they would change.
`docs/scaling.md` explains the terms.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

REPORT = "benchmarks/reports/2026-11-20-small-cpu.md"
LEVELS = 1 + 1 / 8 + 1 / 64 + 1 / 512  # voxels of a pyramid over those of its first level
PATCH_BYTES = 4  # of a feature of an encoding, float32
PICK_BYTES = 3 * 8 + 4  # z, y, x, score, before compression
ASSIGNMENT_BYTES = 8
RECORD_BYTES = 1200  # plan.json and sealed.json of a unit


@dataclass(frozen=True)
class Rates:
    """How fast one core, or one GPU, does the work of each stage.

    Parameters
    ----------
    ingest : float
        Source voxels per second and core, statistics, contrast and pyramid included.
    identify : float
        Bytes per second and core that SHA-256 goes through.
    pick : float
        Voxels of the working level per second and core, from Zarr to parquet.
    encode, gpu_encode : float
        Patches of 32^3 per second and core; per GPU, 0 where it was never measured.
    segment, gpu_segment : float
        Voxels of the working level per second and core, dense; per GPU, 0 likewise.
    train : float
        Patches times epochs per second on the machine that trains (two cores).
    kmeans : float
        Rows times iterations per second and core.
    """

    ingest: float = 0.1642e9 / 4 / 2
    identify: float = 1.4e9
    pick: float = 51.96e6
    encode: float = 952.2 / 2
    segment: float = 3.85e6 / 2
    train: float = 47.33
    kmeans: float = 4.309e6 / 2
    gpu_encode: float = 0.0
    gpu_segment: float = 0.0


SOURCES = {
    "ingest": f"{REPORT}, store.ingest, row `ours, best`, two cores, float32",
    "identify": "hashlib over 200 MB in memory, one core, once, by hand, 2026-11-20",
    "pick": f"{REPORT}, picking.stage, row `ours: Zarr to parquet`, one core",
    "encode": f"{REPORT}, encoding.stage, row `the stage`, two cores",
    "segment": f"{REPORT}, segmentation.dense, row `cryoscale, tiles`, two cores",
    "train": f"{REPORT}, training.autoencoder, row `ours, best`, two cores",
    "kmeans": f"{REPORT}, kmeans.iteration, row `ours`, two cores",
    "gpu_encode": "never measured; `make bench DEVICE=cuda SIZE=full` does (encoding.*.gpu)",
    "gpu_segment": "never measured; `make bench DEVICE=cuda SIZE=full` does (segmentation.*.gpu)",
}


@dataclass(frozen=True)
class Prices:
    """What things cost, in one currency; 0 leaves a thing out.

    Parameters
    ----------
    cpu_hour, gpu_hour : float
        One core; one GPU with its cores.
    put, get : float
        One writing or listing request; one reading request.
    gb_month : float
        One gigabyte (1e9 bytes) stored for a month.
    months : float
        How long the results stay.
    """

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    put: float = 0.0
    get: float = 0.0
    gb_month: float = 0.0
    months: float = 1.0


@dataclass(frozen=True)
class Requests:
    """Requests to storage: the slope and the rest of `python -m benchmarks.requests --shards 2` and `4`.

    Looks (HEAD) count as reads, since they are billed so; removals are free.

    Parameters
    ----------
    put_per_shard, get_per_shard : float
        Of ingest, for each shard of level 0: the pyramid is made from what was written.
    put_per_working_shard, get_per_working_shard : float
        Of all later stages together, for each shard of the level at work.
    put, get, list : float
        Of a tomogram whatever its size: records, tables, metadata, models.
    """

    put_per_shard: float = 1.15
    get_per_shard: float = 8.3
    put_per_working_shard: float = 1.2
    get_per_working_shard: float = 24.5
    put: float = 65.0
    get: float = 430.0
    list: float = 40.0


@dataclass(frozen=True)
class Project:
    """What is to be done, and with what.

    Parameters
    ----------
    tomograms : int
        How many.
    voxels : tuple of int
        Shape of one, z, y, x.
    voxel_size, working_size : float
        Å of a voxel as it comes, and of the level that is worked on.
    bytes_per_voxel : float
        Of the source: 2 or 4.
    stored_per_source : float
        Bytes of the pyramid over bytes of the source, compressed; 0.2764 / 0.2684 in the report.
    picks : int
        Of one tomogram.
    dimension, epochs, training_patches, clusters, iterations : int
        Of encoder and k-means.
    mode : str
        "picks" or "dense": what is labelled.
    units : int
        Stages that touch each tomogram.
    shard, block : int
        Voxels per side.
    cores, gpus : int
        Workers.
    idle : float
        Share of their time that workers wait; the simulation says.
    driver_us : float
        CPU time of the driver per block, microseconds; the simulation says.
    """

    tomograms: int = 10_000
    voxels: tuple[int, int, int] = (500, 1024, 1024)
    voxel_size: float = 10.0
    working_size: float = 10.0
    bytes_per_voxel: float = 4.0
    stored_per_source: float = 0.2764 / 0.2684
    picks: int = 5000
    dimension: int = 32
    epochs: int = 50
    training_patches: int = 20_000
    clusters: int = 100
    iterations: int = 100
    mode: str = "dense"
    units: int = 8
    shard: int = 256
    block: int = 256
    cores: int = 512
    gpus: int = 0
    idle: float = 0.06
    driver_us: float = 60.0
    rates: Rates = field(default_factory=Rates)
    requests: Requests = field(default_factory=Requests)

    @property
    def source_voxels(self) -> int:
        """Voxels of one tomogram."""
        return math.prod(self.voxels)

    @property
    def working_voxels(self) -> float:
        """Voxels of the level that is worked on."""
        return self.source_voxels / (self.working_size / self.voxel_size) ** 3


def seconds_per_tomogram(project: Project) -> dict[str, dict[str, float]]:
    """Return core and GPU seconds of one tomogram by stage."""
    rates, work = project.rates, project.working_voxels
    labelled = work if project.mode == "dense" else min(work, project.picks * 32**3)
    gpu = {"encode": rates.gpu_encode, "segment": rates.gpu_segment} if project.gpus else {}
    seconds = {
        "identify": {"core": project.source_voxels * project.bytes_per_voxel / rates.identify},
        "ingest": {"core": project.source_voxels / rates.ingest},
        "pick": {"core": work / rates.pick},
        "assign": {"core": project.picks / rates.kmeans},
    }
    for name, amount, core in (
        ("encode", project.picks, rates.encode),
        ("segment", labelled, rates.segment),
    ):
        seconds[name] = {"gpu": amount / gpu[name]} if gpu.get(name) else {"core": amount / core}
    return seconds


def blocks_per_tomogram(project: Project) -> float:
    """Count the blocks of one tomogram over all stages."""

    def boxes(voxels: Sequence[float]) -> float:
        return math.prod(max(1, math.ceil(v / project.block)) for v in voxels)

    scale = project.working_size / project.voxel_size
    level_0, working = boxes(project.voxels), boxes([v / scale for v in project.voxels])
    return level_0 * LEVELS + 3 * working + math.ceil(project.picks / 4096)


def storage(project: Project) -> dict[str, float]:
    """Return bytes of one tomogram by artifact."""
    labels = project.working_voxels * LEVELS * 0.02  # labels of few objects are nearly all background
    return {
        "tomogram": project.source_voxels * project.bytes_per_voxel * project.stored_per_source,
        "picks": project.picks * PICK_BYTES,
        "encodings": project.picks * project.dimension * PATCH_BYTES,
        "assignments": project.picks * ASSIGNMENT_BYTES,
        "labels": labels if project.mode == "dense" else labels / 4,
        "ledger": project.units * RECORD_BYTES,
    }


def requests(project: Project) -> dict[str, float]:
    """Return requests of the whole project by kind."""
    each, scale = project.requests, project.working_size / project.voxel_size
    shards = math.prod(math.ceil(v / project.shard) for v in project.voxels)
    working = math.prod(max(1, math.ceil(v / scale / project.shard)) for v in project.voxels)
    of_one = {
        "put": each.put + shards * each.put_per_shard + working * each.put_per_working_shard,
        "get": each.get + shards * each.get_per_shard + working * each.get_per_working_shard,
        "list": each.list,
    }
    return {name: project.tomograms * number for name, number in of_one.items()}


def model(project: Project, prices: Prices) -> dict[str, Any]:
    """Add everything up.

    Returns
    -------
    result : dict
        `hours` (wall time: the work, the fits, and what bounds it), `seconds` of one tomogram by stage,
        `bytes` of one by artifact, `requests` of all, `money` per tomogram by what is paid for, and `bound`:
        "cores", "gpus" or "driver".
    """
    seconds = seconds_per_tomogram(project)
    core = sum(part.get("core", 0.0) for part in seconds.values()) * project.tomograms
    gpu = sum(part.get("gpu", 0.0) for part in seconds.values()) * project.tomograms
    blocks = blocks_per_tomogram(project) * project.tomograms
    limits = {
        "cores": core / project.cores / (1 - project.idle),
        "gpus": gpu / max(1, project.gpus) / (1 - project.idle),
        "driver": blocks * project.driver_us * 1e-6,
    }
    bound = max(limits, key=lambda name: limits[name])
    training = project.training_patches * project.epochs / project.rates.train
    rows = project.tomograms * project.picks * project.iterations
    fits = training + rows / (project.rates.kmeans * project.cores)
    hours = (limits[bound] + fits) / 3600
    asked, stored = requests(project), storage(project)
    total_gb = sum(stored.values()) * project.tomograms / 1e9
    money = {
        "cores": hours * project.cores * prices.cpu_hour,
        "gpus": hours * project.gpus * prices.gpu_hour,
        "requests": (asked["put"] + asked["list"]) * prices.put + asked["get"] * prices.get,
        "storage": total_gb * prices.gb_month * prices.months,
    }
    return {
        "hours": {"work": limits[bound] / 3600, "fits": fits / 3600, "all": hours},
        "bound": bound,
        "limits_hours": {name: value / 3600 for name, value in limits.items()},
        "seconds": seconds,
        "blocks": blocks,
        "bytes": stored,
        "total_gb": total_gb,
        "requests": asked,
        "money_per_tomogram": {name: value / project.tomograms for name, value in money.items()},
        "money": sum(money.values()),
    }


def report(project: Project, result: dict[str, Any]) -> str:
    """Write the result for people."""
    per = result["money_per_tomogram"]
    lines = [
        f"{project.tomograms} tomograms of {' x '.join(map(str, project.voxels))} voxels of "
        f"{project.voxel_size:g} Å, worked on at {project.working_size:g} Å; {project.cores} cores, "
        f"{project.gpus} GPUs",
        f"time     {result['hours']['all']:.1f} h: work {result['hours']['work']:.1f} h "
        f"(bound by {result['bound']}), fits {result['hours']['fits']:.1f} h; blocks {result['blocks']:.3g}",
        "         "
        + ", ".join(
            f"{name} {value:.1f} s ({unit})"
            for name, part in result["seconds"].items()
            for unit, value in part.items()
        )
        + " of one tomogram",
        f"storage  {result['total_gb'] / 1000:.2f} TB: "
        + ", ".join(f"{name} {value / 1e6:.3g} MB" for name, value in result["bytes"].items())
        + " of one tomogram",
        "requests " + ", ".join(f"{name} {value:.3g}" for name, value in result["requests"].items()),
        f"money    {sum(per.values()):.4f} per tomogram, {result['money']:.0f} in all: "
        + ", ".join(f"{name} {value:.4f}" for name, value in per.items()),
    ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> tuple[Project, Prices, bool]:
    """Read project and prices from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_model")
    parser.add_argument("--tomograms", type=int, default=10_000)
    parser.add_argument("--voxels", type=int, nargs=3, default=(500, 1024, 1024), metavar=("Z", "Y", "X"))
    parser.add_argument("--voxel-size", type=float, default=10.0, help="Å")
    parser.add_argument("--working-size", type=float, default=None, help="Å; as it comes by default")
    parser.add_argument("--bytes-per-voxel", type=float, default=4.0)
    parser.add_argument("--picks", type=int, default=5000, help="of one tomogram")
    parser.add_argument("--mode", choices=["dense", "picks"], default="dense")
    parser.add_argument("--cores", type=int, default=512)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--gpu-encode", type=float, default=0.0, help="patches per second and GPU")
    parser.add_argument("--gpu-segment", type=float, default=0.0, help="voxels per second and GPU")
    parser.add_argument("--idle", type=float, default=0.06, help="share of the workers' time")
    parser.add_argument("--driver-us", type=float, default=60.0, help="per block")
    for name in ("cpu-hour", "gpu-hour", "put-price", "get-price", "gb-month"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--months", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if given.gpus and not (given.gpu_encode or given.gpu_segment):
        parser.error("--gpus wants --gpu-encode or --gpu-segment: rates of GPUs were never measured here")
    project = Project(
        tomograms=given.tomograms, voxels=tuple(given.voxels), voxel_size=given.voxel_size,
        working_size=given.working_size or given.voxel_size, bytes_per_voxel=given.bytes_per_voxel,
        picks=given.picks, mode=given.mode, cores=given.cores, gpus=given.gpus, idle=given.idle,
        driver_us=given.driver_us,
        rates=Rates(gpu_encode=given.gpu_encode, gpu_segment=given.gpu_segment),
    )  # fmt: skip
    prices = Prices(
        given.cpu_hour, given.gpu_hour, given.put_price, given.get_price, given.gb_month, given.months
    )
    return project, prices, given.json


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the model says."""
    project, prices, plain = parse(arguments)
    result = model(project, prices)
    if plain:
        print(json.dumps({"sources": SOURCES, **result}))
        return
    print(report(project, result))
    print("\nrates:")
    for name, source in SOURCES.items():
        print(f"  {name}: {getattr(project.rates, name):.4g} ({source})")


if __name__ == "__main__":
    main()
