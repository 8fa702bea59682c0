"""Pointwise layers in a row, with widths that tensor cores like."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ...ops.autocast import autocast_dtype
from .replacing import are_ordinary, are_plain, is_recorded

#: Elements of 16 bits that a GPU loads at once.
_STEP = 8
#: Elements of an input below which a product takes less time than launching
#: what fills it up.
_FEW = 2**19
_BETWEEN = (nn.GELU, nn.Identity)


def pointwise_mlp(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Run layers one after the other.

    A GPU multiplies 16-bit matrices several times more slowly if their widths
    are no multiples of 8, which those of PeLK are not. There two linear
    layers, and a GELU between them, run with zeros filled in, which change
    nothing. Where something is attached to a layer, or stands in its place,
    it is called as it is.

    Args:
        x (Tensor): ``(..., C)``.
        layers (Sequence[nn.Module]): The first and the last one linear.

    Returns:
        Tensor: ``(..., C')``. C' is the width of the last layer, or where
        zeros are filled in more, which lie behind the others.
    """
    dtype = padded_dtype(x)
    if dtype is not None and _can_pad(x, layers):
        return _padded_mlp(x, layers, dtype)
    for layer in layers:
        x = layer(x)
    return x


def padded_dtype(x: Tensor) -> torch.dtype | None:
    """The 16-bit dtype that a GPU multiplies ``x`` in, None elsewhere.

    None for small inputs, and where torch records or transforms what runs.
    """
    if not x.is_cuda or x.numel() < _FEW or is_recorded():
        return None
    dtype = autocast_dtype(x) or x.dtype
    return dtype if dtype.itemsize == 2 else None


def _can_pad(x: Tensor, layers: Sequence[Any]) -> bool:
    first, *between, last = layers
    if (
        type(first) is not nn.Linear
        or type(last) is not nn.Linear
        or any(type(layer) not in _BETWEEN for layer in between)
        or not are_plain(layers)
    ):
        return False
    operands = x, first.weight, first.bias, last.weight, last.bias
    if not are_ordinary(operands):
        return False
    # Without autocast, another dtype is an error.
    autocast = autocast_dtype(x) is not None
    same = autocast or all(value.dtype == x.dtype for value in operands)
    widths = x.shape[-1], *first.weight.shape, *last.weight.shape
    fits = widths[0] == widths[2] and widths[1] == widths[4]
    return fits and same and any(width % _STEP for width in widths)


def _padded_mlp(
    x: Tensor, layers: Sequence[Any], dtype: torch.dtype
) -> Tensor:
    first, *between, last = layers
    parameters = first.weight, first.bias, last.weight, last.bias
    shapes = [[*x.shape[:-1], _round_up(x.shape[-1])]]
    shapes += [[*map(_round_up, value.shape)] for value in parameters]
    y, *padded = _Pad.apply(dtype, shapes, x, *parameters)
    y = F.linear(y, *padded[:2])
    for layer in between:
        y = layer(y)
    return F.linear(y, *padded[2:])


def _round_up(width: int) -> int:
    return -(-width // _STEP) * _STEP


class _Pad(Function):
    """Cast tensors and fill them up with zeros to larger shapes.

    All in the memory of one tensor: one launch makes the zeros, and one each
    casts and copies.
    """

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, shapes: list[list[int]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.origins = [(value.shape, value.dtype) for value in tensors]
        ctx.set_materialize_grads(False)
        sizes = [prod(shape) for shape in shapes]
        zeros = tensors[0].new_zeros(sum(sizes), dtype=dtype).split(sizes)
        padded = []
        for flat, shape, tensor in zip(zeros, shapes, tensors, strict=True):
            padded.append(flat.view(shape))
            padded[-1][_inside(tensor.shape)].copy_(tensor)
        return tuple(padded)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        cut = [
            None if grad is None else grad[_inside(shape)].to(dtype)
            for grad, (shape, dtype) in zip(grads, ctx.origins, strict=True)
        ]
        return None, None, *cut


def _inside(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(map(slice, shape))
