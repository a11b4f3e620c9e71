"""Simulated cells with the six classes of the 2D U-Net's README; fitted on two, scored on a third."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.annotation_2d.scores import Labels, by_class, confusion, matched
from benchmarks.annotation_2d.sizes import Size, supervised_words, volume_name
from benchmarks.weak_pipeline.runs import FITTED, SCORED, choose_by_truth
from cryoscale.config import apply_settings
from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.clusters import SELECTION
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.data.truth import TRUTH_LABELS
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.simulation import set_up_simulation

CLASSES = ("noise", "microtubule", "ribosome", "double membrane", "single membrane", "carbon edge")
"""In the order of the README; noise is what no feature is drawn on, other particles among it."""

SIX = {"microtubule": 1, "ribosome": 2, "double_membrane": 3, "membrane": 4, "carbon": 5}
"""Class of the simulator: label value here; its other classes are noise."""

SNR = 0.2
TRAINED = (FITTED, "cell_3")  # with one alone a network learns where its one double membrane stands
OF_ONE_NETWORK = (
    "channels", "tile_voxels", "epochs", "neighbours", "batch_size", "max_patches", "augment",
    "learning_rate",
)  # fmt: skip
WEAK = {"weak, suggested clusters": "suggestion", "weak, clusters chosen by the truth": "truth"}


def scene_of(size: Size, seed: int) -> list[str]:
    """Return what both runs share: the scene, the boxes, what is fitted on."""
    crowd = [("ribosome", size.ribosomes), ("barrel", size.others), ("ball", size.others)]
    particles = ", ".join(f'{{density="{name}", copies={copies}}}' for name, copies in crowd)
    membranes = f"vesicles={size.vesicles}, planes={size.planes}, double_planes={max(1, size.planes)}"
    return [
        f"simulate.scene.shape={list(size.shape)}", f"simulate.scene.particles=[{particles}]",
        f"simulate.scene.membranes={{{membranes}}}",
        f"simulate.scene.filaments={{microtubules={size.microtubules}}}",
        "simulate.scene.surroundings={carbon_edge=true}",
        "pick.radius_angstrom=97", "pick.threshold_rule=score", "pick.threshold=0",
        f"patch.size_voxels={size.box}", "patch.smooth_sigma_voxels=1",
        f"run.fit_tomograms={as_list(TRAINED)}", f"encoder.seed={seed}", f"cluster.seed={seed}",
        f"segmenter.seed={seed}", f"supervised.seed={seed}", *size.weak,
    ]  # fmt: skip


def open_cells(place: Path, size: Size, *, seed: int) -> Run:
    """Simulate the cells, or go on with those that are there."""
    scene = scene_of(size, seed)
    made_of = place / "scene.json"
    if (place / "run.toml").exists() and (not made_of.exists() or json.loads(made_of.read_text()) != scene):
        shutil.rmtree(place)  # made for other settings
    if not (place / "run.toml").exists():
        set_up_simulation(str(place), "cell-demo", seed=seed, snr=SNR, tomograms=3, settings=scene)
        made_of.write_text(json.dumps(scene))
    run = Run.open(place)
    drive(run, until="truth_labels")
    return run


def drive(run: Run, *settings: str, until: str, accept: bool = False) -> None:
    """Do what is due up to a stage, in this process; a failure ends the measurement."""
    if settings:
        run.save_config(apply_settings(run.config, list(settings)))
    result = run_pipeline(
        run, Options(executor="serial", until=until, trace=False, accept_suggestions=accept)
    )
    if result.failures:
        raise RuntimeError(f"{run.folder.url}: {result.failures}")


def as_list(names: Sequence[str]) -> str:
    """Write names as a list for --set."""
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def write_drawings(run: Run, folder: Path) -> int:
    """Write the truth of the trained cells as a person would draw it, in MRC files; count what is drawn."""
    folder.mkdir(exist_ok=True)
    drawn = 0
    for cell in TRAINED:
        size = Tomogram(run.tomogram(cell)).facts.levels[0].voxel_size_angstrom
        labels = truth_of(run, cell)
        write_mrc(folder / f"{cell}.mrc", labels.astype(np.int16), size)
        drawn += int((labels > 0).sum())
    return drawn


def truth_of(run: Run, tomogram: str) -> Labels:
    """Read the truth of a tomogram in the six classes."""
    return _in_six(LabelVolume(run.tomogram(tomogram), TRUTH_LABELS), SIX)


def labels_of(run: Run, tomogram: str, name: str) -> Labels:
    """Read a label volume whose classes are named as here."""
    drawn = {word.replace(" ", "_"): value for value, word in enumerate(CLASSES)}
    return _in_six(LabelVolume(run.tomogram(tomogram), name), drawn)


def _in_six(volume: LabelVolume, values: dict[str, int]) -> Labels:
    table = np.array([0, *(values.get(name, 0) for name in volume.facts.class_names)], np.uint8)
    labels: Labels = table[volume.read(0, Box.whole(volume.facts.levels[0].shape))]
    return labels


def supervised_row(run: Run, place: Path, name: str, size: Size) -> dict[str, Any]:
    """Train one network on what is drawn in two cells, label the third, and score it."""
    drawn = place / "drawn"
    voxels = write_drawings(run, drawn)
    classes = as_list([word.replace(" ", "_") for word in CLASSES[1:]])
    volume = volume_name(name)
    unset(run)
    settings = [
        *supervised_words(name, size.cells[name]),
        f'supervised.labels="{drawn}/{{tomogram}}.mrc"', f"supervised.classes={classes}",
        f"supervised.tomograms={as_list(TRAINED)}", f"segment.labels={volume}",
    ]  # fmt: skip
    seconds = {}
    for step in ("train_supervised", "segment"):
        started = time.perf_counter()
        drive(run, *settings, until=step)
        seconds[step], settings = time.perf_counter() - started, []
    card = run.model("segmenter").card
    found = by_class(confusion(labels_of(run, SCORED, volume), truth_of(run, SCORED), len(CLASSES)), CLASSES)
    return {
        **found, "drawn_voxels": voxels, "seconds": seconds,
        "epochs": card["training"]["epochs"], "items": card["training"]["patches"],
        "split_accuracy": card["metrics"].get("validation_seg_accuracy"),
    }  # fmt: skip


def unset(run: Run) -> None:
    """Put back what the network before set for itself."""
    defaults = SupervisedConfig()
    changes = {key: getattr(defaults, key) for key in OF_ONE_NETWORK}
    clean = run.config.supervised.model_copy(update=changes)
    run.save_config(run.config.model_copy(update={"supervised": clean}))


def weak_row(run: Run, name: str) -> dict[str, Any]:
    """Label without anything drawn: encode, cluster, choose clusters, EDSS3D; score as the others."""
    started = time.perf_counter()
    chosen = WEAK[name]
    drive(run, until="review")
    folder = run.clusters.folder
    if folder.exists(SELECTION):
        folder.delete(SELECTION)
    if chosen == "truth":
        choose_by_truth(run)
    drive(run, f"segment.labels={volume_name(name)}", until="segment", accept=True)
    seconds = time.perf_counter() - started
    volume = [LabelVolume(run.tomogram(cell), volume_name(name)) for cell in (FITTED, SCORED)]
    found = [v.read(0, Box.whole(v.facts.levels[0].shape)) for v in volume]
    names = volume[0].facts.class_names
    if chosen == "truth":
        table = np.array([0, *(SIX.get(word, 0) for word in names)], np.uint8)
    else:  # they have no names of the README: each is given the one that it fits best on the fitted cell
        table = matched(found[0], truth_of(run, FITTED), len(names) + 1, len(CLASSES))
    scores = by_class(confusion(table[found[1]], truth_of(run, SCORED), len(CLASSES)), CLASSES)
    card = run.model("segmenter").card
    meaning = {word: CLASSES[table[v]] for v, word in enumerate(names, start=1)}
    return {
        **scores, "drawn_voxels": 0, "seconds": {"all": seconds}, "epochs": card["training"]["epochs"],
        "items": card["training"]["patches"], "meaning": meaning,
    }  # fmt: skip


def weak_labels(run: Run, name: str, meaning: dict[str, str]) -> Labels:
    """Read a weak label volume of the scored cell in the six classes."""
    return _in_six(
        LabelVolume(run.tomogram(SCORED), volume_name(name)),
        {word: CLASSES.index(said) for word, said in meaning.items()},
    )


def density_of(run: Run, tomogram: str) -> npt.NDArray[np.float32]:
    """Read a whole tomogram, objects dark."""
    opened = Tomogram(run.tomogram(tomogram))
    return opened.read_canonical(0, Box.whole(opened.facts.levels[0].shape))
