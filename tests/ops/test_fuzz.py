"""Grids and calls that nobody would think of writing down."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelk_mm.ops import SharingGrid, peripheral_conv2d

from .cases import BACKENDS, check_call, require
from .fuzz import calls, grids, symmetric_sizes, tensors

#: Of the same property, in the default suite and in the slow one.
FEW, MANY = 40, 3000


def check_everywhere(backend: str | None, call: dict) -> None:
    if backend is not None:
        require(backend)
    check_call(backend, **call)


@pytest.mark.parametrize('backend', [*BACKENDS, None])
@settings(max_examples=FEW)
@given(call=calls())
def test_calls(backend, call):
    check_everywhere(backend, call)


@pytest.mark.slow
@pytest.mark.parametrize('backend', [*BACKENDS, None])
@settings(max_examples=MANY)
@given(call=calls())
def test_many_calls(backend, call):
    check_everywhere(backend, call)
