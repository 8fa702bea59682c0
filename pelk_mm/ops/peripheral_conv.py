"""The peripheral convolution: checks, and its registration with torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import autocast
from .backends import BACKENDS, Backend, memory_format
from .choice import check_name, get_ready, select_backend
from .sharing_grid import SharingGrid

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def available_backends(
    device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> dict[str, str | None]:
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
    device = torch.device(device)
    absent = _why_no_tensor(device)
    return {
        name: get_ready(backend, device, dtype) or absent
        for name, backend in BACKENDS.items()
    }


def _why_no_tensor(device: torch.device) -> str | None:
    """None if tensors can be on a device, otherwise torch's reason."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        return f'torch cannot use {device}: {str(error).splitlines()[0]}'
    return None


def peripheral_conv2d(
    input: Tensor,
    weight: Tensor,
    grid: SharingGrid,
    bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
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
        input, weight, bias, grid.sizes, backend or ''
    )


def _check(
    input: Tensor, weight: Tensor, grid: SharingGrid, bias: Tensor | None
) -> None:
    if not isinstance(grid, SharingGrid):
        raise TypeError(
            f'grid must be a SharingGrid, got {type(grid).__name__}; build '
            'one with SharingGrid(kernel_size) or SharingGrid.from_sizes'
        )
    arguments = {'input': input, 'weight': weight}
    if bias is not None:
        arguments['bias'] = bias
    for name, tensor in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f'{name} must be a Tensor, got {type(tensor).__name__}'
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f'{name} must be one of '
                f'{", ".join(map(str, _DTYPES))}, got '
                f'{tensor.dtype}'
            )
        if tensor.device != input.device:
            raise ValueError(
                f'{name} must be on the device of input, {input.device}, '
                f'got {tensor.device}'
            )
        if tensor.dtype != input.dtype and not _casts(input, tensor):
            raise TypeError(
                f'{name} must have the dtype of input, '
                f'{input.dtype}, got {tensor.dtype}'
            )
    if input.ndim != 4 or 0 in input.shape:
        raise ValueError(
            'input must be (N, C, H, W) with no empty '
            f'dimension, got shape {tuple(input.shape)}'
        )
    cells = grid.num_cells
    expected = (input.shape[1], 1, cells, cells)
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"weight must be (C, 1, k', k') = {expected} for an input of "
            f'{input.shape[1]} channels and a grid of {cells} x {cells} '
            f'cells, got shape {tuple(weight.shape)}'
        )
    if bias is not None and tuple(bias.shape) != expected[:1]:
        raise ValueError(
            f'bias must be (C,) = {expected[:1]}, got shape '
            f'{tuple(bias.shape)}'
        )


def _casts(*tensors: Tensor) -> bool:
    """Whether autocast will give all of these tensors one dtype."""
    return all(
        autocast.autocast_dtype(tensor) is not None for tensor in tensors
    )


@lru_cache(maxsize=256)
def _grid(sizes: tuple[int, ...]) -> SharingGrid:
    return SharingGrid.from_sizes(sizes)


def _select(
    backend: str, input: Tensor, grid: SharingGrid, weight_grad: bool = False
) -> Backend:
    return select_backend(
        backend, input.device, input.dtype, grid.kernel_size, weight_grad
    )


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: Sequence[int],
    backend: str,
) -> Tensor:
    grid = _grid(tuple(sizes))
    chosen = _select(backend, input, grid)
    output = chosen.forward(input, weight, bias, grid)
    return output.contiguous(memory_format=memory_format(input))


def _fake_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: Sequence[int],
    backend: str,
) -> Tensor:
    return torch.empty_like(input, memory_format=memory_format(input))


def _weight_grad(
    input: Tensor, grad_output: Tensor, sizes: Sequence[int], backend: str
) -> Tensor:
    grid = _grid(tuple(sizes))
    chosen = _select(backend, input, grid, weight_grad=True)
    return chosen.weight_grad(input, grad_output, grid).contiguous()


def _fake_weight_grad(
    input: Tensor, grad_output: Tensor, sizes: Sequence[int], backend: str
) -> Tensor:
    cells = len(sizes)
    return input.new_empty(input.shape[1], 1, cells, cells)


