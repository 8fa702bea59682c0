"""Box sums on the CPU: k'^2 multiply-adds per output instead of K^2."""

from __future__ import annotations

import re
import threading

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend, BackendError, memory_format
from .cpp_build import load_library

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_TELLING = re.compile(r'error:|not found|denied|No such file|No space')


class CppBackend(Backend):
    """Vectorised C++ kernels, compiled on first use; see csrc/kernel.inc.

    Any strides are read in place, so a slice of the channels of a
    channels-last tensor costs no copy. float16 is computed as float32.
    """

    name = 'cpp'

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready = False
        self.failure: Exception | None = None

    def can_run(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[bool, str]:
        if device.type != 'cpu':
            return False, f'it runs on CPU only, not on {device.type}'
        if dtype not in _DTYPES:
            return False, f'it has no kernel for {dtype}'
        if self.failure is not None:
            return False, self._reason()
        return True, ''

    def prepare(self) -> None:
        """Compile the kernels, or load those that an earlier process did."""
        if self._ready:
            return
        with self._lock:
            if not self._ready and self.failure is None:
                try:
                    load_library()
                    self._ready = True
                # Compilers, linkers and file systems fail in many ways, none
                # of which should stop a training that has other backends.
                except Exception as error:
                    self.failure = error
        if self.failure is not None:
            raise BackendError(self._reason()) from self.failure

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
    ) -> Tensor:
        self.prepare()
        if input.dtype == torch.float16:
            return self.forward(
                input.float(),
                weight.float(),
                None if bias is None else bias.float(),
                grid,
            ).to(input.dtype)
        return torch.ops.pelk_mm_cpp.forward(
            input,
            weight,
            bias,
            grid.sizes,
            memory_format(input) == torch.channels_last,
        )

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        self.prepare()
        if input.dtype == torch.float16:
            return self.weight_grad(
                input.float(), grad_output.float(), grid
            ).to(input.dtype)
        return torch.ops.pelk_mm_cpp.weight_grad(
            input, grad_output, grid.sizes
        )

    def backward(
        self,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        grid: SharingGrid,
    ) -> tuple[Tensor, Tensor]:
        self.prepare()
        if input.dtype == torch.float16:
            grad_input, grad_weight = self.backward(
                input.float(), weight.float(), grad_output.float(), grid
            )
            return grad_input.to(input.dtype), grad_weight.to(input.dtype)
        return torch.ops.pelk_mm_cpp.backward(
            input,
            weight,
            grad_output,
            grid.sizes,
            memory_format(input) == torch.channels_last,
        )

    def _reason(self) -> str:
        lines = str(self.failure).strip().splitlines() or ['no message']
        # A failed build repeats the compiler's commands, which say little.
        telling = [line for line in lines[1:] if _TELLING.search(line)]
        return (
            "backend 'cpp' could not be built: "
            f'{type(self.failure).__name__}: {(telling or lines)[0]}'
        )
