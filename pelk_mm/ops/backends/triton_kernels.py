"""The Triton kernels; importing this imports triton.

Shapes below: N images of C channels, H x W; k' cells along a K x K kernel;
``Wp`` is W rounded up to the tile; a *line* is one image row of one channel.

The mathematics, for one channel. Row cell ``a`` of the kernel covers the
offsets of ``s_a`` neighbouring rows, on all of which the kernel's row is the
same K numbers, ``w_a``. With ``X_a`` the sums of those ``s_a`` rows of X,
``Y = sum_a X_a T_a``, where ``T_a[x', x] = w_a[x' - x + K // 2]`` is a banded
Toeplitz matrix, of which the tensor cores see a tile at a time. ``X_a`` is a
sum of a few row-shifted *maps*: the input, and running sums of 2, 4, 8 ...
of its rows, the *boxes* of a *ladder*. The ladder, and which cell takes which
boxes at which shift, are worked out in ``triton_plan.py``.

Maps lie smallest box first, the input before all. In float32 and bfloat16
they hold sums of rows. In float16, which sums would overflow, they hold means,
and the accumulator is multiplied by the box on the way down. A mean takes two
maps there, the rounded mean and the rest: float16's products are wanted as
exact as float16's results. In bfloat16 a sum is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Whether the kernels below run in Triton's interpreter, on any device.
INTERPRETED: bool = triton.knobs.runtime.interpret
#: Whether a compiled kernel is launched with all its arguments; before Triton
#: 3.3 it was without the constants.
COMPILED_TAKES_ALL = [*map(int, triton.__version__.split('.')[:2])] >= [3, 3]
# The interpreter multiplies the bit patterns of bfloat16. Widening the factors
# first changes no product: they are exact in float32 either way.
_WIDEN = tl.constexpr(INTERPRETED)
# Of a map with any strides, what no kernel need be compiled for: RUN_C and
# RUN_W say all that loads and stores depend on.
_NUMBERS_OF_A_MAP = [
    'batch',
    'channels',
    'height',
    'width',
    'stride_n',
    'stride_h',
]


@triton.jit
def _add_product(a, b, total, PRECISION: tl.constexpr):
    if _WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _rounded(values, dtype: tl.constexpr):
    if _WIDEN and dtype == tl.bfloat16:
        # The interpreter would cut the rest of the number off.
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        values = (bits & -0x10000).to(tl.float32, bitcast=True)
    return values.to(dtype)


@triton.jit
def _chosen(step, member, GROUP: tl.constexpr):
    """The four numbers of the step that each member of a group stands for.

    Chosen rather than loaded, so that the compiler knows them to be equal
    for all columns of a member, and loads those 16 bytes at a time.
    """
    one = tl.zeros_like(member)
    two, three, four = one, one, one
    for index in tl.static_range(GROUP):
        chosen = member == index
        one = tl.where(chosen, tl.load(step + index * 4), one)
        two = tl.where(chosen, tl.load(step + index * 4 + 1), two)
        three = tl.where(chosen, tl.load(step + index * 4 + 2), three)
        four = tl.where(chosen, tl.load(step + index * 4 + 3), four)
    return one, two, three, four


@triton.jit(
    do_not_specialize=[*_NUMBERS_OF_A_MAP, 'step'],
    do_not_specialize_on_alignment=['input', 'stride_c', 'stride_w'],
)
def maps_kernel(
    input,  # (N, C, H, W), any strides
    maps,  # (maps, C, N, top + H, Wp), contiguous
    batch, channels, height, width,
    stride_n, stride_c, stride_h, stride_w,
    map_stride,  # elements from one map to the next
    padded,  # Wp
    step,  # rows from tile to tile: those with whole boxes
    BOXES: tl.constexpr,  # all box sizes, 1 too, as bits of one number
    LARGEST: tl.constexpr,  # of them
    MEANS: tl.constexpr,  # in two maps each, not sums in one
    RUN_C: tl.constexpr,  # C, and W, fall into aligned runs of so many
    RUN_W: tl.constexpr,  # adjacent elements of the input
    ROWS: tl.constexpr,  # of a tile
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write the sums of every box in planar order, padded with zeros.

    A box of s rows starts at its own row and reaches down, so it is there
    for rows from ``1 - s`` on; map rows above that stay unwritten. The sums
    of a tile are its product with a banded matrix, exact but for rounding.
    Grid: (N * tiles of (top + H) x Wp x C,), C fastest.
    """
    lines = LARGEST - 1 + height
    tile = tl.program_id(0)
    c = tile % tl.cdiv(channels, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    tile //= tl.cdiv(channels, BLOCK_C)
    x = tile % (padded // BLOCK_W) * BLOCK_W + tl.arange(0, BLOCK_W)
    tile //= padded // BLOCK_W
    row = tl.arange(0, ROWS)
    line = tile % tl.cdiv(lines, step) * step + row
    y = line - (LARGEST - 1)
    n = (tile // tl.cdiv(lines, step)).to(tl.int64)

    source = input + n * stride_n
    source += (y.to(tl.int64) * stride_h)[:, None, None]
    source += (c.to(tl.int64) * stride_c)[None, :, None]
    source += (x.to(tl.int64) * stride_w)[None, None, :]
    size: tl.constexpr = input.dtype.element_ty.primitive_bitwidth // 8
    source = tl.multiple_of(source, (1, RUN_C * size, RUN_W * size))
    inside = ((y >= 0) & (y < height))[:, None, None]
    inside &= tl.max_constancy(c < channels, RUN_C)[None, :, None]
    inside &= tl.max_constancy(x < width, RUN_W)[None, None, :]
    rows = tl.load(source, mask=inside, other=0.0)

    target = maps + (n * lines + line)[:, None, None] * padded
    target += (c.to(tl.int64) * batch * lines * padded)[None, :, None]
    target += x[None, None, :]
    kept = ((row < step) & (y < height))[:, None, None]
    kept &= (c < channels)[None, :, None]
    same = _rounded(rows, maps.dtype.element_ty)
    tl.store(target, same, mask=kept & (y >= 0)[:, None, None])
    rows = tl.reshape(rows, (ROWS, BLOCK_C * BLOCK_W))
    below = row[None, :] - row[:, None]
    for box in tl.static_range(2, LARGEST + 1):
        # A power of two, and one of the boxes.
        if (box & (box - 1)) == 0 and (BOXES & box) != 0:
            band = tl.where((below >= 0) & (below < box), 1.0, 0.0)
            if MEANS:
                band *= 1.0 / box
            sums = tl.zeros((ROWS, BLOCK_C * BLOCK_W), tl.float32)
            sums = _add_product(band.to(rows.dtype), rows, sums, 'tf32x3')
            sums = tl.reshape(sums, (ROWS, BLOCK_C, BLOCK_W))
            rounded = _rounded(sums, maps.dtype.element_ty)
            there = kept & (y > -box)[:, None, None]
            target += map_stride
            tl.store(target, rounded, mask=there)
            if MEANS:
                rest = (sums - rounded.to(tl.float32)).to(rounded.dtype)
                target += map_stride
                tl.store(target, rest, mask=there)


@triton.jit(
    do_not_specialize=['num_cells', 'kernel_size', 'flipped'],
    do_not_specialize_on_alignment=['weight'],
)
def rows_kernel(
    weight,  # (C, 1, k', k'), contiguous
    rows,  # (C, k', PHASES, taps), contiguous
    column_cells,  # (K,) int32
    num_cells, kernel_size,
    first_tap,
    taps,
    flipped,  # 1 to read the weight from its end, or 0
    PHASES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write every row cell's K numbers out, with zeros on either side.

    ``PHASES`` times, each copy one number further: where a tile of a banded
    Toeplitz matrix starts, in one of them there is an aligned address.
    Grid: (C * k', tiles of PHASES * taps).
    """
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tap = at // taps + at % taps + first_tap
    column = tl.load(
        column_cells + tap, mask=(tap >= 0) & (tap < kernel_size), other=-1
    )
    source = row.to(tl.int64) * num_cells + column
    from_end = (row // num_cells * 2 + 1).to(tl.int64) * num_cells
    from_end = (from_end - row) * num_cells - 1 - column
    source = tl.where(flipped == 1, from_end, source)
    values = tl.load(weight + source, mask=column >= 0, other=0.0)
    values = _rounded(values, rows.dtype.element_ty)
    end = PHASES * taps
    tl.store(rows + row.to(tl.int64) * end + at, values, mask=at < end)


@triton.jit(
    do_not_specialize=[
        'batch',
        'height',
        'width',
        'top',
        'num_cells',
        'kernel_size',
        'stride_n',
        'stride_c',
        'stride_h',
    ],
    do_not_specialize_on_alignment=['bias', 'output'],
)
def forward_kernel(
    maps,  # as maps_kernel writes them
    rows,  # as rows_kernel writes them: w_a
    bias,  # (C,), read if HAS_BIAS
    output,  # (N, C, H, >= W), innermost stride 1
    steps, levels,  # see Tables
    batch, height, width, top,
    map_size,  # N * (top + H) * Wp
    num_cells, kernel_size, first_tap, taps,
    stride_n, stride_c,
    stride_h,  # the output's columns, W or Wp
    padded,  # Wp
    RUN_W: tl.constexpr,  # as for maps_kernel, of the output
    LEVELS: tl.constexpr, HAS_BIAS: tl.constexpr, PHASES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add up ``X_a T_a``; accumulators are float32.

    A tile is BLOCK_M lines of one channel, images one behind the other, by
    BLOCK_X columns; GROUP products are made as one, side by side.
    Grid: (tiles of N * H lines, tiles of W, C).
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = m // height
    # A line behind the last image meets no box.
    y = tl.where(n < batch, m % height, height)
    left = tl.program_id(1) * BLOCK_X
    x = left + tl.arange(0, BLOCK_X)
    c = tl.program_id(2).to(tl.int64)
    radius = kernel_size // 2
    first = tl.maximum(left - radius, 0) // BLOCK_K
    last = tl.cdiv(tl.minimum(left + BLOCK_X + radius, width), BLOCK_K)
    # Where box 0 of a line's own row is, in the channel's first map.
    maps += c * map_size
    home = (n * (top + height) + y + top).to(map_size.dtype) * padded
    home = tl.multiple_of(home, 16)
    map_stride = tl.num_programs(2) * tl.cast(map_size, tl.int64)
    # Column k of the map meets column x of the output at tap k - x + radius.
    tap = radius - first_tap - x
    phase = tap & (PHASES - 1)
    row_size = PHASES * taps
    start = tl.multiple_of(phase * taps + tap - phase, PHASES)
    toeplitz = rows + c * num_cells * row_size + start
    side = tl.arange(0, GROUP * BLOCK_K)
    member = side // BLOCK_K
    column = side % BLOCK_K

    total = tl.zeros((BLOCK_M, BLOCK_X), tl.float32)
    for level in range(LEVELS):
        begin = tl.load(levels + level * 3)
        end = tl.load(levels + level * 3 + 1)
        for group in range(begin, end):
            step = steps + group * GROUP * 4
            cell, map, down, box = _chosen(step, member, GROUP)
            cell = tl.multiple_of(cell * row_size, PHASES)
            shift = tl.multiple_of(map * map_stride + down * padded, 16)
            # Boxes wholly above or below the map are not stored.
            row = y[:, None] + down[None, :]
            met = (row > -box[None, :]) & (row < height)
            met = met & (y < height)[:, None]
            for chunk in range(first, last):
                k = chunk * BLOCK_K + column
                lines_in = tl.load(
                    maps + (home[:, None] + (shift + k)[None, :]),
                    mask=met,
                    other=0.0,
                )
                tiles = tl.load(toeplitz[None, :] + (cell + k)[:, None])
                total = _add_product(lines_in, tiles, total, PRECISION)
        total *= tl.load(levels + level * 3 + 2).to(tl.float32)

    if HAS_BIAS:
        total += tl.load(bias + c).to(tl.float32)
    line = n.to(tl.int64) * stride_n + c * stride_c
    line += y.to(tl.int64) * stride_h
    size: tl.constexpr = output.dtype.element_ty.primitive_bitwidth // 8
    target = output + line[:, None] + x[None, :]
    target = tl.multiple_of(target, (1, RUN_W * size))
    inside = tl.max_constancy(x < stride_h, RUN_W)[None, :]
    tl.store(
        target,
        _rounded(total, output.dtype.element_ty),
        mask=(m < batch * height)[:, None] & inside,
    )


@triton.jit(
    do_not_specialize=_NUMBERS_OF_A_MAP,
    do_not_specialize_on_alignment=['output', 'stride_c', 'stride_w'],
)
def interleave_kernel(
    planar,  # (C, N, H, Wp), contiguous
    output,  # (N, C, H, W), any strides
    batch, channels, height, width,
    stride_n, stride_c, stride_h, stride_w,
    padded,  # Wp
    RUN_C: tl.constexpr, RUN_W: tl.constexpr,  # as for maps_kernel
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Copy planes into channels-last memory. Grid: (N * H, tiles of C x Wp).

    A pass of its own because single channels written straight from
    ``forward_kernel`` would each touch a memory sector of their own.
    """
    n = tl.program_id(0) // height
    y = tl.program_id(0) % height
    tiles_w = padded // BLOCK_W
    c = tl.program_id(1) // tiles_w * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.program_id(1) % tiles_w * BLOCK_W + tl.arange(0, BLOCK_W)
    kept = (c < channels)[:, None]
    line = ((c.to(tl.int64) * batch + n) * height + y) * padded
    values = tl.load(planar + line[:, None] + x[None, :], mask=kept, other=0.0)
    target = output + n.to(tl.int64) * stride_n + y.to(tl.int64) * stride_h
    target += (c.to(tl.int64) * stride_c)[:, None]
    target += (x.to(tl.int64) * stride_w)[None, :]
    size: tl.constexpr = output.dtype.element_ty.primitive_bitwidth // 8
    target = tl.multiple_of(target, (RUN_C * size, RUN_W * size))
    inside = tl.max_constancy(c < channels, RUN_C)[:, None]
    inside &= tl.max_constancy(x < width, RUN_W)[None, :]
    tl.store(target, values, mask=inside)


@triton.jit(
    do_not_specialize=[
        'batch',
        'channels',
        'height',
        'top',
        'num_cells',
        'kernel_size',
        'splits',
        'split_lines',
    ],
    do_not_specialize_on_alignment=['chunks'],
)
def weight_grad_kernel(
    maps,  # of the output's gradient, as maps_kernel writes them
    planes,  # (C, N, H, Wp), contiguous: the input
    partial,  # (splits * pairs, C, k', k') float32, contiguous
    cells, counts, cell_steps,  # see Tables
    cell_starts,  # (k' + 1,) int32: first kernel column of every cell
    batch, channels, height, top,
    map_size,  # N * (top + H) * Wp
    num_cells, kernel_size,
    splits, split_lines,
    chunks,  # most chunks of columns of the maps that meet a tile of columns
    padded,  # Wp
    BLOCK_M: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Share of a split of the lines and a pair of tiles in the gradient.

    ``M_a[x', x] = sum over lines of G_a[line, x'] X[line, x]``, of GROUP cells
    at once, is a matrix product; the gradient of ``w_theta`` is the sum of
    those diagonals of a matrix that lie in one cell. The boxes are those of
    the output's gradient, which the input's gradient needs as well: the
    weight's offsets are the other way round, and so are its cells.

    Every program writes numbers of its own and the host adds them up, so that
    results repeat bit by bit.
    Grid: (tiles of W * chunks, groups * splits, C).
    """
    pair = tl.program_id(0)
    group = tl.program_id(1) // splits
    split = tl.program_id(1) % splits
    groups = tl.num_programs(1) // splits
    c = tl.program_id(2).to(tl.int64)
    radius = kernel_size // 2
    left = pair // chunks * BLOCK_X
    x = left + tl.arange(0, BLOCK_X)
    chunk = tl.maximum(left - radius, 0) // BLOCK_K + pair % chunks
    k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
    begin = split * split_lines
    end = tl.minimum(begin + split_lines, batch * height)
    if chunk * BLOCK_K >= tl.minimum(left + BLOCK_X + radius, padded):
        end = begin  # No column of this chunk meets the tile.
    side = tl.arange(0, GROUP * BLOCK_K)
    member = side // BLOCK_K
    column = chunk * BLOCK_K + side % BLOCK_K
    map_stride = tl.num_programs(2) * tl.cast(map_size, tl.int64)
    maps += c * map_size
    planes += c * batch * height * padded

    total = tl.zeros((GROUP * BLOCK_K, BLOCK_X), tl.float32)
    for index in range(tl.load(counts + group)):
        step = cell_steps + (index * groups + group) * GROUP * 4
        factor, map, down, box = _chosen(step, member, GROUP)
        total *= factor.to(tl.float32)[:, None]
        shift = tl.multiple_of(map * map_stride + down * padded, 16)
        for block in range(begin, end, BLOCK_M):
            m = block + tl.arange(0, BLOCK_M)
            n = m // height
            y = tl.where(m < end, m % height, height)
            home = (n * (top + height) + y + top).to(map_size.dtype) * padded
            home = tl.multiple_of(home, 16)
            row = y[:, None] + down[None, :]
            met = (row > -box[None, :]) & (row < height)
            met = met & (y < height)[:, None] & (column < padded)[None, :]
            lines_in = tl.load(
                maps + (home[:, None] + (shift + column)[None, :]),
                mask=met,
                other=0.0,
            )
            line = (n * height + y).to(map_size.dtype) * padded
            values = tl.load(
                planes + (tl.multiple_of(line, 16)[:, None] + x[None, :]),
                mask=(y < height)[:, None] & (x < padded)[None, :],
                other=0.0,
            )
            total = _add_product(tl.trans(lines_in), values, total, PRECISION)

    factor = tl.load(cells + (group * GROUP + member) * 2 + 1)
    total *= factor.to(tl.float32)[:, None]
    cell = tl.load(cells + (group * GROUP + tl.arange(0, GROUP)) * 2)
    matrices = total.reshape(GROUP, BLOCK_K, BLOCK_X)
    tap = k[:, None] - x[None, :] + radius
    share = (split * tl.num_programs(0) + pair) * channels + c
    target = partial + ((share + 1) * num_cells - 1 - cell) * num_cells
    for column in range(num_cells):
        first_tap = tl.load(cell_starts + column)
        past = tl.load(cell_starts + column + 1)
        inside = (tap >= first_tap) & (tap < past)
        sums = tl.sum(tl.where(inside[None, :, :], matrices, 0.0), 2)
        mask = cell >= 0
        tl.store(target + (num_cells - 1 - column), tl.sum(sums, 1), mask=mask)
