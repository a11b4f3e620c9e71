"""A 2D convolution with a gradient of its own, for processors and large kernels: what torch's is slow at.

Legend of the shape suffixes: N items, I and O channels in and out, Y X pixels, A B places of a kernel.

oneDNN computes the gradient of 15 x 15 weights by plain loops where tensors are channels-last: in 180 times
the time of the convolution. Here it is products of matrices over lists of neighbours along x, which for one
item stay in the processor's cache. docs/design/014-networks.md has what it gains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as torch_f
from torch import Tensor
from torch.autograd.function import once_differentiable

from cryoscale.models.kernels import _cast


def conv2d(x_NIYX: Tensor, weight_OIAB: Tensor, bias_O: Tensor) -> Tensor:
    """Convolve ('same'); the kernel is square, its side odd."""
    y: Tensor = _Conv2d.apply(*_cast(x_NIYX, weight_OIAB, bias_O))  # type: ignore[no-untyped-call]
    return y


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch_f.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:  # a pixel's gradient comes from where it went: the kernel mirrored
            mirrored = weight.flip(2, 3).transpose(0, 1)
            of_x = torch_f.conv2d(grad, mirrored, padding=weight.shape[-1] // 2)
        return of_x, _of_weight(x, grad, weight.shape[-1]).to(weight.dtype), grad.sum(dim=(0, 2, 3))


def _of_weight(x_NIYX: Tensor, grad_NOYX: Tensor, side: int) -> Tensor:
    """Give the gradient of the weights (O, I, A, B): for each row A of the kernel one product per item."""
    _, inputs, height, width = x_NIYX.shape
    radius, outputs = side // 2, grad_NOYX.shape[1]
    dtype = torch.promote_types(x_NIYX.dtype, torch.float32)
    sums_AOK = x_NIYX.new_zeros((side, outputs, side * inputs), dtype=dtype)  # K: places B and channels I
    for x_IYX, grad_OYX in zip(x_NIYX, grad_NOYX, strict=True):
        padded_YXI = torch_f.pad(x_IYX.permute(1, 2, 0), (0, 0, radius, radius, radius, radius)).contiguous()
        steps = padded_YXI.stride()
        view = padded_YXI.as_strided(
            (height + 2 * radius, width, side, inputs), (steps[0], steps[1], steps[1], steps[2])
        )
        neighbours_YXK = view.contiguous().view(height + 2 * radius, width, side * inputs)
        grad_OV = grad_OYX.reshape(outputs, -1)
        for row, sums_OK in enumerate(sums_AOK):
            sums_OK += grad_OV @ neighbours_YXK[row : row + height].view(height * width, -1)
    return sums_AOK.view(side, outputs, side, inputs).permute(1, 3, 0, 2)
