"""The convolution theorem: work that hardly depends on the kernel size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    """Real FFTs of the zero-padded map, on any device torch has them on.

    A transform spreads a NaN or an infinity of the input over its whole
    plane. On CPUs the output is NaN where the kernel reaches one, and what it
    would be without elsewhere; on other devices, where looking for one would
    make the device be waited for, and in the weight's gradient, it spreads,
    as does one in the weight.
    """

    name = 'fft'

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == 'cpu' and not torch.backends.mkl.is_available():
            return 'this torch was built without MKL, whose FFT it uses'
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
        height, width = input.shape[-2:]
        shifts, period = _shifts_and_period(input, grid)
        reached = None
        # One infinity makes the sum no number; an overflow harms nothing.
        if input.is_cpu and not input.sum(dtype=dtype).isfinite():
            bad = ~input.isfinite()
            input, reached = input.masked_fill(bad, 0), _reached(bad, shifts)
        kernel = _met(grid.expand(weight.to(dtype)), shifts).squeeze(1)
        spectrum = torch.fft.rfft2(input.to(dtype), s=period)
        # Not lazily: compiled graphs of torch 2.14 lose that in an operator.
        spectrum *= torch.fft.rfft2(kernel, s=period).conj_physical()
        # Correlation at lag -up sits at the end of the period: roll it home.
        output = torch.fft.irfft2(spectrum, s=period).roll(shifts, (-2, -1))
        output = output[..., :height, :width]
        if bias is not None:
            output = output + bias.to(dtype)[:, None, None]
        if reached is not None:
            output = output.masked_fill(reached, torch.nan)
        return output.to(input.dtype)

    def weight_grad(
        self, input: Tensor, grad_output: Tensor, grid: SharingGrid
    ) -> Tensor:
        dtype = accumulation_dtype(input.dtype)
        shifts, period = _shifts_and_period(input, grid)
        spectrum = torch.fft.rfft2(grad_output.to(dtype), s=period)
        spectrum = spectrum.conj_physical()
        spectrum *= torch.fft.rfft2(input.to(dtype), s=period)
        lags = torch.fft.irfft2(spectrum.sum(0), s=period)
        lags = lags.roll(shifts, (-2, -1))
        size = grid.kernel_size
        kernel_grad = lags.new_zeros(input.shape[1], 1, size, size)
        met = _met(kernel_grad, shifts)
        met[:, 0] = lags[..., : met.shape[-2], : met.shape[-1]]
        return grid.reduce(kernel_grad).to(input.dtype)


def _shifts_and_period(
    input: Tensor, grid: SharingGrid
) -> tuple[tuple[int, int], tuple[int, int]]:
    """How far the kernel reaches up and left within the map; the FFT's size.

    Circular wrap-around reaches the first rows only if the period is shorter
    than the map plus the kernel's reach.
    """
    height, width = input.shape[-2:]
    radius = grid.kernel_size // 2
    up, left = min(radius, height - 1), min(radius, width - 1)
    return (up, left), (_fast_length(height + up), _fast_length(width + left))


def _reached(bad: Tensor, shifts: tuple[int, int]) -> Tensor:
    """Where the kernel covers a position that is ``bad``."""
    spread = bad.float()
    for reach in ((shifts[0], 0), (0, shifts[1])):
        window = [2 * n + 1 for n in reach]
        spread = F.max_pool2d(spread, window, stride=1, padding=reach)
    return spread > 0


def _met(kernel: Tensor, shifts: tuple[int, int]) -> Tensor:
    """The middle: offsets beyond the map only ever meet padding."""
    radius = kernel.shape[-1] // 2
    rows, columns = (slice(radius - n, radius + n + 1) for n in shifts)
    return kernel[..., rows, columns]