def _backward(
    input: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    grid = _grid(tuple(sizes))
    chosen = _select(backend, input, grid)
    # A named backend does both.
    other = (
        chosen if backend else _select(backend, input, grid, weight_grad=True)
    )
    if chosen is other:
        grad_input, grad_weight = chosen.backward(
            input, weight, grad_output, grid
        )
    else:
        grad_input = chosen.forward(grad_output, weight.flip(2, 3), None, grid)
        grad_weight = other.weight_grad(input, grad_output, grid)
    return (
        grad_input.contiguous(memory_format=memory_format(input)),
        grad_weight.contiguous(),
    )


def _fake_backward(
    input: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(input, memory_format=memory_format(input)),
        weight.new_empty(weight.shape),
    )


def _setup_forward(ctx, inputs, output) -> None:
    input, weight, _, ctx.sizes, ctx.backend = inputs
    ctx.save_for_backward(input, weight)


def _backward_forward(ctx, grad_output: Tensor):
    input, weight = ctx.saved_tensors
    ops, options = torch.ops.pelk_mm, (ctx.sizes, ctx.backend)
    grad_input = grad_weight = grad_bias = None
    if all(ctx.needs_input_grad[:2]):
        grad_input, grad_weight = ops.peripheral_conv2d_backward(
            input, weight, grad_output, *options
        )
    elif ctx.needs_input_grad[0]:
        # Symmetric cells: the adjoint is the same operation, weight flipped.
        grad_input = ops.peripheral_conv2d(
            grad_output, weight.flip(2, 3), None, *options
        )
    elif ctx.needs_input_grad[1]:
        grad_weight = ops.peripheral_conv2d_weight_grad(
            input, grad_output, *options
        )
    if ctx.needs_input_grad[2]:
        grad_bias = grad_output.sum((0, 2, 3))
    return grad_input, grad_weight, grad_bias, None, None


def _setup_weight_grad(ctx, inputs, output) -> None:
    input, grad_output, ctx.sizes, ctx.backend = inputs
    ctx.save_for_backward(input, grad_output)


def _backward_weight_grad(ctx, cotangent: Tensor):
    """The weight's gradient is bilinear: each side is a convolution."""
    input, grad_output = ctx.saved_tensors
    grad_input = grad_grad_output = None
    if ctx.needs_input_grad[0]:
        grad_input = torch.ops.pelk_mm.peripheral_conv2d(
            grad_output, cotangent.flip(2, 3), None, ctx.sizes, ctx.backend
        )
    if ctx.needs_input_grad[1]:
        grad_grad_output = torch.ops.pelk_mm.peripheral_conv2d(
            input, cotangent, None, ctx.sizes, ctx.backend
        )
    return grad_input, grad_grad_output, None, None


def _setup_backward(ctx, inputs, output) -> None:
    *tensors, ctx.sizes, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward_backward(ctx, to_input: Tensor, to_weight: Tensor):
    """Both gradients are bilinear too; see :func:`_backward_weight_grad`.

    ``to_input`` and ``to_weight`` are the cotangents of the two.
    """
    input, weight, grad_output = ctx.saved_tensors
    ops, options = torch.ops.pelk_mm, (ctx.sizes, ctx.backend)
    grads = [None, None, None, None, None]
    if ctx.needs_input_grad[0]:
        grads[0] = ops.peripheral_conv2d(
            grad_output, to_weight.flip(2, 3), None, *options
        )
    if ctx.needs_input_grad[1]:
        grads[1] = ops.peripheral_conv2d_weight_grad(
            to_input, grad_output, *options
        )
    if ctx.needs_input_grad[2]:
        grads[2] = ops.peripheral_conv2d(
            to_input, weight, None, *options
        ) + ops.peripheral_conv2d(input, to_weight, None, *options)
    return tuple(grads)


# Not with torch.library.custom_op: on small maps its wrappers would be felt.
# So is Python in a backward pass: the library of the cpp backend, once loaded,
# brings the formulas above for CPUs (backends/csrc/autograd.cpp).
_library = torch.library.Library('pelk_mm', 'FRAGMENT')


def _register(
    schema: str,
    run: Callable,
    fake: Callable,
    backward: Callable,
    setup_context: Callable,
) -> None:
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    name = schema[: schema.index('(')]
    _library.impl(name, run, 'CompositeExplicitAutograd')
    name = f'pelk_mm::{name}'
    torch.library.register_fake(name, fake, lib=_library)
    torch.library.register_autograd(
        name, backward, setup_context=setup_context, lib=_library
    )


_register(
    'peripheral_conv2d(Tensor input, Tensor weight, Tensor? bias, '
    'SymInt[] sizes, str backend) -> Tensor',
    _forward,
    _fake_forward,
    _backward_forward,
    _setup_forward,
)
_register(
    'peripheral_conv2d_weight_grad(Tensor input, Tensor grad_output, '
    'SymInt[] sizes, str backend) -> Tensor',
    _weight_grad,
    _fake_weight_grad,
    _backward_weight_grad,
    _setup_weight_grad,
)
_register(
    'peripheral_conv2d_backward(Tensor input, Tensor weight, '
    'Tensor grad_output, SymInt[] sizes, str backend) -> (Tensor, Tensor)',
    _backward,
    _fake_backward,
    _backward_backward,
    _setup_backward,
)


def _register_autocast(device_type: str) -> None:
    key = f'Autocast{device_type.upper()}'

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(torch.get_autocast_dtype(device_type))

    def forward(input, weight, bias, sizes, backend):
        with torch.amp.autocast(device_type, enabled=False):
            return torch.ops.pelk_mm.peripheral_conv2d(
                cast(input), cast(weight), cast(bias), sizes, backend
            )

    _library.impl('peripheral_conv2d', forward, key)


for _device_type in autocast.DEVICES:
    _register_autocast(_device_type)
