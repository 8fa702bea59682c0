"""Inputs of the operator that nobody would think of writing down."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from pelk_mm.ops import SharingGrid

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@st.composite
def symmetric_sizes(draw, most: int = 9, cells: int = 5) -> list[int]:
    """Sizes that ``SharingGrid.from_sizes`` takes: any sizes, mirrored."""
    half = draw(st.lists(st.integers(1, most), max_size=cells))
    # Few distinct sizes are what the backends share work among.
    if half and draw(st.booleans()):
        few = draw(st.sampled_from(half))
        half = [few if draw(st.booleans()) else size for size in half]
    middle = 2 * draw(st.integers(0, most // 2)) + 1
    return [*half, middle, *reversed(half)]


@st.composite
def grids(draw) -> SharingGrid:
    """Of Eq. 2 with any base and centre, or of any sizes."""
    if draw(st.booleans()):
        return SharingGrid.from_sizes(draw(symmetric_sizes()))
    radius = draw(st.integers(0, 3))
    size = 2 * draw(st.integers(radius, 20)) + 1
    return SharingGrid(size, radius, draw(st.integers(1, 4)))


@st.composite
def shapes(draw) -> tuple[int, int, int, int]:
    """Channels around the widths of vectors, maps of a row or a column."""
    return (
        draw(st.integers(1, 3)),
        draw(st.one_of(st.integers(1, 5), st.integers(6, 35))),
        draw(st.integers(1, 14)),
        draw(st.integers(1, 19)),
    )


@st.composite
def tensors(draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal numbers in any layout that views can make.

    Dimensions in any order in memory, steps and gaps between values, an
    offset before the first, equal values along expanded dimensions. What lies
    between the values is NaN.
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    order = draw(
        st.one_of(
            st.just(list(range(len(shape)))),
            # Channels last, as the network has them.
            st.just(sorted(range(len(shape)), key=lambda i: (i == 1, i))),
            st.permutations(range(len(shape))),
        )
    )
    plain = draw(st.booleans())
    steps, before, after, kept = [], [], [], []
    for size in shape:
        steps.append(1 if plain else draw(st.integers(1, 2)))
        before.append(0 if plain else draw(st.integers(0, 2)))
        after.append(0 if plain else draw(st.integers(0, 2)))
        expanded = not plain and draw(st.integers(0, 7)) == 0
        kept.append(1 if expanded else size)
    whole = torch.full(
        [before[i] + steps[i] * kept[i] + after[i] for i in order],
        torch.nan,
        dtype=dtype,
    )
    view = whole.permute([order.index(i) for i in range(len(shape))])
    for i, size in enumerate(kept):
        view = view.narrow(i, before[i], steps[i] * size)
        view = view[(slice(None),) * i + (slice(None, None, steps[i]),)]
    view.copy_(torch.randn(kept, dtype=torch.float64, generator=generator))
    return view.expand(shape)


@st.composite
def calls(draw) -> dict:
    """Arguments of a call, and the gradient that comes back to it."""
    shape, grid = draw(shapes()), draw(grids())
    dtype = draw(st.sampled_from(DTYPES))
    cells = grid.num_cells
    return dict(
        grid=grid,
        input=draw(tensors(shape, dtype)),
        weight=draw(tensors((shape[1], 1, cells, cells), dtype)),
        bias=draw(tensors((shape[1],), dtype)),
        grad_output=draw(tensors(shape, dtype)),
    )
