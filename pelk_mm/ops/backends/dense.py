"""The truth: the expanded kernel in an ordinary depthwise convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ..sharing_grid import SharingGrid
from .base import Backend, accumulation_dtype


class DenseBackend(Backend):
    """K^2 multiply-adds per output, on any device; untuned on purpose."""

    name = 'dense'

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return None

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        kernel = grid.expand(weight.to(dtype))
        bias = None if bias is None else bias.to(dtype)
        how = dict(padding=grid.kernel_size // 2, groups=input.shape[1])
        output = F.conv2d(input.to(dtype), kernel, bias, **how)
        return output.to(input.dtype)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        channels, size = input.shape[1], grid.kernel_size
        x, grad = input.to(dtype), grad_output.to(dtype)
        shape = channels, 1, size, size
        how = dict(padding=size // 2, groups=channels)
        kernel_grad = conv2d_weight(x, shape, grad, **how)
        return grid.reduce(kernel_grad).to(input.dtype)
