"""SNIP: how dense each layer is, by the loss of the task on one batch.

The scores are those of `SNIP <https://arxiv.org/abs/1810.02340>`_.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

# fp16 gradients need a large factor against underflow, if none of them
# overflows by it.
_FP16_SCALES = (2.0**16, 2.0**11, 2.0**6, 1.0)


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


def snip_scores(weight: Tensor, gradient: Tensor) -> Tensor:
    """Connection sensitivity ``|w * dL/dw|``, in float32, not negative."""
    return (weight.detach().float() * gradient.detach().float()).abs_()


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
    random generators are as before afterwards. Scores are zero where the loss
    does not depend on a weight, and carry ``scale``, a factor on the loss
    against underflow in fp16. ``model`` is unwrapped and in training mode. A
    RuntimeError says that its ``train_step`` hands no loss to the wrapper.
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
        scores = {}
        for name, weight in weights.items():
            unused = weight.grad is None
            gradient = torch.zeros_like(weight) if unused else weight.grad
            scores[name] = snip_scores(weight, gradient)
        return scores


def mean_snip_scores(
    model: nn.Module,
    data_batch: Any,
    optim_wrapper: OptimWrapper,
    weights: Mapping[str, nn.Parameter],
) -> dict[str, Tensor]:
    """Average the scores of all ranks' batches, for comparison only.

    They carry a factor where the run scales its loss. Call on every rank.
    """
    scaled = getattr(optim_wrapper, 'loss_scaler', None) is not None
    for scale in _FP16_SCALES if scaled else (1.0,):
        scores = probe_snip_scores(
            model, data_batch, optim_wrapper, weights, scale
        )
        for score in scores.values():
            all_reduce(score, 'mean')
        if all(bool(score.isfinite().all()) for score in scores.values()):
            break
    return scores


def snip_densities(
    scores: Mapping[str, Tensor], density: float
) -> dict[str, float]:
    """Share of each layer among the best-scored weights; it may be 0.

    A ValueError says that a score is not finite, or that all are zero.
    """
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise ValueError(
                f'the SNIP scores of {name!r} are not all finite. The loss '
                "or its gradient overflows on the first batch; use init='erk'"
                ' or find the cause'
            )
    # On the CPU, as CUDA has no deterministic kthvalue.
    flat = torch.cat([score.flatten() for score in scores.values()]).cpu()
    if not bool(flat.any()):
        raise ValueError(
            'all SNIP scores are zero: the loss of the first batch has no '
            "gradient to the masked weights; use init='erk'"
        )
    keep = max(1, round(density * len(flat)))
    threshold = flat.kthvalue(len(flat) - keep + 1).values
    best = flat > threshold
    # Equal scores at the threshold fill what is left in the layers' order.
    ties = (flat == threshold).nonzero().squeeze(1)
    best[ties[: keep - int(best.sum())]] = True
    layers = best.split([score.numel() for score in scores.values()])
    return {
        name: int(layer.sum()) / layer.numel()
        for name, layer in zip(scores, layers, strict=True)
    }
