"""The one training loop, for autoencoders and segmenters.

What is random in an epoch (the order of the items, their turns) is drawn from the seed and the epoch's
number, so a training that was killed goes on from its last checkpoint as if nothing had happened: on the
CPU, with the same number of threads, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.augmentation import Augmentation, random_turns
from cryoscale.learn.checkpoint import Checkpoint, Progress, identity_of, pack, unpack
from cryoscale.learn.hardware import device_of, precision_of, surroundings
from cryoscale.learn.loop import Batches, Loop
from cryoscale.learn.losses import Loss
from cryoscale.learn.settings import EpochRecord, TrainResult, TrainSettings

__all__ = ["Checkpoint", "EpochRecord", "TrainResult", "TrainSettings", "fit", "split_rows"]

Array = npt.NDArray[Any]


def fit(
    module: nn.Module,
    inputs_NCZYX: Array | Tensor,
    targets_N: Array | Tensor | None,
    loss: Loss,
    settings: TrainSettings,
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    augmentation: Augmentation | None = None,
    validation_rows: Array | None = None,
) -> TrainResult:
    """Train a network until it stops getting better, and give its best weights.

    Parameters
    ----------
    module : nn.Module
        Trained in place; left in evaluation mode with the best weights loaded, on the device of the training.
    inputs_NCZYX : (N, 1, Z, Y, X) float
        On a GPU with room for it, all of it is copied there; otherwise batch by batch.
    targets_N : (N, ...) or None
        What the loss compares with; None for autoencoders.
    loss : Loss
        See `cryoscale.learn.losses`.
    settings : TrainSettings
    checkpoint : Checkpoint, optional
        Saved after every epoch. If it holds a state, the training goes on from there.
    on_epoch : callable
        Told of each epoch after its checkpoint was saved. An exception raised here ends the training.
    augmentation : Augmentation, optional
        Instead of `random_turns`; only used if `settings.augment`. Validation items are left as they are.
    validation_rows : (V,) int, optional
        The items to validate on, instead of a random share (for example one side of a tomogram, since
        neighbouring patches overlap).

    Returns
    -------
    result : TrainResult

    Raises
    ------
    DataError
        Fewer than two items, or the loss is not finite.
    StateError
        The checkpoint belongs to other data, settings or another network.
    """
    inputs, targets = torch.as_tensor(inputs_NCZYX), None if targets_N is None else torch.as_tensor(targets_N)
    train_rows, validation = split_rows(len(inputs), settings, validation_rows)
    device = device_of(settings.device)
    turns = (augmentation or random_turns) if settings.augment else None
    with surroundings(device, settings.threads):
        loop = Loop(module.to(device), Batches(inputs, targets, device, turns), loss, settings, device)
        identity = identity_of(module, inputs, targets, settings, validation)
        state = None if checkpoint is None else checkpoint.load()
        progress = Progress() if state is None else unpack(state, module, loop.optimiser, identity)
        while progress.epoch < settings.epochs and not _out_of_patience(progress, settings):
            record = loop.run_epoch(progress, train_rows, validation)
            if checkpoint is not None:
                checkpoint.save(pack(module, loop.optimiser, progress, identity))
            on_epoch(record)
        module.load_state_dict(progress.best_state)
        module.eval()
    reason: Literal["patience", "epochs"] = "patience" if _out_of_patience(progress, settings) else "epochs"
    precision = precision_of(settings.precision, device)
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


def _out_of_patience(progress: Progress, settings: TrainSettings) -> bool:
    return progress.epoch - progress.best_epoch >= settings.patience
