"""The encoder of Autoencoder3D on OpenVINO: a graph of its own, and one patch at a time on each core."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryoscale.inference.crew import Crew
from cryoscale.inference.encoder_graph import feature_graph
from cryoscale.inference.engine import Engine
from cryoscale.inference.openvino_cpu import compile_model, convert, engine_name, has_bfloat16

GROUP = 8  # patches that a thread takes at a time


class EncoderEngine(Engine):
    """Encodings, faster than by the network as it stands; see `cryoscale.inference.engine.open_engine`.

    The convolutions run patch by patch; the dense layer and the invariants, whose weights are as large as
    hundreds of patches, in padded batches of `batch`. Each runs on one thread, so results do not depend on
    the number of threads.
    """

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
        graph = feature_graph(
            module.autoencoder,  # type: ignore[arg-type]
            pairs=precision == "bfloat16" and has_bfloat16(),
        )
        self._padded, self._n_features = graph.padded, len(graph.order)
        tail = _Tail(module, graph.order)
        shapes: list[tuple[int, ...]] = [(batch, self._n_features)]
        if tail.invariants is not None:
            shapes.append((batch, *input_shape))
        self._tail: _Tail | None = tail  # the compiled one shares its weights
        head = compile_model(graph.model, threads, precision, threads)
        last = compile_model(convert(tail, shapes), threads, precision, threads)
        self._crew: Crew[_Tools] = Crew(
            [_Tools(head.create_infer_request(), last.create_infer_request()) for _ in range(threads)]
        )

    def _run(self, items_N: npt.NDArray[Any], results_N: npt.NDArray[np.float32]) -> None:
        def compute(tools: _Tools, job: tuple[_Batch, int]) -> None:
            batch, first = job
            last = min(first + GROUP, batch.stop)
            for row in range(first, last):
                self._features(tools.head, items_N[row], batch.features_NF[row - batch.start])
            if batch.finished(last - first):  # by whoever computes its last patch
                part_N = items_N[batch.start : batch.stop]
                results_N[batch.start : batch.stop] = self._finish(tools.tail, part_N, batch)

        self._crew.work(self._jobs(len(items_N)), compute)

    def _jobs(self, count: int) -> Iterator[tuple[_Batch, int]]:
        for start in range(0, count, self.batch):
            stop = min(start + self.batch, count)
            batch = _Batch(start, stop, np.zeros((self.batch, self._n_features), np.float32))
            for first in range(start, stop, GROUP):
                yield batch, first

    def _features(self, request: Any, item: npt.NDArray[Any], out_F: npt.NDArray[np.float32]) -> None:
        buffer = request.get_input_tensor(0).data
        if self._padded:  # its frame stays zero
            z, y, x = self.input_shape[1:]
            buffer.reshape(z + 2, y + 2, x + 2)[1:-1, 1:-1, 1:-1] = item[0]
        else:
            buffer[0] = item
        request.infer()
        place = 0
        for tensor in request.output_tensors:
            part = tensor.data.reshape(-1)
            out_F[place : place + len(part)] = part
            place += len(part)

    def _finish(self, request: Any, part_N: npt.NDArray[Any], batch: _Batch) -> npt.NDArray[Any]:
        inputs = request.input_tensors
        inputs[0].data[...] = batch.features_NF
        if len(inputs) > 1:
            inputs[1].data[: len(part_N)] = part_N
            inputs[1].data[len(part_N) :] = 0
        request.infer()
        return np.asarray(request.get_output_tensor(0).data[: len(part_N)])

    def _free(self) -> None:
        self._crew.close()
        self._tail = None


@dataclass
class _Tools:
    head: Any
    tail: Any

    def __post_init__(self) -> None:
        self.head.get_input_tensor(0).data[...] = 0


@dataclass
class _Batch:
    start: int
    stop: int
    features_NF: npt.NDArray[np.float32]
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def finished(self, patches: int) -> bool:
        """Count patches; tell whether these were the last."""
        with self._lock:
            self._done += patches
            return self._done == self.stop - self.start


class _Tail(nn.Module):
    """The dense layer on features in the graph's order, its activation, and invariants if there are any."""

    def __init__(self, module: Any, order: npt.NDArray[np.int64]) -> None:
        super().__init__()
        network = module.autoencoder
        outputs, inputs = network.encoder_dense.weight.shape
        self.dense = nn.Linear(inputs, outputs, device="meta")
        self.dense.weight = nn.Parameter(network.encoder_dense.weight[:, torch.from_numpy(order)], False)
        self.dense.bias = network.encoder_dense.bias
        self.activate = network._activate
        self.invariants: nn.Module | None = getattr(module, "invariants", None)
        self.gain = getattr(module, "gain", 1.0)

    def forward(self, features_NF: Tensor, patches_NCZYX: Tensor | None = None) -> Tensor:
        codes_NF: Tensor = self.activate(self.dense(features_NF))
        if self.invariants is None or patches_NCZYX is None:
            return codes_NF
        return torch.cat([codes_NF, self.gain * self.invariants(patches_NCZYX)], dim=1)
