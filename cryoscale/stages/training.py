"""What the trainings share: where patches come from, settings, checkpoint, history, card."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cryoscale.config.run import parameters_key
from cryoscale.config.sections import SupervisedConfig, TrainingConfig
from cryoscale.data.access import Access
from cryoscale.data.folder import Folder
from cryoscale.data.tomogram import VOXEL_SIZE_TOLERANCE
from cryoscale.data.weights import ModelCheckpoint, ModelFolder, identity_of
from cryoscale.errors import ConfigurationError
from cryoscale.stages.networks import worker_threads
from cryoscale.stages.patching import PatchReader

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cryoscale.learn.distributed import Group
    from cryoscale.learn.losses import Loss, SharedLoss
    from cryoscale.learn.recipes import Recipe
    from cryoscale.learn.settings import EpochRecord, TrainResult, TrainSettings
    from cryoscale.learn.targets import Targets

LOG = logging.getLogger("cryoscale.training")
LIBRARIES = 256 * 2**20  # what torch and its kernels take once they run


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
        threads=config.threads or worker_threads(),
        device="auto",
        augment=config.augment,
        precision=config.precision,
    )


def supervised_settings(config: SupervisedConfig, recipe: Recipe, device: str = "auto") -> TrainSettings:
    """Take a recipe's settings, with what the configuration says instead."""
    keys = ("epochs", "patience", "batch_size", "learning_rate")
    given = {key: value for key in keys if (value := getattr(config, key)) is not None}
    return recipe.settings(
        seed=config.seed,
        validation_fraction=config.validation_fraction,
        threads=config.threads or worker_threads(),
        device=device,
        precision=config.precision,
        augmentations=config.augment or recipe.augmentations,  # those of Chen et al. are rotations
        **given,
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


def gather_sample(
    access: Access,
    rows: list[npt.NDArray[np.int64]],
    out: npt.NDArray[np.float32],
    offsets: list[npt.NDArray[np.int64]] | None = None,
) -> None:
    """Cut the patches of some picks of each tomogram of the set, one after the other, into `out`.

    Parameters
    ----------
    rows : list of (n,) int
        Rows of each tomogram.
    out : (N, Z, Y, X) float32
        Takes them.
    offsets : list of (n, 3) int, optional
        How far off its pick each patch is cut, voxels.
    """
    first = 0
    for number, (tomogram, mine) in enumerate(zip(access.tomograms, rows, strict=True)):
        if len(mine):
            reader = PatchReader.for_access(access, tomogram)
            centres = reader.voxels(access.picks(tomogram).positions_N3[mine])
            if offsets is not None:
                centres = centres + offsets[number]
            reader.gather(centres, out[first : first + len(mine)])
        first += len(mine)


def turns_and_flips(
    inputs_NCZYX: Tensor, targets_N: Targets, rng: np.random.Generator
) -> tuple[Tensor, Targets]:
    """Turn and flip the patches of a batch, and their masks alike: what `augment = true` asks for."""
    from cryoscale.learn.augmentation import random_turns

    return random_turns(inputs_NCZYX, targets_N, rng, mirror=True)


def train(
    access: Access,
    name: str,
    build: Callable[[], nn.Module],
    inputs_NC: npt.NDArray[np.float32],
    targets_N: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None,
    loss: Loss | SharedLoss,
    settings: TrainSettings,
    *,
    validation_rows: npt.NDArray[np.int64] | None = None,
    group: Group | None = None,
) -> tuple[nn.Module, TrainResult, dict[str, Any]]:
    """Train a network; a killed training goes on at its last epoch if it was the same training.

    Parameters
    ----------
    access : Access
    name : str
        Of the model.
    build : callable
        Makes the network with its first weights.
    inputs_NC : (N, C, ...) float32
    targets_N : (N, ...) array, such by head, or None
    loss : Loss or SharedLoss
    settings : TrainSettings
        With `augment` alone, patches are turned and flipped.
    validation_rows : (V,) int, optional
        Items to validate on, instead of a random share.
    group : Group, optional
        Processes that train together; the first one keeps the checkpoint.

    Returns
    -------
    module : nn.Module
        With its best weights.
    result : TrainResult
    facts : dict
        The entry `checkpoint` says why a checkpoint was not used, if so.
    """
    from cryoscale.learn.training import RefusedCheckpoint, fit

    folder = access.model(name)
    checkpoint = ModelCheckpoint(folder.folder, checkpoint_key(access))
    facts: dict[str, Any] = {}
    for attempt in (1, 2):
        module = build()
        try:
            result = fit(
                module, inputs_NC, targets_N, loss, settings, checkpoint=checkpoint,
                on_epoch=_teller(folder, name, settings), validation_rows=validation_rows, group=group,
                augmentation=None if settings.augmentations else turns_and_flips,
            )  # fmt: skip
            break
        except RefusedCheckpoint as error:  # by all processes: that they disagree is another error
            # The same patches cut on other hardware may differ in their last bits, for example.
            if attempt == 2:
                raise
            facts["checkpoint"] = f"not used, trained from the beginning: {error}"
            LOG.warning("%s: the checkpoint was %s", name, facts["checkpoint"])
            _drop_together(checkpoint, group)
    return module, result, facts


def _drop_together(checkpoint: ModelCheckpoint, group: Group | None) -> None:
    """Remove a checkpoint that all processes refused; each has looked before the first removes it."""
    if group is not None:
        group.barrier()
    if group is None or group.rank == 0:
        checkpoint.drop()
    if group is not None:
        group.barrier()


def _teller(folder: ModelFolder, name: str, settings: TrainSettings) -> Callable[[EpochRecord], None]:
    """Make what is told of each epoch: to `status` by the folder, to people by the log."""

    def tell(record: EpochRecord) -> None:
        losses = {"train_loss": record.train_loss, "validation_loss": record.validation_loss}
        parts = {f"validation_{part}": value for part, value in record.validation_parts.items()}
        folder.write_progress(
            {"epoch": record.epoch, "epochs": settings.epochs, **losses, **parts, "improved": record.improved,
             "seconds": round(record.seconds, 3), "time": time.time()}
        )  # fmt: skip
        LOG.info("%s: epoch %d of at most %d, loss %.4g, validation %.4g, %.1f s", name, record.epoch,
                 settings.epochs, record.train_loss, record.validation_loss, record.seconds)  # fmt: skip

    return tell


def checkpoint_key(access: Access) -> str:
    """Hash what a training goes on from: the key of a fit says nothing of the tomograms it saw."""
    return parameters_key([access.key, access.tomograms, dict(access.upstream)])


def finished_card(access: Access, name: str) -> dict[str, Any] | None:
    """Return the card of a model that stands already for this key, these tomograms and what they hold."""
    folder = access.model(name)
    card = folder.finished(access.key)
    training = card.get("training", {}) if card else {}
    same = [training.get("tomograms"), training.get("upstream")] == [
        list(access.tomograms), dict(access.upstream),
    ]  # fmt: skip
    if card is None or "imported_from" in card or not same:
        return None
    folder.end_training()
    return card


def voxels_at_work(batch_size: int, voxels: int) -> int:
    """Return how many voxels go through a network together: a batch, or a part of it."""
    from cryoscale.learn.settings import PART_VOXELS

    return min(batch_size * voxels, max(voxels, PART_VOXELS))


def batch_bytes(batch_size: int, voxels: int) -> int:
    """Bound a batch as it is made: inputs, targets, both turned, and where each voxel comes from."""
    return batch_size * voxels * (2 * 4 + 2 * 1 + 2 * 8)


def training_bytes(activations: int, weights: int, sample: int, gather: int) -> int:
    """Bound a training's memory, bytes.

    Parameters
    ----------
    activations : int
        What one batch, or the part of it at work, leaves for its gradients.
    weights : int
        The parameters; they are there six times: with gradients, two moments, the best ones, and twice in a
        checkpoint that is being written.
    sample : int
        Inputs and targets.
    gather : int
        Cutting patches, before the training.
    """
    return sample + max(gather, 2 * activations + 7 * weights) + LIBRARIES


def voxel_size_at_work(access: Access) -> float:
    """Return the voxel size of the patches, Å: that of the first tomogram of the set."""
    levels = access.open_tomogram(access.tomograms[0]).facts.levels
    return levels[access.working_level(access.tomograms[0])].voxel_size_angstrom


def card_of(
    access: Access,
    architecture: dict[str, Any],
    result: TrainResult,
    settings: TrainSettings,
    patches: int,
    *,
    voxel_size: Callable[[Access], float | None] = voxel_size_at_work,
) -> dict[str, Any]:
    """Describe a trained model for people and for later runs; an unknown voxel size is left out."""
    best = result.history[result.best_epoch - 1]
    size = voxel_size(access)
    return {
        "architecture": architecture,
        "key": access.key,
        **({} if size is None else {"voxel_size_angstrom": size}),
        "training": {
            "tomograms": list(access.tomograms),
            "patches": patches,
            "seed": settings.seed,
            "epochs": len(result.history),
            "best_epoch": result.best_epoch,
            "stopped": result.stopped_reason,
            "threads": settings.threads,
            "precision": result.precision,
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
        The model is of another kind, or was trained on patches of another size, smoothing or voxel size.
    """
    given = ModelFolder(Folder.of(place))
    card, state = given.card, given.load()
    patch = access.config.patch.model_dump(mode="json")
    if card.get("patch") != patch:
        raise ConfigurationError(
            f"the model in {place} was trained on patches {card.get('patch')}, this run has {patch}.",
            remedy="Set the [patch] table as it was for that model.",
        )
    if (size := access.config.run.working_voxel_size_angstrom) is not None:
        check_voxel_size(card, size, f"the model in {place}", "run.working_voxel_size_angstrom")
    if (name == "encoder") != (card["architecture"]["name"] == "autoencoder3d"):
        raise ConfigurationError(f"the model in {place} is {card['architecture']['name']}, not the {name}.")
    card = {k: v for k, v in card.items() if k != "weights_sha256"} | {"imported_from": place}
    digest = access.model(name).save(state, card, given.history)
    return {"hash": identity_of({**card, "weights_sha256": digest}), "imported": True}


def check_voxel_size(card: Mapping[str, Any], size_angstrom: float, model: str, where: str) -> None:
    """Refuse a model that was trained at another voxel size: its patches would show other extents.

    Raises
    ------
    ConfigurationError
        They differ by more than 5 %. Cards that do not say are trusted.
    """
    trained = card.get("voxel_size_angstrom")
    if trained is not None and abs(size_angstrom / float(trained) - 1) > VOXEL_SIZE_TOLERANCE:
        raise ConfigurationError(
            f"{model} was trained at {float(trained):g} Å per voxel; {where} is {size_angstrom:g} Å.",
            remedy=f"Set run.working_voxel_size_angstrom = {float(trained):g}, or use another model.",
        )
