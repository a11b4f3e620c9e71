"""The engine on torch: CUDA, or the CPU where OpenVINO is not at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.inference.engine import Engine


class TorchEngine(Engine):
    """See `cryoscale.inference.engine.open_engine`."""

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        batch: int,
        device: str,
        threads: int,
        precision: str,
    ) -> None:
        name = f"torch {precision} {threads} threads" if device == "cpu" else f"torch {precision}"
        super().__init__(name, device, batch, input_shape, output_shape)
        self._threads = threads
        self._bfloat16 = precision == "bfloat16"
        # Channels last is 1.8 times as fast on CPUs, and what tensor cores want.
        self._layout = _memory_format(len(input_shape)) if device == "cpu" or self._bfloat16 else None
        if device == "cpu":
            _steady(module)
        self._module: nn.Module | None = self._lay_out(module.to(device))
        # One buffer for all batches: the same alignment each time, and no allocation.
        self._items_N: Tensor | None = torch.zeros(batch, *input_shape, pin_memory=device != "cpu")

    @torch.inference_mode()
    def _run_batch(self, part_N: npt.NDArray[Any]) -> npt.NDArray[Any]:
        assert self._module is not None
        assert self._items_N is not None
        buffer_N = self._items_N.numpy()
        buffer_N[: len(part_N)] = part_N
        buffer_N[len(part_N) :] = 0
        items_N = self._items_N.to(self.device)
        if self._layout is not None:
            items_N = items_N.contiguous(memory_format=self._layout)
        with self._surroundings():
            results_N: Tensor = self._module(items_N)
        return np.asarray(results_N.float().cpu().numpy())

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        kind = torch.device(self.device).type
        with contextlib.ExitStack() as stack:
            if self._bfloat16:
                stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
            if kind == "cuda":
                # TF32 would keep 10 bits of mantissa in what is asked for as float32.
                stack.enter_context(torch.backends.cudnn.flags(deterministic=True, allow_tf32=False))
                yield
                return
            with torch_threads(self._threads):
                yield

    def _lay_out(self, module: nn.Module) -> nn.Module:
        if self._layout is None:
            return module
        for parameter in module.parameters():
            if parameter.ndim == len(self.input_shape) + 1:
                parameter.data = parameter.data.contiguous(memory_format=self._layout)
        return module

    def _free(self) -> None:
        self._module = self._items_N = None
        if self.device != "cpu":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Give torch this many CPU threads for a while, then put the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _SteadyLinear(nn.Module):
    """A dense layer on one thread.

    With two threads the product is cut by rows into parts of unequal height, which take different kernels: an
    item's last bits then depend on its place in the batch (seen with torch 2.13, batch 7). The convolutions
    cost a hundred times as much, so the time does not matter.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch_threads(1):
            result: Tensor = self.layer(x)
        return result


def _steady(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, _SteadyLinear(child))
        else:
            _steady(child)


def _memory_format(item_dimensions: int) -> torch.memory_format | None:
    return {3: torch.channels_last, 4: torch.channels_last_3d}.get(item_dimensions)
