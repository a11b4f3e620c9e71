"""Train DSM-Net on all classes of subtomograms but one; what was asked is kept with the weights.

Shape suffixes: N subtomograms, ZYX voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.run import parameters_key
from cryoscale.config.sections import SupervisedConfig
from cryoscale.data.weights import CHECKPOINT, ModelCheckpoint, ModelFolder
from cryoscale.errors import FormatError, StateError
from cryoscale.evaluate.boxes import Boxes
from cryoscale.learn.settings import history_columns

if TYPE_CHECKING:
    from torch import nn

    from cryoscale.learn.losses import Loss, SharedLoss
    from cryoscale.learn.settings import EpochRecord, TrainResult, TrainSettings

MODEL = "dsm-net"
HEADS = ("cls", "seg", "rec")


def known_rows(boxes: Boxes, left_out: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows to train on and to validate on: none of the class that is left out."""
    known_N = boxes.names_N != left_out
    rows = [np.flatnonzero(known_N & (boxes.split_N == part)) for part in ("train", "validation")]
    return rows[0].astype(np.int64), rows[1].astype(np.int64)


def training_of(
    supervised: SupervisedConfig, masks_NZYX: npt.NDArray[np.uint8], device: str
) -> tuple[TrainSettings, Loss | SharedLoss]:
    """Return how to train: the paper's recipe, and what the settings change of it."""
    from cryoscale.learn.losses import class_weights_of
    from cryoscale.learn.recipes import loss_of, recipe_of

    recipe = recipe_of(MODEL)
    keys = ("epochs", "patience", "batch_size", "learning_rate")
    given = {key: getattr(supervised, key) for key in keys if getattr(supervised, key) is not None}
    settings = recipe.settings(
        seed=supervised.seed, device=device, threads=supervised.threads or _threads(),
        precision=supervised.precision, augmentations=supervised.augment or recipe.augmentations, **given,
    )  # fmt: skip
    heads = heads_of(supervised)
    weights = recipe.weights_for(heads)
    if supervised.loss_weights:
        weights = dict(zip(heads, supervised.loss_weights, strict=True))
    weighting = supervised.class_weighting or recipe.class_weighting
    of_labels = None
    if weighting != "none" and "seg" in heads:
        of_labels = class_weights_of(masks_NZYX, 2, power=1.0 if weighting == "inverse" else 0.5)
    return settings, loss_of(recipe, heads, of_labels, weights=weights)


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())


def heads_of(supervised: SupervisedConfig) -> tuple[str, ...]:
    """Return the heads that are trained, in the network's order."""
    return tuple(head for head in HEADS if head in (supervised.heads or HEADS))


@dataclass(frozen=True)
class Trained:
    """The network that never saw a class.

    Parameters
    ----------
    module : nn.Module
        With its best weights, in evaluation mode.
    class_names : tuple of str
        The classes that it knows.
    card : dict
        What `model.toml` says.
    again : bool
        Whether it stood already and nothing was trained.
    """

    module: nn.Module
    class_names: tuple[str, ...]
    card: dict[str, Any]
    again: bool


