"""Box sums on the CPU: k'^2 multiply-adds per output instead of K^2."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend
from .cpp_build import load_library

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class CppBackend(Backend):
    """Vectorised C++ kernels, compiled on first use; see csrc/kernel.inc.

    Any strides are read in place, so a slice of the channels of a
    channels-last tensor costs no copy. float16 is computed as float32.
    """

    name = 'cpp'

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != 'cpu':
            return f'it runs on CPU only, not on {device.type}'
        return None if dtype in _DTYPES else f'it has no kernel for {dtype}'

    def build(self) -> None:
        """Compile the kernels, or load those that an earlier process did."""
        load_library()

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> Tensor:
        if bias is not None:
            bias = _widen(bias)
        last = layout == torch.channels_last
        run = torch.ops.pelk_mm_cpp.forward
        output = run(_widen(input), _widen(weight), bias, grid.sizes, last)
        return output.to(input.dtype)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        grad_weight = torch.ops.pelk_mm_cpp.weight_grad(
            _widen(input), _widen(grad_output), grid.sizes
        )
        return grad_weight.to(input.dtype)

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> tuple[Tensor, Tensor]:
        tensors = map(_widen, (input, weight, grad_output))
        last = layout == torch.channels_last
        grads = torch.ops.pelk_mm_cpp.backward(*tensors, grid.sizes, last)
        return grads[0].to(input.dtype), grads[1].to(input.dtype)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
