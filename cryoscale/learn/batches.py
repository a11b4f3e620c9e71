"""The items of a training, batches of them on its device, and the parts that a batch is worked through in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryoscale.learn.augmentation import Augmentation
from cryoscale.learn.targets import Targets, by_head, each

Batch = tuple[Tensor, Targets]


class Batches:
    """The patches and targets of a training, and where batches of them are made."""

    def __init__(
        self, inputs: Tensor, targets: Targets, device: torch.device, augmentation: Augmentation | None
    ) -> None:
        self.inputs, self.targets, self.device = inputs, targets, device
        self.augmentation = augmentation
        if device.type == "cuda" and self._bytes() < torch.cuda.mem_get_info(device)[0] // 2:
            self.inputs = inputs.to(device)
            self.targets = each(targets, lambda values: values.to(device))

    def take(self, rows: npt.NDArray[np.int64], rng: np.random.Generator | None = None) -> Batch:
        """Copy some items to the device, turned if there is a generator for it."""
        index = torch.from_numpy(rows)
        inputs = self._rows_of(self.inputs, index).float()
        targets = each(self.targets, lambda values: self._rows_of(values, index))
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
        tensors = [self.inputs, *by_head(self.targets).values()]
        return sum(values.numel() * values.element_size() for values in tensors)