def train_without(
    boxes: Boxes,
    left_out: str,
    supervised: SupervisedConfig,
    folder: ModelFolder,
    *,
    device: str = "auto",
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Trained:
    """Train DSM-Net on all classes but one; a killed training goes on at its last epoch.

    Parameters
    ----------
    supervised : SupervisedConfig
        As `check` returned it; what it leaves open is the paper's.
    folder : ModelFolder
        Takes the model, and its checkpoint meanwhile. A finished model of the same data and settings is
        taken.
    device : str
        As in `TrainSettings`.
    on_epoch : callable
        Told of each epoch.
    """
    from cryoscale.learn.training import fit
    from cryoscale.models.registry import build

    class_names = tuple(name for name in boxes.class_names if name != left_out)
    train, validation = known_rows(boxes, left_out)
    rows = np.concatenate([train, validation])
    settings, loss = training_of(supervised, (boxes.mask_NZYX[train] > 0).astype(np.uint8), device)
    architecture = _architecture(supervised, len(class_names))
    asked_for = {k: v for k, v in asdict(settings).items() if k not in ("threads", "device")}
    key = parameters_key(boxes.digest(), left_out, architecture, asked_for, repr(loss))
    card = folder.finished(key)
    if card is not None:
        module = build(card["architecture"], seed=0)
        module.load_state_dict(folder.load())
        return Trained(_ready(module, settings), class_names, card, again=True)
    scale = _density_scale(boxes, train)
    targets = _targets(boxes, rows, class_names, heads_of(supervised), scale)
    inputs = boxes.data_NZYX[rows][:, None]
    held = np.arange(len(train), len(rows))
    checkpoint = ModelCheckpoint(folder.folder, key)
    for attempt in (1, 2):
        module = build(architecture, seed=supervised.seed)
        try:
            result = fit(
                module, inputs, targets, loss, settings,
                checkpoint=checkpoint, on_epoch=on_epoch, validation_rows=held,
            )  # fmt: skip
            break
        except (StateError, FormatError):
            # A checkpoint of another version of the loop, or a torn one.
            if attempt == 2 or not folder.folder.exists(CHECKPOINT):
                raise
            checkpoint.drop()
    card = _card(boxes, left_out, architecture, key, scale, settings, result, len(train))
    folder.save(module.state_dict(), card, history_columns(result.history))
    return Trained(_ready(module, settings), class_names, folder.card, again=False)


def _card(
    boxes: Boxes,
    left_out: str,
    architecture: dict[str, Any],
    key: str,
    scale: float,
    settings: TrainSettings,
    result: TrainResult,
    patches: int,
) -> dict[str, Any]:
    """Describe the network for people."""
    best = result.history[result.best_epoch - 1]
    class_names = [name for name in boxes.class_names if name != left_out]
    return {
        "architecture": architecture, "key": key, "voxel_size_angstrom": boxes.voxel_size_angstrom,
        "particles": {"names": class_names}, "left_out": left_out, "density_scale": scale,
        "patch": {"size_voxels": boxes.side, "smooth_sigma_voxels": 0.0},
        "training": {
            "tomograms": [str(name) for name in np.unique(boxes.tomogram_N)], "patches": patches,
            "seed": settings.seed, "epochs": len(result.history), "best_epoch": result.best_epoch,
            "stopped": result.stopped_reason, "threads": settings.threads, "precision": result.precision,
        },
        "metrics": {"train_loss": best.train_loss, "validation_loss": best.validation_loss, **{
            f"validation_{part}": value for part, value in best.validation_parts.items()
        }},
    }  # fmt: skip


def _ready(module: nn.Module, settings: TrainSettings) -> nn.Module:
    from cryoscale.learn.hardware import device_of

    return module.to(device_of(settings.device)).eval()


def _architecture(supervised: SupervisedConfig, n_classes: int) -> dict[str, Any]:
    architecture: dict[str, Any] = {
        "name": MODEL, "n_classes": n_classes, "heads": list(heads_of(supervised)), "n_labels": 2,
    }  # fmt: skip
    given = {"channels": supervised.channels, "batch_norm": supervised.batch_norm}
    return architecture | {key: value for key, value in given.items() if value is not None}


def _density_scale(boxes: Boxes, rows: npt.NDArray[np.int64]) -> float:
    """Return the sd of the densities: recovered ones are learned in units of it, beside the other losses."""
    squares = [float(np.mean(boxes.density_NZYX[row].astype(np.float64) ** 2)) for row in rows]
    return float(np.sqrt(np.mean(squares))) or 1.0


def _targets(
    boxes: Boxes,
    rows: npt.NDArray[np.int64],
    class_names: tuple[str, ...],
    heads: tuple[str, ...],
    scale: float,
) -> dict[str, npt.NDArray[Any]]:
    """Return the targets by head."""
    targets: dict[str, npt.NDArray[Any]] = {}
    for head in heads:
        if head == "cls":
            number = {name: index for index, name in enumerate(class_names)}
            targets[head] = np.array([number[name] for name in boxes.names_N[rows]], np.int64)
        elif head == "seg":
            targets[head] = (boxes.mask_NZYX[rows] > 0).astype(np.uint8)
        else:
            targets[head] = (boxes.density_NZYX[rows] / np.float32(scale))[:, None]
    return targets
