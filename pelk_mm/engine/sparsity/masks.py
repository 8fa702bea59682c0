"""Masks of a sparse network: how many weights live, which, and who moves.

Plain functions on tensors; when they are called is the business of
:class:`~pelk_mm.engine.hooks.DynamicSparsityHook`. A mask is a bool tensor of
its weight's shape and device, True where the weight lives. A dead weight is
zero and stays zero until it is grown.

The scheme is that of `SLaK <https://arxiv.org/abs/2207.03620>`_, which PeLK
takes over: densities per layer are set once, positions are drawn at random,
and from time to time the live weights of smallest magnitude change places
with dead ones of the same layer.
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
    """Return one or several regular expressions as a tuple.

    Args:
        name (str): What they are called in messages.
        value (str | Sequence[str]): What was given.

    Raises:
        TypeError: If it is neither a string nor a list or tuple of strings.
        ValueError: If a string is no regular expression.
    """
    if not isinstance(value, (str, list, tuple)):
        raise TypeError(
            f'{name} must be a regular expression or a list of '
            f'them, got {value!r} of type {type(value).__name__}'
        )
    patterns = (value,) if isinstance(value, str) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f'{name} must hold regular expressions, got '
                f'{pattern!r} of type {type(pattern).__name__}'
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f'{name} has {pattern!r}, which is no regular '
                f'expression: {error}'
            ) from error
    return patterns


def select_weights(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Pick the weights that masks apply to.

    Only 2-D and 4-D parameters (linear layers and 2-D convolutions) qualify;
    biases, norms, layer scales and positional maps do not.

    Args:
        model (nn.Module): Model to look through, unwrapped.
        include (Sequence[str]): Regular expressions, searched in the full
            parameter name; one match suffices.
        exclude (Sequence[str]): Regular expressions that take a parameter
            out again. Default: ().

    Returns:
        dict[str, nn.Parameter]: Weights by name, in the model's order.

    Raises:
        ValueError: If a pattern, of either kind, matches no weight.
    """
    weights = {
        name: param
        for name, param in model.named_parameters()
        if param.dim() in (2, 4)
    }
    for kind, patterns in (('include', include), ('exclude', exclude)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in weights):
                known = ', '.join(list(weights)[:5]) or 'none at all'
                raise ValueError(
                    f'the {kind} pattern {pattern!r} matches no 2-D or 4-D '
                    f'weight of {type(model).__name__}. Patterns are regular '
                    'expressions searched in parameter names; the first of '
                    f'its {len(weights)} weights are: {known}'
                )
    chosen = {
        name: param
        for name, param in weights.items()
        if any(re.search(pattern, name) for pattern in include)
        and not any(re.search(pattern, name) for pattern in exclude)
    }
    if not chosen:
        raise ValueError(
            f'include={list(include)} and exclude={list(exclude)} together '
            f'leave no weight of {type(model).__name__} to mask; loosen one '
            'of them'
        )
    return chosen


def trainable_weights(
    weights: Mapping[str, nn.Parameter],
) -> dict[str, nn.Parameter]:
    """Those of the selected weights that are not frozen.

    Raises:
        ValueError: If all of them are.
    """
    chosen = {n: p for n, p in weights.items() if p.requires_grad}
    if not chosen:
        raise ValueError(
            f'all {len(weights)} weights matching include are frozen '
            f'({first_few(weights)}), so that none can be trained sparse; '
            'widen include or freeze less'
        )
    return chosen


# Densities: which share of each layer lives --------------------------------


def uniform_densities(
    shapes: Mapping[str, Sequence[int]], density: float
) -> dict[str, float]:
    """Give every layer the same density.

    Args:
        shapes (Mapping[str, Sequence[int]]): Shape of each weight.
        density (float): Share of all weights that lives, in (0, 1].

    Returns:
        dict[str, float]: Density per layer.
    """
    return dict.fromkeys(shapes, density)


