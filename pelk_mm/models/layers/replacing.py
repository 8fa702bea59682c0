"""Where faster code may stand in for that of a layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as calls
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ...ops.backends import BACKENDS
from ...ops.choice import select_backend
from .peripheral_conv import PeripheralConv2d


def is_recorded() -> bool:
    """Whether torch records or transforms what runs.

    Compilers have faster code of their own, exported graphs show the layers,
    and ``torch.func`` and forward mode have formulas for these.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def is_eager_gpu(x: Tensor) -> bool:
    """Whether a GPU runs what is called, and nothing else sees it."""
    return (
        x.is_cuda
        and not is_recorded()
        and _get_current_dispatch_mode() is None
    )


def is_for_triton(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a peripheral convolution runs on Triton with such numbers."""
    if type(layer) is not PeripheralConv2d:
        return False
    size = layer.grid.kernel_size
    chosen = select_backend(layer.backend, x.device, dtype, size)
    return chosen is BACKENDS['triton']


def _has_global_hooks() -> bool:
    """As torch itself asks, by a function that torch 2.4 has not yet."""
    return any(
        (
            calls._global_forward_pre_hooks,
            calls._global_forward_hooks,
            calls._global_backward_pre_hooks,
            calls._global_backward_hooks,
        )
    )


def is_changed(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says.

    Because of hooks, parametrizations or a ``forward`` of its own.
    """
    return parametrize.is_parametrized(module) or any(
        (
            module._forward_pre_hooks,
            module._forward_hooks,
            module._backward_pre_hooks,
            module._backward_hooks,
            'forward' in vars(module),
        )
    )


def are_plain(modules: Iterable[nn.Module]) -> bool:
    """Whether calling them does what their classes say and no more."""
    return not _has_global_hooks() and not any(map(is_changed, modules))


def are_ordinary(values: Iterable[Tensor]) -> bool:
    """Others, such as quantised weights, know themselves what to do."""
    return all(type(value) in (Tensor, nn.Parameter) for value in values)
