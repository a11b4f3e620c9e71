"""The layers of the networks with gradients of their own, for processors: what torch's are slow at.

Legend of the shape suffixes: N patches, C channels, I and O those in and out, Z Y X voxels, K places of a
3 x 3 x 3 kernel (27), V voxels of all patches.

Each function here gives what the plain layers give (tests/models/test_kernels.py), but for rounding:

- bias gradients are sums, not a part of the convolution's gradient, which takes as long as all the rest;
- pooling takes the larger of neighbours, step by step; torch's keeps an index of 8 bytes for each result;
- the ReLU comes after the pooling, where there are 8 times fewer voxels: the two commute;
- one channel in, or out, is a product of matrices: the kernels of oneDNN fill up to 16 channels.

All work in channels-last. docs/design/011-training.md has what each of them gains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as torch_f
from torch import Tensor
from torch.autograd.function import once_differentiable

LAYOUT = torch.channels_last_3d
PHASES = tuple(itertools.product((0, 1), repeat=3))  # of a voxel within its pooling window, in order
SMALL_SIDE = 4
"""Below it bfloat16 gradients are computed in float32: oneDNN's of the weights, where z has 2 voxels, take up
memory that nobody wrote (torch 2.13; NaN, or other bits in every run)."""
SHIFTS = tuple(itertools.product((0, 1, 2), repeat=3))  # places of a kernel, in order


def work_here(x_NCZYX: Tensor) -> bool:
    """Tell whether these kernels are for this tensor: on a processor, and nobody is reading the network."""
    read = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined,no-untyped-call]
    return x_NCZYX.device.type == "cpu" and not read


class Geometry(NamedTuple):
    """Where a convolution looks; transposed ones double each side."""

    stride: int = 1
    padding: int = 1
    transposed: bool = False
    extra: int = 0  # voxels at the far ends of a transposed one, torch's `output_padding`


SAME = Geometry()
FOLDED = Geometry(2, 1, True)  # an upsampling and its convolution in one: kernel 4
DECONV = Geometry(2, 1, True, 1)  # kernel 3


def conv(
    x_NIZYX: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry = SAME, *, relu: bool = False
) -> Tensor:
    """Convolve, and take the ReLU where it is asked for."""
    x, weight, bias = _cast(x_NIZYX, weight, bias)
    y: Tensor = _Conv.apply(x.contiguous(memory_format=LAYOUT), weight, bias, geometry, relu)  # type: ignore[no-untyped-call]
    return y


def conv_relu(x_NIZYX: Tensor, weight: Tensor, bias: Tensor, *, stride: int = 1) -> Tensor:
    """Convolve ('same'), or with `stride` 2 convolve transposed (kernel 4), then take the ReLU."""
    return conv(x_NIZYX, weight, bias, FOLDED if stride > 1 else SAME, relu=True)


def pointwise(x_NIZYX: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """Convolve with a kernel of 1 by a product of matrices: torch goes by way of another layout, and back.

    In inference it is torch's: on several threads the last bits of a product depend on the row, which is the
    item's place in its batch.
    """
    if torch.is_inference_mode_enabled():
        y = torch_f.conv3d(x_NIZYX, weight, bias)
    else:
        rows_VO = torch_f.linear(_rows(x_NIZYX), weight.flatten(1), bias)  # cast by autocast
        count, _, *sides = x_NIZYX.shape
        y = rows_VO.view(count, *sides, -1).permute(0, 4, 1, 2, 3)
    return torch_f.relu(y) if relu else y


def conv_pool_relu(x_NIZYX: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve ('same'), take the largest of 2 x 2 x 2 voxels, then the ReLU."""
    x, weight, bias = _cast(x_NIZYX, weight, bias)
    if x.shape[1] == 1 and not x.requires_grad:
        y: Tensor = _FirstConvPoolReLU.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    else:
        y = _ConvPoolReLU.apply(x.contiguous(memory_format=LAYOUT), weight, bias)  # type: ignore[no-untyped-call]
    return y


def conv_to_one(x_NIZYX: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve ('same') to one channel."""
    x, weight, bias = _cast(x_NIZYX, weight, bias)
    y: Tensor = _ConvToOne.apply(x.contiguous(memory_format=LAYOUT), weight, bias)  # type: ignore[no-untyped-call]
    return y


def _cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Take the type that autocast asks for: the layers below do not know of it."""
    if torch.is_autocast_enabled("cpu"):
        return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)
    return tensors


def _rows(x_NCZYX: Tensor) -> Tensor:
    """View a channels-last tensor as (V, C)."""
    return x_NCZYX.permute(0, 2, 3, 4, 1).reshape(-1, x_NCZYX.shape[1])


