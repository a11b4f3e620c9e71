"""How to train, and what a training tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cryoscale.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

PART_VOXELS = 4 * 32**3
"""On a processor a batch is worked through in parts of at most so many voxels, whose gradients are added up.

32 channels of them are 16 MiB: the C library gives tensors beyond 32 MiB back to the system at once, and
asking for the pages again takes as long as the convolutions. A part of few patches also fits the caches.
"""

CHOICES = {
    "precision": ("auto", "float32", "bfloat16"),
    "optimiser": ("adam", "sgd"),
    "schedule": ("constant", "cosine"),
    "monitor": ("loss", "accuracy"),
}


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes
    ----------
    epochs : int
        At most this many.
    patience : int
        Stop after this many epochs in a row in which what is monitored got no better; the papers have 20.
    batch_size : int
        Items per step; the last step of an epoch may have fewer.
    learning_rate : float
        At the first step, or after the warm-up.
    betas : (float, float)
        Of Adam; the papers' values.
    validation_fraction : float
        Share of the items that is never trained on, drawn by the seed; at least one item.
    min_delta : float
        Smaller improvements of what is monitored do not count.
    seed : int
        Of the split, the order and the augmentation. First weights have their own.
    threads : int
        CPU threads of torch; the bits of a result depend on it.
    device : str
        "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
    precision : {"float32", "bfloat16", "auto"}
        "bfloat16" is autocast: products in bfloat16, weights and losses in float32. "auto" is that where the
        hardware multiplies in bfloat16.
    augment : bool
        Turn the patches of each training batch at random, unless `fit` is given its own augmentation.
    augmentations : tuple of str
        What to do with them instead, by the names of `cryoscale.learn.augmentation.augmentation_of`.
    optimiser : {"adam", "sgd"}
    momentum : float
    nesterov : bool
        Of SGD.
    weight_decay : float
        Share of the weights taken away at each step, times the learning rate, apart from the gradient.
    decay_per_step : float
        The learning rate is divided by 1 + decay_per_step x (steps before), as Keras' `decay` does.
    decay_per_epoch : float
        It is multiplied by this after each epoch.
    schedule : {"constant", "cosine"}
        "cosine" lets it fall to 0 at the last of `epochs` along half a cosine. It is gone through to its end,
        where most of the gain comes: patience does not count.
    warmup_epochs : int
        It rises in equal steps over the steps of so many epochs first.
    monitor : {"loss", "accuracy"}
        What of the validation items has to get better: their loss, or their accuracy (the mean of those of
        the heads, if several have one).
    """

    epochs: int = 100
    patience: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    validation_fraction: float = 0.1
    min_delta: float = 0.0
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    augment: bool = False
    augmentations: tuple[str, ...] = ()
    optimiser: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_per_step: float = 0.0
    decay_per_epoch: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = 0
    monitor: Literal["loss", "accuracy"] = "loss"

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} = {getattr(self, name)} must be at least 1.")
        if not 0 < self.validation_fraction < 1:
            raise ConfigurationError(
                f"validation_fraction = {self.validation_fraction} must lie between 0 and 1."
            )
        if self.learning_rate <= 0 or self.min_delta < 0:
            raise ConfigurationError(
                f"learning_rate = {self.learning_rate} must be positive,"
                f" min_delta = {self.min_delta} not negative."
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigurationError(
                    f"{name} = {getattr(self, name)!r} is unknown.",
                    remedy=f"Use {', '.join(known[:-1])} or {known[-1]}.",
                )
        for name in ("momentum", "weight_decay", "decay_per_step", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} = {getattr(self, name)} must not be negative.")
        if not 0 < self.decay_per_epoch <= 1:
            raise ConfigurationError(
                f"decay_per_epoch = {self.decay_per_epoch} must be above 0 and at most 1."
            )
        if self.momentum >= 1 or (self.nesterov and not self.momentum):
            raise ConfigurationError(
                f"momentum = {self.momentum} must be below 1, and above 0 with nesterov = true."
            )
        if self.warmup_epochs >= self.epochs and self.schedule == "cosine":
            raise ConfigurationError(
                f"warmup_epochs = {self.warmup_epochs} must be fewer than epochs = {self.epochs}."
            )


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave; the parts are those that the loss names, averaged over the items."""

    epoch: int  # from 1
    train_loss: float
    validation_loss: float
    train_parts: dict[str, float] = field(default_factory=dict)
    validation_parts: dict[str, float] = field(default_factory=dict)
    improved: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainResult:
    """The weights of the best epoch by what was monitored, on the CPU, and how they came about."""

    best_state: dict[str, Tensor]
    history: list[EpochRecord]
    best_epoch: int
    stopped_reason: Literal["patience", "epochs"]
    precision: str = "float32"  # of the products: what "auto" turned out to be


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
