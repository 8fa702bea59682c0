"""The gradient of a task's own loss on one batch, leaving no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from .masks import snip_scores


class _BackwardOnly:
    """Stands in for the optimizer wrapper: goes backward, takes no step."""

    def __init__(self, wrapper: OptimWrapper, scale: float) -> None:
        self.wrapper = wrapper
        self.scale = scale
        self.called = False

    def optim_context(self, model: nn.Module) -> AbstractContextManager:
        # The real one's, so that mixed precision needs no more memory here
        # than in training.
        return self.wrapper.optim_context(model)

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.backward(loss)

    def scale_loss(self, loss: Tensor) -> Tensor:
        return loss

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.called = True
        (loss * self.scale).backward(**kwargs)

    def step(self, **kwargs: Any) -> None:
        pass

    def zero_grad(self, **kwargs: Any) -> None:
        pass


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore gradients, buffers and every source of chance on leaving."""
    grads = [(param, param.grad) for param in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        for param, _ in grads:
            param.grad = None
        try:
            yield
        finally:
            for param, grad in grads:
                param.grad = grad
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def probe_snip_scores(
    model: nn.Module,
    data_batch: Any,
    optim_wrapper: OptimWrapper,
    weights: Mapping[str, nn.Parameter],
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Score weights by SNIP with the loss that the model trains on.

    The model's own ``train_step`` runs, with data preprocessing, losses and
    autocasting as in training, and an optimizer wrapper that never steps.
    Weights, gradients, buffers (BatchNorm statistics), the batch and the
    random generators are as before afterwards.

    Args:
        model (nn.Module): mmengine model, unwrapped, in training mode.
        data_batch (Any): What the data loader yields.
        optim_wrapper (OptimWrapper): The run's; lends its autocast context.
        weights (Mapping[str, nn.Parameter]): Weights to score, by name.
        scale (float): Factor on the loss, against underflow in fp16; the
            scores carry it. Default: 1.

    Returns:
        dict[str, Tensor]: Scores by name; zeros where the loss does not
        depend on a weight.

    Raises:
        RuntimeError: If ``train_step`` hands no loss to the wrapper.
    """
    probe = _BackwardOnly(optim_wrapper, scale)
    with _untouched(model):
        # The method of the class: one on the instance may be a compiled one,
        # and compiling for a single batch is not worth it.
        type(model).train_step(
            model, copy.deepcopy(data_batch), optim_wrapper=probe
        )
        if not probe.called:
            raise RuntimeError(
                f'{type(model).__name__}.train_step passed no loss to '
                "optim_wrapper.update_params(), which init='snip' needs; "
                "use init='erk' or 'uniform'"
            )
        return {
            name: snip_scores(
                param,
                torch.zeros_like(param) if param.grad is None else param.grad,
            )
            for name, param in weights.items()
        }
