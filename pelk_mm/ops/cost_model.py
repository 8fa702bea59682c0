"""How long each backend takes on a CPU, from the sizes of a call.

A time is a sum of a few amounts of work, each with a price fitted to
measurements (``tools/benchmarks/fit_cost_model.py``). Only which backend is
the cheapest matters, and that changes less than times do from one CPU to
another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from math import log2
from pathlib import Path

from .sharing_grid import SharingGrid

PRICES = Path(__file__).with_name('cost_model.json')


def _meetings(grid: SharingGrid, extent: int, cells: bool) -> int:
    """Pairs of an output and a cell, or a kernel position, that meet the map.

    Along one axis of ``extent`` positions: what only meets padding is no work.
    """
    sizes = grid.sizes if cells else [1] * grid.kernel_size
    total, begin = 0, -(grid.kernel_size // 2)
    for size in sizes:
        # Outputs y for which [y + begin, y + begin + size) meets [0, extent).
        first, last = -begin - size + 1, extent - 1 - begin
        total += max(0, min(last, extent - 1) - max(first, 0) + 1)
        begin += size
    return total


def work(backend: str, shape: Sequence[int], grid: SharingGrid) -> list[float]:
    """The amounts of work of one call: what the prices are for.

    Args:
        backend (str): ``'cpp'``, ``'dense'`` or ``'fft'``.
        shape (Sequence[int]): ``(N, C, H, W)`` of the input.
        grid (SharingGrid): The kernel's cells.

    Returns:
        list[float]: As many numbers as the backend has prices, the last one
        for the call itself.
    """
    batch, channels, height, width = shape
    size, cells = grid.kernel_size, grid.num_cells
    if backend == 'cpp':
        planes = batch * (-(-channels // 16) * 16)  # whole vectors
        taps = _meetings(grid, height, True) * _meetings(grid, width, True)
        boxes = len(set(grid.sizes)) + max(grid.sizes).bit_length()
        return [
            planes * taps,
            planes * height * width * boxes,
            planes * height * width,
            planes * height * cells,
            channels * cells**2,
            1,
        ]
    if backend == 'dense':
        planes = batch * channels
        taps = _meetings(grid, height, False) * _meetings(grid, width, False)
        return [
            planes * taps,
            planes * height * size,
            planes * height * width,
            channels * size**2,
            1,
        ]
    rows = height + min(size // 2, height - 1)
    columns = width + min(size // 2, width - 1)
    transforms = (2 * batch + 1) * channels * rows * columns
    return [
        transforms * log2(rows * columns + 1),
        transforms,
        channels * size**2,
        1,
    ]


def kind(backend: str, weight_grad: bool, channels_last: bool) -> str:
    """The key of the prices of one kind of call."""
    what = 'weight_grad' if weight_grad else 'forward'
    # Of these backends only oneDNN's depthwise kernel minds the layout.
    layout = 'any'
    if backend == 'dense':
        layout = 'channels_last' if channels_last else 'contiguous'
    return f'{backend} {what} {layout}'


@lru_cache(maxsize=1)
def _prices() -> dict[str, list[float]]:
    return json.loads(PRICES.read_text())['prices']


@lru_cache(maxsize=1024)
def cheapest_first(
    shape: tuple[int, ...],
    grid: SharingGrid,
    weight_grad: bool,
    channels_last: bool,
) -> tuple[str, ...]:
    """Order the CPU backends by the time they should take.

    Args:
        shape (tuple[int, ...]): ``(N, C, H, W)`` of the input.
        grid (SharingGrid): The kernel's cells.
        weight_grad (bool): For the weight's gradient, or for the convolution.
        channels_last (bool): Whether the input is laid out that way.

    Returns:
        tuple[str, ...]: Names of backends.
    """

    def cost(backend: str) -> float:
        prices = _prices()[kind(backend, weight_grad, channels_last)]
        amounts = work(backend, shape, grid)
        return sum(
            price * amount
            for price, amount in zip(prices, amounts, strict=True)
        )

    return tuple(sorted(('cpp', 'dense', 'fft'), key=cost))
