"""Triton kernels of two convolution branches, their BatchNorms and the sum.

``out = scale_1 Y_1 + scale_2 Y_2 + shift`` on the first G of C channels, with
the statistics of the batch, and the other channels as they are. Shapes below:
``branches`` are the two convolutions' results, ``(2, G, N, H, Wp)``, in the
planar order that ``forward_kernel`` writes: Wp is W rounded up, and what is in
the columns behind W is no result. A *line* is one image row of one channel.
Sums are of float32, each program's in memory of its own, and added up in a
fixed order: results repeat bit by bit.

``stats`` is ``(7, G)`` float32: both scales and the shift, then mean and
inverse standard deviation of either branch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _NUMBERS_OF_A_MAP, _rounded

_NUMBERS_OF_PLANES = [
    'channels',
    'width',
    'padded',
    'lines',
    'splits',
    'split_lines',
]
#: Most splits of the lines, each a program.
MAX_SPLITS = 64
_MAX_SPLITS = tl.constexpr(MAX_SPLITS)


@triton.jit
def _moments(values, inside, count, mean, squares):
    """One more number in each lane; Welford's algorithm."""
    distance = tl.where(inside, values.to(tl.float32) - mean, 0.0)
    mean += distance / tl.maximum(count, 1.0)
    rest = tl.where(inside, values.to(tl.float32) - mean, 0.0)
    return mean, squares + distance * rest


@triton.jit
def _join_moments(counts, means, squares):
    """Moments of all from those of parts; Chan's formula."""
    total = tl.maximum(tl.sum(counts, 0), 1.0)
    mean = tl.sum(counts * means, 0) / total
    away = means - mean
    return mean, tl.sum(squares + counts * away * away, 0)


