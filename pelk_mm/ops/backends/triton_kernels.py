"""The Triton kernels; importing this imports triton.

Shapes below: N images of C channels, H x W; k' cells along a K x K kernel;
``Wp`` is W rounded up to the tile; a *line* is one image row of one channel.

The mathematics, for one channel. Row cell ``a`` of the kernel covers the
offsets of ``s_a`` neighbouring rows, on all of which the kernel's row is the
same K numbers, ``w_a``. With ``X_a`` the sums of those ``s_a`` rows of X,
``Y = sum_a X_a T_a``, where ``T_a[x', x] = w_a[x' - x + K // 2]`` is a banded
Toeplitz matrix that the tensor cores see as a tile made on the fly. ``X_a`` is
a sum of a few row-shifted *maps*: the input, and running sums of 2, 4, 8 ...
of its rows, the *boxes* of a *ladder*. The ladder, and which cell takes which
boxes at which shift, are worked out in ``triton_plan.py``.

Ladder, one row of four int32 per level, largest box first and 1 last: rows
per box; maps per box; index of the first of them; box over the next level's
box. Maps lie in the opposite order, the input first. They hold means of rows,
not sums, which keeps float16 from overflowing: the accumulator is multiplied
by the fourth entry on the way down. A narrow dtype holds a mean as two maps,
the rounded mean and the rest, so that rounding it costs no more than float32
accumulation does.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Whether the kernels below run in Triton's interpreter, on any device.
INTERPRETED: bool = triton.knobs.runtime.interpret
# The interpreter multiplies the bit patterns of bfloat16. Widening the factors
# first changes no product: they are exact in float32 either way.
_WIDEN = tl.constexpr(INTERPRETED)


@triton.jit
def _add_product(a, b, total, PRECISION: tl.constexpr):
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def maps_kernel(
    input,  # (N, C, H, W), any strides
    maps,  # (maps, C, N, top + H, Wp), contiguous
    batch, channels, height, width,
    stride_n, stride_c, stride_h, stride_w,
    map_stride,  # elements from one map to the next
    BOXES: tl.constexpr,  # all box sizes, 1 too, as bits of one number
    LARGEST: tl.constexpr,  # of them
    SPLIT: tl.constexpr,  # whether a mean takes two maps
    PADDED: tl.constexpr,  # Wp
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write the means of every box in planar order, padded with zeros.

    A box of s rows starts at its own row and reaches down, so it is there
    for rows from ``1 - s`` on; map rows above that stay unwritten. One walk
    down passes all boxes that start at a row, smallest first.
    Grid: (N * (top + H), tiles of C x Wp).
    """
    lines = LARGEST - 1 + height
    n = tl.program_id(0) // lines
    line = tl.program_id(0) % lines
    row = line - (LARGEST - 1)
    tiles_w = PADDED // BLOCK_W
    c = tl.program_id(1) // tiles_w * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.program_id(1) % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
    source = (
        input
        + n.to(tl.int64) * stride_n
        + (c.to(tl.int64) * stride_c)[:, None]
        + (x.to(tl.int64) * stride_w)[None, :]
    )
    target = (
        maps
        + ((c.to(tl.int64) * batch + n) * lines + line)[:, None] * PADDED
        + x[None, :]
    )
    kept = (c < channels)[:, None]
    inside = kept & (x < width)[None, :]
    total = tl.zeros((BLOCK_C, BLOCK_W), tl.float32)
    for step in tl.static_range(LARGEST):
        y = row + step
        row_in = source + y * tl.cast(stride_h, tl.int64)
        met = inside & (y >= 0) & (y < height)
        total += tl.load(row_in, mask=met, other=0.0).to(tl.float32)
        # A power of two, and one of the boxes.
        if ((step + 1) & step) == 0 and (BOXES & (step + 1)) != 0:
            mean = total * (1.0 / (step + 1))
            rounded = mean.to(maps.dtype.element_ty)
            tl.store(target, rounded, mask=kept & (y >= 0))
            target += map_stride
            if SPLIT and step > 0:
                rest = (mean - rounded.to(tl.float32)).to(rounded.dtype)
                tl.store(target, rest, mask=kept & (y >= 0))
                target += map_stride


