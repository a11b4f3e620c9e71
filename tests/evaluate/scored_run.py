"""A tiny run with truth, written by hand: particles beside a membrane, picks, clusters, labels, objects."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.clusters import StoredClustering
from cryoscale.data.pyramid import Pyramid, pyramid_levels
from cryoscale.data.rows import Picks, write_assignments, write_picks
from cryoscale.data.run import Run
from cryoscale.data.tables import write_table
from cryoscale.data.tomogram import LabelFacts, LabelVolume, Statistics, TomogramFacts, publish_tomogram
from cryoscale.data.truth import Truth, write_truth
from cryoscale.formats.mrc import MrcVolume, write_mrc
from cryoscale.geometry import Box

SHAPE, VOXEL, BOX = (48, 96, 96), 10.0, 16
NAMES = ("background", "ribo<some>", "$barrel", "small", "membrane")
PER_CLASS = 4  # clusters of each class; as many again hold what is nothing
K = 4 * PER_CLASS
DENSITIES = ("", "maps/ribo some.mrc", "barrel", "small")  # by class value, as a configuration names them
KEYS = ("", "ribo_some", "barrel", "small")
SD = 0.5  # of the noise; a particle's density is 1
# A body with an arm: no symmetry. Balls as (x, y, z, radius), voxels of the particle's frame.
BALLS = {
    1: [(0, 0, 0, 2.4), (3, 0, 0, 1.5), (0, 2.5, 1, 1.2)],
    2: [(0, 0, -2, 1.8), (0, 0, 2, 1.8)],
    3: [(0, 0, 0, 1.5)],
}


def new_run(place, names, *settings: str) -> Run:
    run = Run.at(place)
    wanted = ["pick.radius_angstrom=25", f"patch.size_voxels={BOX}", *settings]
    config = apply_settings(RunConfig(), wanted)
    inputs = tuple(SourceConfig(name=name, path=f"/data/{name}.mrc") for name in names)
    run.save_config(config.model_copy(update={"inputs": inputs}))
    centres = np.zeros((K, 4))
    run.clusters.save(StoredClustering(centres, np.zeros(4), np.ones(4), np.full(K, 1)), {"n_clusters": K})
    return run


def make_truth(seed: int) -> Truth:
    """Particles on a loose lattice, so that none overlap; class 2 alone stands at the membrane, y = 12."""
    rng = np.random.default_rng(seed)
    lattice = np.array(list(itertools.product(range(8, 41, 8), range(18, 88, 10), range(8, 90, 10))), float)
    chosen = lattice[rng.permutation(len(lattice))[: len(lattice) * 2 // 3]]
    positions = (chosen + rng.uniform(-0.8, 0.8, chosen.shape)) * VOXEL
    near = chosen[:, 1] < 20
    classes = np.where(near & (rng.random(len(near)) < 0.85), 2, rng.choice([1, 3], len(near)))
    return Truth(
        positions, classes.astype(np.uint8), NAMES,
        Rotation.random(len(positions), rng=rng).as_quat(), np.ones(len(positions), np.float32),
        np.abs(positions[:, 1] - 120).astype(np.float32), np.where(near, "at", "far"),
        {"particle_classes": 3, "entry_counts": [1] * len(classes),
         "densities": [DENSITIES[value] for value in classes]},
    )  # fmt: skip


def write_densities(run: Run) -> None:
    """Write the classes' own maps, middle voxel at the origin of the balls."""
    grid = np.stack(np.indices((15, 15, 15)), axis=-1) - 7.0
    Path(run.densities.url).mkdir(parents=True)
    for value, balls in BALLS.items():
        parts = [
            np.clip(radius + 0.5 - np.linalg.norm(grid - offset[::-1], axis=-1), 0, 1)
            for *offset, radius in balls
        ]
        write_mrc(run.densities.path(f"{KEYS[value]}.mrc"), np.max(parts, axis=0).astype(np.float32), VOXEL)
    run.densities.write_toml("densities.toml", {key: {"radius_angstrom": 50.0} for key in KEYS[1:]})


def read_density(place: str) -> tuple[np.ndarray, float]:
    with MrcVolume(Path(place)) as volume:
        return volume.read(Box.whole(volume.header.shape)), volume.header.voxel_size_angstrom


