"""The peripheral convolution: checks, and its registration with torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .backends import BACKENDS, memory_format
from .choice import check_name, select_backend, why_not
from .sharing_grid import SharingGrid

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def available_backends(
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None) -> dict[str, str | None]:
    """Say which backends run, and why the others do not.

    A backend that is compiled on first use is compiled now: the answer is
    what a call would get.

    Args:
        device (torch.device | str, optional): Where the input would be.
            Default: torch's default device.
        dtype (torch.dtype, optional): The input's dtype. Default: torch's
            default dtype.

    Returns:
        dict[str, str | None]: For every backend None if it runs, otherwise
        the reason why it does not.
    """
    device = torch.get_default_device() if device is None else device
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return {
        name: why_not(backend, torch.device(device), dtype)
        for name, backend in BACKENDS.items()
    }


def peripheral_conv2d(input: Tensor,
                      weight: Tensor,
                      grid: SharingGrid,
                      bias: Tensor | None = None,
                      *,
                      backend: str | None = None) -> Tensor:
    """Depthwise convolution with a kernel that shares weights by cells.

    Computes ``Y(p) = bias + sum_{i,j} w(i, j) X(p + (i, j))`` with ``w`` the
    expansion of the compact ``weight`` over ``grid`` (Eq. 1 of `PeLK
    <https://arxiv.org/abs/2403.07589>`_): stride 1, zero padding ``K // 2``.
    Differentiable, twice too, in ``input``, ``weight`` and ``bias``. float16
    and bfloat16 accumulate in float32. Under autocast, float32 and narrower
    arguments are cast to the autocast dtype, as convolutions are.

    Args:
        input (Tensor): ``(N, C, H, W)``, any strides, no dimension empty;
            float32, float64, bfloat16 or float16. The map may be smaller
            than the kernel.
        weight (Tensor): ``(C, 1, k', k')``, dtype and device of ``input``.
        grid (SharingGrid): The k' x k' cells of the K x K kernel.
        bias (Tensor, optional): ``(C,)``, dtype and device of ``input``.
            Default: None.
        backend (str, optional): One of the names in
            :func:`available_backends`: it runs or the call raises. None
            takes the fastest that can run. Default: None.

    Returns:
        Tensor: ``(N, C, H, W)``, dtype and device of ``input``; channels-last
        where ``input`` is (a slice of a channels-last tensor counts),
        contiguous otherwise.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If shapes or devices do not fit, or the backend is
            unknown.
        RuntimeError: If the named backend cannot run; the message says why.
    """
    _check(input, weight, grid, bias)
    check_name(backend)
    return torch.ops.pelk_mm.peripheral_conv2d(
        input, weight, bias, grid.sizes, backend or '')


def _check(input: Tensor, weight: Tensor, grid: SharingGrid,
           bias: Tensor | None) -> None:
    if not isinstance(grid, SharingGrid):
        raise TypeError(
            f'grid must be a SharingGrid, got {type(grid).__name__}; build '
            'one with SharingGrid(kernel_size) or SharingGrid.from_sizes')
    arguments = {'input': input, 'weight': weight}
    if bias is not None:
        arguments['bias'] = bias
    for name, tensor in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f'{name} must be a Tensor, got {type(tensor).__name__}')
        if tensor.dtype not in _DTYPES:
            raise TypeError(f'{name} must be one of '
                            f'{", ".join(map(str, _DTYPES))}, got '
                            f'{tensor.dtype}')
        if tensor.device != input.device:
            raise ValueError(
                f'{name} must be on the device of input, {input.device}, '
                f'got {tensor.device}')
        if tensor.dtype != input.dtype and not _casts(input, tensor):
            raise TypeError(f'{name} must have the dtype of input, '
                            f'{input.dtype}, got {tensor.dtype}')
    if input.ndim != 4 or 0 in input.shape:
        raise ValueError('input must be (N, C, H, W) with no empty '
                         f'dimension, got shape {tuple(input.shape)}')
    cells = grid.num_cells
    expected = (input.shape[1], 1, cells, cells)
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"weight must be (C, 1, k', k') = {expected} for an input of "
            f'{input.shape[1]} channels and a grid of {cells} x {cells} '
            f'cells, got shape {tuple(weight.shape)}')
    if bias is not None and tuple(bias.shape) != expected[:1]:
        raise ValueError(f'bias must be (C,) = {expected[:1]}, got shape '
                         f'{tuple(bias.shape)}')


def _casts(*tensors: Tensor) -> bool:
    """Whether autocast will give all of these tensors one dtype."""
    return (torch.is_autocast_enabled(tensors[0].device.type)
            and all(tensor.dtype != torch.float64 for tensor in tensors))


@lru_cache(maxsize=256)
def _grid(sizes: tuple[int, ...]) -> SharingGrid:
    return SharingGrid.from_sizes(sizes)


@torch.library.custom_op('pelk_mm::peripheral_conv2d', mutates_args=())
def _forward(input: Tensor, weight: Tensor, bias: Tensor | None,
             sizes: Sequence[int], backend: str) -> Tensor:
    grid = _grid(tuple(sizes))
    chosen = select_backend(
        backend or None,
        input.device,
        input.dtype,
        input.shape,
        grid,
        channels_last=memory_format(input) == torch.channels_last)
    output = chosen.forward(input, weight, bias, grid)
    return output.contiguous(memory_format=memory_format(input))


@_forward.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None,
      sizes: Sequence[int], backend: str) -> Tensor:
    return torch.empty_like(input, memory_format=memory_format(input))


@torch.library.custom_op(
    'pelk_mm::peripheral_conv2d_weight_grad', mutates_args=())
def _weight_grad(input: Tensor, grad_output: Tensor, sizes: Sequence[int],
                 backend: str) -> Tensor:
    grid = _grid(tuple(sizes))
    chosen = select_backend(
        backend or None,
        input.device,
        input.dtype,
        input.shape,
        grid,
        weight_grad=True,
        channels_last=memory_format(input) == torch.channels_last)
    return chosen.weight_grad(input, grad_output, grid).contiguous()


@_weight_grad.register_fake
def _(input: Tensor, grad_output: Tensor, sizes: Sequence[int],
      backend: str) -> Tensor:
    cells = len(sizes)
    return input.new_empty(input.shape[1], 1, cells, cells)


def _setup_forward(ctx, inputs, output) -> None:
    input, weight, _, ctx.sizes, ctx.backend = inputs
    ctx.save_for_backward(input, weight)


def _backward_forward(ctx, grad_output: Tensor):
    input, weight = ctx.saved_tensors
    grad_input = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        # Symmetric cells: the adjoint is the same operation, weight flipped.
        grad_input = torch.ops.pelk_mm.peripheral_conv2d(
            grad_output, weight.flip(2, 3), None, ctx.sizes, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.pelk_mm.peripheral_conv2d_weight_grad(
            input, grad_output, ctx.sizes, ctx.backend)
    if ctx.needs_input_grad[2]:
        grad_bias = grad_output.sum((0, 2, 3))
    return grad_input, grad_weight, grad_bias, None, None


_forward.register_autograd(_backward_forward, setup_context=_setup_forward)


def _setup_weight_grad(ctx, inputs, output) -> None:
    input, grad_output, ctx.sizes, ctx.backend = inputs
    ctx.save_for_backward(input, grad_output)


def _backward_weight_grad(ctx, cotangent: Tensor):
    """The weight's gradient is bilinear: each side is a convolution."""
    input, grad_output = ctx.saved_tensors
    grad_input = grad_grad_output = None
    if ctx.needs_input_grad[0]:
        grad_input = torch.ops.pelk_mm.peripheral_conv2d(
            grad_output, cotangent.flip(2, 3), None, ctx.sizes, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_grad_output = torch.ops.pelk_mm.peripheral_conv2d(
            input, cotangent, None, ctx.sizes, ctx.backend)
    return grad_input, grad_grad_output, None, None


_weight_grad.register_autograd(
    _backward_weight_grad, setup_context=_setup_weight_grad)


_autocast = torch.library.Library('pelk_mm', 'FRAGMENT')


def _register_autocast(device_type: str) -> None:
    key = f'Autocast{device_type.upper()}'

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device_type))

    def forward(input, weight, bias, sizes, backend):
        with torch.amp.autocast(device_type, enabled=False):
            return torch.ops.pelk_mm.peripheral_conv2d(
                cast(input), cast(weight), cast(bias), sizes, backend)

    _autocast.impl('peripheral_conv2d', forward, key)


for _device_type in ('cpu', 'cuda'):
    _register_autocast(_device_type)
