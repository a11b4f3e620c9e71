"""One training of one row: resumable, and scored at the end. Needs numpy, scipy and torch alone."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dsm_net.data import DataSet
from benchmarks.dsm_net.rows import Row
from benchmarks.dsm_net.scores import by_chance, predict, score
from benchmarks.dsm_net.sizes import Size
from benchmarks.harness.machine import describe
from cryoscale.learn.recipes import Recipe, loss_of, recipe_of
from cryoscale.learn.settings import EpochRecord, TrainSettings
from cryoscale.learn.training import fit
from cryoscale.models.layers import count_parameters
from cryoscale.models.registry import build

BUDGET = (
    "optimiser", "learning_rate", "betas", "batch_size", "epochs", "patience", "min_delta", "monitor",
    "warmup_epochs",
)  # fmt: skip
FREE = ("threads", "device", "precision")  # settings that decide about no more than the last bits
VALIDATED = {"miou": "validation_seg_iou", "object": "validation_cls_accuracy"}
EVERY_FOURTH = 4  # class is left out, by those rows that leave some out
SHOWN = 4  # test boxes whose slices are kept for the pictures


class FileCheckpoint:
    """The state of a training between epochs, in one file that is replaced in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Keep this state instead of the last one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save({**state, "progress": json.dumps(state["progress"])}, partial)
        os.replace(partial, self.path)

    def load(self) -> dict[str, Any] | None:
        """Give the last state that was saved, or None."""
        if not self.path.exists():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        return {**state, "progress": json.loads(state["progress"])}

    def remove(self) -> None:
        """Forget it."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and how: everything that decides about its result.

    Attributes
    ----------
    row : Row
    size : str
        Name of the size.
    seed : int
    architecture : dict
        Of the registry, or of MONAI's network.
    recipe : Recipe
    settings : TrainSettings
    data_id : str
    """

    row: Row
    size: str
    seed: int
    architecture: dict[str, Any]
    recipe: Recipe
    settings: TrainSettings
    data_id: str

    @property
    def identity(self) -> str:
        """A hash that tells it from trainings of other data, networks or settings, wherever they run."""
        return _identity(
            self.row.key, self.size, self.seed, self.architecture, dataclasses.asdict(self.settings),
            self.data_id, self.weights, self.row.left_out, self.recipe.normalise,
        )  # fmt: skip

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the losses, by head: the row's, or else the recipe's."""
        only = "cls" if self.row.model == "dsrf3d-v2" else "seg"
        return dict(self.row.weights or self.recipe.weights_for(self.architecture.get("heads", (only,))))

    @property
    def name(self) -> str:
        """A name for its files."""
        plain = "".join(c if c.isalnum() else "-" for c in self.row.key)
        return f"{plain}-{self.seed}-{self.identity[:6]}"


def _identity(
    key: str, size: str, seed: int, architecture: Any, settings: dict[str, Any], data_id: str,
    weights: dict[str, float], left_out: bool, normalise: str,
) -> str:  # fmt: skip
    known = {**dataclasses.asdict(TrainSettings()), **settings}
    deciding = {name: value for name, value in known.items() if name not in FREE}
    by_head = {head: float(weight) for head, weight in weights.items()}
    told = [key, size, seed, architecture, deciding, data_id, by_head, left_out, normalise]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(record: dict[str, Any]) -> str:
    """Give the identity of a training that ended, from what `results.jsonl` keeps of it.

    It is that of `Training.identity` with the settings that it was trained with, not those of today.
    """
    model = record["architecture"]["name"]
    recipe = recipe_of("unet3d" if model == "monai-unet" else model, improved=record["improved"])
    return _identity(
        f"{record['data']}/{record['name']}", record["size"], record["seed"], record["architecture"],
        record["settings"], record["facts"]["id"], record["weights"], bool(record["left_out"]),
        recipe.normalise,
    )  # fmt: skip


def validated(record: dict[str, Any]) -> dict[str, float]:
    """Return mIoU and object accuracy of the boxes validated on, at the best epoch, as far as known."""
    history, best = record.get("history", []), record.get("best_epoch", 0)
    if not 1 <= best <= len(history):
        return dict(record.get("validation", {}))
    told = history[best - 1]
    return {name: told[part] for name, part in VALIDATED.items() if part in told}


def _recipe(row: Row) -> Recipe:
    recipe = recipe_of("unet3d" if row.model == "monai-unet" else row.model, improved=row.improved)
    if not row.budget:
        return recipe
    other = recipe_of(row.budget, improved=row.improved)
    return dataclasses.replace(recipe, **{name: getattr(other, name) for name in BUDGET})


def training_of(
    row: Row, facts: dict[str, Any], size_name: str, size: Size, seed: int, *, device: str, threads: int
) -> Training:
    """Say how a row is trained on data of which `facts` are known."""
    recipe = _recipe(row)
    settings = recipe.settings(
        seed=seed, device=device, threads=threads, precision="auto", **size.overrides
    )  # fmt: skip
    architecture: dict[str, Any] = {"name": row.model, **recipe.architecture}
    if size.channels is not None:  # our U-Net's widths double four times, those of the others less often
        architecture["channels"] = size.channels // (2 if row.model == "unet3d" else 1)
    if row.model in ("dsm-net", "dsrf3d-v2"):
        architecture["n_classes"] = len(facts["classes"])
    if row.model == "dsm-net":
        architecture |= {"heads": list(row.heads or ("cls", "seg", "rec"))}
        architecture |= {"features": size.features} if size.features is not None else {}
    if row.model == "dsrf3d-v2":
        architecture["box"] = [facts["side"]] * 3
    return Training(row, size_name, seed, architecture, recipe, settings, facts["id"])


def network(training: Training) -> tuple[Any, tuple[str, ...]]:
    """Make the network with its first weights, and name its heads."""
    if training.row.model == "monai-unet":
        return monai_unet(training.architecture.get("channels", 32), training.seed), ("seg",)
    module = build(training.architecture, seed=training.seed)
    return module, tuple(module.heads)  # type: ignore[arg-type]


def monai_unet(channels: int, seed: int) -> Any:
    """MONAI's 3D U-Net as its examples set it up: residual units, instance norm, three grids; two labels."""
    from monai.networks.nets import UNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(
            spatial_dims=3, in_channels=1, out_channels=2, channels=(channels, 2 * channels, 4 * channels),
            strides=(2, 2), num_res_units=2,
        )  # fmt: skip


