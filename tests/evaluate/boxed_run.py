"""The tiny run with truth of `scored_run`, and subtomograms cut from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.run import Run
from cryoscale.data.subtomograms import Subtomograms
from cryoscale.data.tomogram import Tomogram
from cryoscale.data.truth import Truth
from cryoscale.geometry import Box
from tests.evaluate.scored_run import NAMES, SHAPE, VOXEL, add_tomogram, new_run, paint, write_densities

SIDE, COUNT = 12, 60
QUICK = SupervisedConfig(epochs=3, channels=2, batch_size=16, threads=1, precision="float32", patience=3)


def boxed_run(place, names=("one", "two"), *, count: int = COUNT) -> Run:
    run = new_run(place, names)
    write_densities(run)
    for seed, name in enumerate(names):
        cut_boxes(run, name, add_tomogram(run, name, seed), count, seed)
    return run


def cut_boxes(run: Run, name: str, truth: Truth, count: int, seed: int) -> None:
    centres = np.rint(truth.positions_N3 / VOXEL).astype(int)
    start = centres - SIDE // 2
    fitting = np.flatnonzero(((start >= 0) & (start + SIDE <= SHAPE)).all(axis=1))
    rows = np.sort(np.random.default_rng(seed).permutation(fitting)[:count])
    tomogram = Tomogram(run.tomogram(name))
    made = {"data": [], "density": [], "mask": []}
    for row in rows:
        corner = tuple(int(n) for n in start[row])
        box = tuple(slice(n, n + SIDE) for n in corner)
        alone, labels = paint(only(truth, row))
        alone[:, 10:13] = 0
        made["data"].append(tomogram.read_canonical(0, Box.of(corner, tuple(n + SIDE for n in corner))))
        made["density"].append(alone[box])
        made["mask"].append(labels[box] == truth.class_N[row])
    stored = Subtomograms(run.subtomograms(name))
    stored.create(len(rows), SIDE)
    stored.write(0, {key: np.stack(parts) for key, parts in made.items()})
    z, y, x = truth.positions_N3[rows].T
    stored.publish(
        {
            "row": rows, "z": z, "y": y, "x": x, "class": truth.class_N[rows],
            "class_name": np.array(NAMES)[truth.class_N[rows]],
            **dict(zip(("qx", "qy", "qz", "qw"), truth.quaternion_N4[rows].T, strict=True)),
            "split": np.array(["train", "train", "validation", "test"])[np.arange(len(rows)) % 4],
        }
    )  # fmt: skip


def only(truth: Truth, row: int) -> Truth:
    """Take one particle of a truth."""
    columns = ("positions_N3", "class_N", "quaternion_N4", "contrast_N", "membrane_distance_N", "placement_N")
    return replace(truth, **{name: getattr(truth, name)[[row]] for name in columns})
