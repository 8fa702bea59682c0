"""Geometry of the kernel against the grids that the paper prints."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid

PRINTED = [
    (5, 0, [2, 1]),
    (13, 2, [2, 2, 1, 1, 1]),
    (31, 2, [7, 4, 2, 1, 1, 1]),
    (33, 2, [8, 4, 2, 1, 1, 1]),
    (47, 2, [7, 8, 4, 2, 1, 1, 1]),
    (49, 2, [8, 8, 4, 2, 1, 1, 1]),
    (51, 2, [9, 8, 4, 2, 1, 1, 1]),
    (51, 0, [11, 8, 4, 2, 1]),
    (51, 1, [10, 8, 4, 2, 1, 1]),
    (51, 3, [8, 8, 4, 2, 1, 1, 1, 1]),
    (67, 3, [16, 8, 4, 2, 1, 1, 1, 1]),
    (69, 3, [1, 16, 8, 4, 2, 1, 1, 1, 1]),
    (101, 3, [17, 16, 8, 4, 2, 1, 1, 1, 1]),
]


@pytest.mark.parametrize('kernel_size,center_radius,half', PRINTED)
def test_printed_grids(kernel_size, center_radius, half):
    grid = SharingGrid(kernel_size, center_radius)
    assert grid.sizes == (*half, *half[-2::-1])
    assert grid.kernel_size == kernel_size
    assert grid.num_cells == 2 * len(half) - 1
    assert grid.unshared_radius >= center_radius


sizes = st.lists(st.integers(1, 9), min_size=0, max_size=5).flatmap(
    lambda half: st.integers(0, 4).map(
        lambda middle: (*half, 2 * middle + 1, *reversed(half))
    )
)


@given(sizes)
def test_any_symmetric_grid(sizes):
    grid = SharingGrid.from_sizes(sizes)
    assert grid.kernel_size == sum(sizes)
    assert grid.starts == tuple(sum(sizes[:i]) for i in range(len(sizes)))
    assert grid == SharingGrid.from_sizes(list(sizes))
    assert hash(grid) == hash(SharingGrid.from_sizes(sizes))


def test_expand_writes_every_position():
    grid = SharingGrid(13)
    weight = torch.randn(2, 3, 9, 9)
    kernel = grid.expand(weight)
    assert kernel.shape == (2, 3, 13, 13)
    cell_of = [c for c, size in enumerate(grid.sizes) for _ in range(size)]
    for i in range(13):
        for j in range(13):
            assert torch.equal(
                kernel[..., i, j], weight[..., cell_of[i], cell_of[j]]
            )


@given(sizes)
def test_reduce_is_the_adjoint_and_project_the_inverse(sizes):
    grid = SharingGrid.from_sizes(sizes)
    weight = torch.randn(grid.num_cells, grid.num_cells, dtype=torch.float64)
    kernel = torch.randn(sum(sizes), sum(sizes), dtype=torch.float64)
    torch.testing.assert_close(
        (grid.expand(weight) * kernel).sum(),
        (weight * grid.reduce(kernel)).sum(),
    )
    torch.testing.assert_close(grid.project(grid.expand(weight)), weight)
    torch.testing.assert_close(
        grid.reduce(torch.ones_like(kernel)), grid.areas
    )


def test_what_is_not_finite_stays_in_its_cell():
    grid = SharingGrid(13)
    kernel = torch.ones(13, 13)
    kernel[0, 4] = torch.inf
    expected = grid.areas.float()
    expected[0, 2] = torch.inf
    assert torch.equal(grid.reduce(kernel), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_kernels_are_rounded_along_an_axis_only(dtype):
    grid = SharingGrid(101, 3)
    kernel = torch.rand(101, 101).to(dtype)
    exact = grid.reduce(kernel.double())
    error = (grid.reduce(kernel) - exact).abs() / exact
    assert error.max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize('method', ['expand', 'reduce'])
def test_derivatives(method):
    grid = SharingGrid(9)
    size = grid.num_cells if method == 'expand' else grid.kernel_size
    x = torch.randn(2, size, size, dtype=torch.float64, requires_grad=True)
    function = getattr(grid, method)
    torch.autograd.gradcheck(function, x)
    torch.autograd.gradgradcheck(function, x)
    assert torch.equal(torch.vmap(function)(x), function(x))


@pytest.mark.parametrize(
    'arguments,error,words',
    [
        ((12,), ValueError, ['odd', '12']),
        ((3, 2), ValueError, ['5x5', 'center_radius']),
        ((13, -1), ValueError, ['center_radius', '-1']),
        ((13.0,), TypeError, ['kernel_size', 'float']),
        ((True,), TypeError, ['kernel_size', 'bool']),
        ((13, 2, 0), ValueError, ['base', '0']),
    ],
)
def test_bad_kernels(arguments, error, words):
    with pytest.raises(error) as raised:
        SharingGrid(*arguments)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    'sizes,error,words',
    [
        ([1, 2, 3], ValueError, ['symmetric', '[1, 2, 3]']),
        ([2, 2], ValueError, ['odd', '4']),
        ([1, 0, 1], ValueError, ['sizes[1]', '0']),
        ([], ValueError, ['at least one']),
        (5, TypeError, ['sequence', 'int']),
        ('111', TypeError, ['sequence', 'str']),
        ([1, 1.0, 1], TypeError, ['sizes[1]', 'float']),
    ],
)
def test_bad_sizes(sizes, error, words):
    with pytest.raises(error) as raised:
        SharingGrid.from_sizes(sizes)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    'method,size', [('expand', 9), ('reduce', 13), ('project', 13)]
)
def test_wrong_planes(method, size):
    with pytest.raises(ValueError, match=f'{size} x {size}.*7, 9'):
        getattr(SharingGrid(13), method)(torch.randn(7, 9))
