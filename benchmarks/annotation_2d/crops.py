"""Two real crops with hand-drawn microtubules: trained on one, scored on the other, and the reverse."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.annotation_2d.cells import drive, unset
from benchmarks.annotation_2d.scores import UNKNOWN, Labels, by_class, confusion, tolerant_f1
from benchmarks.annotation_2d.sizes import Size, supervised_words, volume_name
from cryoscale.config import RunConfig, apply_settings
from cryoscale.config.run import SourceConfig
from cryoscale.data.run import Run
from cryoscale.data.tomogram import LabelVolume
from cryoscale.formats.mrc_write import write_mrc
from cryoscale.geometry import Box

NAMES = ("crop_1", "crop_2")
VOXEL_SIZE_ANGSTROM = (
    10.0  # the files do not say; nothing below depends on it but the picks, which are not used
)
TOLERANCE = 3.0  # voxels
HALF = ", first half"  # of a direction: trained on that of a crop, scored on the other half of the same
GAP = 4  # voxels on each side of the cut that count for nothing
DIRECTIONS = (*NAMES, *(name + HALF for name in NAMES))


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """List volumes `<name>.tif` with their masks `<name>_mask.tif`."""
    pairs = [
        (path, path.with_name(f"{path.stem}_mask.tif"))
        for path in sorted(folder.glob("*.tif"))
        if path.with_name(f"{path.stem}_mask.tif").exists()
    ]
    if len(pairs) < 2:
        raise SystemExit(
            f"{folder} holds {len(pairs)} volumes <name>.tif with <name>_mask.tif; two are needed."
        )
    return pairs[:2]


def hash_of(masks: Path) -> str:
    """Return a hash of the volumes and of what is drawn in them."""
    told = hashlib.sha256()
    for pair in find_pairs(masks):
        for path in pair:
            told.update(hashlib.sha256(path.read_bytes()).digest())
    return told.hexdigest()[:12]


def read_stack(path: Path) -> npt.NDArray[Any]:
    """Read a TIFF stack (z, y, x); scikit-image is there, it stands beside us in other measurements."""
    from skimage.io import imread

    return np.asarray(imread(path))


def prepared(volume: npt.NDArray[Any], mask: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], Labels]:
    """Set padding to the median of the rest, and call it unknown: whole planes of zeros are no tomogram."""
    density, labels = volume.astype(np.float32), (mask > 0).astype(np.uint8)
    padded = (volume == 0).mean(axis=(1, 2)) > 0.99
    if padded.any():
        density[padded] = np.median(density[~padded])
        labels[padded] = UNKNOWN
    return density, labels


def open_crops(place: Path, masks: Path, size: Size, *, seed: int, hashed: str) -> Run:
    """Make a run of both crops, with label files, or go on with the one that is there for these masks."""
    made_of = place / "masks.txt"
    if place.exists() and not (made_of.exists() and made_of.read_text() == hashed):
        shutil.rmtree(place)
    place.mkdir(parents=True, exist_ok=True)
    made_of.write_text(hashed)
    if not (place / "run" / "run.toml").exists():
        for name, (volume, mask) in zip(NAMES, find_pairs(masks), strict=True):
            density, labels = prepared(read_stack(volume), read_stack(mask))
            write_mrc(place / f"{name}.mrc", density, VOXEL_SIZE_ANGSTROM)
            write_mrc(place / f"{name}_drawn.mrc", labels.astype(np.int16), VOXEL_SIZE_ANGSTROM)
        settings = [
            "ingest.contrast=dark", "ingest.levels=1", "pick.radius_angstrom=60", f"supervised.seed={seed}",
            f"patch.size_voxels={size.box}", "patch.smooth_sigma_voxels=1",
            'supervised.model="unet2d"', 'supervised.classes=["microtubule"]',
            f'supervised.labels="{place}/{{tomogram}}_drawn.mrc"',
        ]  # fmt: skip
        config = apply_settings(RunConfig(), settings)
        inputs = tuple(SourceConfig(name=name, path=str(place / f"{name}.mrc")) for name in NAMES)
        Run.at(place / "run").save_config(config.model_copy(update={"inputs": inputs}))
    return Run.open(place / "run")


def drawn_in(place: Path, name: str) -> Labels:
    """Read what was drawn in a crop."""
    from cryoscale.formats.mrc import MrcVolume

    with MrcVolume(place / f"{name}_drawn.mrc") as volume:
        return volume.read(Box.whole(volume.shape)).astype(np.uint8)


def labels_name(row: str, fitted: str) -> str:
    """Return the name of the label volume of a row."""
    return f"{volume_name(row)}-from-{volume_name(fitted)}"


def halves(labels: Labels) -> tuple[Labels, Labels]:
    """Cut what is drawn in two, along the axis that shares it most evenly; the rest of each is unknown."""

    def share(axis: int) -> float:
        first = labels.take(range(labels.shape[axis] // 2), axis)
        return abs(float((first == 1).sum()) / max(1, int((labels == 1).sum())) - 0.5)

    axis = min(range(3), key=share)
    place = np.arange(labels.shape[axis]).reshape([-1 if n == axis else 1 for n in range(3)])
    middle = labels.shape[axis] // 2
    first = np.where(place < middle - GAP, labels, np.uint8(UNKNOWN))
    second = np.where(place >= middle + GAP, labels, np.uint8(UNKNOWN))
    return first, second


def crop_row(run: Run, place: Path, name: str, fitted: str, size: Size) -> dict[str, Any]:
    """Train a network on one crop and score it on the other, or on one half of a crop and on the rest."""
    scored, drawn, truth = fitted_and_scored(place, fitted)
    started = time.perf_counter()
    unset(run)
    words = [
        *supervised_words(name, size.crops[name]), f'supervised.tomograms=["{fitted.removesuffix(HALF)}"]',
        f'supervised.labels="{place}/{{tomogram}}_{"half" if HALF in fitted else "drawn"}.mrc"',
    ]  # fmt: skip
    drive(run, *words, f"segment.labels={labels_name(name, fitted)}", until="segment")
    found = labels_of(run, scored, name, fitted)
    card = run.model("segmenter").card
    return {
        **by_class(confusion(found, truth, 2), ("noise", "microtubule")),
        "tolerant": tolerant_f1(found > 0, truth, TOLERANCE),
        "scored": "its other half" if HALF in fitted else scored,
        "drawn_voxels": int((drawn == 1).sum()), "epochs": card["training"]["epochs"],
        "items": card["training"]["patches"], "seconds": {"all": time.perf_counter() - started},
        "split_accuracy": card["metrics"].get("validation_seg_accuracy"),
    }  # fmt: skip


def fitted_and_scored(place: Path, fitted: str) -> tuple[str, Labels, Labels]:
    """Name the crop that is scored, and give what is drawn to train on and to score with."""
    if HALF not in fitted:
        scored = NAMES[1 - NAMES.index(fitted)]
        return scored, drawn_in(place, fitted), drawn_in(place, scored)
    name = fitted.removesuffix(HALF)
    first, second = halves(drawn_in(place, name))
    write_mrc(place / f"{name}_half.mrc", first.astype(np.int16), VOXEL_SIZE_ANGSTROM)
    return name, first, second


def labels_of(run: Run, scored: str, name: str, fitted: str) -> Labels:
    """Read what a row said of the crop that it was not trained on."""
    volume = LabelVolume(run.tomogram(scored), labels_name(name, fitted))
    labels: Labels = volume.read(0, Box.whole(volume.facts.levels[0].shape))
    return labels
