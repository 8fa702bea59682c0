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
        output = F.conv2d(
            input.to(dtype),
            kernel,
            None if bias is None else bias.to(dtype),
            padding=grid.kernel_size // 2,
            groups=input.shape[1],
        )
        return output.to(input.dtype)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        channels, size = input.shape[1], grid.kernel_size
        kernel_grad = conv2d_weight(
            input.to(dtype),
            (channels, 1, size, size),
            grad_output.to(dtype),
            padding=size // 2,
            groups=channels,
        )
        return grid.reduce(kernel_grad).to(input.dtype)
