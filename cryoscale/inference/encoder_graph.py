"""The convolutions of Autoencoder3D's encoder as a graph for OpenVINO, of few operations and small memory.

Same numbers as `Autoencoder3D.encode` but for rounding; what differs is the order of the work:

- one patch at a time, so that what a layer leaves fits a core's cache;
- the second convolution, 80 % of the operations, in Winograd's way along z: half of its products;
- in bfloat16 the first convolution computes two neighbours along x at once, from pairs of voxels. It has one
  input channel, and processors multiply bfloat16 by pairs: by itself it would leave half of them idle;
- bias and ReLU after the maximum of a pool where that is cheaper: they do not change its order.

The dense layer follows in `cryoscale.inference.encoder_cpu`: its weights are large, so it takes many patches
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cryoscale.inference.openvino_cpu import import_openvino
from cryoscale.inference.winograd import tile_of, transform_inputs, transform_outputs, transform_weights
from cryoscale.models.autoencoder3d import Autoencoder3D

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureGraph:
    """A graph of one patch, and what goes into it and comes out.

    Parameters
    ----------
    model : openvino.Model
        One input; one or two outputs (1, tiles, Y / 4, X / 4, C): feature planes. Of n outputs number i has
        the planes z = i, i + n, …
    padded : bool
        The input is (1, Z + 2, Y + 2, X / 2 + 1, 2), a patch with a frame of zeros; else (1, 1, Z, Y, X).
    order : (features,) int
        Which of the features of `Autoencoder3D`, flattened, stands where in the outputs, one after the other.
    """

    model: Any
    padded: bool
    order: npt.NDArray[np.int64]


def feature_graph(network: Autoencoder3D, *, pairs: bool) -> FeatureGraph:
    """Write the graph of an encoder.

    Parameters
    ----------
    network : Autoencoder3D
        Its weights are copied.
    pairs : bool
        First convolution by pairs of voxels: faster in bfloat16, slower in float32.
    """
    openvino = import_openvino()
    z, y, x = network.box
    shape = (1, z + 2, y + 2, x // 2 + 1, 2) if pairs else (1, 1, z, y, x)
    patch = _op().parameter(shape, np.float32)
    first = (_first_by_pairs if pairs else _first)(patch, network)
    planes = _second(first, network)
    model = openvino.Model(planes, [patch])
    return FeatureGraph(model, pairs, _order(network, len(planes)))


def _order(network: Autoencoder3D, outputs: int) -> npt.NDArray[np.int64]:
    sides = [side // 4 for side in network.box]
    index = np.arange(network.channels * int(np.prod(sides))).reshape(network.channels, *sides)
    index_ZYXC = index.transpose(1, 2, 3, 0)
    return np.concatenate([index_ZYXC[first::outputs].ravel() for first in range(outputs)])


def _first(patch: Any, network: Autoencoder3D) -> Any:
    weights, bias = _parameters(network.encoder_conv1)
    return _pool(_op().relu(_convolve(patch, weights, (1, 1, 1)) + _per_channel(bias)), (2, 2, 2))


def _first_by_pairs(patch: Any, network: Autoencoder3D) -> Any:
    """From (1, Z, Y, X / 2, 2): voxels 2 i and 2 i + 1 as channels; outputs of both as channels, too."""
    op = _op()
    weights, bias = _parameters(network.encoder_conv1)
    paired = np.zeros((2, len(weights), 2, 3, 3, 2), np.float32)
    for parity in range(2):
        for tap in range(3):
            paired[parity, :, (parity + tap) % 2, :, :, (parity + tap) // 2] = weights[:, 0, :, :, tap]
    pairs = op.transpose(patch, op.constant(np.array([0, 4, 1, 2, 3])))
    both = _convolve(pairs, paired.reshape(-1, 2, 3, 3, 2), (0, 0, 0)) + _per_channel(np.tile(bias, 2))
    left, right = op.split(_pool(op.relu(both), (2, 2, 1)), op.constant(np.array(1)), 2).outputs()
    return op.maximum(left, right)


def _second(first: Any, network: Autoencoder3D) -> list[Any]:
    """Convolve by tiles along z, then pool; see `FeatureGraph.model` for the planes."""
    op = _op()
    weights, bias = _parameters(network.encoder_conv2)
    depth = network.box[0] // 2
    tile = tile_of(depth)
    inner = [_planes(first, start, depth, tile) for start in range(tile)]  # plane i of each tile
    before = _planes(_pad(inner[-1], 1, 0), 0, depth // tile, 1)
    after = _planes(_pad(inner[0], 0, 1), 1, depth // tile + 1, 1)
    inputs = transform_inputs([before, *inner, after])
    products = [
        _convolve(part, part_weights, (0, 1, 1))
        for part, part_weights in zip(inputs, transform_weights(weights, tile), strict=True)
    ]
    outputs = transform_outputs(products)
    pooled = []
    for even, odd in zip(outputs[::2], outputs[1::2], strict=True):
        plane = _pool(op.relu(op.maximum(even, odd) + _per_channel(bias)), (1, 2, 2))
        pooled.append(op.transpose(plane, op.constant(np.array([0, 2, 3, 4, 1]))))
    return pooled


def _op() -> Any:
    import_openvino()
    from openvino import opset13

    return opset13


def _parameters(layer: Any) -> tuple[Array, Array]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def _convolve(x: Any, weights: Array, padding: tuple[int, int, int]) -> Any:
    kernel = _op().constant(np.ascontiguousarray(weights, dtype=np.float32))
    return _op().convolution(x, kernel, [1, 1, 1], list(padding), list(padding), [1, 1, 1])


def _per_channel(bias: Array) -> Any:
    return _op().constant(np.ascontiguousarray(bias.reshape(1, -1, 1, 1, 1), dtype=np.float32))


def _pool(x: Any, window: tuple[int, int, int]) -> Any:
    return _op().max_pool(x, list(window), [1, 1, 1], [0, 0, 0], [0, 0, 0], list(window)).output(0)


def _planes(x: Any, start: int, stop: int, step: int) -> Any:
    return _op().slice(x, *(_op().constant(np.array([number])) for number in (start, stop, step, 2)))


def _pad(x: Any, before: int, after: int) -> Any:
    sides = [_op().constant(np.array([0, 0, number, 0, 0])) for number in (before, after)]
    return _op().pad(x, *sides, "constant", _op().constant(np.float32(0)))
