"""Keeps masks: on gradients, weights, moments, averages and all ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from mmengine.dist import all_gather, all_reduce, broadcast
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim import Optimizer

from ...utils.config import unwrapped
from .masks import (
    drop_smallest,
    grow,
    mask_digest,
    pack_mask,
    silence_,
    spawn_generator,
    turnover,
    unpack_mask,
)

# Growth by momentum: the factor on what the average was before a step.
_MOMENTUM = 0.9
# By name, as the classes are not in every version of torch.
_SHARDED = {'FullyShardedDataParallel', 'FSDPModule', 'DTensor'}


class MaskEnforcer:
    """Enforces masks on the weights of a training run, and moves them.

    Where masks act, and why there:

    - On the gradient, while going backward (a hook of the parameter): before
      gradients are averaged over ranks, clipped or checked for overflow by a
      loss scaler, so that inactive weights have a say in none of these, and
      before the moments.
    - On the weight, after every step of the optimizer (a hook of it, not run
      when a loss scaler skips the step): whatever the optimizer does to zeros
      with zero gradients, they stay zero.
    - On moments and averaged models, whenever masks change.

    Masks are on their weights' devices, and those of frozen weights never
    move. ``stepped`` says that an optimizer stepped, and the reader resets
    it; ``gathering`` asks to catch the dense gradients of the next step, of
    which ``momentum`` is the average. A RuntimeError says that the moments
    of an optimizer are out of reach.
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        weights: Mapping[str, nn.Parameter],
        optimizers: Sequence[Optimizer],
        averaged: Sequence[nn.Module],
    ) -> None:
        for optimizer in optimizers:
            _check_moments(optimizer)
        self.masks = dict(masks)
        self.weights = {name: weights[name] for name in masks}
        self.stepped = False
        self.gathering = False
        self.momentum: dict[str, Tensor] = {}
        self._optimizers = optimizers
        self._averaged = [dict(m.named_parameters()) for m in averaged]
        self._captured: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Apply the masks and enforce them from now on."""
        self.detach()
        self._agree()
        for name, weight in self._trainable():
            mask_gradient = partial(self._mask_gradient, name)
            self._handles.append(weight.register_hook(mask_gradient))
        for optimizer in self._optimizers:
            handle = optimizer.register_step_post_hook(self._after_step)
            self._handles.append(handle)
        self._apply()

    def detach(self) -> None:
        """Take every hook off parameters and optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def move(self, rate: float, generator: torch.Generator) -> float:
        """Drop the smallest active weights of each layer and grow as many.

        Layers with an average of dense gradients grow by its magnitude,
        others at random. Returns the share dropped over all layers, less
        than ``rate`` where a layer has fewer inactive weights.
        """
        active = dropped = 0
        for name, weight in self._trainable():
            mask = self.masks[name]
            chance = spawn_generator(generator, weight.device)
            count = turnover(mask, rate)
            kept = drop_smallest(weight, mask, count)
            average = self.momentum.get(name)
            score = None if average is None else average.abs()
            # What was just dropped is no candidate: it would come right back.
            self.masks[name] = grow(kept, ~mask, count, chance, score)
            active += int(mask.sum())
            dropped += count
        self.momentum.clear()
        self._agree()
        self._apply()
        return dropped / max(active, 1)

    def fold_gradients(self, scale: float = 1.0) -> None:
        """Average a step's dense gradients, which carry the loss scale.

        The optimizer's momentum has none of inactive weights. Call on every
        rank.
        """
        for name, weight in self._trainable():
            unused = torch.zeros_like(weight)
            grad = self._captured.pop(name, unused).float() / scale
            all_reduce(grad, 'mean')
            average = self.momentum.get(name, grad)
            self.momentum[name] = average.lerp(grad, 1 - _MOMENTUM)

    def forget_gradients(self) -> None:
        """Drop gradients caught for a step that was then skipped."""
        self._captured.clear()

    @property
    def density(self) -> float:
        """Share of the masked weights that is active."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / total

    def summary(self) -> str:
        """Overall density, and the most and the least dense layer."""
        layers = {n: int(m.sum()) / m.numel() for n, m in self.masks.items()}
        most = max(layers, key=layers.__getitem__)
        least = min(layers, key=layers.__getitem__)
        return (
            f'density {self.density:.4f} over {len(layers)} weights, most '
            f'dense {most} {layers[most]:.4f}, least dense {least} '
            f'{layers[least]:.4f}'
        )

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, weight in self.weights.items():
            if weight.requires_grad:
                yield name, weight

    def _mask_gradient(self, name: str, grad: Tensor) -> Tensor:
        if self.gathering:
            # Several times a step where gradients accumulate.
            caught = self._captured.get(name, 0)
            self._captured[name] = caught + grad.detach()
        # Not a product, which would turn an overflow into NaN.
        return torch.where(self.masks[name], grad, grad.new_zeros(()))

    def _after_step(self, *_: Any) -> None:
        self.stepped = True
        for name, weight in self._trainable():
            silence_([weight], self.masks[name])

    def _apply(self) -> None:
        """Zero inactive weights, and moments and copies of them."""
        for name, weight in self.weights.items():
            kept = [weight.data]
            kept += [p[name].data for p in self._averaged if name in p]
            for optimizer in self._optimizers:
                state = optimizer.state.get(weight, {}).values()
                kept += [value for value in state if isinstance(value, Tensor)]
            silence_(kept, self.masks[name])

    def _agree(self) -> None:
        """Make sure that all ranks hold rank 0's masks."""
        if self._ranks_agree():
            return
        print_log(
            'The masks differ between ranks, so their weights differ too; '
            'those of rank 0 are taken. Check why the ranks differ',
            logger='current',
            level=logging.WARNING,
        )
        for name, mask in self.masks.items():
            packed = pack_mask(mask)
            broadcast(packed)
            theirs = unpack_mask(packed, mask.shape)
            self.masks[name] = theirs.to(mask.device)
        if not self._ranks_agree():
            raise RuntimeError(
                'the masks differ between ranks after those of rank 0 were '
                'broadcast; do the ranks mask the same weights?'
            )

    def _ranks_agree(self) -> bool:
        # 60 of the 256 bits: an int64 that every backend can gather.
        digest = int(mask_digest(self.masks)[:15], 16)
        gathered = all_gather(torch.tensor([digest]))
        return len({int(value) for value in gathered}) == 1


