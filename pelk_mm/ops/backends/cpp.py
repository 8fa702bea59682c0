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
    #: Opened by :meth:`prepare`.
    library: Library

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != 'cpu':
            return f'it runs on CPU only, not on {device.type}'
        return None if dtype in _DTYPES else f'it has no kernel for {dtype}'

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
        if input.dtype == torch.float16:
            bias = None if bias is None else bias.float()
            wide = input.float(), weight.float(), bias
            return self.forward(*wide, grid, layout).half()
        return self.library.forward(input, weight, bias, grid.sizes, layout)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        if input.dtype == torch.float16:
            wide = input.float(), grad_output.float()
            return self.weight_grad(*wide, grid).half()
        return self.library.weight_grad(input, grad_output, grid.sizes)

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        grid: SharingGrid,
        layout: torch.memory_format,
    ) -> tuple[Tensor, Tensor]:
        if input.dtype == torch.float16:
            wide = input.float(), weight.float(), grad_output.float()
            grads = self.backward(*wide, grid, layout)
            return grads[0].half(), grads[1].half()
        return self.library.backward(
            *(input, weight, grad_output), grid.sizes, layout
        )