def left_out_classes(names: list[str]) -> list[int]:
    """Return the classes that no box of the training shows: every fourth."""
    return list(range(1, len(names), EVERY_FOURTH))


def rows_for(training: Training, data: DataSet) -> tuple[Any, Any, Any]:
    """Return the boxes to learn from, which of these are to validate on, and those to test on."""
    seen_N = np.ones(len(data.classes), dtype=bool)
    test_N = data.split == "test"
    if training.row.left_out:
        seen_N = ~np.isin(data.classes, left_out_classes(data.names))
        test_N = ~seen_N
    learnt = np.flatnonzero(seen_N & (data.split != "test"))
    return learnt, np.flatnonzero(data.split[learnt] == "validation"), np.flatnonzero(test_N)


def inputs_of(training: Training, data: DataSet, rows: Any) -> Any:
    """Return the boxes as the recipe wants them."""
    inputs = data.inputs[rows]
    if training.recipe.normalise == "patch":
        axes = (1, 2, 3, 4)
        inputs = (inputs - inputs.mean(axis=axes, keepdims=True)) / inputs.std(axis=axes, keepdims=True)
    return inputs


def train(
    training: Training,
    data: DataSet,
    out: Path,
    *,
    machine: dict[str, Any] | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> dict[str, Any]:
    """Train and score; goes on from the checkpoint of the same training. `finish` removes that.

    Returns
    -------
    record : dict
        What `results.jsonl` keeps: names, scores, settings, the history, seconds, the machine.
    """
    module, heads = network(training)
    learnt, validation, test = rows_for(training, data)
    targets = {"cls": data.classes, "seg": data.mask, "rec": data.density}
    checkpoint = FileCheckpoint(out / "checkpoints" / f"{training.name}.pt")
    result = fit(
        module, inputs_of(training, data, learnt), {head: targets[head][learnt] for head in heads},
        loss_of(training.recipe, heads, weights=training.weights), training.settings,
        checkpoint=checkpoint, validation_rows=validation, on_epoch=on_epoch,
    )  # fmt: skip
    device = str(next(module.parameters()).device)
    inputs = inputs_of(training, data, test)
    predicted = predict(module, heads, inputs, device)
    shown = _shown(data, test)
    _save_examples(out / "examples" / f"{training.name}.npz", inputs, predicted, data, test, shown)
    record = {
        "size": training.size, "data": training.row.data, "name": training.row.name, "seed": training.seed,
        "identity": training.identity, "scores": score(predicted, data, test),
        "chance": by_chance(data, test), "heads": list(heads), "architecture": training.architecture,
        "parameters": count_parameters(module), "improved": list(training.row.improved),
        "weights": training.weights,
        "left_out": [data.names[k] for k in left_out_classes(data.names)] if training.row.left_out else [],
        "settings": {k: v for k, v in dataclasses.asdict(training.settings).items() if k != "device"},
        "boxes": {"train": len(learnt) - len(validation), "validation": len(validation), "test": len(test)},
        "epochs": len(result.history), "best_epoch": result.best_epoch, "stopped": result.stopped_reason,
        "precision": result.precision, "device": device.split(":")[0],
        "seconds": sum(epoch.seconds for epoch in result.history),
        "history": [_told(epoch) for epoch in result.history], "examples": f"{training.name}.npz",
        "facts": data.facts, "machine": machine or describe(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return {**record, "validation": validated(record)}


def finish(training: Training, out: Path) -> None:
    """Remove the checkpoint, once the record is on disk."""
    FileCheckpoint(out / "checkpoints" / f"{training.name}.pt").remove()


def _told(epoch: Any) -> dict[str, Any]:
    """Return what curves are drawn of, short."""
    parts = {"train": epoch.train_parts, "validation": epoch.validation_parts}
    told = {"train_loss": epoch.train_loss, "validation_loss": epoch.validation_loss}
    told |= {f"{part}_{name}": value for part, named in parts.items() for name, value in named.items()}
    return {name: float(f"{value:.5g}") for name, value in told.items()}


def _shown(data: DataSet, test: Any) -> list[int]:
    """Choose test boxes of different classes, in the order of the classes; numbers among `test`."""
    first = [int(np.flatnonzero(data.classes[test] == k)[0]) for k in np.unique(data.classes[test])]
    more = [n for n in range(len(test)) if n not in first]
    return (first + more)[:SHOWN]


def _save_examples(
    path: Path, inputs: Any, predicted: dict[str, Any], data: DataSet, test: Any, shown: Any
) -> None:
    """Keep the middle slice of some boxes: input, truth, and what the network made of it."""
    middle = inputs.shape[2] // 2
    rows = test[shown]
    kept = {
        "input": inputs[shown, 0, middle], "mask": data.mask[rows, middle],
        "density": data.density[rows, 0, middle], "classes": data.classes[rows],
    }  # fmt: skip
    if "seg" in predicted:
        kept["predicted_mask"] = predicted["seg"][shown, middle].astype(np.uint8)
    if "rec" in predicted:
        kept["recovered"] = predicted["rec"][shown, 0, middle]
    if "cls" in predicted:
        kept["predicted_classes"] = predicted["cls"][shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path, **{k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in kept.items()}
    )
