"""Augmentations by name: what is done to the items of a batch, drawn anew for every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from cryoscale.errors import ConfigurationError
from cryoscale.learn.distortions import Intensity, Wedge, random_rotations
from cryoscale.learn.targets import Targets
from cryoscale.learn.turns import (
    Turn,
    kept_wedge_turns_of,
    plane_turns_of,
    random_turns,
    turned,
    turned_at_random,
    turns_of,
)

__all__ = ["Augmentation", "augmentation_of", "composed", "random_turns", "turned", "turns_of"]

# Inputs, targets, and a generator that belongs to this batch alone; returns the changed pair.
Augmentation = Callable[[Tensor, Targets, np.random.Generator], tuple[Tensor, Targets]]

NAMES = {
    3: ("turns", "half-turns", "flips", "intensity", "wedge"),
    2: ("turns", "flips", "rotations", "intensity"),
}


def augmentation_of(
    names: Sequence[str],
    dimensions: int,
    *,
    intensity: Intensity | None = None,
    wedge_degrees: float = 60.0,
    tilt_axis: Literal["y", "x"] = "y",
) -> Augmentation:
    """Put an augmentation together from its parts.

    Parameters
    ----------
    names : sequence of str
        In any order; they are done in this one.

        "turns"
            Quarter turns: of a patch all that map its box onto itself, of a slice those in its plane.
        "half-turns"
            In place of them those half turns of a patch that leave its missing wedge where it is.
        "flips"
            Mirroring. Beside turns it doubles them; alone it flips each axis or not.
        "rotations"
            Of slices, by any angle in the plane; see `random_rotations`.
        "intensity"
            Gain, offset and noise; see `Intensity`.
        "wedge"
            Of patches: waves that a tilt series of ±60 degrees about y has not measured go, those of the
            noise too; see `Wedge`.
    dimensions : int
        3 for patches (N, C, Z, Y, X), 2 for slices (N, C, Y, X).
    intensity : Intensity, optional
        How far it goes.
    wedge_degrees, tilt_axis
        Of the wedge, where the tilt series was another.

    Returns
    -------
    augmentation : callable
        For `fit`. All heads are turned alike, but for classes of whole items; only inputs change their grey
        values or lose waves.

    Raises
    ------
    ConfigurationError
        A name that is not known for these dimensions.
    """
    asked = set(names)
    _check(asked, dimensions)
    steps: list[Augmentation] = []
    if asked & {"turns", "half-turns", "flips"}:
        steps.append(_turning(asked, dimensions))
    if "rotations" in asked:
        steps.append(random_rotations)
    if "intensity" in asked:
        steps.append(intensity or Intensity())
    if "wedge" in asked:  # last: noise that is added has waves everywhere
        steps.append(Wedge(wedge_degrees, tilt_axis))
    return composed(steps)


def composed(steps: Sequence[Augmentation]) -> Augmentation:
    """Do one augmentation after the other, all from the same generator."""

    def augment(inputs: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        for step in steps:
            inputs, targets = step(inputs, targets, rng)
        return inputs, targets

    return augment


def _check(asked: set[str], dimensions: int) -> None:
    for name in sorted(asked):
        if name not in NAMES[dimensions]:
            raise ConfigurationError(
                f"There is no augmentation {name!r} in {dimensions} dimensions.",
                remedy=f"Known: {', '.join(NAMES[dimensions])}.",
            )
    if {"turns", "half-turns"} <= asked:
        raise ConfigurationError("Of the augmentations 'turns' and 'half-turns' take one.")


def _turning(asked: set[str], dimensions: int) -> Augmentation:
    def turn(inputs: Tensor, targets: Targets, rng: np.random.Generator) -> tuple[Tensor, Targets]:
        sides = tuple(inputs.shape[2:])
        return turned_at_random(inputs, targets, rng, _turns(asked, sides))

    return turn


def _turns(asked: set[str], sides: tuple[int, ...]) -> list[Turn]:
    mirror = "flips" in asked
    if len(sides) == 2:
        turns = plane_turns_of((sides[0], sides[1]), mirror=mirror)
    elif "turns" in asked:
        return turns_of((sides[0], sides[1], sides[2]), mirror=mirror)
    else:
        turns = kept_wedge_turns_of((sides[0], sides[1], sides[2]), mirror=mirror)
    if "turns" in asked or "half-turns" in asked:
        return turns
    return [turn for turn in turns if turn[0] == (0, 1, 2)]  # flips alone exchange no axes
