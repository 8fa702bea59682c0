"""Differences that must not pass for small."""

from math import inf, nan

import pytest
import torch

from pelk_mm.deployment.compare import compare, difference, largest


def test_largest_of_each_output():
    first = dict(a=torch.tensor([1.0, -4.0]), b=torch.zeros(2))
    found = largest(
        [
            *compare(
                first, dict(a=torch.tensor([1.0, -3.0]), b=torch.zeros(2))
            ),
            *compare(
                first, dict(a=torch.tensor([1.5, -4.0]), b=torch.zeros(2))
            ),
        ]
    )
    assert [(each.name, each.absolute, each.relative) for each in found] == [
        ('a', 1.0, 0.25),
        ('b', 0.0, 0.0),
    ]


@pytest.mark.parametrize(
    'reference, candidate',
    [
        (1.0, nan),
        (nan, 1.0),
        (nan, nan),
        (1.0, inf),
        (inf, 1.0),
        (inf, inf),
        (0.0, 1e-9),
    ],
)
def test_what_is_no_number_is_far(reference, candidate):
    found = difference(
        'a', torch.tensor([reference]), torch.tensor([candidate])
    )
    assert found.relative == inf


def test_other_outputs():
    one = dict(a=torch.zeros(2))
    with pytest.raises(ValueError, match='outputs are b, expected a'):
        compare(one, dict(b=torch.zeros(2)))
    with pytest.raises(ValueError, match=r'a is \(3,\), expected \(2,\)'):
        compare(one, dict(a=torch.zeros(3)))
