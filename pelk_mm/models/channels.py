"""Does what follows the backbone expect what the backbone gives?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn

from . import PeLK

#: Heads that need maps, by the names that mmseg and mmdet give them.
_SEGMENTATION_HEADS = ('decode_head', 'auxiliary_head')
_DETECTION_HEADS = ('rpn_head', 'roi_head', 'bbox_head', 'mask_head')
#: Necks of mmpretrain that turn maps into vectors.
_POOLING = ('GlobalAveragePooling', 'GeneralizedMeanPooling')


def check_channels(model: nn.Module) -> None:
    """Raise unless neck and heads expect the backbone's output.

    Otherwise the first iteration fails deep in a convolution. Compares
    ``in_channels`` of mmdetection's and mmsegmentation's necks, of
    mmsegmentation's heads (with ``in_index`` and ``input_transform``) and of
    mmpretrain's heads, and whether they need maps or vectors. What does not
    say what it expects, and models with another backbone, pass unchecked.

    Args:
        model (nn.Module): A classifier, segmentor or detector, wrapped or
            not.

    Raises:
        ValueError: If something does not fit; the message says what to write
            into the config.

    Example:
        >>> from pelk_mm.engine import check_channels
        >>> check_channels(MODELS.build(config.model))
    """
    parts: Any = model.module if is_model_wrapper(model) else model
    backbone = getattr(parts, 'backbone', None)
    if not isinstance(backbone, PeLK):
        return
    neck = getattr(parts, 'neck', None)
    # Of several in a row, the one that sees the backbone.
    while isinstance(neck, (nn.Sequential, nn.ModuleList)) and len(neck):
        neck = neck[0]
    names = ('head', *_SEGMENTATION_HEADS, *_DETECTION_HEADS)
    heads = {name: getattr(parts, name, None) for name in names}
    heads = {name: head for name, head in heads.items() if head is not None}
    _check_layout(backbone, neck, heads)
    channels = backbone.out_channels(backbone.arch)
    for where, module, expected, fitting in _inputs(backbone, neck, heads):
        if expected not in fitting:
            raise ValueError(
                f'{where} ({type(module).__name__}) expects in_channels='
                f'{expected}, but the backbone PeLK with arch='
                f'{backbone.arch!r} and out_indices={backbone.out_indices} '
                f'gives {_given(backbone)}: set {where}.in_channels='
                f'{fitting[0]} (PeLK.out_channels({backbone.arch!r}) is '
                f'{channels})'
            )


def _given(backbone: PeLK) -> list[int]:
    return [backbone.channels[i] for i in backbone.out_indices]


def _check_layout(backbone: PeLK, neck: Any, heads: dict[str, Any]) -> None:
    """Maps for dense prediction and pooling, vectors for a classifier."""
    dense = [f'model.{name}' for name in heads if name != 'head']
    pools = type(neck).__name__ in _POOLING
    if backbone.gap_before_final_norm and (dense or pools):
        who = f'model.neck ({type(neck).__name__})' if pools else dense[0]
        raise ValueError(
            f'{who} needs maps, but the backbone PeLK gives averaged '
            'vectors: set model.backbone.gap_before_final_norm=False'
            + (' or model.neck=None' if pools else '')
        )
    alone = 'head' in heads and neck is None and not dense
    if alone and not backbone.gap_before_final_norm:
        raise ValueError(
            'model.head needs vectors, but the backbone PeLK gives maps: set '
            'model.backbone.gap_before_final_norm=True, or '
            "model.neck=dict(type='GlobalAveragePooling')"
        )


def _inputs(backbone: PeLK, neck: Any, heads: dict[str, Any]) -> Iterator:
    """What follows the backbone: place, module, in_channels, fitting ones."""
    given = _given(backbone)
    if neck is not None and type(neck).__name__ not in _POOLING:
        expected = getattr(neck, 'in_channels', None)
        convs = getattr(neck, 'convs', None)
        # mmdetection's ChannelMapper keeps none.
        if expected is None and isinstance(convs, nn.ModuleList):
            expected = [getattr(conv, 'in_channels', None) for conv in convs]
        if isinstance(expected, int):
            yield 'model.neck', neck, expected, given[::-1]
        elif isinstance(expected, Sequence) and all(
            isinstance(value, int) for value in expected
        ):
            # YOLO's necks count from the last output.
            yield 'model.neck', neck, list(expected), [given, given[::-1]]
        # Heads see the neck's channels, which are the neck's own matter.
        return
    for name in _SEGMENTATION_HEADS:
        head = heads.get(name)
        if not isinstance(head, nn.ModuleList):
            yield from _segmentation_input(f'model.{name}', head, backbone)
            continue
        for i, part in enumerate(head):
            where = f'model.{name}[{i}]'
            yield from _segmentation_input(where, part, backbone)
    for name in ('head', 'rpn_head', 'bbox_head'):
        expected = getattr(heads.get(name), 'in_channels', None)
        if isinstance(expected, int):
            yield f'model.{name}', heads[name], expected, given[::-1]


def _segmentation_input(where: str, head: Any, backbone: PeLK) -> Iterator:
    indices = getattr(head, 'in_index', None)
    expected = getattr(head, 'in_channels', None)
    if indices is None or expected is None:
        return
    given = _given(backbone)
    several = isinstance(indices, Sequence)
    for index in indices if several else [indices]:
        if not -len(given) <= index < len(given):
            raise ValueError(
                f'{where}.in_index={indices} asks for output {index}, but '
                f'the backbone PeLK gives {len(given)} '
                f'(model.backbone.out_indices={backbone.out_indices})'
            )
    expected = expected if isinstance(expected, int) else list(expected)
    if not several:
        yield where, head, expected, [given[indices]]
    else:
        right = [given[i] for i in indices]
        # 'resize_concat' keeps only the sum of what the config says.
        yield where, head, expected, [right, sum(right)]
