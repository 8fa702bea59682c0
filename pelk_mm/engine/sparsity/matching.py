"""Whether masks of a checkpoint go with the model and the run at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import MMLogger
from torch import Tensor, nn

from ...utils.text import first_few
from .masks import mask_from_zeros

#: Zeros below this share are chance (underflow, a zero-initialised layer).
SPARSE_SHARE = 1e-3


def fit_masks(
    masks: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Saved masks on the devices of their weights; a ValueError if unfit."""
    misfits = []
    for name, mask in masks.items():
        weight = weights.get(name)
        if weight is None or weight.shape != mask.shape:
            shape = 'no such weight' if weight is None else [*weight.shape]
            misfits.append(f'{name} {[*mask.shape]} against {shape}')
    if misfits:
        raise ValueError(
            f"{len(misfits)} of the checkpoint's {len(masks)} masks do not "
            f'fit the model (mask against weight): {first_few(misfits, 5)}. '
            'Build the model as it was trained (arch, kernel sizes, not '
            'switched to deploy)'
        )
    masks = {n: m.to(weights[n].device) for n, m in masks.items()}
    alive = {n: int(weights[n][~m].count_nonzero()) for n, m in masks.items()}
    wrong = [f'{name} ({count})' for name, count in alive.items() if count]
    if wrong:
        raise ValueError(
            f'{sum(alive.values())} weights in {len(wrong)} layers are not '
            "zero where the checkpoint's masks say so: "
            f'{first_few(wrong, 5)}. Its weights and masks do not belong '
            'together, or not all of its weights were loaded'
        )
    return masks


def masks_at_hand(
    saved: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], str]:
    """Masks of weights that were loaded sparse, and what they come from.

    Where the checkpoint ``saved`` none, the zeros of the weights count. A
    ValueError says that the masks do not fit, or that nothing is sparse.
    """
    if saved:
        origin = 'kept from the checkpoint'
        masks = {name: mask for name, mask in saved.items() if name in weights}
        if not masks:
            raise ValueError(
                "none of the checkpoint's masks is for a weight that include "
                f'and exclude select ({first_few(weights)}); it has masks for '
                f'{first_few(saved, 5)}'
            )
        masks = fit_masks(masks, weights)
    else:
        origin = "read from the checkpoint's zeros"
        masks = {name: mask_from_zeros(p) for name, p in weights.items()}
        # A layer of nothing but zeros is one that starts there, not a sparse
        # one; masked, it would never start.
        for name in [n for n, weight in weights.items() if not weight.any()]:
            MMLogger.get_current_instance().warning(
                f'{name} is zero throughout and is left without a mask'
            )
            del masks[name]
    zeros = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    if zeros < max(1, SPARSE_SHARE * total):
        raise ValueError(
            f"init='zeros' found nothing sparse: {zeros} of {total} weights "
            'are zero. Load a sparse checkpoint (load_from, or init_cfg of '
            "type 'Pretrained'), use another init, or leave the hook out"
        )
    return masks, origin


def why_not_resume(
    state: Mapping[str, Any] | None,
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    sparsity: float | None,
) -> str | None:
    """Why a run cannot go on with the masks of a checkpoint, if so.

    ``sparsity`` is the share of zeros that the run asks for, None if any.
    """
    if state is None:
        return 'the checkpoint holds no masks, its network is dense'
    if sparsity not in (None, state['sparsity']):
        return (
            'the checkpoint was trained with sparsity='
            f'{state["sparsity"]} and this run asks for {sparsity}'
        )
    masked = set(state['masks'])
    names = {name for name, _ in model.named_parameters()}
    unknown = sorted((masked & names) - weights.keys())
    if unknown:
        return (
            'the checkpoint masks weights that include and exclude no longer '
            f'select: {first_few(unknown, 5)}'
        )
    trained = {name for name, p in weights.items() if p.requires_grad}
    dense = sorted(trained - masked)
    if dense and sparsity is not None:
        return (
            'this run masks weights that the checkpoint trained dense: '
            f'{first_few(dense, 5)}'
        )
    return None
