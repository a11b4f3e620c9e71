"""What a training keeps between epochs, so that a kill costs one epoch at most."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import FormatError, StateError, SurroundingsError
from cryoscale.learn.distributed import Group
from cryoscale.learn.settings import EpochRecord, TrainSettings
from cryoscale.learn.targets import Targets, by_head

Array = npt.NDArray[Any]
State = dict[str, Any]
Identity = dict[str, Any]

FREE = ("epochs", "threads", "device")  # of the settings, what may change when a training goes on
ALWAYS = (
    "patience", "batch_size", "learning_rate", "betas", "validation_fraction", "min_delta", "seed",
    "precision", "augment",
)  # fmt: skip
LATER = ("architecture", "loss")  # older checkpoints do not say these, and go on


class RefusedCheckpoint(StateError):
    """All processes of a training found that its checkpoint is damaged, or of another training."""


class Checkpoint(Protocol):
    """Where a training keeps its state between epochs.

    The state is one flat dictionary. Its values are tensors (on the CPU, contiguous: weights as `model.*`,
    best weights as `best.*`, moments of the optimiser as `adam.*` or `sgd.*`), except under the key
    `progress`: a dictionary of numbers, strings and lists that JSON can hold. `save` replaces the older state
    in one step, or not at all.
    """

    def save(self, state: State) -> None:
        """Keep this state instead of the last one."""
        ...

    def load(self) -> State | None:
        """Give the last state that was saved, or None."""
        ...


@dataclass
class Progress:
    """Where the loop stands after an epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf  # of what is monitored; the less the better, so an accuracy stands negative
    best_state: dict[str, Tensor] = field(default_factory=dict)
    history: list[EpochRecord] = field(default_factory=list)


def resumed(
    checkpoint: Checkpoint | None,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    identity: Identity,
    group: Group,
) -> Progress:
    """Go on from a checkpoint if there is one; the processes of a group all do, or none does.

    Raises
    ------
    RefusedCheckpoint
        Every process refuses it.
    SurroundingsError
        Some refuse it and others do not, or they do not start from the same: they see different files.
    """
    progress, refusal = Progress(), None
    try:
        state = None if checkpoint is None else checkpoint.load()
        if state is not None:
            progress = unpack(state, module, optimiser, identity)
    except (StateError, FormatError) as error:
        refusal = error
    # All must hear of it before anyone leaves: the next sum of the others would wait for it, or worse.
    refused = int(group.totals([float(refusal is not None)])[0])
    if refused == group.size:
        raise RefusedCheckpoint(str(refusal)) from refusal
    if refused:
        raise SurroundingsError(
            f"Of {group.size} processes {refused} refuse the checkpoint of this training"
            f" ({refusal or 'this one does not'}).",
            remedy="They must read the same run and its checkpoint from storage that all of them see.",
        ) from refusal
    group.require_same(identity | {"epoch of the checkpoint": progress.epoch})
    return progress


def pack(
    module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, identity: Identity
) -> State:
    """Put everything that a training needs to go on into one flat dictionary."""
    state: State = {f"model.{name}": value for name, value in copied(module.state_dict()).items()}
    state |= {f"best.{name}": value for name, value in progress.best_state.items()}
    for name, parameter in module.named_parameters():
        moments = optimiser.state.get(parameter, {})  # empty for a parameter without gradient
        kept = {key: value for key, value in moments.items() if value is not None}
        state |= {f"{_moments_of(optimiser)}{name}.{key}": _copy(value) for key, value in kept.items()}
    state["progress"] = {
        "epoch": progress.epoch,
        "best_epoch": progress.best_epoch,
        "best_loss": progress.best_loss,
        "history": [asdict(record) for record in progress.history],
        "identity": identity,
    }
    return state


def unpack(state: State, module: nn.Module, optimiser: torch.optim.Optimizer, identity: Identity) -> Progress:
    """Load a state into the network and its optimiser, and say where the training stands.

    Raises
    ------
    StateError
        The state comes from other data, settings or another network.
    """
    numbers = state["progress"]
    saved = numbers["identity"]
    unsaid = {key for key in LATER if key not in saved}
    other = [
        key for key in {**identity, **saved} if key not in unsaid and identity.get(key) != saved.get(key)
    ]
    if other:
        raise StateError(
            f"The checkpoint belongs to another training: it differs in {', '.join(other)}.",
            remedy="Delete the checkpoint to start anew, or restore those settings.",
        )
    module.load_state_dict(_under("model.", state))
    for name, parameter in module.named_parameters():
        moments = _under(f"{_moments_of(optimiser)}{name}.", state)
        if moments:
            optimiser.state[parameter] = {k: _like(v, parameter) for k, v in moments.items()}
    return Progress(
        epoch=int(numbers["epoch"]),
        best_epoch=int(numbers["best_epoch"]),
        best_loss=float(numbers["best_loss"]),
        best_state=_under("best.", state),
        history=[EpochRecord(**record) for record in numbers["history"]],
    )


def identity_of(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets,
    settings: TrainSettings,
    validation: Array,
    loss: object,
) -> Identity:
    """List what a checkpoint must share with the training that goes on from it; more epochs are fine.

    Settings that came later are left out where they are what trainings did before, and what is in `LATER` is
    not compared with checkpoints that do not say it, so that older ones go on.
    """
    plain = TrainSettings()
    asked = {
        key: list(value) if isinstance(value, tuple) else value  # as JSON gives it back
        for key, value in asdict(settings).items()
        if key in ALWAYS or (key not in FREE and value != getattr(plain, key))
    }
    if settings.schedule != "constant":
        asked["epochs"] = settings.epochs  # where the schedule ends
    shapes = [(name, list(value.shape)) for name, value in module.state_dict().items()]
    architecture = getattr(module, "architecture", None)
    return asked | {
        "architecture": json.dumps(architecture, sort_keys=True, default=str),
        "loss": _said_of(loss),
        "network": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        "inputs": _digest(inputs),
        "targets": "" if targets is None else _digest_of(targets),
        "validation rows": _digest(torch.from_numpy(validation)),
    }


def _said_of(loss: object) -> str:
    """Say what a loss is; one without words of its own by its class, since its address is no part of it."""
    kind = type(loss)
    return kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(loss)


def _digest_of(targets: Targets) -> str:
    if isinstance(targets, Tensor):
        return _digest(targets)
    return " ".join(f"{head}:{_digest(values)}" for head, values in sorted(by_head(targets).items()))


def _moments_of(optimiser: torch.optim.Optimizer) -> str:
    return "sgd." if isinstance(optimiser, torch.optim.SGD) else "adam."


def _digest(values: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(values.shape)} {values.dtype}".encode())
    for item in values.detach().cpu():
        digest.update(np.ascontiguousarray(item.numpy()).tobytes())
    return digest.hexdigest()[:16]


def _under(prefix: str, state: State) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    if value.ndim == 0:  # Adam's number of steps: the fused one wants it beside the parameter
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous."""
    return {name: _copy(value) for name, value in state.items()}


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()
