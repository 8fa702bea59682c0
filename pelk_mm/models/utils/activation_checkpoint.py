"""Recomputing activations without moving BatchNorm's statistics twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_keeping_stats(
    module: nn.Module, function: Callable[..., Tensor], *args: Any
) -> Tensor:
    """Run ``function`` now, and again in the backward pass.

    Unlike in torch's ``checkpoint`` alone, the second run leaves the running
    statistics of the module's BatchNorms as they are.
    """
    options: dict[str, Any] = {}
    # The compiler recomputes operations, not statements: it updates the
    # statistics once anyway, and takes no contexts.
    if not torch.compiler.is_compiling():
        options['context_fn'] = lambda: (nullcontext(), _kept_stats(module))
    return checkpoint(function, *args, use_reentrant=False, **options)


@contextmanager
def _kept_stats(module: nn.Module) -> Iterator[None]:
    kept = [
        (norm, name, buffer)
        for norm in module.modules()
        if isinstance(norm, _BatchNorm)
        for name, buffer in norm.named_buffers(recurse=False)
    ]
    # The forward pass saved the buffers for its gradient: writing the old
    # values back into them would invalidate it. Copies take the update.
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
