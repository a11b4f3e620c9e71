"""The engine on OpenVINO: two to four times as fast as torch on CPUs, for these networks.

Items are computed a few at a time, each few on one core: what a layer leaves stays in that core's cache for
the next, and neither the number of threads nor that of items has a part in the arithmetic. Only where items
are so large that they come one by one (`batch` 1) all cores work on the same one.
"""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cryoscale.inference.crew import Crew
from cryoscale.inference.engine import Engine

HINTS = {"float32": "f32", "bfloat16": "bf16"}
AT_ONCE = 4  # items of one request at most


class OpenvinoEngine(Engine):
    """See `cryoscale.inference.engine.open_engine`."""

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        batch: int,
        threads: int,
        precision: str,
    ) -> None:
        super().__init__(engine_name(precision, threads), "cpu", batch, input_shape, output_shape)
        self._module: nn.Module | None = module  # the compiled network shares its weights
        self._at_once = math.gcd(batch, AT_ONCE)
        requests = threads if batch > 1 else 1
        model = convert(module, [(self._at_once, *input_shape)])
        compiled = compile_model(model, threads, precision, requests)
        self._crew: Crew[Any] = Crew([compiled.create_infer_request() for _ in range(requests)])

    def _run(self, items_N: npt.NDArray[Any], results_N: npt.NDArray[np.float32]) -> None:
        def compute(request: Any, start: int) -> None:
            part_N = items_N[start : start + self._at_once]
            # Filled in place: the same memory, thus the same alignment, for every request.
            buffer_N = request.get_input_tensor(0).data
            buffer_N[: len(part_N)] = part_N
            buffer_N[len(part_N) :] = 0
            request.infer()
            results_N[start : start + len(part_N)] = request.get_output_tensor(0).data[: len(part_N)]

        self._crew.work(range(0, len(items_N), self._at_once), compute)

    def _free(self) -> None:
        self._crew.close()
        self._module = None


def engine_name(precision: str, threads: int) -> str:
    """Say what computes, also where the processor has no bfloat16 and float32 is computed in its place."""
    instead = precision == "bfloat16" and not has_bfloat16()
    return f"openvino {precision}{' (computed in float32 by this CPU)' if instead else ''} {threads} threads"


def has_bfloat16() -> bool:
    """Tell whether OpenVINO computes in bfloat16 on this CPU."""
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


def convert(module: nn.Module, shapes: list[tuple[int, ...]]) -> Any:
    """Turn a network into OpenVINO's form, for inputs of these shapes."""
    openvino = import_openvino()
    with warnings.catch_warnings():
        # Conversion traces the network; torch announces the end of tracing.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return openvino.convert_model(
            module, example_input=tuple(torch.zeros(shape) for shape in shapes), input=shapes
        )


def compile_model(model: Any, threads: int, precision: str, requests: int) -> Any:
    """Make a network ready for so many requests at a time, which share the threads."""
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],  # without it some CPUs compute float32 in bfloat16
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": requests,
        "ENABLE_CPU_PINNING": False,  # several workers of one machine would pin to the same cores
    }
    return import_openvino().Core().compile_model(model, "CPU", settings)


def import_openvino() -> Any:
    """Import OpenVINO without its usage reports.

    Its Python package reports imports and conversions to its vendor when the package `openvino_telemetry` is
    found. Clusters often have no way out, and what is run there is nobody else's business: while OpenVINO is
    imported that package is hidden, and OpenVINO takes its own empty stand-in.
    """
    if "openvino" in sys.modules or "openvino_telemetry" in sys.modules:
        import openvino

        return openvino
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        import openvino
    finally:
        del sys.modules["openvino_telemetry"]
    return openvino
