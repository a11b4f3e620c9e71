"""The optimiser of a training, and its learning rate at every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from cryoscale.learn.settings import TrainSettings


def optimiser_of(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Make the optimiser of a training, with all parameters in one group."""
    parameters = list(module.parameters())
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            fused=True,
        )
    return torch.optim.Adam(parameters, lr=settings.learning_rate, betas=settings.betas, fused=True)


def learning_rate_at(settings: TrainSettings, epoch: int, step: int, steps: int) -> float:
    """Give the learning rate of one step.

    Parameters
    ----------
    settings : TrainSettings
    epoch : int
        From 1.
    step : int
        In the epoch, from 0.
    steps : int
        Of an epoch.

    Returns
    -------
    rate : float
        The product of what `decay_per_step` (Keras: 1 / (1 + decay x steps before)), `decay_per_epoch`, the
        cosine and the warm-up make of `learning_rate`; a function of its arguments alone, so a training that
        goes on needs no state of it.
    """
    before = (epoch - 1) * steps + step
    rate = settings.learning_rate
    if settings.decay_per_step:
        rate /= 1 + settings.decay_per_step * before
    if settings.decay_per_epoch != 1:
        rate *= settings.decay_per_epoch ** (epoch - 1)
    warm = settings.warmup_epochs * steps
    if before < warm:
        return rate * (before + 1) / warm
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * (before - warm) / (settings.epochs * steps - warm)))
    return rate


def step_with(optimiser: torch.optim.Optimizer, settings: TrainSettings, rate: float) -> None:
    """Take one step at this learning rate; weights, not biases or scales, shrink by `weight_decay` first.

    Notes
    -----
    Decay apart from the gradient: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
        if settings.weight_decay:
            with torch.no_grad():
                for parameter in group["params"]:
                    if parameter.ndim > 1 and parameter.grad is not None:
                        parameter.mul_(1 - rate * settings.weight_decay)
    optimiser.step()
