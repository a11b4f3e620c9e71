"""What a training compares with: nothing, one tensor, or one tensor for each head of the network.

Heads are named as the networks name what they give: "cls" (N,) int64, "seg" (N, Z, Y, X) or (N, Y, X) uint8,
"rec" (N, 1, Z, Y, X) float32. `IGNORED` in "cls" and "seg" marks what nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cryoscale.errors import DataError

IGNORED = 255  # the target value of voxels, and of items, that count for nothing
HEADS = ("cls", "seg", "rec")

Targets = Tensor | dict[str, Tensor] | None


def as_targets(given: Any, items: int) -> Targets:
    """Turn arrays into tensors without a copy, and check that there is one row for each item.

    Parameters
    ----------
    given : None, (N, ...) array or tensor, or a mapping of such by head
    items : int
        N, the number of inputs.

    Raises
    ------
    DataError
        Another number of rows, or a mapping without heads.
    """
    if given is None:
        return None
    targets: Targets
    if isinstance(given, Mapping):
        targets = {str(head): torch.as_tensor(values) for head, values in given.items()}
        if not targets:
            raise DataError("The targets name no head.", remedy=f"Heads are {', '.join(HEADS)}.")
    else:
        targets = torch.as_tensor(given)
    for head, values in by_head(targets).items():
        if len(values) != items:
            raise DataError(f"{items} inputs have {len(values)} targets{f' of {head!r}' if head else ''}.")
    return targets


def by_head(targets: Targets) -> dict[str, Tensor]:
    """List the tensors of targets; a plain one stands under the empty name."""
    if targets is None:
        return {}
    return {"": targets} if isinstance(targets, Tensor) else targets


def each(targets: Targets, change: Callable[[Tensor], Tensor]) -> Targets:
    """Change every tensor of targets."""
    if targets is None:
        return None
    if isinstance(targets, Tensor):
        return change(targets)
    return {head: change(values) for head, values in targets.items()}


def each_image(targets: Targets, change: Callable[[Tensor], Tensor]) -> Targets:
    """Change the tensors that hold an image per item; classes of whole items, (N,), stay as they are."""
    return each(targets, lambda values: change(values) if values.ndim > 1 else values)


def check_labels(head: str, labels: Tensor, n_classes: int, sides: tuple[int, ...]) -> None:
    """Refuse labels that a head cannot give, before any time is spent on them.

    Parameters
    ----------
    head : str
        Named in the messages.
    labels : (N, *sides) integer
        `IGNORED` ones are fine.
    n_classes : int
        What the head gives, background included.
    sides : tuple of int
        Of what the head gives for an item.

    Raises
    ------
    DataError
        Labels that are no integers, of other sides, beyond the classes, or none that is known.
    """
    if labels.is_floating_point() or tuple(labels.shape[1:]) != sides:
        raise DataError(
            f"Labels of {head!r} are {labels.dtype} of {tuple(labels.shape[1:])} per item,"
            f" the network gives classes of {sides}.",
            remedy="Give integers on the grid of the inputs.",
        )
    extremes = [
        (int(known.min()), int(known.max()))
        for some in torch.split(labels, 64)  # a mask of all would be another copy
        if (known := some[some != IGNORED]).numel()
    ]
    if not extremes:
        raise DataError(f"No label of {head!r} is known: all are {IGNORED}.")
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if low < 0 or high >= n_classes:
        raise DataError(
            f"Labels of {head!r} go from {low} to {high}, the network has the classes 0 to {n_classes - 1}.",
            remedy=f"Give it {high + 1} classes, or mark what is unknown by {IGNORED}.",
        )


def target_of(targets: Targets, head: str) -> Tensor | None:
    """Find the target of one head; a plain tensor is that of any."""
    return targets if targets is None or isinstance(targets, Tensor) else targets.get(head)
