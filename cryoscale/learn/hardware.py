"""Where a training computes, in which precision, and how torch is set up meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from cryoscale.errors import ConfigurationError


def device_of(name: str) -> torch.device:
    """Find a device: "auto" is CUDA if there is one.

    Raises
    ------
    ConfigurationError
        A CUDA device was asked for, and torch finds none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(f"device = {name!r}, but torch finds no CUDA device.", remedy="Use cpu.")
    return torch.device(name)


def precision_of(asked: str, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Say what products are computed in: "auto" is bfloat16 where the hardware multiplies in it."""
    if asked != "auto":
        return "bfloat16" if asked == "bfloat16" else "float32"
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Processors that only emulate it are slower than in float32.
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def surroundings(device: torch.device, threads: int) -> Iterator[None]:
    """Fix threads and algorithms for a while; what is put in order here is put back afterwards."""
    filling = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        filling.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
    )
    torch.set_num_threads(threads)
    # On CUDA the gradient of MaxPool3d has no deterministic algorithm, and asking for one raises.
    torch.use_deterministic_algorithms(device.type == "cpu")
    filling.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a pass over each new tensor
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        filling.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before[3:]
