"""What the machine can do at most: copying, multiplying, the disk. Other cases are read against these."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.case import Case, Contestant, Setup, Size
from benchmarks.harness.growth import Growth

SIDE = {"tiny": 128, "small": 2048, "full": 4096}
MEGABYTES = {"tiny": 4, "small": 512, "full": 4096}


@contextlib.contextmanager
def _memory(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np

    count = MEGABYTES[size] * 2**20 // 4
    source, target = np.ones(count, np.float32), np.zeros(count, np.float32)
    gigabytes = count * 4 / 1e9
    yield Setup(
        [
            Contestant("copy", lambda: np.copyto(target, source), 2 * gigabytes, "ceiling", "both ways"),
            Contestant("sum", lambda: float(source.sum()), gigabytes, "ceiling", "read bytes, one core"),
        ]
    )  # fmt: skip


def _products(device: str) -> Callable[[Size, Path], contextlib.AbstractContextManager[Setup]]:
    @contextlib.contextmanager
    def opened(size: Size, scratch: Path) -> Iterator[Setup]:
        import torch

        side = SIDE[size] * (4 if device == "cuda" and size == "full" else 1)
        where = torch.device(device if device == "cpu" or torch.cuda.is_available() else "cpu")

        def product(dtype: torch.dtype) -> Callable[[], Any]:
            a, b = (torch.full((side, side), 0.5, dtype=dtype, device=where) for _ in range(2))

            def run() -> float:
                return float((a @ b)[0, 0])  # the value makes a GPU finish

            return run

        work = 2 * side**3 / 1e9
        yield Setup(
            [
                Contestant("float32", product(torch.float32), work, "ceiling", f"{side}^3"),
                Contestant("bfloat16", product(torch.bfloat16), work, "ceiling", f"{side}^3"),
            ]
        )

    return opened


@contextlib.contextmanager
def _disk(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np

    data = np.random.default_rng(0).integers(0, 256, MEGABYTES[size] * 2**20 // 2, np.uint8)
    path, kept = scratch / "written", scratch / "kept"
    data.tofile(kept)

    def write(*, sync: bool) -> None:
        with path.open("wb") as stream:
            stream.write(data.data)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())

    gigabytes = data.nbytes / 1e9
    gone: Callable[[], None] = lambda: path.unlink(missing_ok=True)  # noqa: E731
    yield Setup(
        [
            Contestant("write", lambda: write(sync=False), gigabytes, "ceiling", "into the page cache", gone),
            Contestant("write, fsync", lambda: write(sync=True), gigabytes, "ceiling", "to the device", gone),
            Contestant("read", lambda: np.fromfile(kept, np.uint8), gigabytes, "ceiling", "page cache"),
        ]
    )  # fmt: skip


@contextlib.contextmanager
def _transforms(size: Size, scratch: Path) -> Iterator[Setup]:
    import numpy as np
    import scipy.fft

    edge = {"tiny": 32, "small": 192, "full": 288}[size]
    volume = np.random.default_rng(0).standard_normal((edge,) * 3, dtype=np.float32)

    def there_and_back() -> Any:
        return scipy.fft.irfftn(scipy.fft.rfftn(volume, workers=1), s=volume.shape, workers=1)

    yield Setup(
        [Contestant("FFT there and back", there_and_back, edge**3 / 1e6, "ceiling", f"{edge}^3, float32")]
    )


CASES = (
    Case("ceilings.memory", "How fast is memory?", "GB", _memory),
    Case(
        "ceilings.products",
        "How fast are products of matrices?",
        "GFLOP",
        _products("cpu"),
        threads=2,
    ),
    Case("ceilings.product-1", "How fast are products of matrices on one core?", "GFLOP", _products("cpu")),
    Case("ceilings.transforms", "How fast are Fourier transforms on one core?", "Mvoxel", _transforms),
    Case("ceilings.disk", "How fast is the disk that runs lie on?", "GB", _disk),
    Case("ceilings.gpu", "How fast are they on the GPU?", "GFLOP", _products("cuda"), device="cuda"),
)
GROWTH: tuple[Growth, ...] = ()
