"""What a checkpoint keeps of a sparse training, and reading it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...models.utils import is_pretrained, read_checkpoint
from .masks import mask_digest, pack_mask, unpack_mask

STATE_KEY = 'dynamic_sparsity'
"""Where a checkpoint keeps the state."""

_VERSION = 1


def pack_state(masks: Mapping[str, Tensor], **entries: Any) -> dict[str, Any]:
    """Make the state, which ``torch.load(weights_only=True)`` reads."""
    return dict(
        entries,
        version=_VERSION,
        masks={name: pack_mask(mask) for name, mask in masks.items()},
        shapes={name: list(mask.shape) for name, mask in masks.items()},
        digest=mask_digest(masks),
    )


def unpack_masks(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Masks of a state, on the CPU; a ValueError if wrong or damaged."""
    if not isinstance(state, Mapping):
        raise ValueError(
            'the sparsity state of the checkpoint is a '
            f'{type(state).__name__}, expected a dict'
        )
    if state.get('version') != _VERSION:
        raise ValueError(
            'the sparsity state of the checkpoint has version '
            f'{state.get("version")!r}, this release reads {_VERSION}; use '
            'the release that wrote it'
        )
    try:
        masks = {
            name: unpack_mask(packed, state['shapes'][name])
            for name, packed in state['masks'].items()
        }
        digest = state['digest']
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            'the sparsity state of the checkpoint is damaged: '
            f'{type(error).__name__}: {error}'
        ) from error
    if mask_digest(masks) != digest:
        raise ValueError(
            "the checkpoint's masks do not have the hash that "
            'was saved with them; the file is damaged'
        )
    return masks


def pretrained_masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks in the checkpoints that ``init_cfg`` of type 'Pretrained' loads.

    That way of loading passes no hook, so the files are read once more.
    """
    masks: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        cfgs = getattr(module, 'init_cfg', None) or []
        for cfg in [cfgs] if isinstance(cfgs, Mapping) else cfgs:
            if not is_pretrained(cfg):
                continue
            checkpoint = read_checkpoint(cfg['checkpoint'])
            if STATE_KEY not in checkpoint:
                continue
            saved = unpack_masks(checkpoint[STATE_KEY])
            params = dict(module.named_parameters())
            inner = _prefix_of(saved, params, _dotted(cfg.get('prefix')))
            for name, mask in saved.items():
                if name.startswith(inner):
                    own = _dotted(module_name) + name[len(inner) :]
                    masks[own] = mask
    return masks


def _prefix_of(
    masks: Mapping[str, Tensor], params: Mapping[str, Any], asked: str
) -> str:
    """Where a module's weights are in a file: as asked, else where most are.

    PeLK finds its weights in a checkpoint of a whole model without being told
    a prefix, and its masks have to be found like that too.
    """
    found = Counter(
        name[: -len(param)]
        for name in masks
        for param in params
        if f'.{name}'.endswith(f'.{param}')
    )
    return asked if asked in found or not found else max(found, key=found.get)


def _dotted(prefix: str | None) -> str:
    return f'{prefix.rstrip(".")}.' if prefix else ''
