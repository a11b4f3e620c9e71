"""The one training loop, for autoencoders and segmenters.

What is random in an epoch (the order of the items, their turns) is drawn from the seed and the epoch's
number, so a training that was killed goes on from its last checkpoint as if nothing had happened: on the
CPU, with the same number of threads, to the last bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.augmentation import Augmentation, random_turns
from cryoscale.learn.checkpoint import Checkpoint, Progress, copied, identity_of, pack, unpack
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
        Kept where it is; batches are copied to the device.
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
    device = _device(settings.device)
    with _surroundings(device, settings.threads):
        loop = _Loop(module.to(device), inputs, targets, loss, settings, device)
        if settings.augment:
            loop.augmentation = augmentation or random_turns
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
    return TrainResult(progress.best_state, progress.history, progress.best_epoch, reason)


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


class _Loop:
    """The network with its optimiser and data, and what one epoch does with them."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        targets: Tensor | None,
        loss: Loss,
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        self.module, self.inputs, self.targets, self.loss = module, inputs, targets, loss
        self.settings, self.device = settings, device
        self.augmentation: Augmentation | None = None
        self.layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(inputs.ndim)
        for parameter in module.parameters():
            if self.layout is not None and parameter.ndim == inputs.ndim:
                parameter.data = parameter.data.contiguous(memory_format=self.layout)
        self.optimiser = torch.optim.Adam(
            module.parameters(), lr=settings.learning_rate, betas=settings.betas, foreach=False
        )

    def run_epoch(self, progress: Progress, train_rows: Array, validation_rows: Array) -> EpochRecord:
        """Train on all rows once, validate, and note it in `progress`."""
        started = time.monotonic()
        epoch = progress.epoch + 1
        order = np.random.default_rng([self.settings.seed, epoch, 1]).permutation(train_rows)
        train_loss, train_parts = self._pass(order, epoch, train=True)
        with torch.no_grad():
            validation_loss, validation_parts = self._pass(validation_rows, epoch, train=False)
        improved = validation_loss < progress.best_loss - self.settings.min_delta
        if improved:
            progress.best_epoch, progress.best_loss = epoch, validation_loss
            progress.best_state = copied(self.module.state_dict())
        seconds = time.monotonic() - started
        record = EpochRecord(
            epoch, train_loss, validation_loss, train_parts, validation_parts, improved, seconds
        )
        progress.epoch = epoch
        progress.history.append(record)
        return record

    def _pass(self, rows: Array, epoch: int, *, train: bool) -> tuple[float, dict[str, float]]:
        self.module.train(train)
        sums: dict[str, Tensor] = {}
        for step, start in enumerate(range(0, len(rows), self.settings.batch_size)):
            part = np.sort(rows[start : start + self.settings.batch_size])  # sorted: read in order
            total, parts = self._step(part, epoch, step, train=train)
            for name, value in {"": total, **parts}.items():
                sums[name] = sums.get(name, 0) + value.detach().double() * len(part)
        means = {name: float(value) / len(rows) for name, value in sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise self._not_finite(rows, epoch)
        return means.pop(""), means

    def _step(self, rows: Array, epoch: int, step: int, *, train: bool) -> tuple[Tensor, dict[str, Tensor]]:
        index = torch.from_numpy(rows)
        inputs = self.inputs[index].float()
        targets = None if self.targets is None else self.targets[index]
        if train and self.augmentation is not None:
            rng = np.random.default_rng([self.settings.seed, epoch, 2, step])
            inputs, targets = self.augmentation(inputs, targets, rng)
        inputs = inputs.to(self.device)
        if self.layout is not None:
            inputs = inputs.contiguous(memory_format=self.layout)
        targets = None if targets is None else targets.to(self.device)
        bfloat16 = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            output = self.module(inputs)
        total, parts = self.loss(output, inputs, targets)
        if train:
            self.optimiser.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
        return total, parts

    def _not_finite(self, rows: Array, epoch: int) -> DataError:
        bad = [int(row) for row in rows if not torch.isfinite(self.inputs[int(row)]).all()]
        if bad:
            return DataError(
                f"The loss of epoch {epoch} is not finite: {len(bad)} patches hold NaN or infinity,"
                f" the first is number {bad[0]}.",
                remedy="Check the tomogram it comes from, or leave that tomogram out.",
            )
        return DataError(
            f"The loss of epoch {epoch} is not finite, though every patch is.",
            remedy=f"Lower learning_rate (it is {self.settings.learning_rate}), or train in float32.",
        )


def _out_of_patience(progress: Progress, settings: TrainSettings) -> bool:
    return progress.epoch - progress.best_epoch >= settings.patience


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device = {name!r}, but torch finds no CUDA device.", remedy="Use cpu.")
    return torch.device(name)


@contextmanager
def _surroundings(device: torch.device, threads: int) -> Iterator[None]:
    """Fix threads and algorithms for a while; what is put in order here is put back afterwards."""
    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    # On CUDA the gradient of MaxPool3d has no deterministic algorithm, and asking for one raises.
    torch.use_deterministic_algorithms(device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic_before)
        torch.set_num_threads(threads_before)