def whole_model(model: object) -> nn.Module:
    """A model without its wrapper; raises where it holds shards of weights."""
    if not isinstance(model, nn.Module):
        raise RuntimeError(
            'DynamicSparsityHook needs the parameters themselves and cannot '
            f'work through {type(model).__name__}; train with '
            'DistributedDataParallel'
        )
    for thing in chain(model.modules(), model.parameters()):
        sharded = _class_names(thing) & _SHARDED
        if sharded:
            raise RuntimeError(
                'DynamicSparsityHook found sharded parameters '
                f'({min(sharded)}). Magnitudes are ranked and densities kept '
                'per whole weight, which a shard does not show; train with '
                'DistributedDataParallel instead'
            )
    return unwrapped(model)


def _check_moments(optimizer: object) -> None:
    """Raise where a rank does not hold the optimizer's state as a whole."""
    zero = 'ZeroRedundancyOptimizer' in _class_names(optimizer)
    if zero or not isinstance(optimizer, Optimizer):
        raise RuntimeError(
            'DynamicSparsityHook cannot reach the moments kept by '
            f'{type(optimizer).__name__}; use an optimizer of '
            'torch.optim, whole on every rank'
        )


def _class_names(thing: object) -> set[str]:
    return {cls.__name__ for cls in type(thing).__mro__}
