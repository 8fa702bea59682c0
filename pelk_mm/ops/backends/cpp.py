"""Box sums on the CPU: k'^2 multiply-adds per output instead of K^2."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend
from .cpp_build import find_library
from .cpp_library import Library

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class CppBackend(Backend):
    """Vectorised C++ kernels, see csrc/kernel.inc.

    They are in a wheel for the platform, otherwise compiled on first use.

    Any strides are read in place, so a slice of the channels of a
    channels-last tensor costs no copy. float16 is computed as float32.
    """

    name = 'cpp'

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != 'cpu':
            return f'it runs on CPU only, not on {device.type}'
        return None if dtype in _DTYPES else f'it has no kernel for {dtype}'

    #: Opened by :meth:`prepare`.
    library: Library

    def build(self) -> None:
        """Open the library, after compiling it if nobody has yet."""
        self.library = Library(find_library())

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
        output = self.library.forward(
            _widen(input), _widen(weight), bias, grid.sizes, layout
        )
        return output.to(input.dtype)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        grad_weight = self.library.weight_grad(
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
        grads = self.library.backward(
            *(_widen(input), _widen(weight), _widen(grad_output)),
            *(grid.sizes, layout),
        )
        return grads[0].to(input.dtype), grads[1].to(input.dtype)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