def paint(truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Return the noise-free signal, objects positive, and the true labels."""
    signal, labels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    signal[:, 10:13] = 0.7
    labels[:, 10:13] = 4
    grid = np.stack(np.indices(SHAPE), axis=-1)
    for position, value, quaternion in zip(
        truth.positions_N3, truth.class_N, truth.quaternion_N4, strict=True
    ):
        start = np.maximum(np.floor(position / VOXEL).astype(int) - 6, 0)
        box = tuple(slice(a, a + 13) for a in start)
        turn = Rotation.from_quat(quaternion)
        for *offset, radius in BALLS[int(value)]:
            centre = position / VOXEL + turn.apply(offset)[::-1]
            inside = np.clip(radius + 0.5 - np.linalg.norm(grid[box] - centre, axis=-1), 0, 1)
            signal[box] = np.maximum(signal[box], inside)
            labels[box][inside > 0.5] = value
    return signal, labels


def write_labels(run: Run, tomogram: str, name: str, labels: np.ndarray, names: tuple[str, ...]) -> None:
    levels = pyramid_levels(labels.shape, VOXEL, count=1)
    volume = LabelVolume(run.tomogram(tomogram), name, writable=True)
    volume.pyramid.create(levels, np.uint8, chunk=16, shard=32, image=False)
    volume.pyramid.write(0, Box.whole(labels.shape), labels)
    volume.publish(LabelFacts(name, tuple(levels), names, ((0, 0, 0),) * len(names), "k", 0, {}))


def add_tomogram(run: Run, name: str, seed: int) -> Truth:
    """Write tomogram, truth table and true labels."""
    truth = make_truth(seed)
    signal, labels = paint(truth)
    noise = np.random.default_rng(seed + 1000).normal(0, SD, SHAPE)
    levels = pyramid_levels(SHAPE, VOXEL, count=1)
    pyramid = Pyramid(run.tomogram(name), writable=True)
    pyramid.create(levels, np.float32, chunk=16, shard=32, image=True)
    pyramid.write(0, Box.whole(SHAPE), (noise - signal).astype(np.float32))
    facts = TomogramFacts(name, tuple(levels), (Statistics(0.0, SD),), "dark", "given", "k", {"path": "x"})
    publish_tomogram(pyramid, facts)
    write_truth(run.truth, name, truth)
    write_labels(run, name, "truth", labels, NAMES[1:])
    return truth


def add_results(run: Run, name: str, truth: Truth, seed: int, *, found: float = 0.9) -> None:
    """Write picks of most particles and of nothing, clusters that mostly know the class, labels, objects."""
    rng = np.random.default_rng(seed + 2000)
    kept = np.flatnonzero(rng.random(len(truth)) < found)
    wrong = rng.uniform(0, np.array(SHAPE) * VOXEL - VOXEL, (60, 3))
    positions = np.concatenate([truth.positions_N3[kept] + rng.normal(0, 4, (len(kept), 3)), wrong])
    scores = np.concatenate([rng.normal(5, 1, len(kept)), rng.normal(3.5, 1, len(wrong))])
    classes = np.concatenate([truth.class_N[kept], np.zeros(len(wrong))]).astype(int)
    blurred = np.where(rng.random(len(classes)) < 0.85, classes, rng.integers(0, 4, len(classes)))
    ids = blurred * PER_CLASS + rng.integers(0, PER_CLASS, len(classes))
    write_picks(run.picks, name, Picks(positions, scores.astype(np.float32)))
    write_assignments(run.assignments, name, ids.astype(np.int32), np.ones(len(ids), np.float32))
    _, labels = paint(truth)
    labels = np.where(rng.random(labels.shape) < 0.9, labels, 0).astype(np.uint8)
    swapped = np.array([0, 1, 3, 0, 2], np.uint8)[labels]  # other values, and one true class not found
    write_labels(run, name, "classes", swapped, ("ribo<some>", "membrane", "unheard of"))
    objects = truth.positions_N3[truth.class_N < 3]
    names = np.array(["", "ribo<some>", "unheard of"])[truth.class_N[truth.class_N < 3]]
    columns = dict(zip("zyx", objects.T, strict=True)) | {"class_name": names}
    write_table(run.instances, f"{name}.parquet", columns)


def whole_run(place, names=("one", "two")) -> Run:
    run = new_run(place, names)
    write_densities(run)
    for seed, name in enumerate(names):
        add_results(run, name, add_tomogram(run, name, seed), seed)
    return run
