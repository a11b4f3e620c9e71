"""Run a network over any number of items, in batches of one size, on the fastest way there is.

The last batch is padded with zeros, so the arithmetic for an item is that of a full batch, always: its result
depends neither on how many items there are nor on where among them it lies. It may differ in the last bits
between batch sizes, backends and devices, and with torch between thread counts.
"""

from __future__ import annotations

import copy
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.errors import ConfigurationError, StateError

if TYPE_CHECKING:
    from types import TracebackType

Backend = Literal["auto", "torch", "openvino"]
Precision = Literal["float32", "bfloat16"]
Array = npt.NDArray[Any]


class Engine(ABC):
    """A loaded network that turns arrays into arrays; a context manager that frees it.

    Attributes
    ----------
    name : str
        Backend, precision and threads, for logs: "openvino float32 2 threads".
    device : str
        "cpu" or a CUDA device.
    batch : int
        Items computed at a time.
    input_shape, output_shape : tuple of int
        Of one item.
    """

    def __init__(
        self, name: str, device: str, batch: int, input_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> None:
        self.name, self.device, self.batch = name, device, batch
        self.input_shape, self.output_shape = input_shape, output_shape
        self.closed = False

    def run(self, items_N: Array) -> npt.NDArray[np.float32]:
        """Compute every item.

        Parameters
        ----------
        items_N : (N, *input_shape) float
            Any N, also 0. May be read-only; other types are turned into float32.

        Returns
        -------
        results_N : (N, *output_shape) float32

        Raises
        ------
        ConfigurationError
            The items have another shape than the engine was opened for.
        StateError
            The engine is closed.
        """
        if self.closed:
            raise StateError(f"The engine {self.name} is closed.")
        if tuple(items_N.shape[1:]) != self.input_shape or items_N.ndim != len(self.input_shape) + 1:
            raise ConfigurationError(
                f"The engine takes items of shape {self.input_shape}, got an array of shape {items_N.shape}."
            )
        results_N = np.empty((len(items_N), *self.output_shape), dtype=np.float32)
        self._run(items_N, results_N)
        return results_N

    def close(self) -> None:
        """Free the network; the engine cannot be used afterwards. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            self._free()

    @abstractmethod
    def _run(self, items_N: Array, results_N: npt.NDArray[np.float32]) -> None:
        """Compute every item into its row."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of memory."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_engine(
    module: nn.Module,
    *,
    input_shape: Sequence[int],
    batch: int,
    device: str = "auto",
    backend: Backend = "auto",
    threads: int = 1,
    precision: Precision = "float32",
) -> Engine:
    """Load a network for inference.

    Parameters
    ----------
    module : nn.Module
        One tensor in, one tensor out: see `cryoscale.inference.wrappers`. It is copied, not changed.
    input_shape : sequence of int
        Shape of one item, without the batch: (1, Z, Y, X) for patches, (F,) for codes.
    batch : int
        Items computed at a time; part of the result's last bits, so keep it fixed within a run. With 1, for
        large items, all threads work on the same one.
    device : str
        "auto" (CUDA if there is one, unless OpenVINO is asked for), "cpu", "cuda" or "cuda:N".
    backend : {"auto", "torch", "openvino"}
        "auto" is OpenVINO on the CPU where it is installed, else torch.
    threads : int
        CPU threads. The number of torch is set while a batch runs, and put back.
    precision : {"float32", "bfloat16"}
        "float32" is meant strictly, also where a backend would round by default. "bfloat16" computes
        convolutions and products with 8 bits of mantissa; results are float32.

    Returns
    -------
    engine : Engine

    Raises
    ------
    ConfigurationError
        A device, backend or number that cannot be, or a network with more than one output.
    """
    shape = tuple(int(side) for side in input_shape)
    _check(shape, batch, threads, precision, backend)
    where = _choose_device(device, backend)
    frozen = copy.deepcopy(module).to("cpu").eval().requires_grad_(False)
    output_shape = _output_shape(frozen, shape)
    from cryoscale.inference.encoder_gpu import PhaseEncoder
    from cryoscale.inference.wrappers import fits_encoder

    if _choose_backend(backend, where) == "openvino":
        from cryoscale.inference.decoder import ManyVoxelDecoder, fits_decoder
        from cryoscale.inference.encoder_cpu import EncoderEngine
        from cryoscale.inference.openvino_cpu import OpenvinoEngine

        if fits_encoder(frozen):
            return EncoderEngine(frozen, shape, output_shape, batch, threads, precision)
        if fits_decoder(frozen):
            frozen = ManyVoxelDecoder(frozen)
        return OpenvinoEngine(frozen, shape, output_shape, batch, threads, precision)
    from cryoscale.inference.torch_any import TorchEngine

    if where != "cpu" and fits_encoder(frozen):
        frozen = PhaseEncoder(frozen)
    return TorchEngine(frozen, shape, output_shape, batch, where, threads, precision)


def _check(shape: tuple[int, ...], batch: int, threads: int, precision: str, backend: str) -> None:
    if batch < 1 or threads < 1 or not shape or min(shape) < 1:
        raise ConfigurationError(
            f"batch = {batch}, threads = {threads}, input_shape = {shape}: each number must be at least 1."
        )
    if precision not in ("float32", "bfloat16"):
        raise ConfigurationError(f"precision = {precision!r} is unknown.", remedy="Use float32 or bfloat16.")
    if backend not in ("auto", "torch", "openvino"):
        raise ConfigurationError(f"backend = {backend!r} is unknown.", remedy="Use auto, torch or openvino.")


def _choose_device(device: str, backend: str) -> str:
    if device == "auto":
        return "cuda" if backend != "openvino" and torch.cuda.is_available() else "cpu"
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigurationError(f"device = {device!r} is unknown.", remedy="Use auto, cpu, cuda or cuda:N.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device = {device!r}, but torch finds no CUDA device.", remedy="Use cpu.")
    return device


def _choose_backend(backend: str, device: str) -> str:
    if backend == "openvino" and device != "cpu":
        raise ConfigurationError(f"OpenVINO runs on the CPU here, not on {device}.", remedy="Use device cpu.")
    if backend == "torch" or (backend == "auto" and device != "cpu"):
        return "torch"
    installed = _openvino_installed()
    if backend == "openvino" and not installed:
        raise ConfigurationError(
            "backend = 'openvino', but OpenVINO is not installed.",
            remedy="Install the package openvino, or use backend torch.",
        )
    if backend == "auto":
        return "openvino" if installed else "torch"
    return backend


def _openvino_installed() -> bool:
    try:
        return importlib.util.find_spec("openvino") is not None
    except ImportError:  # something refuses to look
        return False


@torch.inference_mode()
def _output_shape(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    result = module(torch.zeros(1, *input_shape))
    if not isinstance(result, Tensor):
        raise ConfigurationError(
            f"{type(module).__name__} gives {type(result).__name__}, an engine needs one tensor.",
            remedy="Wrap it, for example in EncoderOnly or DecoderOnly.",
        )
    return tuple(result.shape[1:])
