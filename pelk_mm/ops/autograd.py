"""Derivatives of the operators, in every mode that torch has.

A convolution is linear in its input and in its weight, and either gradient in
both of its tensors: every rule is one of the operators again. Each class has
the rules of one, and is applied to its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

_ops = torch.ops.pelk_mm


class Convolution(Function):
    @staticmethod
    def forward(*operands: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return _ops.peripheral_conv2d.default(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _keep(ctx, inputs[:2], inputs[3:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple:
        input, weight = ctx.saved_tensors
        options, needed = ctx.options, ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * 5
        if grad_output is None:
            return tuple(grads)
        with _below_autograd_if_plain():
            if needed[0] and needed[1]:
                grads[:2] = _ops.peripheral_conv2d_backward.default(
                    input, weight, grad_output, *options
                )
            elif needed[0]:
                grads[0] = _convolve_back(grad_output, weight, options)
            elif needed[1]:
                grads[1] = _weight_grad(input, grad_output, options)
            if needed[2]:
                grads[2] = grad_output.sum((0, 2, 3))
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        to_input, to_weight, to_bias, *_ = tangents
        with _primals(ctx) as (input, weight):
            if to_bias is not None:
                to_bias = to_bias[:, None, None].expand(input.shape)
            return _sum(
                _convolve(to_input, weight, ctx.options),
                _convolve(input, to_weight, ctx.options),
                to_bias,
            )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, int]:
        size, (dim, *others) = info.batch_size, in_dims[:3]
        # More images, or more channels where each has a weight of its own.
        place = int(others != [None, None])
        input = _fold(input, dim, size, place)
        if place:
            weight = _fold(weight, others[0], size, 0)
            bias = None if bias is None else _fold(bias, others[1], size, 0)
        output = _ops.peripheral_conv2d.default(input, weight, bias, *options)
        return _unfold(output, size, place), place


class WeightGrad(Function):
    @staticmethod
    def forward(*operands: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return _ops.peripheral_conv2d_weight_grad.default(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _keep(ctx, inputs[:2], inputs[2:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple:
        input, grad_output = ctx.saved_tensors
        to_input = to_grad_output = None
        if ctx.needs_input_grad[0]:
            to_input = _convolve_back(grad_output, cotangent, ctx.options)
        if ctx.needs_input_grad[1]:
            to_grad_output = _convolve(input, cotangent, ctx.options)
        return to_input, to_grad_output, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        to_input, to_grad_output, *_ = tangents
        with _primals(ctx) as (input, grad_output):
            return _sum(
                _weight_grad(to_input, grad_output, ctx.options),
                _weight_grad(input, to_grad_output, ctx.options),
            )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        input: Tensor,
        grad_output: Tensor,
        *options: Any,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        grad_weight = _ops.peripheral_conv2d_weight_grad.default(
            _fold(input, in_dims[0], size, 1),
            _fold(grad_output, in_dims[1], size, 1),
            *options,
        )
        return _unfold(grad_weight, size, 0), 0


class Gradients(Function):
    @staticmethod
    def forward(*operands: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return _ops.peripheral_conv2d_backward.default(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _keep(ctx, inputs[:3], inputs[3:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple:
        of_input, of_weight = cotangents
        input, weight, grad_output = ctx.saved_tensors
        options, needed = ctx.options, ctx.needs_input_grad
        grads: list[Tensor | None] = [None] * 5
        if needed[0]:
            grads[0] = _convolve_back(grad_output, of_weight, options)
        if needed[1]:
            grads[1] = _weight_grad(of_input, grad_output, options)
        if needed[2]:
            grads[2] = _sum(
                _convolve(of_input, weight, options),
                _convolve(input, of_weight, options),
            )
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, Tensor | None]:
        to_input, to_weight, to_grad_output, *_ = tangents
        options = ctx.options
        with _primals(ctx) as (input, weight, grad_output):
            return (
                _sum(
                    _convolve_back(to_grad_output, weight, options),
                    _convolve_back(grad_output, to_weight, options),
                ),
                _sum(
                    _weight_grad(to_input, grad_output, options),
                    _weight_grad(input, to_grad_output, options),
                ),
            )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        *options: Any,
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        size = info.batch_size
        grad_input, grad_weight = _ops.peripheral_conv2d_backward.default(
            _fold(input, in_dims[0], size, 1),
            _fold(weight, in_dims[1], size, 0),
            _fold(grad_output, in_dims[2], size, 1),
            *options,
        )
        grads = _unfold(grad_input, size, 1), _unfold(grad_weight, size, 0)
        return grads, (1, 0)


def _recorded() -> bool:
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _below_autograd_if_plain() -> AbstractContextManager:
    """Saves a backward pass of which nothing is recorded a way through Python.

    Transforms of ``torch.func`` record what these flags do not show.
    """
    if _recorded() or torch._C._are_functorch_transforms_active():
        return nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


# The operators of tensors that may not be there, which are zeros.


def _convolve(
    input: Tensor | None, weight: Tensor | None, options: tuple
) -> Tensor | None:
    if input is None or weight is None:
        return None
    return _ops.peripheral_conv2d.default(input, weight, None, *options)


def _convolve_back(
    output: Tensor | None, weight: Tensor | None, options: tuple
) -> Tensor | None:
    """The adjoint; cells are symmetric, so the weight is flipped."""
    flipped = None if weight is None else weight.flip(2, 3)
    return _convolve(output, flipped, options)


def _weight_grad(
    input: Tensor | None, grad_output: Tensor | None, options: tuple
) -> Tensor | None:
    if input is None or grad_output is None:
        return None
    return _ops.peripheral_conv2d_weight_grad.default(
        input, grad_output, *options
    )


def _sum(*terms: Tensor | None) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _keep(ctx: Any, tensors: tuple, options: tuple) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.options = options
    ctx.set_materialize_grads(False)


@contextmanager
def _primals(ctx: Any) -> Iterator[list[Tensor]]:
    """What was kept, without its tangents; those of outer levels count on."""
    with forward_ad._set_fwd_grad_enabled(True):
        # torch has one level, which Python does not know in compiled graphs.
        yield [
            forward_ad.unpack_dual(tensor, level=0).primal
            for tensor in ctx.saved_tensors
        ]


def _fold(tensor: Tensor, dim: int | None, size: int, place: int) -> Tensor:
    """vmap's batch as part of a dimension; without one, equal copies."""
    if dim is None:
        tensor, dim = tensor.expand(size, *tensor.shape), 0
    return tensor.movedim(dim, place).flatten(place, place + 1)


def _unfold(tensor: Tensor, size: int, place: int) -> Tensor:
    return tensor.unflatten(place, (size, tensor.shape[place] // size))


def at_autograd(function: type[Function]) -> Callable:
    """``function.apply`` where no transform of ``torch.func`` is at work.

    Which ``Function.apply`` looks for at length. Where nothing is recorded,
    as in a backward pass, nothing is prepared for it either.
    """
    apply = super(Function, function).apply  # type: ignore[misc]

    def run(*operands: Any) -> Any:
        return (apply if _recorded() else function.forward)(*operands)

    return run
