"""Operation counts of the peripheral convolution, for torch's FLOP counter.

A counter that looks for convolutions sees nothing in a custom operator. torch
counts a multiply-accumulate as two operations, an addition as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, shape_wrapper

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


# The function that registers formulas files those of custom operators, in
# torch 2.4, where the counter does not look.
_ops = torch.ops.pelk_mm
flop_registry[_ops.peripheral_conv2d] = shape_wrapper(count_flops)
flop_registry[_ops.peripheral_conv2d_weight_grad] = shape_wrapper(count_flops)
flop_registry[_ops.peripheral_conv2d_backward] = shape_wrapper(_count_both)