def erk_densities(
    shapes: Mapping[str, Sequence[int]], density: float
) -> dict[str, float]:
    """Erdos-Renyi-kernel densities: small layers are kept denser.

    A layer's density is proportional to ``sum(shape) / prod(shape)``. Layers
    for which this would exceed 1 are dense and the others share what is left,
    so that the network as a whole has ``density``.

    Args:
        shapes (Mapping[str, Sequence[int]]): Shape of each weight.
        density (float): Share of all weights that lives, in (0, 1].

    Returns:
        dict[str, float]: Density per layer.
    """
    numel = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / numel[name] for name, shape in shapes.items()}
    budget = density * sum(numel.values())
    dense: set[str] = set()
    while len(dense) < len(raw):
        rest = [name for name in raw if name not in dense]
        scale = (budget - sum(numel[name] for name in dense)) / sum(
            raw[name] * numel[name] for name in rest
        )
        full = {name for name in rest if scale * raw[name] >= 1}
        if not full:
            return {
                name: 1.0 if name in dense else scale * raw[name]
                for name in raw
            }
        dense |= full
    return dict.fromkeys(raw, 1.0)


def live_count(density: float, numel: int) -> int:
    """Number of live weights: the density rounded to one weight, at least 1.

    A layer without a live weight would cut the network in two and could not
    be grown back by magnitude, hence the floor.

    Args:
        density (float): Share that lives, in [0, 1].
        numel (int): Number of weights of the layer.

    Returns:
        int: Live weights, in [1, numel].
    """
    return min(numel, max(1, round(density * numel)))


# Masks ---------------------------------------------------------------------


def spawn_generator(
    parent: torch.Generator, device: torch.device | str
) -> torch.Generator:
    """Seed a generator on ``device`` with the next number of ``parent``.

    One generator on the CPU can then be saved and resumed whatever device
    draws the numbers.

    Args:
        parent (torch.Generator): Generator on the CPU; it advances.
        device (torch.device | str): Where the numbers are needed.

    Returns:
        torch.Generator: A fresh generator.
    """
    seed = torch.randint(2**31 - 1, (), generator=parent)
    return torch.Generator(device).manual_seed(int(seed))


def draw_mask(
    shape: Sequence[int], count: int, generator: torch.Generator
) -> Tensor:
    """Draw a mask with exactly ``count`` live weights, placed at random.

    Args:
        shape (Sequence[int]): Shape of the weight.
        count (int): Live weights.
        generator (torch.Generator): Source; the mask is on its device.

    Returns:
        Tensor: Bool mask.
    """
    mask = torch.zeros(tuple(shape), dtype=torch.bool, device=generator.device)
    return grow_random(mask, ~mask, count, generator)


