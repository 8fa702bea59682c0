"""How many classes the heads of a model tell apart."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

#: Heads that tell the data set's classes apart, by the names that the
#: libraries give them. Others count other things, as semantic_head the
#: classes of stuff, or rpn_head a single one.
_HEADS = ('head', 'decode_head', 'auxiliary_head', 'bbox_head', 'mask_head')


def heads(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Heads of these names, each of several, by dotted name."""
    found = {}
    for where, module in model.named_modules():
        parts = [part for part in where.split('.') if not part.isdigit()]
        count = getattr(module, 'num_classes', None)
        if parts and parts[-1] in names and isinstance(count, int):
            found[where] = module
    return found


def class_counts(model: nn.Module) -> dict[str, int]:
    """num_classes of every head that says it, by dotted name."""
    return {
        where: int(head.num_classes)
        for where, head in heads(model, _HEADS).items()
    }
