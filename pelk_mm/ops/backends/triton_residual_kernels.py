"""Triton kernels that add a residual branch: ``out = x + kept * scale * y``.

Shapes below: a *row* is one pixel of one image with its C channels, one row
behind the other as in a channels-last map. Those of ``y`` have ``width``
channels, at least C, of which the first C are read. ``kept`` is 0 for a sample
that stochastic depth drops and 1 / probability for the others. Sums are of
float32, each program's in memory of its own: results repeat bit by bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _rounded

_NUMBERS = ['rows', 'pixels', 'channels', 'width']
# Rows of C channels begin at any address: nothing is gained by knowing that
# the first one is aligned.
_POINTERS = ['x', 'y', 'scale', 'drawn', 'output']
_GRAD_POINTERS = ['grad', 'y', 'scale', 'drawn', 'of_y', 'partial']


@triton.jit
def _kept(drawn, row, there, pixels, probability):
    """What stochastic depth multiplies each row by."""
    read = there & (probability < 1.0)
    value = tl.load(drawn + row // pixels, mask=read, other=0.0)
    return tl.where(value < probability, 1.0 / probability, 0.0)[:, None]


@triton.jit(
    do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_POINTERS
)
def residual_kernel(
    x,  # (rows, C), contiguous
    y,  # (rows, width), contiguous
    scale,  # (C,), read if HAS_SCALE
    drawn,  # (N,) float32, uniform in [0, 1), read if any can be dropped
    output,  # (rows, C), contiguous
    rows,
    pixels,  # of an image
    channels,  # C
    width,
    probability,  # that a sample is kept
    HAS_SCALE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up a tile. Grid: (tiles of rows, tiles of C)."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    there = row < rows
    inside = there[:, None] & (c < channels)
    line = row.to(tl.int64)[:, None]
    values = tl.load(y + line * width + c, mask=inside, other=0.0)
    values = values.to(tl.float32)
    if HAS_SCALE:
        factor = tl.load(scale + c, mask=c < channels, other=0.0)
        values *= factor.to(tl.float32)
    values *= _kept(drawn, row, there, pixels, probability)
    at = line * channels + c
    values += tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    dtype: tl.constexpr = output.dtype.element_ty
    tl.store(output + at, _rounded(values, dtype), mask=inside)


@triton.jit(
    do_not_specialize=[*_NUMBERS, 'split_rows'],
    do_not_specialize_on_alignment=_GRAD_POINTERS,
)
def residual_grad_kernel(
    grad,  # (rows, C), contiguous: of the output
    y, scale, drawn,
    of_y,  # (rows, width), contiguous
    partial,  # (splits, C) float32, written if HAS_SCALE
    rows, pixels, channels, width,
    split_rows,  # of one split
    probability,
    HAS_SCALE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of ``y``, zeros behind C, and a split's share of the scale's.

    Grid: (splits, tiles of width).
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    begin = tl.program_id(0) * split_rows
    end = tl.minimum(begin + split_rows, rows)
    factor = tl.zeros((1, BLOCK_C), tl.float32)
    if HAS_SCALE:
        factor += tl.load(scale + c, mask=c < channels, other=0.0)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for start in range(begin, end, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)
        there = row < end
        inside = there[:, None] & (c < channels)
        line = row.to(tl.int64)[:, None]
        values = tl.load(grad + line * channels + c, mask=inside, other=0.0)
        values = values.to(tl.float32)
        values *= _kept(drawn, row, there, pixels, probability)
        at = line * width + c
        if HAS_SCALE:
            branch = tl.load(y + at, mask=inside, other=0.0)
            total += values * branch.to(tl.float32)
            values *= factor
        values = _rounded(values, of_y.dtype.element_ty)
        tl.store(of_y + at, values, mask=there[:, None] & (c < width))
    if HAS_SCALE:
        target = partial + tl.program_id(0).to(tl.int64) * channels + c
        sums = tl.sum(total, 0)[None, :]
        tl.store(target, sums, mask=c < channels)