def draw_masks(
    weights: Mapping[str, Tensor],
    densities: Mapping[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draw a mask for every density, on its weight's device.

    Args:
        weights (Mapping[str, Tensor]): Weights by name.
        densities (Mapping[str, float]): Density of those to mask, by name.
        generator (torch.Generator): Source of chance, on the CPU.

    Returns:
        dict[str, Tensor]: Bool masks by name.
    """
    masks = {}
    for name, density in densities.items():
        shape, numel = weights[name].shape, weights[name].numel()
        chance = spawn_generator(generator, weights[name].device)
        masks[name] = draw_mask(shape, live_count(density, numel), chance)
    return masks


def mask_from_zeros(weight: Tensor) -> Tensor:
    """Mask of a weight that is sparse already: live where it is not zero.

    Args:
        weight (Tensor): Weight, any shape.

    Returns:
        Tensor: Bool mask of the same shape and device.
    """
    return weight.detach() != 0


def turnover(mask: Tensor, rate: float) -> int:
    """Number of weights to exchange: ``rate`` of the live ones, rounded.

    Never more than there are dead ones. Otherwise weights just dropped would
    have to be grown again, and a layer that is (nearly) dense would lose
    trained weights for nothing.

    Args:
        mask (Tensor): Bool mask.
        rate (float): Share of the live weights, in [0, 1].

    Returns:
        int: Weights to drop, and to grow.
    """
    live = int(mask.sum())
    return min(round(rate * live), mask.numel() - live)


def drop_smallest(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Take the ``count`` live weights of smallest magnitude off the mask.

    Among equal magnitudes the first in memory order go, on every device.

    Args:
        weight (Tensor): Weight.
        mask (Tensor): Its bool mask.
        count (int): Weights to drop, at most the live ones.

    Returns:
        Tensor: New mask.
    """
    live = mask.flatten().nonzero().squeeze(1)
    order = torch.sort(weight.detach().flatten()[live].abs(), stable=True)
    return _set(mask, live[order.indices[:count]], False)


def grow_random(
    mask: Tensor, candidates: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """Add ``count`` weights to the mask, drawn evenly from the candidates.

    Args:
        mask (Tensor): Bool mask.
        candidates (Tensor): Bool tensor of the same shape: the weights that
            may be grown, none of them live.
        count (int): Weights to grow, at most as many as candidates.
        generator (torch.Generator): Source of chance on the mask's device.

    Returns:
        Tensor: New mask.
    """
    pool = _shuffled(candidates, generator)
    return _set(mask, pool[:count], True)


def grow_largest(
    mask: Tensor,
    candidates: Tensor,
    count: int,
    score: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Add the ``count`` candidates with the largest score to the mask.

    Args:
        mask (Tensor): Bool mask.
        candidates (Tensor): Bool tensor of the same shape: the weights that
            may be grown, none of them live.
        count (int): Weights to grow, at most as many as candidates.
        score (Tensor): Score of every weight; what is not finite counts as 0.
        generator (torch.Generator): Decides between equal scores.

    Returns:
        Tensor: New mask.
    """
    pool = _shuffled(candidates, generator)
    values = score.flatten()[pool]
    values = torch.where(values.isfinite(), values, values.new_zeros(()))
    order = torch.sort(values, descending=True, stable=True).indices
    return _set(mask, pool[order[:count]], True)


def _shuffled(candidates: Tensor, generator: torch.Generator) -> Tensor:
    pool = candidates.flatten().nonzero().squeeze(1)
    return pool[
        torch.randperm(pool.numel(), generator=generator, device=pool.device)
    ]


def _set(mask: Tensor, index: Tensor, value: bool) -> Tensor:
    flat = mask.flatten().clone()
    flat[index] = value
    return flat.view_as(mask)


def silence_(tensors: Iterable[Tensor], mask: Tensor) -> None:
    """Set the dead positions of tensors of a mask's shape to zero, in place.

    Tensors of another shape (step counters, factored moments) are left.

    Args:
        tensors (Iterable[Tensor]): Weights or moments.
        mask (Tensor): Bool mask.
    """
    with torch.no_grad():
        for tensor in tensors:
            if tensor.shape == mask.shape:
                # Not a product: that would leave -0, and NaN where one is.
                tensor.masked_fill_(~mask.to(tensor.device), 0)


# Storage -------------------------------------------------------------------


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a mask into bits, eight weights a byte.

    Args:
        mask (Tensor): Bool mask, any shape and device.

    Returns:
        Tensor: uint8, 1-D, on the CPU, ``ceil(numel / 8)`` long.
    """
    flat = mask.detach().cpu().contiguous().flatten().numpy()
    return torch.from_numpy(np.packbits(flat))


def unpack_mask(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_mask`.

    Args:
        packed (Tensor): Packed mask, uint8, 1-D.
        shape (Sequence[int]): Shape of the mask.

    Returns:
        Tensor: Bool mask on the CPU.

    Raises:
        ValueError: If ``packed`` is not as long as ``shape`` asks for.
    """
    numel = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != -(-numel // 8):
        raise ValueError(
            f'a packed mask of shape {tuple(shape)} takes {-(-numel // 8)} '
            f'bytes of uint8, got {packed.numel()} of {packed.dtype}'
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=numel)
    return torch.from_numpy(bits.astype(bool)).view(tuple(shape))


def mask_digest(masks: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bits: equal if the masks are equal.

    Args:
        masks (Mapping[str, Tensor]): Bool masks by name, in any order.

    Returns:
        str: 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(f'{name}{tuple(masks[name].shape)}'.encode())
        digest.update(pack_mask(masks[name]).numpy().tobytes())
    return digest.hexdigest()
