"""A wrong in_channels is told with the right numbers, before training."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pelk_mm.engine import check_channels
from pelk_mm.models import PeLK

ARCH = dict(
    depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), kernel_sizes=(13, 13, 7, 5)
)
GIVEN = [8, 16, 24, 32]
ALL = (0, 1, 2, 3)


class Model(nn.Module):
    """What check_channels sees of a model: its parts, by their names."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def pelk(maps: bool = True, out_indices=ALL) -> PeLK:
    return PeLK(ARCH, out_indices=out_indices, gap_before_final_norm=not maps)


def library(scope: str, **config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config)


def fpn(in_channels) -> nn.Module:
    return library(
        'mmdet',
        type='FPN',
        in_channels=in_channels,
        out_channels=8,
        num_outs=5,
    )


def uper_head(in_channels, in_index=ALL) -> nn.Module:
    return library(
        'mmseg',
        type='UPerHead',
        in_channels=in_channels,
        in_index=in_index,
        channels=8,
        num_classes=3,
    )


def fcn_head(**changes) -> nn.Module:
    return library(
        'mmseg',
        **{
            **dict(
                type='FCNHead',
                in_channels=24,
                in_index=2,
                channels=8,
                num_classes=3,
            ),
            **changes,
        },
    )


def linear_head(in_channels) -> nn.Module:
    return library(
        'mmpretrain',
        type='LinearClsHead',
        in_channels=in_channels,
        num_classes=3,
    )


def pool() -> nn.Module:
    return library('mmpretrain', type='GlobalAveragePooling')


RIGHT = {
    'fpn': lambda: dict(
        backbone=pelk(), neck=fpn(GIVEN), rpn_head=nn.Identity()
    ),
    'fewer outputs': lambda: dict(
        backbone=pelk(out_indices=(1, 3)), neck=fpn([16, 32])
    ),
    'two necks': lambda: dict(
        backbone=pelk(), neck=nn.Sequential(fpn(GIVEN), fpn([8] * 5))
    ),
    'mapper': lambda: dict(
        backbone=pelk(),
        neck=library(
            'mmdet',
            type='ChannelMapper',
            in_channels=GIVEN,
            out_channels=8,
            num_outs=5,
        ),
    ),
    'from the last output on': lambda: dict(
        backbone=pelk(out_indices=(1, 2, 3)),
        neck=library(
            'mmdet',
            type='YOLOV3Neck',
            num_scales=3,
            in_channels=[32, 24, 16],
            out_channels=[16, 12, 8],
        ),
    ),
    'one output': lambda: dict(
        backbone=pelk(out_indices=3),
        neck=library(
            'mmdet',
            type='DilatedEncoder',
            in_channels=32,
            out_channels=8,
            block_mid_channels=4,
            num_residual_blocks=1,
            block_dilations=[2],
        ),
    ),
    'segmentor': lambda: dict(
        backbone=pelk(),
        decode_head=uper_head(GIVEN),
        auxiliary_head=fcn_head(),
    ),
    'cascade of heads': lambda: dict(
        backbone=pelk(),
        decode_head=nn.ModuleList([fcn_head(), uper_head(GIVEN)]),
    ),
    'resize_concat': lambda: dict(
        backbone=pelk(),
        decode_head=fcn_head(
            in_channels=[16, 32],
            in_index=[1, 3],
            input_transform='resize_concat',
        ),
    ),
    'last by -1': lambda: dict(
        backbone=pelk(), decode_head=fcn_head(in_channels=32, in_index=-1)
    ),
    'segmentor with neck': lambda: dict(
        backbone=pelk(), neck=fpn(GIVEN), decode_head=fcn_head(in_channels=8)
    ),
    'classifier': lambda: dict(
        backbone=pelk(maps=False, out_indices=3), head=linear_head(32)
    ),
    'classifier that pools': lambda: dict(
        backbone=pelk(out_indices=3), neck=pool(), head=linear_head(32)
    ),
    'another backbone': lambda: dict(
        backbone=nn.Conv2d(3, 5, 1), neck=fpn(GIVEN)
    ),
    'no backbone': lambda: dict(generator=nn.Conv2d(3, 5, 1)),
}


@pytest.mark.parametrize('case', RIGHT)
def test_what_fits_passes(case):
    check_channels(Model(**RIGHT[case]()))


