"""What one epoch does: batches from the data, steps of the optimiser, sums of the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import DataError
from cryoscale.learn.augmentation import Augmentation
from cryoscale.learn.checkpoint import Progress, copied
from cryoscale.learn.hardware import precision_of
from cryoscale.learn.losses import Loss
from cryoscale.learn.settings import PART_VOXELS, EpochRecord, TrainSettings

Array = npt.NDArray[Any]
Batch = tuple[Tensor, Tensor | None]


class Batches:
    """The patches and targets of a training, and where batches of them are made."""

    def __init__(
        self, inputs: Tensor, targets: Tensor | None, device: torch.device, augmentation: Augmentation | None
    ) -> None:
        self.inputs, self.targets, self.device = inputs, targets, device
        self.augmentation = augmentation
        if device.type == "cuda" and self._bytes() < torch.cuda.mem_get_info(device)[0] // 2:
            self.inputs = inputs.to(device)
            self.targets = None if targets is None else targets.to(device)

    def take(self, rows: Array, rng: np.random.Generator | None = None) -> Batch:
        """Copy some items to the device, turned if there is a generator for it."""
        index = torch.from_numpy(rows)
        inputs = self._rows_of(self.inputs, index).float()
        targets = None if self.targets is None else self._rows_of(self.targets, index)
        if rng is not None and self.augmentation is not None:
            return self.augmentation(inputs, targets, rng)
        return inputs, targets

    def _rows_of(self, values: Tensor, index: Tensor) -> Tensor:
        chosen = values.index_select(0, index.to(values.device))
        if chosen.device == self.device:
            return chosen
        if self.device.type == "cuda":
            chosen = chosen.pin_memory()
        return chosen.to(self.device, non_blocking=True)

    def _bytes(self) -> int:
        both = [self.inputs] if self.targets is None else [self.inputs, self.targets]
        return sum(values.numel() * values.element_size() for values in both)


class Loop:
    """The network with its optimiser and data, and what one epoch does with them."""

    def __init__(
        self, module: nn.Module, batches: Batches, loss: Loss, settings: TrainSettings, device: torch.device
    ) -> None:
        self.module, self.batches, self.loss, self.settings = module, batches, loss, settings
        self.device = device
        self.bfloat16 = precision_of(settings.precision, device) == "bfloat16"
        axes = batches.inputs.ndim
        self.layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(axes)
        for parameter in module.parameters():
            if self.layout is not None and parameter.ndim == axes:
                parameter.data = parameter.data.contiguous(memory_format=self.layout)
        self.optimiser = torch.optim.Adam(
            module.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True
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
        sums = torch.zeros(1, dtype=torch.float64, device=self.device)
        names: list[str] = []
        for step, start in enumerate(range(0, len(rows), self.settings.batch_size)):
            part = np.sort(rows[start : start + self.settings.batch_size])  # sorted: read in order
            rng = np.random.default_rng([self.settings.seed, epoch, 2, step]) if train else None
            means, names = self._step(*self.batches.take(part, rng), train=train)
            sums = sums + means * len(part)
        values = [float(value) / len(rows) for value in sums.cpu()]
        if not all(math.isfinite(value) for value in values):
            raise self._not_finite(rows, epoch)
        return values[0], dict(zip(names, values[1:], strict=True))

    def _step(self, inputs: Tensor, targets: Tensor | None, *, train: bool) -> tuple[Tensor, list[str]]:
        """Give the losses of one batch, the total first; with `train`, step down the gradient."""
        if train:
            self.optimiser.zero_grad(set_to_none=True)
        losses, names = [], []
        for share, part, wanted in self._parts(inputs, targets):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
                output = self.module(part)
            total, named = self.loss(output, part, wanted)
            if train:
                (total if share == 1 else total * share).backward()  # type: ignore[no-untyped-call]
            losses.append(torch.stack([total.detach(), *named.values()]).double() * share)
            names = list(named)
        if train:
            self.optimiser.step()
        return torch.stack(losses).sum(0), names

    def _parts(self, inputs: Tensor, targets: Tensor | None) -> Iterator[tuple[float, Tensor, Tensor | None]]:
        """Cut a batch for the caches of a processor: the share of the loss of each part, and the part."""
        if self.layout is not None:
            inputs = inputs.contiguous(memory_format=self.layout)
        most = max(1, PART_VOXELS // inputs[0].numel()) if self.device.type == "cpu" else len(inputs)
        starts = range(0, len(inputs), most)
        pairs = [(inputs[s : s + most], None if targets is None else targets[s : s + most]) for s in starts]
        if len(pairs) == 1:
            yield 1.0, inputs, targets
            return
        weights = [self.loss.weight(part, wanted) for part, wanted in pairs]
        for weight, (part, wanted) in zip(weights, pairs, strict=True):
            yield weight / max(sum(weights), 1.0), part, wanted

    def _not_finite(self, rows: Array, epoch: int) -> DataError:
        bad = [int(row) for row in rows if not torch.isfinite(self.batches.inputs[int(row)]).all()]
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
