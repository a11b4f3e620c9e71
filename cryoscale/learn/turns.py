"""Turned and mirrored copies of patches and slices, drawn anew for every batch.

A quarter turn maps voxels to voxels, so nothing is interpolated. Turns out of the plane also turn the missing
wedge of the tomogram, which the network then sees in directions where no microscope puts it.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from cryoscale.learn.targets import Targets, each_image

Turn = tuple[
    tuple[int, int, int], tuple[int, ...]
]  # the order of the axes z, y, x; then which of them to flip


def turns_of(box: tuple[int, int, int], *, mirror: bool = False) -> list[Turn]:
    """List the turns that map a box onto itself.

    Parameters
    ----------
    box : (Z, Y, X) int
        Only axes of equal length are exchanged: 24 turns for a cube, 4 for three different sides.
    mirror : bool
        Add the mirrored ones (twice as many). Molecules are handed: a mirrored one does not exist in nature.

    Returns
    -------
    turns : list
        The first one changes nothing.
    """
    turns: list[Turn] = []
    for order in itertools.permutations(range(3)):
        if any(box[axis] != box[old] for axis, old in enumerate(order)):
            continue
        parity = sum(order[a] > order[b] for a, b in itertools.combinations(range(3), 2)) % 2
        for flips in itertools.product((False, True), repeat=3):
            if mirror or (parity + sum(flips)) % 2 == 0:
                flipped = tuple(axis for axis, flip in enumerate(flips) if flip)
                turns.append(((order[0], order[1], order[2]), flipped))
    return turns


def turned(volumes: Tensor, turn: Turn) -> Tensor:
    """Apply one turn to the last three axes."""
    order, flips = turn
    lead = volumes.ndim - 3
    moved = volumes.permute(*range(lead), *(lead + axis for axis in order))
    return moved.flip([lead + axis for axis in flips]) if flips else moved


def kept_wedge_turns_of(box: tuple[int, int, int], *, mirror: bool = False) -> list[Turn]:
    """List the turns that exchange no axes: half turns, which leave a symmetric missing wedge where it is."""
    return [turn for turn in turns_of(box, mirror=mirror) if turn[0] == (0, 1, 2)]


def plane_turns_of(sides: tuple[int, int], *, mirror: bool = False) -> list[Turn]:
    """List the turns within the plane that map a slice (Y, X) onto itself: 4 for a square, else 2."""
    turns = turns_of((1, *sides), mirror=mirror)
    return [turn for turn in turns if turn[0][0] == 0 and 0 not in turn[1]]


def random_turns(
    inputs_NCZYX: Tensor, targets_N: Targets, rng: np.random.Generator, *, mirror: bool = False
) -> tuple[Tensor, Targets]:
    """Turn every patch of a batch by its own random turn, and its targets (N, ..., Z, Y, X) alike."""
    z, y, x = inputs_NCZYX.shape[-3:]
    return turned_at_random(inputs_NCZYX, targets_N, rng, turns_of((z, y, x), mirror=mirror))


def turned_at_random(
    inputs: Tensor, targets_N: Targets, rng: np.random.Generator, turns: list[Turn]
) -> tuple[Tensor, Targets]:
    """Turn every item of a batch, and its targets alike, by one of some turns.

    Parameters
    ----------
    inputs : (N, C, Z, Y, X) or (N, C, Y, X)
        A slice counts as a patch of one plane.
    targets_N : targets
        Images of the same sides; classes of whole items stay as they are.
    rng : Generator
    turns : list
        Of the box.
    """
    sides = tuple(inputs.shape[2:])
    box = sides if len(sides) == 3 else (1, *sides)
    drawn = rng.integers(len(turns), size=len(inputs))
    places_NV = _places(box, [turns[k] for k in drawn], inputs.device)
    return _gathered(inputs, places_NV), each_image(targets_N, lambda values: _gathered(values, places_NV))


def _places(box: tuple[int, ...], turns: list[Turn], device: torch.device) -> Tensor:
    """Say where each voxel of each turned patch comes from, (N, V): a sum of one number per axis."""
    strides = (box[1] * box[2], box[2], 1)
    first, steps = [], []
    for order, flips in turns:
        signed = [-strides[axis] if new in flips else strides[axis] for new, axis in enumerate(order)]
        steps.append(signed)
        first.append(-sum(step * (side - 1) for step, side in zip(signed, box, strict=True) if step < 0))
    first_N, steps_N3 = torch.tensor(first, device=device), torch.tensor(steps, device=device)
    z, y, x = (
        torch.arange(side, device=device) * steps_N3[:, axis, None] for axis, side in enumerate(box)
    )  # each (N, side)
    places = (first_N[:, None] + z)[:, :, None, None] + (y[:, :, None] + x[:, None, :])[:, None]
    return places.flatten(1)


def _gathered(volumes: Tensor, places_NV: Tensor) -> Tensor:
    count, voxels = places_NV.shape
    lead = volumes.reshape(count, -1, voxels)
    return lead.gather(2, places_NV[:, None].expand_as(lead)).view(volumes.shape)