# Case: the parts, and what the message has to say.
WRONG = {
    'fpn': (
        lambda: dict(backbone=pelk(), neck=fpn([256, 512, 1024, 2048])),
        'model.neck.in_channels=[8, 16, 24, 32]',
    ),
    'too many levels': (
        lambda: dict(backbone=pelk(out_indices=(1, 3)), neck=fpn(GIVEN)),
        'model.neck.in_channels=[16, 32]',
    ),
    'mapper': (
        lambda: dict(
            backbone=pelk(),
            neck=library(
                'mmdet',
                type='ChannelMapper',
                in_channels=[8, 16],
                out_channels=8,
            ),
        ),
        'model.neck.in_channels=[8, 16, 24, 32]',
    ),
    'one output': (
        lambda: dict(
            backbone=pelk(out_indices=3),
            neck=library(
                'mmdet',
                type='DilatedEncoder',
                in_channels=2048,
                out_channels=8,
                block_mid_channels=4,
                num_residual_blocks=1,
                block_dilations=[2],
            ),
        ),
        'model.neck.in_channels=32',
    ),
    'decode head': (
        lambda: dict(backbone=pelk(), decode_head=uper_head([8, 16, 24, 33])),
        'model.decode_head.in_channels=[8, 16, 24, 32]',
    ),
    'auxiliary head': (
        lambda: dict(
            backbone=pelk(),
            decode_head=uper_head(GIVEN),
            auxiliary_head=fcn_head(in_channels=1024),
        ),
        'model.auxiliary_head.in_channels=24',
    ),
    'second auxiliary head': (
        lambda: dict(
            backbone=pelk(),
            decode_head=uper_head(GIVEN),
            auxiliary_head=nn.ModuleList([fcn_head(), fcn_head(in_index=1)]),
        ),
        'model.auxiliary_head[1].in_channels=16',
    ),
    'another index': (
        lambda: dict(
            backbone=pelk(out_indices=(2, 3)), decode_head=fcn_head()
        ),
        'model.decode_head.in_index=2 asks for output 2',
    ),
    'resize_concat': (
        lambda: dict(
            backbone=pelk(),
            decode_head=fcn_head(
                in_channels=[16, 33],
                in_index=[1, 3],
                input_transform='resize_concat',
            ),
        ),
        'model.decode_head.in_channels=[16, 32]',
    ),
    'classifier': (
        lambda: dict(
            backbone=pelk(maps=False, out_indices=3), head=linear_head(2048)
        ),
        'model.head.in_channels=32',
    ),
    'vectors for an FPN': (
        lambda: dict(
            backbone=pelk(maps=False), neck=fpn(GIVEN), rpn_head=nn.Identity()
        ),
        'model.backbone.gap_before_final_norm=False',
    ),
    'vectors for a segmentor': (
        lambda: dict(backbone=pelk(maps=False), decode_head=uper_head(GIVEN)),
        'model.backbone.gap_before_final_norm=False',
    ),
    'vectors for a pooling neck': (
        lambda: dict(
            backbone=pelk(maps=False, out_indices=3),
            neck=pool(),
            head=linear_head(32),
        ),
        'or model.neck=None',
    ),
    'maps for a linear head': (
        lambda: dict(backbone=pelk(out_indices=3), head=linear_head(32)),
        "type='GlobalAveragePooling'",
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_does_not_fit_is_told_with_the_right_numbers(case):
    parts, message = WRONG[case]
    with pytest.raises(ValueError) as caught:
        check_channels(Model(**parts()))
    assert message in str(caught.value)


def test_message_names_the_arch():
    model = Model(
        backbone=PeLK('small', out_indices=ALL, gap_before_final_norm=False),
        neck=fpn([96, 192, 384, 768]),
    )
    with pytest.raises(
        ValueError,
        match=r"PeLK.out_channels\('small'\) is "
        r'\[124, 249, 499, 998\]',
    ):
        check_channels(model)


def test_a_wrapped_model_is_checked_too():
    from mmengine.registry import MODEL_WRAPPERS

    wrapper = type('Wrapper', (Model,), {})
    MODEL_WRAPPERS.register_module(name='ChannelsTestWrapper', module=wrapper)
    try:
        with pytest.raises(ValueError, match='expects in_channels'):
            check_channels(
                wrapper(module=Model(backbone=pelk(), neck=fpn([1, 2, 3, 4])))
            )
    finally:
        MODEL_WRAPPERS.module_dict.pop('ChannelsTestWrapper')


def test_the_check_agrees_with_a_forward_pass():
    """What passes runs, and what is refused would have failed."""
    images = torch.rand(1, 3, 64, 64)
    good = Model(backbone=pelk(), neck=fpn(GIVEN))
    check_channels(good)
    assert len(good.neck(good.backbone.eval()(images))) == 5
    bad = Model(backbone=pelk(), neck=fpn([8, 16, 24, 40]))
    with pytest.raises(RuntimeError, match='channels'):
        bad.neck(bad.backbone.eval()(images))
    with pytest.raises(ValueError, match='in_channels'):
        check_channels(bad)
