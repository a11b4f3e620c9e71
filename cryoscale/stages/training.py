"""What the two trainings share: where patches come from, settings, checkpoint, history, card."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.sections import TrainingConfig
from cryoscale.data.access import Access
from cryoscale.data.folder import Folder
from cryoscale.data.weights import ModelFolder
from cryoscale.errors import ConfigurationError
from cryoscale.runtime.memory import cpu_count
from cryoscale.stages.patching import PatchReader

if TYPE_CHECKING:
    from cryoscale.learn.settings import EpochRecord, TrainResult, TrainSettings


def settings_for(config: TrainingConfig) -> TrainSettings:
    """Translate a configuration into the settings of the training loop; on CUDA where there is one."""
    from cryoscale.learn.settings import TrainSettings

    return TrainSettings(
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        threads=config.threads or cpu_count(),
        device="auto",
        augment=config.augment,
        precision=config.precision,
    )


def sample_rows(counts: list[int], most: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Draw at most `most` rows over several tables, without preference for any row.

    Parameters
    ----------
    counts : list of int
        Rows of each table.
    most : int
        The cap.
    seed : int
        Same seed and counts, same rows.

    Returns
    -------
    rows : list of (n,) int
        Ascending rows of each table.
    """
    total = sum(counts)
    if total <= most:
        return [np.arange(count) for count in counts]
    drawn = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False))
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [drawn[(drawn >= a) & (drawn < b)] - a for a, b in pairwise(starts)]


def gather_rows(access: Access, tomogram: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Cut the patches of some picks of a tomogram, (N, Z, Y, X)."""
    reader = PatchReader.for_access(access, tomogram)
    return reader.gather(reader.voxels(access.picks(tomogram).positions_N3[rows]))


def history_columns(history: list[EpochRecord]) -> dict[str, Any]:
    """Turn the records of epochs into columns; times stay out, so that artifacts are reproducible."""
    columns: dict[str, Any] = {
        "epoch": np.array([r.epoch for r in history], np.int32),
        "train_loss": np.array([r.train_loss for r in history]),
        "validation_loss": np.array([r.validation_loss for r in history]),
        "improved": np.array([r.improved for r in history], bool),
    }
    for part in sorted(history[0].train_parts) if history else []:
        columns[f"train_{part}"] = np.array([r.train_parts[part] for r in history])
        columns[f"validation_{part}"] = np.array([r.validation_parts[part] for r in history])
    return columns


def card_of(
    access: Access, architecture: dict[str, Any], result: TrainResult, settings: TrainSettings, patches: int
) -> dict[str, Any]:
    """Describe a trained model for people and for later runs."""
    best = result.history[result.best_epoch - 1]
    return {
        "architecture": architecture,
        "key": access.key,
        "training": {
            "tomograms": list(access.tomograms),
            "patches": patches,
            "seed": settings.seed,
            "epochs": len(result.history),
            "best_epoch": result.best_epoch,
            "stopped": result.stopped_reason,
            "threads": settings.threads,
            "upstream": dict(access.upstream),
        },
        "patch": access.config.patch.model_dump(mode="json"),
        "metrics": {"train_loss": best.train_loss, "validation_loss": best.validation_loss},
    }


def import_model(access: Access, name: str, place: str) -> dict[str, Any]:
    """Copy a model folder of another run into this one, checked against its card.

    Raises
    ------
    ConfigurationError
        The model is of another kind, or was trained on patches of another size or smoothing.
    """
    given = ModelFolder(Folder.of(place))
    card, state = given.card, given.load()
    patch = access.config.patch.model_dump(mode="json")
    if card.get("patch") != patch:
        raise ConfigurationError(
            f"the model in {place} was trained on patches {card.get('patch')}, this run has {patch}.",
            remedy="Set the [patch] table as it was for that model.",
        )
    if (name == "encoder") != (card["architecture"]["name"] == "autoencoder3d"):
        raise ConfigurationError(f"the model in {place} is {card['architecture']['name']}, not the {name}.")
    card = {k: v for k, v in card.items() if k != "weights_sha256"} | {"imported_from": place}
    digest = access.model(name).save(state, card, given.history)
    return {"hash": digest, "imported": True}
