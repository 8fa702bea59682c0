"""Masks of a sparse network: how many weights are active, and which.

Plain functions on tensors; when they are called is the business of
:class:`~pelk_mm.engine.hooks.DynamicSparsityHook`. A mask is a bool tensor of
its weight's shape and device, True where the weight is active. Another one is
zero and stays zero until it is grown.

The scheme is that of `SLaK <https://arxiv.org/abs/2207.03620>`_, which PeLK
takes over: densities per layer are set once, positions are drawn at random,
and from time to time the active weights of smallest magnitude change places
with inactive ones of the same layer.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...utils.text import first_few

# Weights: which are masked --------------------------------------------------


def check_patterns(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """One or several regular expressions as a tuple; raises if not any."""
    patterns = (value,) if isinstance(value, str) else value
    listed = isinstance(patterns, (list, tuple))
    if not listed or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f'{name} must be a regular expression or a list of '
            f'them, got {value!r} of type {type(value).__name__}'
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'{name} has {pattern!r}, which is no regular '
                f'expression: {error}'
            ) from error
    return tuple(patterns)


def select_weights(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Pick the weights that masks apply to.

    Only 2-D and 4-D parameters (linear layers and 2-D convolutions) qualify;
    biases, norms, layer scales and positional maps do not. ``include`` and
    ``exclude``, which takes out again, are searched in parameter names; a
    ValueError names one that matches no weight.
    """
    weights = {n: p for n, p in model.named_parameters() if p.dim() in (2, 4)}

    def found(patterns: Sequence[str], name: str) -> bool:
        return any(re.search(pattern, name) for pattern in patterns)

    kind = type(model).__name__
    tried = [('include', pattern) for pattern in include]
    tried += [('exclude', pattern) for pattern in exclude]
    for argument, pattern in tried:
        if not any(found([pattern], name) for name in weights):
            raise ValueError(
                f'the {argument} pattern {pattern!r} matches no 2-D or 4-D '
                f'weight of {kind}. Patterns are regular expressions searched '
                f'in parameter names; its {len(weights)} weights are: '
                f'{first_few(weights, 5) or "none at all"}'
            )
    chosen = {
        name: weight
        for name, weight in weights.items()
        if found(include, name) and not found(exclude, name)
    }
    if not chosen:
        raise ValueError(
            f'include={list(include)} and exclude={list(exclude)} together '
            f'leave no weight of {kind} to mask; loosen one of them'
        )
    return chosen


def trainable_weights(
    weights: Mapping[str, nn.Parameter],
) -> dict[str, nn.Parameter]:
    """Those that are not frozen; raises ValueError if all of them are."""
    chosen = {n: p for n, p in weights.items() if p.requires_grad}
    if not chosen:
        raise ValueError(
            f'all {len(weights)} weights matching include are frozen '
            f'({first_few(weights)}), so that none can be trained sparse; '
            'widen include or freeze less'
        )
    return chosen


# Densities: which share of each layer is active ----------------------------


def uniform_densities(
    shapes: Mapping[str, Sequence[int]], density: float
) -> dict[str, float]:
    """The same density for every layer, as :func:`erk_densities` gives it."""
    return dict.fromkeys(shapes, density)


def erk_densities(
    shapes: Mapping[str, Sequence[int]], density: float
) -> dict[str, float]:
    """Erdos-Renyi-kernel densities: small layers are kept denser.

    A layer's density is proportional to ``sum(shape) / prod(shape)``. Layers
    for which this would exceed 1 are dense and the others share what is left,
    so that the network as a whole has ``density``, in (0, 1].
    """
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = density * sum(numel.values())
    sides = {name: sum(shape) for name, shape in shapes.items()}
    while sides:
        scale = budget / sum(sides.values())
        full = [n for n, side in sides.items() if scale * side >= numel[n]]
        if not full:
            break
        for name in full:
            budget -= numel[name]
            del sides[name]
    return {
        name: scale * sides[name] / numel[name] if name in sides else 1.0
        for name in shapes
    }


def active_count(density: float, numel: int) -> int:
    """Number of active weights: the density, rounded, but at least 1 weight.

    A layer without an active weight would cut the network in two and could not
    be grown back by magnitude, hence the floor.
    """
    return min(numel, max(1, round(density * numel)))


