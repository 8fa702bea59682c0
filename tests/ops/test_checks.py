import math

import numpy as np
import pytest

from pelk_mm.ops.checks import check_bool, check_integer, check_number


@pytest.mark.parametrize('value', [0, 3, np.int64(3), np.uint8(0)])
def test_integers_come_back_as_pythons(value):
    result = check_integer('size', value, 0, 3)
    assert result == value
    assert type(result) is int


@pytest.mark.parametrize('value', [True, 3.0, '3', None, np.float32(3)])
def test_other_types_are_no_integers(value):
    with pytest.raises(
        TypeError,
        match=r'size must be an integer, got .* of '
        f'type {type(value).__name__}',
    ):
        check_integer('size', value, 0)


def test_integers_out_of_range():
    with pytest.raises(ValueError, match='size must be at least 1, got 0'):
        check_integer('size', 0, 1)
    with pytest.raises(ValueError, match='size must be -4 to 3, got 4'):
        check_integer('size', 4, -4, 3)


@pytest.mark.parametrize('value', [0, 0.5, 1, np.float32(0.5), np.int64(1)])
def test_numbers_come_back_as_floats(value):
    result = check_number('rate', value, 0, 1)
    assert result == value
    assert type(result) is float


@pytest.mark.parametrize('value', [-0.1, 1.1, math.nan, math.inf])
def test_numbers_out_of_range(value):
    with pytest.raises(ValueError, match=f'rate must be 0 to 1, got {value}'):
        check_number('rate', value, 0, 1)


@pytest.mark.parametrize('value', [True, '1', None, 1j])
def test_other_types_are_no_numbers(value):
    with pytest.raises(TypeError, match='rate must be a number'):
        check_number('rate', value, 0)


def test_bools():
    assert check_bool('flag', False) is False
    for value in (0, 'no', None):
        with pytest.raises(TypeError, match='flag must be True or False'):
            check_bool('flag', value)
