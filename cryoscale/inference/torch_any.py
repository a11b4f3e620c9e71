"""The engine on torch: CUDA, or the CPU where OpenVINO is not at hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.inference.engine import Engine

SLOTS = 3  # batches on their way to, on, and from a CUDA device


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
        slots = 1 if device == "cpu" else SLOTS
        self._slots = [_Slot(batch, input_shape, output_shape, device) for _ in range(slots)]

    def _run(self, items_N: npt.NDArray[Any], results_N: npt.NDArray[np.float32]) -> None:
        """Fill one slot while the device computes another; a CPU has one slot and waits for nothing."""
        waiting: list[_Slot] = []
        try:
            for number, start in enumerate(range(0, len(items_N), self.batch)):
                if len(waiting) == len(self._slots):
                    waiting.pop(0).collect()
                slot = self._slots[number % len(self._slots)]
                slot.fill(items_N[start : start + self.batch], results_N[start : start + self.batch])
                waiting.append(slot)
                with torch.inference_mode(), self._surroundings():
                    slot.compute(self._forward)
            while waiting:
                waiting.pop(0).collect()
        finally:
            for slot in waiting:  # after an error nothing may write into memory that others get
                slot.wait()

    def _forward(self, items_N: Tensor) -> Tensor:
        assert self._module is not None
        if self._layout is not None:
            items_N = items_N.contiguous(memory_format=self._layout)
        results_N: Tensor = self._module(items_N)
        return results_N.float()

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
        self._module = None
        self._slots = []
        if self.device != "cpu":
            torch.cuda.empty_cache()


class _Slot:
    """Memory of one batch on its way: the same each time, so the same alignment, and nothing is allocated.

    On CUDA each slot has a stream of its own: copies of one batch run beside the arithmetic of another.
    """

    def __init__(
        self, batch: int, input_shape: tuple[int, ...], output_shape: tuple[int, ...], device: str
    ) -> None:
        cuda = device != "cpu"
        self._device = device
        self._items_N = torch.zeros(batch, *input_shape, pin_memory=cuda)
        self._results_N = torch.zeros(batch, *output_shape, pin_memory=cuda)
        self._there_N = torch.zeros(batch, *input_shape, device=device) if cuda else self._items_N
        self._stream: Any = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        if self._stream is not None:  # what was made above is there before another stream uses it
            torch.cuda.synchronize(device)
        self._target_N: npt.NDArray[np.float32] | None = None

    def fill(self, part_N: npt.NDArray[Any], target_N: npt.NDArray[np.float32]) -> None:
        """Take a batch, padded with zeros, and note where its results go."""
        buffer_N = self._items_N.numpy()
        buffer_N[: len(part_N)] = part_N
        buffer_N[len(part_N) :] = 0
        self._target_N = target_N

    def compute(self, forward: Callable[[Tensor], Tensor]) -> None:
        """Begin to compute; on a CPU also end."""
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            if self._stream is not None:
                self._there_N.copy_(self._items_N, non_blocking=True)
            self._results_N.copy_(forward(self._there_N), non_blocking=self._stream is not None)

    def collect(self) -> None:
        """Wait for the results and put them where they go."""
        self.wait()
        if self._target_N is not None:
            self._target_N[...] = self._results_N.numpy()[: len(self._target_N)]
            self._target_N = None

    def wait(self) -> None:
        """Wait until nothing is under way."""
        if self._stream is not None:
            self._stream.synchronize()


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
