"""The convolution theorem: work that hardly depends on the kernel size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sharing_grid import SharingGrid
from .base import Backend, accumulation_dtype


def _fast_length(length: int) -> int:
    """Smallest even number >= length without a prime factor above 5."""
    candidate = length + length % 2
    while True:
        rest = candidate
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
        candidate += 2


class FFTBackend(Backend):
    """Real FFTs of the zero-padded map, on any device torch has them on."""

    name = 'fft'

    def can_run(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[bool, str]:
        if device.type == 'cpu' and not torch.backends.mkl.is_available():
            return False, 'this torch was built without MKL, whose FFT it uses'
        return True, ''

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grid: SharingGrid,
    ) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        height, width = input.shape[-2:]
        radius = grid.kernel_size // 2
        # Offsets beyond the map only ever meet padding.
        up, left = min(radius, height - 1), min(radius, width - 1)
        kernel = grid.expand(weight.to(dtype))[
            ...,
            radius - up : radius + up + 1,
            radius - left : radius + left + 1,
        ].squeeze(1)
        # Circular wrap-around reaches the first `up` rows only if the period
        # is shorter than the map plus the kernel's reach.
        period = _fast_length(height + up), _fast_length(width + left)
        spectrum = torch.fft.rfft2(input.to(dtype), s=period)
        spectrum *= torch.fft.rfft2(kernel, s=period).conj()
        # Correlation at lag -up sits at the end of the period: roll it home.
        output = torch.fft.irfft2(spectrum, s=period).roll(
            (up, left), (-2, -1)
        )[..., :height, :width]
        if bias is not None:
            output = output + bias.to(dtype)[:, None, None]
        return output.to(input.dtype)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        height, width = input.shape[-2:]
        radius, size = grid.kernel_size // 2, grid.kernel_size
        up, left = min(radius, height - 1), min(radius, width - 1)
        period = _fast_length(height + up), _fast_length(width + left)
        spectrum = torch.fft.rfft2(grad_output.to(dtype), s=period).conj()
        spectrum *= torch.fft.rfft2(input.to(dtype), s=period)
        lags = torch.fft.irfft2(spectrum.sum(0), s=period).roll(
            (up, left), (-2, -1)
        )[..., : 2 * up + 1, : 2 * left + 1]
        kernel_grad = lags.new_zeros(input.shape[1], 1, size, size)
        kernel_grad[
            :,
            0,
            radius - up : radius + up + 1,
            radius - left : radius + left + 1,
        ] = lags
        return grid.reduce(kernel_grad).to(input.dtype)
