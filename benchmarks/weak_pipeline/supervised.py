"""The same segmentation network trained on the full truth of the fitted cell: what the weak labels cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.weak_pipeline.runs import FITTED
from cryoscale.data.folder import Folder
from cryoscale.data.rows import read_picks
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume, Tomogram
from cryoscale.data.truth import TRUTH_LABELS
from cryoscale.data.weights import ModelFolder
from cryoscale.geometry import Box
from cryoscale.learn.losses import SegmentationLoss
from cryoscale.learn.training import fit
from cryoscale.models.registry import build
from cryoscale.ops.patches import patch_box
from cryoscale.stages.patching import PatchReader
from cryoscale.stages.training import history_columns, settings_for


def train_on_truth(run: Run, place: Path) -> Path:
    """Train EDSS3D on true masks of as many patches, cut off the same picks; return its folder."""
    config, patch = run.config.segmenter, run.config.patch
    tomogram = Tomogram(run.tomogram(FITTED))
    reader = PatchReader(tomogram, 0, patch, None)
    truth = LabelVolume(run.tomogram(FITTED), TRUTH_LABELS)
    labels_ZYX = truth.read(0, Box.whole(truth.facts.levels[0].shape))
    rng = np.random.default_rng(config.seed)
    picks = reader.voxels(read_picks(run.picks, FITTED).positions_N3)
    count = min(len(picks), round(config.max_patches * (1 + config.background_share)))
    centres = rng.permutation(picks)[:count]
    reach = np.floor(config.shift * np.array(patch.box)).astype(int)
    centres = centres + rng.integers(-reach, reach, size=centres.shape, endpoint=True)
    half = np.array(patch.box) // 2
    centres = np.clip(centres, half, np.array(labels_ZYX.shape) - half)
    masks = np.stack([labels_ZYX[patch_box(c.tolist(), patch.box).slices] for c in centres])
    names = truth.facts.class_names
    architecture = {"name": "edss3d", "n_classes": len(names) + 1, "channels": config.channels}
    settings = settings_for(config)
    module = build(architecture, seed=config.seed)
    result = fit(module, reader.gather(centres)[:, None], masks, SegmentationLoss(), settings)
    card = {
        "architecture": architecture, "key": "trained on the truth",
        "voxel_size_angstrom": tomogram.facts.levels[0].voxel_size_angstrom,
        "training": {"tomograms": [FITTED], "patches": len(centres), "epochs": len(result.history)},
        "patch": patch.model_dump(mode="json"),
        "metrics": {"mask_level_sd": 0.0},
        "classes": {"names": list(names), "colors": [list(c) for c in truth.facts.colors]},
    }  # fmt: skip
    folder = ModelFolder(Folder.of(place))
    folder.save(result.best_state, card, history_columns(result.history))
    return place
