"""Grids and calls that nobody would think of writing down."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from tests.helpers.operator_cases import (
    BACKENDS,
    TOLERANCE,
    require,
    run,
    truth,
)
from tests.helpers.operator_strategies import (
    calls,
    grids,
    shapes,
    symmetric_sizes,
    tensors,
)

#: Examples of the same property in the default suite and in the slow one.
FEW, MANY = 25, 1000


def check_call(backend, grid, input, weight, bias, grad_output) -> None:
    """Output and gradients against float64, as far as rounding explains.

    Drawn values may all be equal, so that sums round in one direction, or
    cancel: errors are measured against the sum of all terms' magnitudes.
    """
    dtype = input.dtype
    tensors = input, weight, bias, grad_output
    actual = run(
        *tensors,
        lambda *leaves: peripheral_conv2d(
            *leaves[:2], grid, leaves[2], backend=backend
        ),
    )
    expected, sizes = (
        run(
            *(change(tensor.double()) for tensor in tensors),
            lambda *leaves: truth(*leaves, grid),
        )
        for change in (torch.clone, torch.abs)
    )
    half = dtype in (torch.float16, torch.bfloat16)
    rounding = torch.finfo(dtype).eps / 2 * 1.01 if half else 0
    summing = TOLERANCE[torch.float32 if half else dtype]
    # torch sums the bias gradient, the fourth; it is not ours to judge.
    for i, what in enumerate(('output', 'input grad', 'weight grad')):
        assert actual[i].dtype == dtype
        assert actual[i].shape == expected[i].shape
        allowed = (
            rounding * expected[i].abs() + 4 * summing[i > 0] * sizes[i].max()
        )
        excess = (actual[i].double() - expected[i]).abs() - allowed
        # A NaN is not <= 0 either.
        assert (excess <= 0).all(), f'{what} is off by {excess.max():.1e} more'


@pytest.mark.parametrize('backend', [*BACKENDS, None])
@settings(max_examples=FEW)
@given(call=calls())
def test_calls(backend, call):
    if backend is not None:
        require(backend)
    check_call(backend, **call)


@pytest.mark.slow
@pytest.mark.parametrize('backend', [*BACKENDS, None])
@settings(max_examples=MANY)
@given(call=calls())
def test_many_calls(backend, call):
    if backend is not None:
        require(backend)
    check_call(backend, **call)


@settings(max_examples=FEW)
@given(data=st.data(), grid=grids(), shape=shapes())
def test_wrong_calls_say_what_was_expected(data, grid, shape):
    """One argument is wrong: the error names it, what it was and should be."""
    cells, channels = grid.num_cells, shape[1]
    right = dict(
        input=torch.zeros(shape),
        weight=torch.zeros(channels, 1, cells, cells),
        bias=torch.zeros(channels),
    )
    name = data.draw(st.sampled_from(sorted(right)))
    wrong = {
        'empty': lambda x: x.new_empty(0, *x.shape[1:]),
        'empty at the end': lambda x: x.new_empty(*x.shape[:-1], 0),
        'too many dimensions': lambda x: x[None],
        'too few dimensions': lambda x: x[0],
        'too long': lambda x: x.new_zeros(*x.shape[:-1], x.shape[-1] + 1),
        'integers': torch.Tensor.long,
        'complex': lambda x: x.to(torch.complex64),
        'bool': torch.Tensor.bool,
        'another dtype': torch.Tensor.double,
        'another device': lambda x: x.to('meta'),
        'an array': torch.Tensor.numpy,
        'a list': torch.Tensor.tolist,
        'nothing': lambda x: None,
    }
    how = data.draw(st.sampled_from(sorted(wrong)))
    if (name, how) in (
        ('bias', 'nothing'),
        ('input', 'too long'),
        ('input', 'empty'),
    ):
        return  # right as well
    call = dict(right, **{name: wrong[how](right[name])})
    with pytest.raises((TypeError, ValueError)) as error:
        peripheral_conv2d(grid=grid, **call)
    message = str(error.value)
    # What comes first sets what the others have to be like.
    mentioned = name if name != 'input' else '(input|weight)'
    assert error.match(mentioned)
    assert 'must be' in message or 'must have' in message


@settings(max_examples=FEW)
@given(
    size=st.integers(0, 400).map(lambda half: 2 * half + 1),
    radius=st.integers(0, 60),
    base=st.integers(1, 9),
)
def test_grids_of_the_paper(size, radius, base):
    """Eq. 2 with the outermost cell cut, for every K, r_c and m."""
    if 2 * radius + 1 > size:
        with pytest.raises(ValueError, match='center_radius'):
            SharingGrid(size, radius, base)
        return
    grid = SharingGrid(size, radius, base)
    sizes, middle = grid.sizes, grid.num_cells // 2
    assert sum(sizes) == size == grid.kernel_size
    assert sizes == sizes[::-1]
    assert len(sizes) == grid.num_cells and grid.num_cells % 2 == 1
    for distance in range(middle + 1):
        expected = 1 if distance <= radius else base ** (distance - radius)
        if distance < middle or distance <= radius:
            assert sizes[middle + distance] == expected
        else:
            assert 1 <= sizes[-1] <= expected
    assert grid.unshared_radius >= radius
    if base > 1:
        # O(log K) cells an axis, which is all the point.
        assert grid.num_cells <= 2 * (radius + 2 + math.log(size, base)) + 1
    assert SharingGrid.from_sizes(sizes) == grid
    assert eval(repr(grid)) == grid
    assert grid.starts[0] == 0 and all(
        start + width == end
        for start, width, end in zip(
            grid.starts, sizes, (*grid.starts[1:], size), strict=True
        )
    )


@settings(max_examples=FEW)
@given(data=st.data(), sizes=symmetric_sizes())
def test_planes_of_any_layout(data, sizes):
    """expand, reduce and project, of views and of every dtype."""
    grid = SharingGrid.from_sizes(sizes)
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64)))
    weight = data.draw(tensors((2, 1, grid.num_cells, grid.num_cells), dtype))
    kernel = grid.expand(weight)
    cell_of = [cell for cell, size in enumerate(sizes) for _ in range(size)]
    assert torch.equal(kernel, weight[..., cell_of, :][..., cell_of])
    torch.testing.assert_close(grid.project(kernel), weight)
    area = torch.tensor(sizes)[:, None] * torch.tensor(sizes)
    torch.testing.assert_close(grid.reduce(kernel), weight * area)


NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.integers(max_value=0),
    st.integers(2**16, 2**200),
    st.just(10**5000),
    st.just([3]),
    st.just({}),
    st.complex_numbers(allow_nan=False),
)


@settings(max_examples=2 * FEW)
@given(
    field=st.sampled_from(('kernel_size', 'center_radius', 'base')),
    value=NUMBERS,
)
def test_wrong_fields_are_named(field, value):
    right = dict(kernel_size=13, center_radius=2, base=2)
    fits = dict(
        kernel_size=lambda value: False,
        center_radius=lambda value: value == 0,
        base=lambda value: value > 0,
    )
    if type(value) is int and fits[field](value):
        SharingGrid(**dict(right, **{field: value}))
        return
    with pytest.raises((TypeError, ValueError), match=field) as error:
        SharingGrid(**dict(right, **{field: value}))
    assert len(str(error.value)) < 500


@settings(max_examples=2 * FEW)
@given(
    sizes=st.one_of(
        NUMBERS,
        st.lists(NUMBERS, min_size=1, max_size=4),
        st.lists(st.integers(1, 9), min_size=2, max_size=6),
    )
)
def test_wrong_sizes_are_refused(sizes):
    good = (
        isinstance(sizes, list)
        and all(type(size) is int and size > 0 for size in sizes)
        and sizes == sizes[::-1]
        and sum(sizes) % 2
        and sum(sizes) < 2**16
    )
    if good:
        assert SharingGrid.from_sizes(sizes).sizes == tuple(sizes)
        return
    with pytest.raises((TypeError, ValueError)) as error:
        SharingGrid.from_sizes(sizes)
    assert 'size' in str(error.value) or 'grid' in str(error.value)
    assert len(str(error.value)) < 700
