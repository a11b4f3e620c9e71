"""A tiny run written through the data room alone: no stage runs, nothing is trained."""

from __future__ import annotations

import numpy as np

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.arrays import write_arrays
from cryoscale.data.clusters import SUGGESTION, StoredClustering
from cryoscale.data.ledger import ALL, UnitLedger
from cryoscale.data.pyramid import Pyramid, pyramid_levels
from cryoscale.data.rows import Picks, write_assignments, write_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import write_table
from cryoscale.data.tomogram import LabelFacts, LabelVolume, Statistics, TomogramFacts, publish_tomogram
from cryoscale.geometry import Box
from cryoscale.report.collect import StageName

SHAPE, VOXEL, BOX, K = (24, 40, 48), 20.0, 8, 5
NASTY = "a<b>&'\"c d#1"
STAGES = [
    StageName("ingest", False), StageName("pick", False), StageName("train_encoder", True),
    StageName("cluster", True), StageName("review", True), StageName("segment", False),
]  # fmt: skip


def new_run(place, names, **changes) -> Run:
    run = Run.at(place)
    config = apply_settings(RunConfig(), ["pick.radius_angstrom=60", f"patch.size_voxels={BOX}"])
    inputs = tuple(SourceConfig(name=name, path=f"/data/{name}.mrc") for name in names)
    run.save_config(config.model_copy(update={"inputs": inputs, **changes}))
    return run


def seal(run: Run, stage: str, unit: str, **value) -> None:
    ledger = UnitLedger(run.ledger, stage, unit, "k")
    ledger.begin("plan", 1, 1000)
    ledger.seal(value)


def add_tomogram(run: Run, name: str, seed: int = 0, z_range=None) -> None:
    rng = np.random.default_rng(seed)
    levels = pyramid_levels(SHAPE, VOXEL, count=2)
    pyramid = Pyramid(run.tomogram(name), writable=True)
    pyramid.create(levels, np.float32, chunk=16, shard=32, image=True)
    for number, level in enumerate(levels):
        pyramid.write(number, Box.whole(level.shape), rng.normal(5, 2, level.shape).astype(np.float32))
    facts = TomogramFacts(
        name=name, levels=tuple(levels), statistics=(Statistics(5.0, 2.0),) * 2, contrast="dark",
        contrast_reason="dark blobs <are> stronger", key="k", source={"path": f"/data/{name}.mrc"},
        z_range=z_range, z_range_reason="variance plateau" if z_range else "",
    )  # fmt: skip
    publish_tomogram(pyramid, facts)
    seal(run, "ingest", name)


def add_picks(run: Run, name: str, n: int = 60, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, SHAPE, (n, 3)) * VOXEL
    write_picks(run.picks, name, Picks(positions, rng.random(n).astype(np.float32) + 1))
    seal(run, "pick", name, threshold=0.9, candidates=2 * n)


def add_clusters(run: Run, names, n: int = 60) -> None:
    rng = np.random.default_rng(2)
    clustering = StoredClustering(np.zeros((K, 4)), np.zeros(4), np.ones(4), np.full(K, n // K))
    digest = run.clusters.save(clustering, {"n_clusters": K})
    for name in names:
        write_assignments(run.assignments, name, np.arange(n) % K, np.ones(n))
    cube = (K, BOX, BOX, BOX)
    arrays = {key: rng.normal(size=cube).astype(np.float32) for key in ("decoded", "mean", "smooth")}
    arrays["members"] = rng.normal(size=(K, 3, BOX, BOX)).astype(np.float32)
    arrays |= {"shown": np.array([3, 3, 3, 3, 0]), "averaged": np.array([9, 9, 9, 9, 0])}
    write_arrays(run.folder.child("clusters", "review"), "review.safetensors", arrays)
    kinds = ["surface", "globular", "background", "globular", "background"]
    suggestion = {
        "clustering": digest,
        "classes": {"surface": {"clusters": [0]}, "globular": {"clusters": [1, 3], "color": "#56b4e9"}},
        "reasons": {str(k): {"kind": kind, "depth": 1.25} for k, kind in enumerate(kinds)},
    }
    run.clusters.folder.write_toml(SUGGESTION, suggestion)
    seal(run, "cluster", ALL)
    seal(run, "review", ALL)


def add_model(run: Run, name: str, *, dead: float = 0.0) -> None:
    import torch

    history = {
        "epoch": np.arange(1, 5), "train_loss": np.linspace(1, 0.5, 4),
        "validation_loss": np.linspace(1, 0.6, 4),
        "improved": np.ones(4, bool),
    }  # fmt: skip
    card = {
        "architecture": {"name": "autoencoder3d"}, "training": {"best_epoch": 3, "stopped": "patience"},
        "metrics": {"dead_code_share": dead},
    }  # fmt: skip
    run.model(name).save({"w": torch.zeros(2)}, card, history)


def add_labels(run: Run, name: str) -> None:
    levels = pyramid_levels(SHAPE, VOXEL, count=2)
    volume = LabelVolume(run.tomogram(name), "classes", writable=True)
    volume.pyramid.create(levels, np.uint8, chunk=16, shard=32, image=False)
    for number, level in enumerate(levels):
        labels = np.zeros(level.shape, np.uint8)
        labels[:, 5:12, 5:12] = 1
        volume.pyramid.write(number, Box.whole(level.shape), labels)
    volume.publish(
        LabelFacts("classes", tuple(levels), ("rib<o>some", "none"), ((230, 159, 0), (0, 0, 0)), "k", 0, {})
    )
    columns = {key: np.array([100.0, 200.0]) for key in ("z", "y", "x")}
    columns |= {
        "class_value": np.array([1, 1]),
        "voxels": np.array([10, 30]),
        "volume_nm3": np.array([80.0, 240.0]),
    }
    write_table(run.instances, f"{name}.parquet", columns)
    seal(run, "segment", name)


def whole_run(place, names=("one", NASTY)) -> Run:
    run = new_run(place, names)
    for number, name in enumerate(names):
        add_tomogram(run, name, number)
        add_picks(run, name)
    add_model(run, "encoder")
    seal(run, "train_encoder", ALL)
    add_clusters(run, names)
    for name in names:
        add_labels(run, name)
    return run