# Masks ---------------------------------------------------------------------


def spawn_generator(
    parent: torch.Generator, device: torch.device | str
) -> torch.Generator:
    """Seed a generator on a device by ``parent``, which alone is saved."""
    seed = torch.randint(2**31 - 1, (), generator=parent)
    return torch.Generator(device).manual_seed(int(seed))


def draw_mask(
    shape: Sequence[int], count: int, generator: torch.Generator
) -> Tensor:
    """Draw a mask of ``count`` active weights at random, on its device."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool, device=generator.device)
    return grow(mask, ~mask, count, generator)


def draw_masks(
    weights: Mapping[str, Tensor],
    densities: Mapping[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw a mask for every density; ``generator`` is on the CPU."""
    masks = {}
    for name, density in densities.items():
        weight = weights[name]
        chance = spawn_generator(generator, weight.device)
        count = active_count(density, weight.numel())
        masks[name] = draw_mask(weight.shape, count, chance)
    return masks


def mask_from_zeros(weight: Tensor) -> Tensor:
    """Bool mask of a sparse weight, on its device: active where it is not 0.

    A position of a depthwise kernel, ``(C, 1, K, K)``, that is 0 in all
    channels is active too: pruning would hardly take it from each of them, so
    it is one that the kernel has just grown.
    """
    active = weight != 0
    if weight.ndim == 4 and weight.shape[1] == 1:
        active |= ~active.any(0)
    return active


def turnover(mask: Tensor, rate: float) -> int:
    """Number of weights to exchange: ``rate`` of the active ones, rounded.

    Never more than are inactive. Otherwise weights just dropped would have to
    be grown again, and a layer that is (nearly) dense would lose
    trained weights for nothing.
    """
    active = int(mask.sum())
    return min(round(rate * active), mask.numel() - active)


def drop_smallest(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Take the smallest weights, of equal ones the first, off a copy."""
    active = mask.flatten().nonzero().squeeze(1)
    order = weight.detach().flatten()[active].abs().sort(stable=True).indices
    return _set(mask, active[order[:count]], False)


def grow(
    mask: Tensor,
    candidates: Tensor,
    count: int,
    generator: torch.Generator,
    score: Tensor | None = None,
) -> Tensor:
    """Add ``count`` of the candidates, all inactive, to a new mask.

    The largest in ``score`` grow, and chance, on the mask's device, decides
    between equal ones. What is not finite counts as 0; None as all equal.
    """
    pool = candidates.flatten().nonzero().squeeze(1)
    chance = dict(generator=generator, device=pool.device)
    pool = pool[torch.randperm(len(pool), **chance)]
    if score is not None:
        values = score.flatten()[pool].nan_to_num(0.0, 0.0, 0.0)
        pool = pool[values.sort(descending=True, stable=True).indices]
    return _set(mask, pool[:count], True)


def _set(mask: Tensor, index: Tensor, value: bool) -> Tensor:
    flat = mask.flatten().clone()
    flat[index] = value
    return flat.view_as(mask)


def silence_(tensors: Iterable[Tensor], mask: Tensor) -> None:
    """Zero inactive weights in tensors of the mask's shape; leave others."""
    with torch.no_grad():
        for tensor in tensors:
            if tensor.shape == mask.shape:
                # Not a product: that would leave -0, and NaN where one is.
                tensor.masked_fill_(~mask.to(tensor.device), 0)


# Storage -------------------------------------------------------------------


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask into bits, 1-D uint8 on the CPU, eight weights a byte."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_mask`, on the CPU; a ValueError if it does not fit."""
    numel = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != -(-numel // 8):
        raise ValueError(
            f'a packed mask of shape {tuple(shape)} takes {-(-numel // 8)} '
            f'bytes of uint8, got {packed.numel()} of {packed.dtype}'
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=numel)
    return torch.from_numpy(bits.astype(bool)).view(tuple(shape))


def mask_digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bits, whatever the masks' order."""
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(f'{name}{tuple(masks[name].shape)}'.encode())
        digest.update(pack_mask(masks[name]).numpy().tobytes())
    return digest.hexdigest()
