"""Operation counts of the peripheral convolution, for torch's FLOP counter.

A counter that looks for convolutions sees nothing in a custom operator. torch
counts a multiply-accumulate as two operations, an addition as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .sharing_grid import SharingGrid


def dense_flops(shape: Sequence[int], grid: SharingGrid) -> int:
    """Operations with the kernel written out: K^2 multiply-adds an output.

    ``shape`` is the output's, ``(N, C, H, W)``.
    """
    return 2 * prod(shape) * grid.kernel_size**2


def box_sum_flops(shape: Sequence[int], grid: SharingGrid) -> int:
    """Operations of the box-sum form: k'^2 multiply-adds an output, and sums.

    ``shape`` is the output's, ``(N, C, H, W)``. The sums of ``s`` neighbours
    are built by doubling: along the columns once for all sizes, along the
    rows once for every distinct size.
    """
    sizes = set(grid.sizes)
    doublings = [size.bit_length() - 1 for size in sizes]
    remainders = sum(size.bit_count() - 1 for size in sizes)
    additions = max(doublings) + remainders + sum(doublings) + remainders
    return prod(shape) * (2 * grid.num_cells**2 + additions)


def count_flops(shape: Sequence[int], *operands: Any, **_: Any) -> int:
    """Operations of a call; the last operands are cell sizes and backend.

    ``shape`` is the input's, ``(N, C, H, W)``.
    """
    sizes, backend = operands[-2:]
    grid = SharingGrid.from_sizes(sizes)
    count = dense_flops if backend == 'dense' else box_sum_flops
    return count(shape, grid)


def _count_both(*operands: Any, **_: Any) -> int:
    return 2 * count_flops(*operands)


_ops = torch.ops.pelk_mm
register_flop_formula(_ops.peripheral_conv2d)(count_flops)
register_flop_formula(_ops.peripheral_conv2d_weight_grad)(count_flops)
register_flop_formula(_ops.peripheral_conv2d_backward)(_count_both)
