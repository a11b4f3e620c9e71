"""What a machine can do at most: its disk, its memory, its products of matrices. A second or two each."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DISK_BYTES = 256 * 2**20
_MEMORY_BYTES = 256 * 2**20
_SIDE = 2048  # of the matrices


@dataclass(frozen=True)
class Ceilings:
    """Rates that nothing on this machine exceeds, measured.

    Parameters
    ----------
    write, read : float
        Of files in the folder that was asked about, bytes per second. Written through to the device; read
        from the system's cache, as files just written are.
    copy : float
        Of memory, bytes read and written per second.
    float32, bfloat16 : float
        Products of matrices on all cores, floating point operations per second.
    cuda : float
        The same on the first GPU in bfloat16; 0 without one.
    """

    write: float
    read: float
    copy: float
    float32: float
    bfloat16: float
    cuda: float


def measure_ceilings(folder: Path) -> Ceilings:
    """Measure what this machine can do at most.

    Parameters
    ----------
    folder : Path
        Whose disk is meant; it is made if it does not exist, and what is written there is removed again.

    Raises
    ------
    OSError
        The folder cannot be written, or has less than 256 MB of space.
    """
    import numpy as np
    import torch

    source, target = np.ones(_MEMORY_BYTES // 4, np.float32), np.empty(_MEMORY_BYTES // 4, np.float32)
    copy = 2 * _MEMORY_BYTES / _median(lambda: np.copyto(target, source))
    write, read = _disk(folder, source.view(np.uint8)[:_DISK_BYTES])
    gpu = _products("cuda", torch.bfloat16, 4 * _SIDE) if torch.cuda.is_available() else 0.0
    return Ceilings(
        write,
        read,
        copy,
        _products("cpu", torch.float32, _SIDE),
        _products("cpu", torch.bfloat16, _SIDE),
        gpu,
    )


def _disk(folder: Path, data: Any) -> tuple[float, float]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "rate"

        def write() -> None:
            with path.open("wb") as stream:
                stream.write(data.data)
                stream.flush()
                os.fsync(stream.fileno())

        wrote = _median(write)
        return len(data) / wrote, len(data) / _median(path.read_bytes)


def _products(device: str, dtype: Any, side: int) -> float:
    import torch

    a, b = (torch.full((side, side), 0.5, dtype=dtype, device=device) for _ in range(2))
    return 2.0 * side**3 / _median(lambda: float((a @ b)[0, 0]))  # reading a value makes a GPU finish


def _median(call: Callable[[], Any], times: int = 3) -> float:
    """Return the median seconds of a call, after one that does not count."""
    call()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
