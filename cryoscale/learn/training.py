"""The one training loop, for all networks.

What is random in an epoch (the order of the items, their turns, dropout) is drawn from the seed and the
epoch's number, so a training that was killed goes on from its last checkpoint as if nothing had happened: on
the CPU, with the same number of threads, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.augmentation import Augmentation, augmentation_of, random_turns
from cryoscale.learn.batches import Batches
from cryoscale.learn.checkpoint import Checkpoint, Progress, RefusedCheckpoint, identity_of, pack, resumed
from cryoscale.learn.distributed import Group
from cryoscale.learn.hardware import device_of, precision_of, surroundings
from cryoscale.learn.loop import Loop
from cryoscale.learn.losses import Loss, SharedLoss
from cryoscale.learn.settings import EpochRecord, TrainResult, TrainSettings
from cryoscale.learn.targets import as_targets

__all__ = [
    "Checkpoint", "EpochRecord", "RefusedCheckpoint", "TrainResult", "TrainSettings", "fit", "split_rows",
]  # fmt: skip

Array = npt.NDArray[Any]


def fit(
    module: nn.Module,
    inputs_NCZYX: Array | Tensor,
    targets_N: Array | Tensor | Mapping[str, Array | Tensor] | None,
    loss: Loss | SharedLoss,
    settings: TrainSettings,
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    augmentation: Augmentation | None = None,
    validation_rows: Array | None = None,
    group: Group | None = None,
) -> TrainResult:
    """Train a network until it stops getting better, and give its best weights.

    Parameters
    ----------
    module : nn.Module
        Trained in place; left in evaluation mode with the best weights loaded, on the device of the training.
    inputs_NCZYX : (N, C, Z, Y, X) or (N, C, Y, X) float
    targets_N : (N, ...), a mapping of such by head, or None
        What the loss compares with, see `cryoscale.learn.targets`; None for autoencoders.
    loss : Loss or SharedLoss
    settings : TrainSettings
    checkpoint : Checkpoint, optional
        Saved after every epoch. If it holds a state, the training goes on from there.
    on_epoch : callable
        Told of each epoch after its checkpoint was saved. An exception raised here ends the training.
    augmentation : Augmentation, optional
        Instead of what `settings.augmentations` names, or of `random_turns`; only used if `settings` ask for
        either. Validation items are left as they are.
    validation_rows : (V,) int, optional
        The items to validate on, instead of a random share (one side of a tomogram, for example).
    group : Group, optional
        The processes that train together; each calls this with the same arguments and data, and gets what one
        process would get (but for what `cryoscale.learn.distributed` says). Rank 0 alone saves and tells.

    Returns
    -------
    result : TrainResult

    Raises
    ------
    DataError
        Fewer than two items, or the loss is not finite.
    RefusedCheckpoint
        A StateError: the checkpoint is damaged, or belongs to other data, settings, or another network.
    SurroundingsError
        The processes of a group do not start from the same, or one of them has ended.
    """
    inputs = torch.as_tensor(inputs_NCZYX)
    targets = as_targets(targets_N, len(inputs))
    rows = split_rows(len(inputs), settings, validation_rows)
    device = device_of(settings.device)
    batches = Batches(inputs, targets, device, _augmentation(settings, augmentation, inputs.ndim - 2))
    with surroundings(device, settings.threads):
        loop = Loop(module.to(device), batches, loss, settings, device, group)
        return _run(
            loop, identity_of(module, inputs, targets, settings, rows[1], loss), rows, checkpoint, on_epoch
        )


def _run(
    loop: Loop,
    identity: dict[str, Any],
    rows: tuple[Array, Array],
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[EpochRecord], None],
) -> TrainResult:
    """Go through the epochs, those before a kill left out, and load the best weights."""
    module, settings, group = loop.module, loop.settings, loop.group
    loop.check()
    progress = resumed(checkpoint, module, loop.optimiser, identity, group)
    group.broadcast_module(module)
    while progress.epoch < settings.epochs and not _out_of_patience(progress, settings):
        record = loop.run_epoch(progress, *rows)
        if group.rank == 0:
            if checkpoint is not None:
                checkpoint.save(pack(module, loop.optimiser, progress, identity))
            on_epoch(record)
    module.load_state_dict(progress.best_state)
    module.eval()
    reason: Literal["patience", "epochs"] = "patience" if _out_of_patience(progress, settings) else "epochs"
    precision = precision_of(settings.precision, loop.device)
    return TrainResult(progress.best_state, progress.history, progress.best_epoch, reason, precision)


def split_rows(n: int, settings: TrainSettings, validation_rows: Array | None = None) -> tuple[Array, Array]:
    """Split n items into rows to train on and rows to validate on, both ascending.

    Raises
    ------
    DataError
        Nothing would be left to train on, or to validate on.
    """
    if validation_rows is None:
        share = max(1, round(n * settings.validation_fraction))
        drawn = np.random.default_rng([settings.seed, 0]).permutation(n)[:share]
    else:
        drawn = np.unique(np.asarray(validation_rows, dtype=np.int64))
        if len(drawn) and (drawn[0] < 0 or drawn[-1] >= n):
            raise ConfigurationError(
                f"validation_rows go from {drawn[0]} to {drawn[-1]}, there are {n} items."
            )
    held_back = np.zeros(n, dtype=bool)
    held_back[drawn] = True
    train, validation = np.flatnonzero(~held_back), np.flatnonzero(held_back)
    if len(train) == 0 or len(validation) == 0:
        raise DataError(
            f"{n} items are too few to train and validate on ({len(train)} and {len(validation)}).",
            remedy="Lower the pick threshold, or add tomograms.",
        )
    return train, validation


def _augmentation(
    settings: TrainSettings, given: Augmentation | None, dimensions: int
) -> Augmentation | None:
    if not (settings.augment or settings.augmentations):
        return None
    if given is None and settings.augmentations:
        return augmentation_of(settings.augmentations, dimensions)
    return given or random_turns


def _out_of_patience(progress: Progress, settings: TrainSettings) -> bool:
    if settings.schedule == "cosine":
        return False
    return progress.epoch - progress.best_epoch >= settings.patience
