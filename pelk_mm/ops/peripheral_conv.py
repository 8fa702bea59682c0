"""The peripheral convolution: checks, and its registration with torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .autocast import DEVICES, autocast_dtype
from .autograd import Convolution, Gradients, WeightGrad, at_autograd
from .backends import BACKENDS, Backend, memory_format
from .choice import check_name, get_ready, select_backend
from .onnx import register_symbolic
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
    device, absent = torch.device(device), None
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        absent = f'torch cannot use {device}: {str(error).splitlines()[0]}'
    return {
        name: get_ready(backend, device, dtype) or absent
        for name, backend in BACKENDS.items()
    }


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
    Differentiable in ``input``, ``weight`` and ``bias``, as often as wanted,
    backwards, in forward mode and by the transforms of ``torch.func`` (grad,
    vjp, jvp, vmap, jacrev, jacfwd, hessian), one in another or compiled too.
    float16 and bfloat16 accumulate in float32. Under autocast, float32 and
    narrower arguments are cast to the autocast dtype, as convolutions are.
    A NaN or an infinity reaches as far as the kernel does, but for ``triton``
    and, on GPUs, ``fft``, where it reaches further (``fft``: its whole plane).

    Args:
        input (Tensor): ``(N, C, H, W)``, any strides; float32, float64,
            bfloat16 or float16. N may be 0. The map may be smaller than the
            kernel.
        weight (Tensor): ``(C, 1, k', k')``, dtype and device of ``input``.
        grid (SharingGrid): The k' x k' cells of the K x K kernel.
        bias (Tensor, optional): ``(C,)``, like ``weight``. Default: None.
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
    if torch.jit.is_tracing():
        register_symbolic()
    return torch.ops.pelk_mm.peripheral_conv2d.default(
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
            kind = type(tensor).__name__
            raise TypeError(f'{name} must be a Tensor, got {kind}')
        dtype = tensor.dtype
        if dtype not in _DTYPES:
            known = ', '.join(map(str, _DTYPES))
            raise TypeError(f'{name} must be one of {known}, got {dtype}')
        if tensor.device != input.device:
            where = f'the device of input, {input.device}'
            raise ValueError(f'{name} must be on {where}, got {tensor.device}')
        # Autocast gives both one dtype, if it casts both.
        casts = map(autocast_dtype, (input, tensor))
        if tensor.dtype != input.dtype and None in casts:
            wanted = f'the dtype of input, {input.dtype}'
            raise TypeError(f'{name} must have {wanted}, got {dtype}')
    if input.ndim != 4 or 0 in input.shape[1:]:
        text = 'input must be (N, C, H, W), none empty but N, got shape'
        raise ValueError(f'{text} {tuple(input.shape)}')
    cells = grid.num_cells
    expected = (input.shape[1], 1, cells, cells)
    if tuple(weight.shape) != expected:
        raise ValueError(
            f"weight must be (C, 1, k', k') = {expected} for an input of "
            f'{input.shape[1]} channels and a grid of {cells} x {cells} '
            f'cells, got shape {tuple(weight.shape)}'
        )
    if bias is not None and tuple(bias.shape) != expected[:1]:
        text = f'bias must be (C,) = {expected[:1]}, got shape'
        raise ValueError(f'{text} {tuple(bias.shape)}')


_grid = lru_cache(maxsize=256)(SharingGrid.from_sizes)


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
    grid, layout = _grid(tuple(sizes)), memory_format(input)
    chosen = _select(backend, input, grid)
    if not input.shape[0]:
        return _fake_forward(input)
    output = chosen.forward(input, weight, bias, grid, layout)
    return output.contiguous(memory_format=layout)


def _fake_forward(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input, memory_format=memory_format(input))


def _weight_grad(
    input: Tensor, grad_output: Tensor, sizes: Sequence[int], backend: str
) -> Tensor:
    grid = _grid(tuple(sizes))
    chosen = _select(backend, input, grid, weight_grad=True)
    if not input.shape[0]:
        return _fake_weight_grad(input, grad_output, sizes, backend).zero_()
    return chosen.weight_grad(input, grad_output, grid).contiguous()


def _fake_weight_grad(input: Tensor, _: Any, sizes: Any, __: Any) -> Tensor:
    cells = len(sizes)
    return input.new_empty(input.shape[1], 1, cells, cells)


def _backward(
    input: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    sizes: Sequence[int],
    backend: str,
) -> tuple[Tensor, Tensor]:
    grid, layout = _grid(tuple(sizes)), memory_format(input)
    chosen = other = _select(backend, input, grid)
    if not input.shape[0]:
        return _fake_forward(input), torch.zeros_like(weight)
    if not backend:
        other = _select(backend, input, grid, weight_grad=True)
    if chosen is other:
        grads = chosen.backward(input, weight, grad_output, grid, layout)
    else:
        flipped = weight.flip(2, 3)
        grads = (
            chosen.forward(grad_output, flipped, None, grid, layout),
            other.weight_grad(input, grad_output, grid),
        )
    return grads[0].contiguous(memory_format=layout), grads[1].contiguous()


def _fake_backward(input: Tensor, weight: Tensor, *_: Any) -> tuple:
    return _fake_forward(input), weight.new_empty(weight.shape)


def _cast(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or (dtype := autocast_dtype(tensor)) is None:
        return tensor
    return tensor.to(dtype)


def _autocast(*operands: Any) -> Tensor:
    tensors = [_cast(tensor) for tensor in operands[:3]]
    options = operands[3:]
    with torch.amp.autocast(operands[0].device.type, enabled=False):
        return torch.ops.pelk_mm.peripheral_conv2d.default(*tensors, *options)


def _transform(*operands: Any) -> Tensor:
    # torch.func comes before autocast, which has to be seen by the formulas.
    return Convolution.apply(*map(_cast, operands[:3]), *operands[3:])


# Not with torch.library.custom_op: on small maps its wrappers would be felt.
_library = torch.library.Library('pelk_mm', 'FRAGMENT')
for _schema in (
    'peripheral_conv2d(Tensor input, Tensor weight, Tensor? bias, '
    'int[] sizes, str backend) -> Tensor',
    'peripheral_conv2d_weight_grad(Tensor input, Tensor grad_output, '
    'int[] sizes, str backend) -> Tensor',
    'peripheral_conv2d_backward(Tensor input, Tensor weight, '
    'Tensor grad_output, int[] sizes, str backend) -> (Tensor, Tensor)',
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
for _name, _run, _fake, _rules in (
    ('peripheral_conv2d', _forward, _fake_forward, Convolution),
    (
        'peripheral_conv2d_weight_grad',
        _weight_grad,
        _fake_weight_grad,
        WeightGrad,
    ),
    ('peripheral_conv2d_backward', _backward, _fake_backward, Gradients),
):
    _library.impl(_name, _run, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'pelk_mm::{_name}', _fake, lib=_library)
    _library.impl(_name, at_autograd(_rules), 'Autograd')
    # The key of torch.func's transforms, which comes before all others.
    _transformed = _transform if _rules is Convolution else _rules.apply
    _library.impl(_name, _transformed, 'FuncTorchDynamicLayerFrontMode')
for _device in DEVICES:
    _library.impl('peripheral_conv2d', _autocast, f'Autocast{_device.upper()}')
