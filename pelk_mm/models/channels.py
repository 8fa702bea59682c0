"""Does what follows the backbone expect what the backbone gives?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmengine.model import is_model_wrapper
from torch import nn

from . import PeLK

#: Heads that need maps, by the names that mmseg and mmdet give them.
_DENSE_HEADS = (
    'decode_head',
    'auxiliary_head',
    'rpn_head',
    'roi_head',
    'bbox_head',
    'mask_head',
)
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
    if is_model_wrapper(model):
        model = model.module
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, PeLK):
        return
    _check_layout(model, backbone)
    neck = _first(getattr(model, 'neck', None))
    if neck is not None and type(neck).__name__ not in _POOLING:
        _check_neck(neck, backbone)
        # Heads see the neck's channels, which are the neck's own matter.
        return
    for where, head in _segmentation_heads(model):
        _check_segmentation_head(where, head, backbone)
    for name in ('head', 'rpn_head', 'bbox_head'):
        _check_one_output(
            f'model.{name}', getattr(model, name, None), backbone
        )


def _given(backbone: PeLK) -> list[int]:
    channels = backbone.out_channels(backbone.arch)
    return [channels[i] for i in backbone.out_indices]


def _first(neck: nn.Module | None) -> nn.Module | None:
    """Of several necks in a row, the one that sees the backbone."""
    while isinstance(neck, (nn.Sequential, nn.ModuleList)) and len(neck):
        neck = neck[0]
    return neck


def _fail(
    backbone: PeLK,
    where: str,
    module: nn.Module,
    expected: object,
    right: object,
) -> None:
    raise ValueError(
        f'{where} ({type(module).__name__}) expects in_channels={expected}, '
        f'but the backbone PeLK with arch={backbone.arch!r} and '
        f'out_indices={backbone.out_indices} gives {_given(backbone)}: set '
        f'{where}.in_channels={right} '
        f'(PeLK.out_channels({backbone.arch!r}) is '
        f'{backbone.out_channels(backbone.arch)})'
    )


def _check_layout(model: nn.Module, backbone: PeLK) -> None:
    """Maps for dense prediction and pooling, vectors for a classifier."""
    dense = [
        name for name in _DENSE_HEADS if getattr(model, name, None) is not None
    ]
    neck = _first(getattr(model, 'neck', None))
    pools = type(neck).__name__ in _POOLING
    if backbone.gap_before_final_norm and (dense or pools):
        consumer = (
            f'model.neck ({type(neck).__name__})'
            if pools
            else f'model.{dense[0]}'
        )
        raise ValueError(
            f'{consumer} needs maps, but the backbone PeLK gives averaged '
            'vectors: set model.backbone.gap_before_final_norm=False'
            + (' or model.neck=None' if pools else '')
        )
    if (
        not backbone.gap_before_final_norm
        and neck is None
        and not dense
        and getattr(model, 'head', None) is not None
    ):
        raise ValueError(
            'model.head needs vectors, but the backbone PeLK gives maps: set '
            'model.backbone.gap_before_final_norm=True, or '
            "model.neck=dict(type='GlobalAveragePooling')"
        )


def _check_neck(neck: nn.Module, backbone: PeLK) -> None:
    given = _given(backbone)
    expected = getattr(neck, 'in_channels', None)
    if expected is None:  # mmdetection's ChannelMapper keeps none
        convs = getattr(neck, 'convs', None)
        if isinstance(convs, nn.ModuleList):
            expected = [getattr(conv, 'in_channels', None) for conv in convs]
    # YOLO's necks count from the last output.
    if _all_integers(expected) and list(expected) not in (given, given[::-1]):
        _fail(backbone, 'model.neck', neck, list(expected), given)
    _check_one_output('model.neck', neck, backbone)


def _check_one_output(
    where: str, module: nn.Module | None, backbone: PeLK
) -> None:
    """For what takes one of the outputs, mostly the last."""
    given = _given(backbone)
    expected = getattr(module, 'in_channels', None)
    if isinstance(expected, int) and expected not in given:
        _fail(backbone, where, module, expected, given[-1])


def _all_integers(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, int) for value in values
    )


def _segmentation_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """mmsegmentation's heads with what they are called in a config."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, name, None)
        if isinstance(heads, nn.ModuleList):
            for i, head in enumerate(heads):
                yield f'model.{name}[{i}]', head
        elif heads is not None:
            yield f'model.{name}', heads


def _check_segmentation_head(
    where: str, head: nn.Module, backbone: PeLK
) -> None:
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
    if not several:
        right = given[indices]
        fits = expected == right
    else:
        right = [given[i] for i in indices]
        # 'resize_concat' keeps only the sum of what the config says.
        fits = (
            expected == sum(right)
            if isinstance(expected, int)
            else list(expected) == right
        )
    if not fits:
        _fail(
            backbone,
            where,
            head,
            expected if isinstance(expected, int) else list(expected),
            right,
        )
