"""Depthwise convolutions, peripheral and small, as layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...ops import SharingGrid, peripheral_conv2d
from ...ops.choice import check_name


class PeripheralConv2d(nn.Module):
    """Depthwise convolution that owns a compact weight ``(C, 1, k', k')``.

    Args:
        channels (int): C, of input and output.
        grid (SharingGrid): The cells of the K x K kernel.
        bias (bool): Whether to add a bias ``(C,)``. Default: True.
        backend (str, optional): Passed to
            :func:`pelk_mm.ops.peripheral_conv2d`. Default: None, the fastest.

    Raises:
        ValueError: If there is no backend of that name.
    """

    def __init__(
        self,
        channels: int,
        grid: SharingGrid,
        bias: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_name(backend)
        self.channels = channels
        self.grid = grid
        self.backend = backend
        cells = grid.num_cells
        self.weight = nn.Parameter(torch.empty(channels, 1, cells, cells))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of std 0.02, bias 0, as ConvNeXt's layers."""
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``; same shape, dtype and layout."""
        return peripheral_conv2d(
            x, self.weight, self.grid, self.bias, backend=self.backend
        )

    def extra_repr(self) -> str:
        return (
            f'{self.channels}, kernel_size={self.grid.kernel_size}, '
            f'cells={self.grid.num_cells}, bias={self.bias is not None}'
        )


class SmallConv2d(nn.Conv2d):
    """Depthwise convolution, quick to train on CPU too.

    An ``nn.Conv2d`` in all but what runs it on CPU, where torch has no fast
    gradient of depthwise weights: the peripheral convolution, with a grid
    whose cells are all ones. It starts without a bias.

    Args:
        channels (int): C, of input and output.
        kernel_size (int): Odd.
        backend (str, optional): See :class:`PeripheralConv2d`. Default: None.
    """

    def __init__(
        self, channels: int, kernel_size: int, backend: str | None = None
    ) -> None:
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=channels,
            bias=False,
        )
        self.grid = SharingGrid.from_sizes([1] * kernel_size)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``; same shape, dtype and layout."""
        if x.device.type != 'cpu':
            return super().forward(x)
        return peripheral_conv2d(
            x, self.weight, self.grid, self.bias, backend=self.backend
        )


def density(convs: Sequence[PeripheralConv2d]) -> float:
    """Share of non-zero weights in some convolutions, 1 on meta."""
    weights = torch.cat([conv.weight.flatten() for conv in convs])
    if weights.is_meta:
        return 1.0
    return int(weights.count_nonzero()) / weights.numel()
