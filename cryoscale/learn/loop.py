"""What one epoch does: steps of the optimiser over batches, and sums of the losses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError, DataError
from cryoscale.learn.batches import Batches
from cryoscale.learn.checkpoint import Progress, copied
from cryoscale.learn.distributed import Group
from cryoscale.learn.hardware import precision_of
from cryoscale.learn.losses import Count, Loss, SharedLoss, Shares
from cryoscale.learn.optimiser import learning_rate_at, optimiser_of, step_with
from cryoscale.learn.settings import PART_VOXELS, EpochRecord, TrainSettings
from cryoscale.learn.targets import Targets, each
from cryoscale.models.layers import seed_dropout

Array = npt.NDArray[Any]
Parts = Iterator[tuple[dict[str, Count] | None, Tensor, Targets]]


class Loop:
    """The network with its optimiser and data, and what one epoch does with them.

    With several processes each takes its share of every batch; what they add up is what one process has.
    Statistics of batch normalisation are those of a process's own share (on CUDA `torch.nn.SyncBatchNorm` in
    the network makes them those of the batch), and their running means are averaged over the processes after
    each epoch. In one process a batch is not cut into parts for them: all of its activations are in memory.
    A last batch of one item has no statistics of its own, and goes with the batch before it.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Batches,
        loss: Loss | SharedLoss,
        settings: TrainSettings,
        device: torch.device,
        group: Group | None = None,
    ) -> None:
        self.module, self.batches, self.loss, self.settings = module, batches, loss, settings
        self.device, self.group = device, group or Group()
        self.bfloat16 = precision_of(settings.precision, device) == "bfloat16"
        norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self.batch_norm = list(norms)
        self.trained_items = 0  # of this process, since statistics were last averaged
        axes = batches.inputs.ndim
        self.layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(axes)
        for parameter in module.parameters():
            if self.layout is not None and parameter.ndim == axes:
                parameter.data = parameter.data.contiguous(memory_format=self.layout)
        self.optimiser = optimiser_of(module, settings)

    def check(self) -> None:
        """Let the loss refuse targets that do not go with what the network gives, seen on the first item."""
        refuse = getattr(self.loss, "check", None)
        if refuse is None or not len(self.batches.inputs):
            return
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            first, _ = self.batches.take(np.zeros(1, dtype=np.int64))
            refuse(self._output(first), self.batches.targets)
        self.module.train(was_training)

    def run_epoch(self, progress: Progress, train_rows: Array, validation_rows: Array) -> EpochRecord:
        """Train on all rows once, validate, and note it in `progress`."""
        started = time.monotonic()
        epoch = progress.epoch + 1
        order = np.random.default_rng([self.settings.seed, epoch, 1]).permutation(train_rows)
        train_loss, train_parts = self._pass(order, epoch, train=True)
        self._average_statistics()
        with torch.no_grad():
            validation_loss, validation_parts = self._pass(validation_rows, epoch, train=False)
        watched = validation_loss
        if self.settings.monitor == "accuracy":
            watched = -_accuracy_of(validation_parts)
        improved = watched < progress.best_loss - self.settings.min_delta
        if improved:
            progress.best_epoch, progress.best_loss = epoch, watched
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
        batches = self._batches_of(rows, train=train)
        for step, chosen in enumerate(batches):
            batch = np.sort(chosen)  # sorted: read in order
            taken = self._share_of(batch, epoch, step, train=train)
            if train:
                rate = learning_rate_at(self.settings, epoch, step, len(batches))
                means, names = self._training_step(*taken, rate=rate)
            else:
                means, names = self._losses(*taken)
            if self.settings.monitor == "accuracy" and step == 0:
                _accuracy_of(dict.fromkeys(names, 0.0))
            sums = sums + means * len(batch)
        self.group.sum_([sums])
        values = [float(value) / len(rows) for value in sums.cpu()]
        if not all(math.isfinite(value) for value in values):
            raise self._not_finite(rows, epoch)
        return values[0], dict(zip(names, values[1:], strict=True))

    def _batches_of(self, rows: Array, *, train: bool) -> list[Array]:
        starts = list(range(0, len(rows), self.settings.batch_size))
        if train and self.batch_norm and len(starts) > 1 and len(rows) - starts[-1] == 1:
            del starts[-1]
        return np.split(rows, starts[1:])

    def _share_of(self, batch: Array, epoch: int, step: int, *, train: bool) -> tuple[Tensor, Targets, bool]:
        """Take this process's items of a batch; if it has none, one that counts nothing, and say so.

        Everything random is drawn from the seed, the epoch and the step, and in further processes from their
        rank: in the first one it is what one process alone draws.
        """
        mine = self.group.share(batch)
        empty = len(mine) == 0
        self.trained_items += len(mine) if train else 0
        rank = [self.group.rank] if self.group.rank else []
        rng = np.random.default_rng([self.settings.seed, epoch, 2, step, *rank]) if train else None
        if train:
            drawn = np.random.SeedSequence([self.settings.seed, epoch, 3, step, *rank])
            seed_dropout(self.module, int(drawn.generate_state(1, np.uint32)[0]))
        return *self.batches.take(batch[:1] if empty else mine, rng), empty

    def _training_step(
        self, inputs: Tensor, targets: Targets, empty: bool, *, rate: float
    ) -> tuple[Tensor, list[str]]:
        """Step down the gradient of one batch, and give its losses."""
        self.optimiser.zero_grad(set_to_none=True)
        means, names = self._losses(inputs, targets, empty, train=True)
        if not self.group.alone:
            self._sum_gradients()
        step_with(self.optimiser, self.settings, rate)
        return means, names

    def _sum_gradients(self) -> None:
        """Add up the gradients of all processes; what none of them has a gradient of gets none."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        missing = [n for n, p in enumerate(parameters) if p.grad is None]
        owners = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        self.group.sum_([*map(_gradient_of, parameters), owners])
        if missing:  # with zeros instead, weight decay and Adam's moments would still make a step
            counts = owners.tolist()
            for n in missing:
                if not counts[n]:
                    parameters[n].grad = None

    def _losses(
        self, inputs: Tensor, targets: Targets, empty: bool, *, train: bool = False
    ) -> tuple[Tensor, list[str]]:
        """Give this process's share of the losses of one batch, the total first; with `train`, gradients."""
        losses: list[Tensor] = []
        names: list[str] = []
        self._normalise_by_batch(train and not empty)
        for shares, part, wanted in self._parts(inputs, targets, empty, train=train):
            output = self._output(part)
            total, values, names = self._loss_of(output, part, wanted, shares)
            if train:
                total.backward()  # type: ignore[no-untyped-call]
            losses.append(values)
        return torch.stack(losses).sum(0), names

    def _output(self, inputs: Tensor) -> Any:
        ahead = getattr(self.loss, "forward", None)
        try:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
                return self.module(inputs) if ahead is None else ahead(self.module, inputs)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise ConfigurationError(
                f"Batch normalisation has no variance of one item of {tuple(inputs.shape[2:])} voxels, of"
                " which a single one is left on the coarsest grid.",
                remedy="Take larger boxes, larger batches (for each process), or no batch normalisation.",
            ) from error

    def _normalise_by_batch(self, wanted: bool) -> None:
        """Normalise by the items at hand, and keep their statistics, or by those that are kept.

        The latter for an item that counts nothing. Layers that share statistics between processes wait for
        all of them, and go on as they are.
        """
        for layer in self.batch_norm:
            if not isinstance(layer, nn.SyncBatchNorm):
                layer.train(wanted)

    def _loss_of(
        self, output: Any, part: Tensor, wanted: Targets, shares: dict[str, Count] | None
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Give what to differentiate, and the values of the loss and its parts, all by their share."""
        if isinstance(self.loss, SharedLoss):
            asked = None if shares is None else Shares(shares, self._summed)
            total, named = self.loss(output, part, wanted, asked)
            return total, _stacked(total, named), list(named)
        total, named = self.loss(output, part, wanted)
        if shares is None:
            return total, _stacked(total, named), list(named)
        return total * shares[""], _stacked(total, named) * shares[""], list(named)

    def _parts(self, inputs: Tensor, targets: Targets, empty: bool, *, train: bool) -> Parts:
        """Cut items for the caches of a processor: the share of each part in the batch, and the part."""
        if self.layout is not None:
            inputs = inputs.contiguous(memory_format=self.layout)
        whole = (train and self.batch_norm) or getattr(self.loss, "whole", False)
        most = len(inputs)
        if self.device.type == "cpu" and not whole:
            most = max(1, PART_VOXELS // inputs[0].numel())
        slices = [slice(start, start + most) for start in range(0, len(inputs), most)]
        if len(slices) == 1 and self.group.alone:
            yield None, inputs, targets
            return
        pairs = [(inputs[rows], each(targets, itemgetter(rows))) for rows in slices]
        counts = [self._counts(part, wanted) for part, wanted in pairs]
        totals = self._totals(counts, empty)
        for count, (part, wanted) in zip(counts, pairs, strict=True):
            shares = {name: 0.0 if empty else value / totals[name] for name, value in count.items()}
            yield shares, part, wanted

    def _counts(self, inputs: Tensor, targets: Targets) -> dict[str, Count]:
        if isinstance(self.loss, SharedLoss):
            return self.loss.counts(inputs, targets)
        return {"": self.loss.weight(inputs, targets)}

    def _totals(self, counts: list[dict[str, Count]], empty: bool) -> dict[str, Count]:
        """Add up what the parts of a batch count, over all processes; at least 1 each."""
        totals = {name: sum(count[name] for count in counts) for name in counts[0]}
        if self.group.alone:
            return {name: max(total, 1.0) for name, total in totals.items()}
        sums = torch.stack(
            [torch.as_tensor(total, dtype=torch.float64, device=self.device) for total in totals.values()]
        )
        sums = self._summed(sums * 0 if empty else sums).clamp(min=1)
        return dict(zip(totals, sums.unbind(), strict=True))

    def _summed(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        self.group.sum_([total])
        return total

    def _average_statistics(self) -> None:
        """Average the running means and variances of batch normalisation, by the items of each process."""
        mine, self.trained_items = self.trained_items, 0
        if self.group.alone or not self.batch_norm:
            return
        share = mine / self.group.totals([mine])[0]
        buffers = [buffer for layer in self.batch_norm for buffer in layer.buffers()]
        for buffer in buffers:  # numbers of batches are those of the first, which has a share of every batch
            buffer.mul_(share if buffer.is_floating_point() else int(self.group.rank == 0))
        self.group.sum_(buffers)

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


def _stacked(total: Tensor, named: dict[str, Tensor]) -> Tensor:
    return torch.stack([total.detach().double(), *(value.double() for value in named.values())])


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:  # a head that nobody trains; the others send zeros as well
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _accuracy_of(parts: dict[str, float]) -> float:
    """Average the accuracies among the parts of a loss."""
    found = [value for name, value in parts.items() if name.endswith("accuracy")]
    if not found:
        raise ConfigurationError(
            f"monitor = 'accuracy', but the loss has no accuracy, only {', '.join(parts) or 'itself'}.",
            remedy="Use monitor = 'loss'.",
        )
    return sum(found) / len(found)
