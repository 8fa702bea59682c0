"""The C++ kernels on every instruction set and number of threads."""

from __future__ import annotations

import pytest
import torch

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.backends import BACKENDS
from tests.helpers.operator_cases import (
    EXPLICIT_GRIDS,
    LAYOUTS,
    check,
    make_map,
    require,
)

PLAIN, LAST = torch.contiguous_format, torch.channels_last


@pytest.fixture(scope='module')
def kernels():
    require('cpp')
    return BACKENDS['cpp'].library


@pytest.fixture(params=['avx512', 'avx2', 'baseline'])
def poisoned(request, kernels):
    """Kernels of one instruction set, whose scratch memory is full of NaN."""
    if request.param not in kernels.instruction_sets():
        pytest.skip(f'this CPU has no {request.param}')
    before, kernels.instruction_set = kernels.instruction_set, request.param
    kernels.poison_scratch(True)
    yield
    kernels.poison_scratch(False)
    assert kernels.instruction_set == request.param
    kernels.instruction_set = before


# Channels: fewer than a vector, a whole one, one more; widths: below, at and
# beyond the tiles of 4, 5, 6, 8 and 14 columns.
@pytest.mark.parametrize(
    'channels,height,width',
    [(1, 5, 1), (16, 3, 6), (17, 4, 13), (7, 9, 14), (4, 2, 15), (9, 6, 29)],
)
@pytest.mark.parametrize('kernel_size', [13, 51])
def test_poisoned(poisoned, channels, height, width, kernel_size):
    check(
        'cpp',
        (2, channels, height, width),
        SharingGrid(kernel_size),
        layout='slice',
    )


# Of small maps, tasks take several images at once: 4 and 3 of 7, 3 and 2 of 5.
@pytest.mark.parametrize('shape', [(7, 9, 7, 7), (5, 3, 4, 9)])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_poisoned_batches(poisoned, shape, layout):
    check('cpp', shape, SharingGrid(13), layout=layout)


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float64, torch.bfloat16]
)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_poisoned_layouts(poisoned, dtype, layout):
    check('cpp', (1, 18, 6, 11), SharingGrid(31), dtype, layout)


@pytest.mark.parametrize('name', EXPLICIT_GRIDS)
def test_poisoned_grids(poisoned, name):
    check('cpp', (1, 3, 17, 12), EXPLICIT_GRIDS[name])


def test_poison_is_poison(kernels):
    """The check above would notice: scratch that is read comes back NaN."""
    kernels.poison_scratch(True)
    try:
        x = make_map((1, 3, 4, 4))
        x[0, 0, 0, 0] = torch.nan
        y = kernels.forward(
            x, torch.ones(3, 1, 9, 9), None, SharingGrid(13).sizes, PLAIN
        )
        assert y[0, 0].isnan().all()
        assert not y[0, 1:].isnan().any()
    finally:
        kernels.poison_scratch(False)


def test_large_map_in_bands_of_rows(kernels):
    """One image of few channels is shared among the threads by rows."""
    check('cpp', (1, 2, 70, 41), SharingGrid(31))


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('size', [(1, 7), (2, 3), (5, 9)])
def test_threads_without_work(poisoned, threads, size):
    """Those that have no row of their own still help with clean scratch."""
    for _ in range(20):
        check('cpp', (1, 2, *size), SharingGrid(31))


def test_threads_do_not_change_the_result(kernels, threads):
    x, g = make_map((3, 20, 19, 21)), make_map((3, 20, 19, 21))
    w, sizes = torch.randn(20, 1, 9, 9), SharingGrid(13).sizes
    torch.set_num_threads(1)
    expected = kernels.forward(x, w, None, sizes, LAST)
    torch.set_num_threads(threads)
    first = kernels.weight_grad(x, g, sizes)
    both = kernels.backward(x, w, g, sizes, LAST)
    assert torch.equal(both[1], first)
    assert torch.equal(kernels.forward(x, w, None, sizes, LAST), expected)
    assert torch.equal(kernels.weight_grad(x, g, sizes), first)
    for again, once in zip(
        kernels.backward(x, w, g, sizes, LAST), both, strict=True
    ):
        assert torch.equal(again, once)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan(kernels):
    x = make_map((1, 16, 8, 16)).mul(100).reshape(1, 1, 1, -1)
    x[..., :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.00390625])
    one = SharingGrid.from_sizes([1]).sizes
    y = kernels.forward(
        x.bfloat16(),
        torch.full((1, 1, 1, 1), 1.0078125, dtype=torch.bfloat16),
        None,
        one,
        PLAIN,
    )
    expected = (x.bfloat16().float() * 1.0078125).bfloat16()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(0), expected.nan_to_num(0))
