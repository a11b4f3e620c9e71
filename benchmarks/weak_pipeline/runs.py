"""The runs that are measured: simulated cells, fitted on one of them, in several settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryoscale.config import apply_settings
from cryoscale.data.clusters import PALETTE, SELECTION, Selection
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.data.truth import TRUTH_LABELS
from cryoscale.evaluate.evidence import Evidence, Settings, collect
from cryoscale.geometry import Box
from cryoscale.pipeline.driver import Options, run_pipeline
from cryoscale.pipeline.simulation import set_up_simulation

FITTED, SCORED = "cell_1", "cell_2"
MATCH_ANGSTROM = 70.0
MEMBRANE_VOXELS = 2  # a pick without a particle belongs to a membrane within this distance of it
MAJORITY, LEAST_PICKS = 0.5, 3


@dataclass(frozen=True)
class Size:
    """How large the measurement is."""

    shape: tuple[int, int, int]
    scale: float
    epochs: int
    segmenter_epochs: int
    segmenter_channels: int
    segmenter_patches: int

    @property
    def particles(self) -> str:
        """The crowd: ribosomes at membranes and far from them, balls near them, barrels far off."""
        rows = [
            ("ribosome", 50, "at"), ("ribosome", 60, "far"), ("barrel", 110, "far"), ("ball", 90, "near"),
        ]  # fmt: skip
        tables = [
            f'{{density="{name}", copies={round(copies * self.scale)}, placement="{placement}"}}'
            for name, copies, placement in rows
        ]
        return "[" + ", ".join(tables) + "]"


SIZES = {
    "small": Size((64, 256, 256), 1.0, 15, 30, 16, 500),
    "full": Size((200, 512, 512), 10.0, 100, 100, 32, 5000),
}


def settings_of(size: Size, seed: int) -> list[str]:
    """Return what all runs share."""
    planes = max(1, round(size.scale / 4))
    return [
        f"simulate.scene.shape={list(size.shape)}",
        f"simulate.scene.particles={size.particles}",
        f"simulate.scene.membranes={{vesicles={round(5 * size.scale)}, planes={planes}}}",
        "pick.radius_angstrom=97", "pick.threshold_rule=score", "pick.threshold=0",
        "patch.size_voxels=16", "patch.smooth_sigma_voxels=1",
        f"encoder.epochs={size.epochs}", f"encoder.seed={seed}", "encoder.batch_size=16",
        "cluster.n_clusters=50", f"cluster.seed={seed}",
        f"segmenter.epochs={size.segmenter_epochs}", f"segmenter.channels={size.segmenter_channels}",
        "segmenter.batch_size=16", f"segmenter.seed={seed}",
        f"segmenter.max_patches={size.segmenter_patches}", "segmenter.background_share=0.5",
        f'run.fit_tomograms=["{FITTED}"]',
    ]  # fmt: skip


def simulated(place: Path, snr: float, size: Size, *, seed: int, settings: list[str]) -> Run:
    """Simulate two cells at one signal-to-noise ratio and return their run."""
    set_up_simulation(
        str(place), "cell-demo", seed=seed, snr=snr, tomograms=2,
        settings=[*settings_of(size, seed), *settings],
    )  # fmt: skip
    run = Run.open(place)
    drive(run, until="truth_labels")
    return run


def drive(run: Run, *, until: str, settings: list[str] | None = None) -> None:
    """Do what is due up to a stage, in this process; a failure ends the measurement."""
    if settings:
        run.save_config(apply_settings(run.config, settings))
    result = run_pipeline(run, Options(executor="serial", until=until, trace=False))
    if result.failures:
        raise RuntimeError(f"{run.folder.url}: {result.failures}")


def evidence(run: Run, tomogram: str) -> Evidence:
    """Match the picks of a tomogram with what is known."""
    return collect(run, tomogram, None, Settings(radius_angstrom=MATCH_ANGSTROM))


def classes_with_membranes(run: Run, tomogram: str, found: Evidence) -> np.ndarray:
    """Return the label value of what each pick is, membranes among them; 0 for nothing."""
    from cryoscale.data.rows import read_picks
    from cryoscale.evaluate.picks import near_label

    values = found.class_N.copy()
    truth = LabelVolume(run.tomogram(tomogram), TRUTH_LABELS)
    level = truth.facts.levels[0]
    labels_ZYX = truth.read(0, Box.whole(level.shape))
    index_N3 = read_picks(run.picks, tomogram).positions_N3 / level.voxel_size_angstrom
    for value, name in enumerate(truth.facts.class_names, start=1):
        if name.endswith("membrane"):
            values[near_label(index_N3, labels_ZYX, value, MEMBRANE_VOXELS) & (values == 0)] = value
    return values


def choose_by_truth(run: Run) -> dict[str, Any]:
    """Write the selection that a person with perfect eyes would make from the fitted cell alone."""
    found = evidence(run, FITTED)
    assert found.ids_N is not None
    names = ("background", *LabelVolume(run.tomogram(FITTED), TRUTH_LABELS).facts.class_names)
    card = run.clusters.card
    counts = np.zeros((int(card["n_clusters"]), len(names)))
    np.add.at(counts, (found.ids_N, classes_with_membranes(run, FITTED, found)), 1)
    best = counts.argmax(axis=1)
    sure = counts.max(axis=1) > MAJORITY * counts.sum(axis=1)
    sure &= counts.max(axis=1) >= LEAST_PICKS
    classes = [
        (name, tuple(int(k) for k in np.flatnonzero(sure & (best == value))))
        for value, name in enumerate(names)
        if value and (sure & (best == value)).any()
    ]
    colors = tuple(PALETTE[(names.index(name) - 1) % len(PALETTE)] for name, _ in classes)
    selection = Selection(str(card["centers_sha256"]), tuple(classes), colors)
    run.clusters.folder.write_toml(SELECTION, selection.to_toml())
    return {name: len(clusters) for name, clusters in classes}
