"""A learning rate for every cell of a peripheral convolution."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from ...models.layers import PeripheralConv2d
from ..strategies import plain_name


class CellLearningRates:
    """Gives each cell of the large kernels the learning rate ``lr / area``.

    A weight stands at as many positions as its cell has, and adaptive
    optimizers move it by about ``lr`` whatever its gradient: the output moves
    by up to ``area`` times as much as by a weight of its own. What a step has
    done to a cell is divided by the cell's area. For SGD, Adam, AdamW and all
    others whose step is proportional to the learning rate and whose state
    does not depend on it, this is a learning rate per cell. The decoupled
    weight decay of AdamW, a part of the step, is divided with it.

    Hooks of the optimizer do this around its step, so they do not run when a
    loss scaler skips one. They keep nothing from step to step. As torch has
    it, copies of the optimizer are without hooks.

    Args:
        model (nn.Module): The model, wrapped or not; its peripheral
            convolutions are found by their type.

    Example:
        >>> rates = CellLearningRates(model)
        >>> rates.attach(optimizer)
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[nn.Parameter, str] = {}
        self._factors: dict[nn.Parameter, Tensor] = {}
        self._before: list[Tensor] = []
        for prefix, module in model.named_modules():
            if not isinstance(module, PeripheralConv2d):
                continue
            weight, factors = module.weight, module.grid.areas.reciprocal()
            if weight.requires_grad and factors.min() < 1:
                name = f'{prefix}.weight' if prefix else 'weight'
                self._names[weight] = plain_name(name)
                self._factors[weight] = factors

    def attach(self, optimizer: Optimizer) -> None:
        """Scale every step of an optimizer from now on, and log it.

        Args:
            optimizer (Optimizer): It holds the weights of the model.

        Raises:
            RuntimeError: If it holds others, such as FSDP's pieces of them.
                Some libraries exchange them later: the first step tells.
        """
        if not self._factors:
            print_log(
                'scale_lr_by_cell_area does nothing: no shared weights of a '
                'peripheral convolution are trained',
                logger='current',
                level=logging.WARNING,
            )
            return
        self._check(optimizer)
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._scale)
        least = min(float(factors.min()) for factors in self._factors.values())
        print_log(
            f'learning rates by cell area: {len(self._factors)} large '
            f'kernels, lr x {least:.4g} in their largest cell',
            logger='current',
        )

    def _check(self, optimizer: Optimizer) -> None:
        groups = optimizer.param_groups
        held = {id(p) for group in groups for p in group['params']}
        for weight, name in self._names.items():
            # Pieces of FSDP are the model's own parameters, but flat.
            if id(weight) not in held or weight.ndim != 4:
                key = '.'.join(name.split('.')[-2:])
                raise RuntimeError(
                    f'scale_lr_by_cell_area needs an optimizer of {name} '
                    'itself; this one has pieces or copies of the parameters, '
                    'as those of FSDP, DeepSpeed and Apex have. Train with '
                    'DistributedDataParallel, or leave '
                    'scale_lr_by_cell_area out and lower the learning rate '
                    f'of whole kernels by custom_keys={{{key!r}: '
                    'dict(lr_mult=0.1)} in paramwise_cfg'
                )

    def _keep(self, optimizer: Optimizer, *_: Any) -> None:
        self._check(optimizer)
        self._before = [weight.detach().clone() for weight in self._factors]

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for weight, before in zip(self._factors, self._before, strict=True):
            factors = self._factors[weight] = self._factors[weight].to(weight)
            # Exact where nothing has moved, and where the factor is 1.
            weight.copy_(before.lerp_(weight, factors))
        self._before.clear()
