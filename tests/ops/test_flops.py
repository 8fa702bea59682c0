"""Operation counts: executed, and as if the kernel were written out."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.flops import box_sum_flops, dense_flops


def count(backend, grid, shape):
    x = torch.randn(shape, requires_grad=True)
    cells = grid.num_cells
    w = torch.randn(shape[1], 1, cells, cells, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = peripheral_conv2d(x, w, grid, backend=backend)
    forward = counter.get_total_flops()
    with counter:
        y.sum().backward()
    return forward, counter.get_total_flops()


def test_dense_counts_every_position():
    grid, shape = SharingGrid(13), (2, 3, 9, 8)
    forward, backward = count('dense', grid, shape)
    assert forward == 2 * 2 * 3 * 9 * 8 * 169 == dense_flops(shape, grid)
    assert backward == 2 * forward


def test_box_sums_count_cells():
    grid, shape = SharingGrid(13), (2, 3, 9, 8)
    forward, _ = count(None, grid, shape)
    outputs = 2 * 3 * 9 * 8
    # Sizes 1 and 2: one addition along either axis.
    assert forward == box_sum_flops(shape, grid) == outputs * (2 * 81 + 2)


def test_work_grows_with_the_logarithm():
    shape = (1, 1, 100, 100)
    ratio = [
        f(shape, SharingGrid(101, 3)) / f(shape, SharingGrid(51, 2))
        for f in (dense_flops, box_sum_flops)
    ]
    assert ratio[0] > 3.9
    assert ratio[1] < 1.8
