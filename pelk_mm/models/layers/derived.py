"""Parameters that torch.nn.utils computes from others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import (
    parametrize,
    prune,
    remove_spectral_norm,
    remove_weight_norm,
)
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def make_permanent(module: nn.Module, *names: str) -> None:
    """Turn tensors of a module that are derived into its parameters.

    Pruning, weight_norm, spectral_norm and parametrizations compute a tensor
    anew before each forward pass: what is written into it is lost, and what
    is read from it may be out of date. Their own functions for removal are
    called, with the values of eval mode.

    Args:
        module (nn.Module): Changed in place, its children are not.
        *names (str): Those that must be parameters, or None, afterwards.

    Raises:
        TypeError: If something else computes one of them.
    """
    if parametrize.is_parametrized(module):
        # In training mode spectral_norm would iterate once more.
        parametrizations = module.get_submodule('parametrizations').eval()
        for name, _ in list(parametrizations.named_children()):
            # Without gradients torch makes a buffer of it.
            with torch.enable_grad():
                parametrize.remove_parametrizations(module, name)
    # The last one first: it may derive what an earlier one starts from.
    for hook in reversed(list(module._forward_pre_hooks.values())):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
    for name in names:
        value = getattr(module, name, None)
        if name in module._buffers and value is not None:
            # Derived from parameters that are frozen.
            del module._buffers[name]
            setattr(module, name, nn.Parameter(value, requires_grad=False))
        elif isinstance(value, Tensor) and name not in module._parameters:
            raise TypeError(
                f'{name} of {type(module).__name__} is computed from other '
                'tensors, not by torch.nn.utils: make it a parameter before '
                'merging'
            )