def _sums(rows_VC: Tensor) -> Tensor:
    """Add up the voxels of each channel: (C,); torch adds bfloat16 up in float32."""
    return rows_VC.sum(0)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, needs_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Give the gradients of input and weights; that of the bias is slow here."""
    if x.dtype == torch.bfloat16 and min(x.shape[2:]) < SMALL_SIDE:
        exact = _gradients(grad.float(), x.float(), weight.float(), geometry, needs_input)
        return None if exact[0] is None else exact[0].to(x.dtype), exact[1].to(weight.dtype)
    stride, padding, extra = ([number] * 3 for number in (geometry.stride, geometry.padding, geometry.extra))
    wanted = [needs_input, True, False]
    of_input, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, [1] * 3, geometry.transposed, extra, 1, wanted
    )
    return of_input, of_weight


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, geometry: Geometry, relu: bool) -> Tensor:
        stride, padding, transposed, extra = geometry
        if transposed:
            y = torch_f.conv_transpose3d(x, weight, bias, stride, padding, extra)
        else:
            y = torch_f.conv3d(x, weight, bias, stride, padding)
        if relu:
            y = y.relu_()
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.geometry = geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=LAYOUT)
        if y is not None:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        of_input, of_weight = _gradients(grad, x, weight, ctx.geometry, ctx.needs_input_grad[0])
        return of_input, of_weight, _sums(_rows(grad)), None, None


class _ConvPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch_f.conv3d(x, weight, bias, padding=1).contiguous(memory_format=LAYOUT)
        pooled = torch.maximum(y[:, :, 0::2], y[:, :, 1::2])
        pooled = torch.maximum(pooled[:, :, :, 0::2], pooled[:, :, :, 1::2])
        pooled = torch.maximum(pooled[..., 0::2], pooled[..., 1::2]).relu_()
        ctx.save_for_backward(x, weight, y, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, y, pooled = ctx.saved_tensors
        left = torch.ops.aten.threshold_backward(grad.contiguous(memory_format=LAYOUT), pooled, 0)
        of_bias = _sums(_rows(left))
        of_y = torch.empty_like(y)
        for a, b, c in PHASES:  # the first of equal ones takes it all, as in torch's pooling
            here = (slice(None), slice(None), slice(a, None, 2), slice(b, None, 2), slice(c, None, 2))
            taken = torch.eq(y[here], pooled, out=of_y[here]).mul_(left)  # 1 or 0, of their own type
            left.sub_(taken)
        of_input, of_weight = _gradients(of_y, x, weight, SAME, ctx.needs_input_grad[0])
        return of_input, of_weight, of_bias


class _FirstConvPoolReLU(torch.autograd.Function):
    """One channel in: voxels go by phase, so that pooling is over the first axis of a matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, _, *sides = x.shape
        weight_KO = weight.reshape(len(weight), 27).t()
        y_VO = x.new_empty((x.numel(), len(weight)))
        for columns_KV, part in zip(_columns_of_phases(x), y_VO.chunk(8), strict=True):
            torch.addmm(bias, columns_KV.t(), weight_KO, out=part)
        pooled_VO = y_VO.view(8, -1, len(weight)).amax(0).relu_()
        ctx.save_for_backward(x, y_VO, pooled_VO)
        halves = [side // 2 for side in sides]
        return pooled_VO.view(count, *halves, len(weight)).permute(0, 4, 1, 2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y_VO, pooled_VO = ctx.saved_tensors
        left_VO = torch.ops.aten.threshold_backward(_rows(grad), pooled_VO, 0)
        of_bias = _sums(left_VO)
        of_y_VO = torch.empty_like(y_VO)
        for y, of_y in zip(y_VO.chunk(8), of_y_VO.chunk(8), strict=True):
            left_VO.sub_(torch.eq(y, pooled_VO, out=of_y).mul_(left_VO))
        exact = torch.promote_types(x.dtype, torch.float32)
        of_weight_KO = y_VO.new_zeros((27, y_VO.shape[1]), dtype=exact)
        for columns_KV, of_y in zip(_columns_of_phases(x), of_y_VO.chunk(8), strict=True):
            of_weight_KO += columns_KV @ of_y
        return None, of_weight_KO.to(x.dtype).t().reshape(-1, 1, 3, 3, 3), of_bias


class _ConvToOne(torch.autograd.Function):
    """One channel out: a product with all 27 weights of each voxel, whose results are added where they go."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        count, channels, *sides = x.shape
        planes_KV = weight.reshape(channels, 27).t() @ _rows(x).t()
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = x.new_zeros((count, *(side + 2 for side in sides)), dtype=dtype)
        for (a, b, c), plane_V in zip(SHIFTS, planes_KV, strict=True):
            # The weight at place 0 takes the voxel before: its product belongs to the voxel after.
            shifted = y[:, 2 - a : 2 - a + sides[0], 2 - b : 2 - b + sides[1], 2 - c : 2 - c + sides[2]]
            shifted += plane_V.view(count, *sides)
        return y[:, None, 1:-1, 1:-1, 1:-1] + bias.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        count, channels, *sides = x.shape
        columns_KV = _columns(grad.to(x.dtype))
        # A voxel's gradient comes from where its products went: the other way round.
        mirrored_KI = weight.reshape(channels, 27).t().flip(0)
        of_x_VI = columns_KV.t() @ mirrored_KI
        of_weight_KI = (columns_KV @ _rows(x)).flip(0)
        of_x = of_x_VI.view(count, *sides, channels).permute(0, 4, 1, 2, 3)
        return of_x, of_weight_KI.t().reshape(1, channels, 3, 3, 3), grad.sum().to(x.dtype).reshape(1)


def _columns(x_N1ZYX: Tensor) -> Tensor:
    """List for each voxel its 27 neighbours, zero outside: (K, V)."""
    padded = torch_f.pad(x_N1ZYX[:, 0], (1,) * 6)
    steps = padded.stride()
    view = padded.as_strided((3, 3, 3, len(padded), *x_N1ZYX.shape[2:]), (*steps[1:], *steps))
    return view.reshape(27, -1)


def _columns_of_phases(x_N1ZYX: Tensor) -> Iterator[Tensor]:
    """Give the neighbours of the voxels of each phase: eight times (K, V / 8).

    There are 64 different lists of neighbours in all; each phase takes 27 of them.
    """
    padded = torch_f.pad(x_N1ZYX[:, 0], (1,) * 6)
    halves, steps = [side // 2 for side in x_N1ZYX.shape[2:]], padded.stride()
    view = padded.as_strided(
        (4, 4, 4, len(padded), *halves), (*steps[1:], steps[0], *(2 * step for step in steps[1:]))
    )
    lists = view.reshape(4, 4, 4, -1)
    for a, b, c in PHASES:
        yield lists[a : a + 3, b : b + 3, c : c + 3].reshape(27, -1)