@triton.jit(do_not_specialize=_NUMBERS_OF_PLANES)
def moments_kernel(
    branches,
    partial,  # (G, splits, 4) float32: mean, squares of either branch
    channels, width, padded,
    lines,  # N * H
    splits,
    split_lines,  # of one split
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Means, and sums of squared distances from them, of a split's lines.

    Grid: (splits, G).
    """
    c = tl.program_id(1).to(tl.int64)
    split = tl.program_id(0)
    one = branches + c * lines * padded
    two = one + tl.num_programs(1).to(tl.int64) * lines * padded
    begin = split * split_lines * padded
    end = tl.minimum((split + 1) * split_lines, lines) * padded
    count = tl.zeros((BLOCK,), tl.float32)
    mean_1, squares_1, mean_2, squares_2 = count, count, count, count
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = (at < end) & (at % padded < width)
        count += tl.where(inside, 1.0, 0.0)
        values = tl.load(one + at, mask=inside, other=0.0)
        mean_1, squares_1 = _moments(values, inside, count, mean_1, squares_1)
        values = tl.load(two + at, mask=inside, other=0.0)
        mean_2, squares_2 = _moments(values, inside, count, mean_2, squares_2)
    mean_1, squares_1 = _join_moments(count, mean_1, squares_1)
    mean_2, squares_2 = _join_moments(count, mean_2, squares_2)
    target = partial + (c * tl.num_programs(0) + split) * 4
    tl.store(target, mean_1)
    tl.store(target + 1, squares_1)
    tl.store(target + 2, mean_2)
    tl.store(target + 3, squares_2)


@triton.jit
def _update(running, value, momentum):
    """Move a running statistic towards the batch's."""
    before = tl.load(running).to(tl.float32)
    after = before + momentum * (value - before)
    tl.store(running, _rounded(after, running.dtype.element_ty))


@triton.jit(
    do_not_specialize=[*_NUMBERS_OF_PLANES, 'num_weights'],
    do_not_specialize_on_alignment=[
        'weight',
        'pos_sums',
        *[
            f'{name}_{branch}'
            for name in ('gamma', 'beta', 'running_mean', 'running_var')
            for branch in (1, 2)
        ],
        'batches_1',
        'batches_2',
    ],
)
def norm_kernel(
    partial,  # as moments_kernel writes it
    stats,
    weight,  # (G, 1, k', k'), contiguous, read if HAS_POS
    pos_sums,  # (1, k', k'), contiguous, read if HAS_POS
    gamma_1, beta_1, running_mean_1, running_var_1,  # (G,)
    batches_1,  # () int64
    gamma_2, beta_2, running_mean_2, running_var_2, batches_2,
    channels, width, padded, lines, splits, split_lines,
    num_weights,  # k' * k'
    eps_1, momentum_1, eps_2, momentum_2,
    HAS_POS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Statistics of the batch, what they make of the branches, and the shift.

    The running statistics are updated as ``torch.nn.BatchNorm2d`` does. The
    positional embedding's constant, ``sum w h``, is a part of the shift.
    Grid: (G,).
    """
    c = tl.program_id(0)
    split = tl.arange(0, _MAX_SPLITS)
    there = split < splits
    counts = tl.minimum(split_lines, lines - split * split_lines)
    counts = (tl.maximum(counts, 0) * width).to(tl.float32)
    total = (lines * width).to(tl.float32)
    source = partial + (c * splits + split) * 4
    means = tl.load(source, mask=there, other=0.0)
    squares = tl.load(source + 1, mask=there, other=0.0)
    mean_1, squares_1 = _join_moments(counts, means, squares)
    means = tl.load(source + 2, mask=there, other=0.0)
    squares = tl.load(source + 3, mask=there, other=0.0)
    mean_2, squares_2 = _join_moments(counts, means, squares)
    inverse_1 = 1.0 / tl.sqrt_rn(squares_1 / total + eps_1)
    inverse_2 = 1.0 / tl.sqrt_rn(squares_2 / total + eps_2)
    scale_1 = tl.load(gamma_1 + c).to(tl.float32) * inverse_1
    scale_2 = tl.load(gamma_2 + c).to(tl.float32) * inverse_2
    shift = tl.load(beta_1 + c).to(tl.float32) - mean_1 * scale_1
    shift += tl.load(beta_2 + c).to(tl.float32) - mean_2 * scale_2
    if HAS_POS:
        constant = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, num_weights, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < num_weights
            own = weight + c.to(tl.int64) * num_weights
            w = tl.load(own + at, mask=inside, other=0.0).to(tl.float32)
            h = tl.load(pos_sums + at, mask=inside, other=0.0).to(tl.float32)
            constant += w * h
        shift += tl.sum(constant, 0)
    tl.store(stats + c, scale_1)
    tl.store(stats + channels + c, scale_2)
    tl.store(stats + channels * 2 + c, shift)
    tl.store(stats + channels * 3 + c, mean_1)
    tl.store(stats + channels * 4 + c, inverse_1)
    tl.store(stats + channels * 5 + c, mean_2)
    tl.store(stats + channels * 6 + c, inverse_2)
    _update(running_mean_1 + c, mean_1, momentum_1)
    _update(running_mean_2 + c, mean_2, momentum_2)
    _update(running_var_1 + c, squares_1 / (total - 1.0), momentum_1)
    _update(running_var_2 + c, squares_2 / (total - 1.0), momentum_2)
    if c == 0:
        tl.store(batches_1, tl.load(batches_1) + 1)
        tl.store(batches_2, tl.load(batches_2) + 1)


@triton.jit(
    do_not_specialize=[*_NUMBERS_OF_A_MAP, 'head', 'rest_n', 'rest_h'],
    do_not_specialize_on_alignment=['rest', 'rest_c', 'rest_w'],
)
def join_kernel(
    branches,
    stats,  # the first three rows are read
    rest,  # (N, C, H, W), any strides
    output,  # (N, C, H, W), any strides
    head,  # G
    batch, channels, height, width,
    stride_n, stride_c, stride_h, stride_w,  # of the output
    rest_n, rest_c, rest_h, rest_w,
    padded,
    RUN_C: tl.constexpr, RUN_W: tl.constexpr,  # as for maps_kernel
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Scale and add up the branches, and copy the channels behind them.

    Grid: (N * H, tiles of C x Wp).
    """
    n = (tl.program_id(0) // height).to(tl.int64)
    y = (tl.program_id(0) % height).to(tl.int64)
    tiles_w = padded // BLOCK_W
    c = tl.program_id(1) // tiles_w * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.program_id(1) % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
    first = (c < head)[:, None]
    line = ((c.to(tl.int64) * batch + n) * height + y) * padded
    one = branches + line[:, None] + x[None, :]
    two = one + head.to(tl.int64) * batch * height * padded
    values = tl.load(one, mask=first, other=0.0).to(tl.float32)
    other = tl.load(two, mask=first, other=0.0).to(tl.float32)
    scale_1 = tl.load(stats + c, mask=c < head, other=0.0)[:, None]
    scale_2 = tl.load(stats + head + c, mask=c < head, other=0.0)[:, None]
    shift = tl.load(stats + head * 2 + c, mask=c < head, other=0.0)[:, None]
    values = values * scale_1 + shift + other * scale_2

    size: tl.constexpr = output.dtype.element_ty.primitive_bitwidth // 8
    inside = tl.max_constancy(c < channels, RUN_C)[:, None]
    inside &= tl.max_constancy(x < width, RUN_W)[None, :]
    source = rest + n * rest_n + y * rest_h
    source += (c.to(tl.int64) * rest_c)[:, None]
    source += (x.to(tl.int64) * rest_w)[None, :]
    passed = tl.load(source, mask=inside & (c >= head)[:, None], other=0.0)
    values = tl.where(first, values, passed.to(tl.float32))
    target = output + n * stride_n + y * stride_h
    target += (c.to(tl.int64) * stride_c)[:, None]
    target += (x.to(tl.int64) * stride_w)[None, :]
    target = tl.multiple_of(target, (RUN_C * size, RUN_W * size))
    tl.store(target, _rounded(values, output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_NUMBERS_OF_PLANES)
def norm_sums_kernel(
    grads,  # (G, N, H, Wp): of the sum
    branches, stats,
    partial,  # (G, splits, 3) float32
    channels, width, padded, lines, splits, split_lines,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of a split: the gradient, and times the distance from a mean.

    Grid: (splits, G).
    """
    c = tl.program_id(1).to(tl.int64)
    split = tl.program_id(0)
    planes = c * lines * padded
    one = branches + planes
    two = one + tl.num_programs(1).to(tl.int64) * lines * padded
    mean_1 = tl.load(stats + channels * 3 + c)
    mean_2 = tl.load(stats + channels * 5 + c)
    begin = split * split_lines * padded
    end = tl.minimum((split + 1) * split_lines, lines) * padded
    total = tl.zeros((BLOCK,), tl.float32)
    total_1, total_2 = total, total
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = (at < end) & (at % padded < width)
        grad = tl.load(grads + planes + at, mask=inside, other=0.0)
        grad = grad.to(tl.float32)
        values = tl.load(one + at, mask=inside, other=0.0).to(tl.float32)
        total_1 += grad * (values - mean_1)
        values = tl.load(two + at, mask=inside, other=0.0).to(tl.float32)
        total_2 += grad * (values - mean_2)
        total += grad
    target = partial + (c * tl.num_programs(0) + split) * 3
    tl.store(target, tl.sum(total, 0))
    tl.store(target + 1, tl.sum(total_1, 0))
    tl.store(target + 2, tl.sum(total_2, 0))


@triton.jit(do_not_specialize=_NUMBERS_OF_PLANES)
def norm_grad_kernel(
    grads,  # (G, N, H, Wp): of the sum
    branches, stats,
    partial,  # as norm_sums_kernel writes it
    branch_grads,  # (2, G, N, H, Wp)
    sums,  # (3, G) float32: of the shift and of either gamma
    channels, width, padded, lines, splits, split_lines,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the branches, zeros behind W, and of the norms.

    Grid: (tiles of N * H * Wp, G).
    """
    c = tl.program_id(1).to(tl.int64)
    split = tl.arange(0, _MAX_SPLITS)
    there = split < splits
    source = partial + (c * splits + split) * 3
    total = tl.sum(tl.load(source, mask=there, other=0.0), 0)
    total_1 = tl.sum(tl.load(source + 1, mask=there, other=0.0), 0)
    total_2 = tl.sum(tl.load(source + 2, mask=there, other=0.0), 0)
    mean_1 = tl.load(stats + channels * 3 + c)
    inverse_1 = tl.load(stats + channels * 4 + c)
    mean_2 = tl.load(stats + channels * 5 + c)
    inverse_2 = tl.load(stats + channels * 6 + c)
    gamma_1 = total_1 * inverse_1
    gamma_2 = total_2 * inverse_2
    if tl.program_id(0) == 0:
        tl.store(sums + c, total)
        tl.store(sums + channels + c, gamma_1)
        tl.store(sums + channels * 2 + c, gamma_2)
    count = (lines * width).to(tl.float32)
    mean = total / count
    slope_1 = gamma_1 * inverse_1 / count
    slope_2 = gamma_2 * inverse_2 / count
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = at < lines * padded
    inside = stored & (at % padded < width)
    planes = c * lines * padded
    behind = tl.num_programs(1).to(tl.int64) * lines * padded
    grad = tl.load(grads + planes + at, mask=inside, other=0.0).to(tl.float32)
    one = branches + planes + at
    values = tl.load(one, mask=inside, other=0.0).to(tl.float32)
    values = grad - mean - slope_1 * (values - mean_1)
    values = tl.where(inside, tl.load(stats + c) * values, 0.0)
    target = branch_grads + planes + at
    dtype: tl.constexpr = branch_grads.dtype.element_ty
    tl.store(target, _rounded(values, dtype), mask=stored)
    values = tl.load(one + behind, mask=inside, other=0.0).to(tl.float32)
    values = grad - mean - slope_2 * (values - mean_2)
    values = tl.where(inside, tl.load(stats + channels + c) * values, 0.0)
    tl.store(target + behind, _rounded(values, dtype), mask=stored)