@triton.jit
def forward_kernel(
    maps,  # as maps_kernel writes them
    kernel_rows,  # (C, k', K), contiguous: w_a
    bias,  # (C,), read if HAS_BIAS
    output,  # (N, C, H, >= W), innermost stride 1
    ladder,
    cells,  # (k' * levels, 3) int32: cell, shift, boxes
    level_ends,  # (levels + 1,) int32: which of these belong to a level
    batch, height, width, top, map_stride,
    num_cells, kernel_size,
    stride_n, stride_c, stride_h,
    store_width,  # W, or Wp where the output has that many columns
    PADDED: tl.constexpr, LEVELS: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add up ``X_a T_a``; accumulators are float32.

    A tile is BLOCK_M lines of one channel, images one behind the other, by
    BLOCK_X columns. Grid: (tiles of N * H lines, tiles of W, C).
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = m // height
    y = m % height
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    c = tl.program_id(2).to(tl.int64)
    radius = kernel_size // 2
    lines = top + height
    # Where box 0 of a line's own row is, in every map.
    home = ((c * batch + n) * lines + y + top) * PADDED
    map_step = tl.cast(map_stride, tl.int64)
    left = tl.program_id(1) * BLOCK_X
    first = tl.maximum(left - radius, 0) // BLOCK_K
    last = tl.cdiv(tl.minimum(left + BLOCK_X + radius, width), BLOCK_K)

    total = tl.zeros((BLOCK_M, BLOCK_X), tl.float32)
    for level in range(LEVELS):
        box = tl.load(ladder + level * 4)
        parts = tl.load(ladder + level * 4 + 1)
        first_map = tl.load(ladder + level * 4 + 2)
        begin = tl.load(level_ends + level)
        end = tl.load(level_ends + level + 1)
        for entry in range(begin, end):
            cell = tl.load(cells + entry * 3)
            shift = tl.load(cells + entry * 3 + 1)
            boxes = tl.load(cells + entry * 3 + 2)
            row = kernel_rows + (c * num_cells + cell) * kernel_size
            for chunk in range(first, last):
                k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
                tap = k[:, None] - x[None, :] + radius
                inside = (tap >= 0) & (tap < kernel_size)
                toeplitz = tl.load(row + tap, mask=inside, other=0.0)
                for step in range(boxes * parts):
                    down = shift + step // parts * box
                    # Boxes wholly above or below the map are not stored.
                    met = (y + down > -box) & (y + down < height)
                    source = maps + (first_map + step % parts) * map_step
                    lines_in = tl.load(
                        source + (home + down * PADDED)[:, None] + k[None, :],
                        mask=((m < batch * height) & met)[:, None],
                        other=0.0,
                    )
                    total = _add_product(lines_in, toeplitz, total, PRECISION)
        total *= tl.load(ladder + level * 4 + 3).to(tl.float32)

    if HAS_BIAS:
        total += tl.load(bias + c).to(tl.float32)
    line = n.to(tl.int64) * stride_n + c * stride_c
    line += y.to(tl.int64) * stride_h
    tl.store(
        output + line[:, None] + x[None, :],
        total.to(output.dtype.element_ty),
        mask=(m < batch * height)[:, None] & (x < store_width)[None, :],
    )


@triton.jit
def interleave_kernel(
    planar,  # (C, N, H, Wp), contiguous
    output,  # (N, C, H, W), any strides
    batch, channels, height, width,
    stride_n, stride_c, stride_h, stride_w,
    PADDED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Copy planes into channels-last memory. Grid: (N * H, tiles of C x Wp).

    A pass of its own because single channels written straight from
    ``forward_kernel`` would each touch a memory sector of their own.
    """
    n = tl.program_id(0) // height
    y = tl.program_id(0) % height
    tiles_w = PADDED // BLOCK_W
    c = tl.program_id(1) // tiles_w * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.program_id(1) % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
    kept = (c < channels)[:, None]
    line = ((c.to(tl.int64) * batch + n) * height + y) * PADDED
    values = tl.load(planar + line[:, None] + x[None, :], mask=kept, other=0.0)
    target = output + n.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h
    target += (c.to(tl.int64) * stride_c)[:, None]
    target += (x.to(tl.int64) * stride_w)[None, :]
    tl.store(target, values, mask=kept & (x < width)[None, :])


@triton.jit
def weight_grad_kernel(
    maps,  # of the input, as maps_kernel writes them
    grad_maps,  # (C, N, H, Wp), contiguous: the output's gradient
    partial,  # (splits * pairs, C, k', k') float32, contiguous
    ladder,
    boxes_of,  # (levels, k', 2) int32: shift, boxes
    cell_starts,  # (k' + 1,) int32: first kernel column of every cell
    batch, channels, height, width, top, map_stride,
    num_cells, kernel_size,
    splits, split_lines,
    chunks,  # most chunks of input columns that meet a tile of columns
    PADDED: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Share of a split of the lines and a pair of tiles in the gradient.

    ``M_a[x', x] = sum over lines of X_a[line, x'] G[line, x]`` is a matrix
    product; the gradient of ``w_theta(a, b)`` is the sum of those diagonals
    of ``M_a`` that lie in cell b. Every program writes numbers of its own
    and the host adds them up, so that results repeat bit by bit.
    Grid: (tiles of W * chunks, k' * splits, C).
    """
    pair = tl.program_id(0)
    cell = tl.program_id(1) // splits
    split = tl.program_id(1) % splits
    c = tl.program_id(2).to(tl.int64)
    radius = kernel_size // 2
    lines = top + height
    left = pair // chunks * BLOCK_X
    x = left + tl.arange(0, BLOCK_X)
    chunk = tl.maximum(left - radius, 0) // BLOCK_K + pair % chunks
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    map_step = tl.cast(map_stride, tl.int64)
    begin = split * split_lines
    end = tl.minimum(begin + split_lines, batch * height)
    if chunk * BLOCK_K >= tl.minimum(left + BLOCK_X + radius, width):
        end = begin  # No column of this chunk meets the tile.

    total = tl.zeros((BLOCK_K, BLOCK_X), tl.float32)
    for level in range(LEVELS):
        box = tl.load(ladder + level * 4)
        parts = tl.load(ladder + level * 4 + 1)
        first_map = tl.load(ladder + level * 4 + 2)
        shift = tl.load(boxes_of + (level * num_cells + cell) * 2)
        boxes = tl.load(boxes_of + (level * num_cells + cell) * 2 + 1)
        steps = boxes * parts
        for index in range(tl.cdiv(end - begin, BLOCK_M) * steps):
            block = index // tl.maximum(steps, 1)
            step = index % tl.maximum(steps, 1)
            m = begin + block * BLOCK_M + tl.arange(0, BLOCK_M)
            n = m // height
            y = m % height
            down = shift + step // parts * box
            met = (m < end) & (y + down > -box) & (y + down < height)
            home = ((c * batch + n) * lines + y + top + down) * PADDED
            source = maps + (first_map + step % parts) * map_step
            lines_in = tl.load(
                source + home[:, None] + k[None, :],
                mask=met[:, None],
                other=0.0,
            )
            line = ((c * batch + n) * height + y) * PADDED
            grads = tl.load(
                grad_maps + line[:, None] + x[None, :],
                mask=(m < end)[:, None],
                other=0.0,
            )
            total = _add_product(tl.trans(lines_in), grads, total, PRECISION)
        total *= tl.load(ladder + level * 4 + 3).to(tl.float32)

    tap = k[:, None] - x[None, :] + radius
    share = (split * tl.num_programs(0) + pair) * channels + c
    target = partial + (share * num_cells + cell) * num_cells
    for column in range(num_cells):
        first = tl.load(cell_starts + column)
        past = tl.load(cell_starts + column + 1)
        inside = (tap >= first) & (tap < past)
        tl.store(target + column, tl.sum(tl.where(inside, total, 0.0)))
