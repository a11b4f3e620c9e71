"""A network that sees slices, behind the door of those that see boxes.

Shapes: N items, C channels (slices beside each other), L classes; U and V are the two axes across the slices,
in the order z, y, x.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, ...] = ("z", "y", "x")


class InSlices(nn.Module):
    """Label one plane from itself and its neighbours: windows (N, 1, Z, Y, X) to logits (N, L, Z', Y', X').

    A window has 2 n + 1 planes along the axis and any extent across that the network takes; the logits are
    those of its middle plane, so along the axis they have 1, and across the extent of the window.

    Parameters
    ----------
    module : nn.Module
        A network of two dimensions: (N, C, U, V) to logits (N, L, U, V).
    axis : {"z", "y", "x"}
        What slices are stacked along.
    neighbours : int
        n, planes on each side that the network sees as channels, at least 0.
    preprocess : nn.Module, optional
        What comes in front of the network: (N, C, U, V) to the same shape. It then runs inside of the engine.

    Raises
    ------
    ConfigurationError
        An axis that is none, or a negative number of neighbours.
    """

    def __init__(
        self, module: nn.Module, axis: Axis, neighbours: int = 0, preprocess: nn.Module | None = None
    ) -> None:
        super().__init__()
        if axis not in AXES or neighbours < 0:
            raise ConfigurationError(
                f"slices along {axis!r} with {neighbours} neighbours cannot be.",
                remedy="Take z, y or x, and 0 or more.",
            )
        self.module = module
        self.preprocess = nn.Identity() if preprocess is None else preprocess
        self.axis, self.neighbours = axis, neighbours
        self._dimension = 2 + AXES.index(axis)

    @property
    def planes(self) -> int:
        """How many planes along the axis a window has."""
        return 2 * self.neighbours + 1

    def forward(self, windows_NCZYX: Tensor) -> Tensor:
        """Segment the middle planes."""
        found = windows_NCZYX.shape[1], windows_NCZYX.shape[self._dimension]
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if not tracing and found != (1, self.planes):
            raise ConfigurationError(
                f"windows of shape {tuple(windows_NCZYX.shape)}: this network takes one channel and"
                f" {self.planes} planes along {self.axis}."
            )
        slices_NCUV = windows_NCZYX[:, 0].movedim(self._dimension - 1, 1)
        logits_NLUV: Tensor = self.module(self.preprocess(slices_NCUV))
        return logits_NLUV.unsqueeze(self._dimension)
