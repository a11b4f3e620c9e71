"""The faces of a network that votes are asked of: what an engine computes, and how it is added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryoscale.data.access import Access
from cryoscale.ops.blend import weight_window
from cryoscale.stages.applying import AXES, Applied
from cryoscale.stages.embedding import Add, Float32, Slices

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Face:
    """How the network is asked, and how its answer is added to votes.

    Parameters
    ----------
    kind : str
        Name of what `wrap` makes.
    wrap : callable
        From the trained network to what computes one tensor of one.
    channels : int
        Of the votes.
    add : callable
        Adds an answer to sums.
    """

    kind: str
    wrap: Callable[[nn.Module], nn.Module]
    channels: int
    add: Add


def box_face(access: Access, model: Applied) -> Face:
    """Return the face of a network in boxes, weighted for overlapping windows or patches."""
    recover = access.config.segment.densities
    weight_ZYX = weight_window(model.patch.box)
    if model.by_particle:
        soft = access.config.segment.mode == "dense"
        add = _particle_add(model, weight_ZYX, recover=recover, soft=soft)
        kind, wrap = "particles", _particles(recover)
    else:
        add, kind, wrap = _add, "votes", votes_face(weight_ZYX, recover)
    name = f"{kind}{'+rec' * recover}{'+each' * model.each_box}"
    return Face(name, lambda module: model.scaled(wrap(module)), model.n_classes + recover, add)


def _particles(recover: bool) -> Callable[[nn.Module], nn.Module]:
    def wrap(module: nn.Module) -> nn.Module:
        from cryoscale.inference.wrappers import ParticlesOf

        return ParticlesOf(module, recover=recover)

    return wrap


def votes_face(weight_ZYX: Float32, recover: bool) -> Callable[[nn.Module], nn.Module]:
    """Return what makes a segmenter give weighted shares, and the weighted density behind them on request."""

    def wrap(module: nn.Module) -> nn.Module:
        import torch

        from cryoscale.inference.dense import WeighedBy
        from cryoscale.inference.wrappers import HeadOf, RecoveringOf, SoftmaxOf

        voted = RecoveringOf(module) if recover else SoftmaxOf(HeadOf(module, "seg"))
        return WeighedBy(voted, torch.from_numpy(weight_ZYX))

    return wrap


def _add(result_CZYX: Float32, inner: Slices, target_CZYX: Float32) -> None:
    target_CZYX += result_CZYX[(slice(None), *inner)]


def _particle_add(model: Applied, weight_ZYX: Float32, *, recover: bool, soft: bool) -> Add:
    """Return what adds the answers of `ParticlesOf`.

    In dense use each class gets its share of the object's votes. On picks the box is its particle's, so the
    most likely class takes all of them.
    """
    box, voxels = weight_ZYX.shape, weight_ZYX.size
    n_classes = model.n_classes

    def add(result: Float32, inner: Slices, target_CZYX: Float32) -> None:
        weight = weight_ZYX[inner]
        objects = result[:voxels].reshape(box)[inner] * weight
        target_CZYX[0] += weight - objects
        shares_K = result[len(result) - n_classes + 1 :]
        if soft:
            for value, share in enumerate(shares_K, start=1):
                target_CZYX[value] += share * objects
        else:
            target_CZYX[1 + int(shares_K.argmax())] += objects
        if recover:
            target_CZYX[-1] += result[voxels : 2 * voxels].reshape(box)[inner] * weight

    return add


def slice_filter_halo(model: Applied) -> int:
    """Return how far the filter in front of a network in slices looks, voxels."""
    found = model.preprocessing()
    return 0 if found is None else found.halo


def slice_face(model: Applied, weight_ZYX: Float32) -> Face:
    """Return the face of a network in slices, weighted for overlapping tiles."""

    def wrap(module: nn.Module) -> nn.Module:
        import torch

        from cryoscale.inference.dense import WeighedBy
        from cryoscale.inference.slices import InSlices
        from cryoscale.inference.wrappers import SoftmaxOf, Trimmed

        found = model.preprocessing()
        front = None if found is None else Trimmed(found, found.halo)
        sliced = InSlices(module, AXES[model.axis], model.neighbours, front)  # type: ignore[arg-type]
        return WeighedBy(SoftmaxOf(sliced), torch.from_numpy(weight_ZYX))

    front = sorted(model.card.get("preprocessing", {}).items())  # the same weights may have another in front
    return Face(f"slices {AXES[model.axis]} {model.neighbours} {front}", wrap, model.n_classes, _add)
