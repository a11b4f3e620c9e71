"""What dense labelling asks of a segmenter: labels at once, or probabilities that are weighted already.

Done inside of the network this costs next to nothing, and less comes back from it: one number for each voxel
in place of one for each class.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.inference.engine import Engine, open_engine

EXAMPLE = 16  # voxels per side of what the conversion is traced with; any multiple of 4 gives the same graph


class LabelsOf(nn.Module):
    """The most likely class of each voxel: patches (N, 1, Z, Y, X) to labels (N, 1, Z, Y, X), float.

    Logits that are not finite give labels that are not finite. The smallest label wins a tie.
    """

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Label."""
        logits_NLZYX = self.segmenter(patches_NCZYX)
        total = logits_NLZYX.sum(dim=1, keepdim=True)
        # total - total is 0, but NaN where a logit is NaN or infinite: an index alone would hide that.
        labels: Tensor = logits_NLZYX.argmax(dim=1, keepdim=True).to(total.dtype) + (total - total)
        return labels


class WeightedOf(nn.Module):
    """Probabilities times a weight for each place: patches (N, 1, Z, Y, X) to (N, L, Z, Y, X).

    Parameters
    ----------
    segmenter : nn.Module
        Gives logits.
    weight_ZYX : (Z, Y, X) float
        For example `cryoscale.ops.blend.weight_window`.
    background_only : bool
        Give class 0 alone (L = 1).
    """

    weight_ZYX: Tensor

    def __init__(self, segmenter: nn.Module, weight_ZYX: Tensor, *, background_only: bool = False) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.background_only = background_only
        self.register_buffer("weight_ZYX", weight_ZYX.to(torch.float32))

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Segment and weigh."""
        shares_NLZYX = torch.softmax(self.segmenter(patches_NCZYX), dim=1)
        if self.background_only:
            shares_NLZYX = shares_NLZYX[:, :1]
        return shares_NLZYX * self.weight_ZYX


class WeighedBy(nn.Module):
    """What a network gives for each voxel times a weight for its place: (N, C, Z, Y, X) to the same shape.

    Parameters
    ----------
    module : nn.Module
        Gives any number of channels, for example shares of classes and a density.
    weight_ZYX : (Z, Y, X) float
        For example `cryoscale.ops.blend.weight_window`.
    """

    weight_ZYX: Tensor

    def __init__(self, module: nn.Module, weight_ZYX: Tensor) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("weight_ZYX", weight_ZYX.to(torch.float32))

    def forward(self, patches_NCZYX: Tensor) -> Tensor:
        """Compute and weigh."""
        result_NCZYX: Tensor = self.module(patches_NCZYX)
        return result_NCZYX * self.weight_ZYX


def open_label_engine(
    segmenter: nn.Module, *, window: Sequence[int], threads: int = 1, device: str = "auto"
) -> Engine:
    """Load a segmenter that labels large windows, (N, 1, Z, Y, X) to (N, 1, Z, Y, X), one at a time.

    Parameters
    ----------
    segmenter : nn.Module
        Fully convolutional; gives logits. It is copied, not changed.
    window, threads, device
        As in `open_window_engine`.

    Returns
    -------
    engine : Engine
        Its results are those of `LabelsOf`.
    """
    return open_window_engine(LabelsOf(segmenter), 1, window=window, threads=threads, device=device)


def open_window_engine(
    module: nn.Module, channels: int, *, window: Sequence[int], threads: int = 1, device: str = "auto"
) -> Engine:
    """Load a network for large windows, (N, 1, Z, Y, X) to (N, C, Z, Y, X), one at a time.

    Parameters
    ----------
    module : nn.Module
        Fully convolutional. It is copied, not changed.
    channels : int
        C, that it gives for each voxel.
    window : three ints
        Extent of the windows, voxels.
    threads : int
        CPU threads, which share one window. Other engines give each thread items of its own; a window takes
        hundreds of megabytes, so here that would be a question of memory.
    device : str
        As in `cryoscale.inference.engine.open_engine`.

    Returns
    -------
    engine : Engine
    """
    sides = tuple(int(side) for side in window)
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu or importlib.util.find_spec("openvino") is None:
        return open_engine(module, input_shape=(1, *sides), batch=1, threads=threads, device=device)
    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    return _OpenvinoWindows(frozen, sides, channels, threads)


class _OpenvinoWindows(Engine):
    """One window at a time on all threads."""

    def __init__(self, module: nn.Module, window: tuple[int, ...], channels: int, threads: int) -> None:
        from cryoscale.inference.openvino_cpu import import_openvino

        shape = (1, *window)
        super().__init__(f"openvino float32 {threads} threads", "cpu", 1, shape, (channels, *window))
        openvino = import_openvino()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning
            )  # torch announces the end of tracing
            example = torch.zeros(1, 1, EXAMPLE, EXAMPLE, EXAMPLE)
            model = openvino.convert_model(module, example_input=example, input=[(1, *shape)])
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        self._module: nn.Module | None = module  # the compiled network shares its weights
        self._request: Any = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def _run(self, items_N: npt.NDArray[Any], results_N: npt.NDArray[np.float32]) -> None:
        for item, result in zip(items_N, results_N, strict=True):
            self._request.get_input_tensor(0).data[0] = item
            self._request.infer()
            result[...] = self._request.get_output_tensor(0).data[0]

    def _free(self) -> None:
        self._request = self._module = None
