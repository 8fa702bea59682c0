"""What fails is told with the part, the reason and what to write."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pelk_mm.engine.rehearsal.failures import why
from pelk_mm.utils.errors import LaunchError

ARCH = dict(
    depths=(1, 1, 1, 1), channels=(8, 16, 24, 32), kernel_sizes=(13, 13, 7, 5)
)
GIVEN = [8, 16, 24, 32]
ALL = (0, 1, 2, 3)


class Chain(BaseModel):
    """Backbone, neck and heads one after the other."""

    def __init__(self, backbone, neck=None, scope='mmdet', **heads):
        super().__init__()
        with DefaultScope.overwrite_default_scope(scope):
            self.backbone = MODELS.build(backbone)
            self.neck = self.made(neck)
            self.heads = list(heads)
            for name, head in heads.items():
                setattr(self, name, self.made(head))

    def made(self, config):
        if isinstance(config, list):
            return nn.ModuleList(map(self.made, config))
        return None if config is None else MODELS.build(config)

    def forward(self, images):
        x = self.backbone(images)
        necks = self.neck if isinstance(self.neck, nn.ModuleList) else []
        for neck in necks or [self.neck] * (self.neck is not None):
            x = neck(x)
        for name in self.heads:
            head = getattr(self, name)
            for one in head if isinstance(head, nn.ModuleList) else [head]:
                one(x)
        return x


def pelk(maps=True, out_indices=ALL, arch=ARCH) -> dict:
    return dict(
        type='pelk_mm.PeLK',
        arch=arch,
        out_indices=out_indices,
        gap_before_final_norm=not maps,
    )


def fpn(in_channels) -> dict:
    return dict(
        type='FPN', in_channels=in_channels, out_channels=8, num_outs=5
    )


def uper_head(in_channels, in_index=ALL) -> dict:
    return dict(
        type='UPerHead',
        in_channels=in_channels,
        in_index=in_index,
        channels=8,
        num_classes=3,
    )


def fcn_head(**changes) -> dict:
    head = dict(
        type='FCNHead', in_channels=24, in_index=2, channels=8, num_classes=3
    )
    return {**head, **changes}


def linear_head(in_channels) -> dict:
    return dict(type='LinearClsHead', in_channels=in_channels, num_classes=3)


POOL = dict(type='GlobalAveragePooling')


def told(parts: dict, size=64) -> str:
    """What is said of the parts of a model, which must fail."""
    model = Chain(**parts).train()
    config = Config(dict(model=parts))
    with pytest.raises(Exception) as caught:
        model(torch.rand(2, 3, size, size))
    return why(caught.value, model, config) or ''


# Case: the parts, and what is told.
WRONG = {
    'fpn': (
        dict(backbone=pelk(), neck=fpn([256, 512, 1024, 2048])),
        'model.neck.lateral_convs.0.conv (Conv2d) takes 256 channels and is '
        'given 8 of those that the backbone PeLK gives, [8, 16, 24, 32] '
        '(out_indices=(0, 1, 2, 3)): '
        'set model.neck.in_channels=[8, 16, 24, 32]',
    ),
    'too many levels': (
        dict(backbone=pelk(out_indices=(1, 3)), neck=fpn(GIVEN)),
        'takes 4 maps (in_channels=[8, 16, 24, 32]) and the backbone PeLK '
        'gives 2 (model.backbone.out_indices=(1, 3)): set '
        'model.neck.in_channels=[16, 32]',
    ),
    'second of two necks': (
        dict(backbone=pelk(), neck=[fpn(GIVEN), fpn([9] * 5)]),
        'set model.neck.1.in_channels=[8, 8, 8, 8, 8]',
    ),
    'mapper': (
        dict(
            backbone=pelk(),
            neck=dict(
                type='ChannelMapper', in_channels=[8, 16], out_channels=8
            ),
        ),
        'set model.neck.in_channels=[8, 16, 24, 32]',
    ),
    'from the last output on': (
        dict(
            backbone=pelk(out_indices=(1, 2, 3)),
            neck=dict(
                type='YOLOV3Neck',
                num_scales=3,
                in_channels=[1024, 512, 256],
                out_channels=[16, 12, 8],
            ),
        ),
        'set model.neck.in_channels=[32, 24, 16]',
    ),
    'one output': (
        dict(
            backbone=pelk(out_indices=3),
            neck=dict(
                type='DilatedEncoder',
                in_channels=2048,
                out_channels=8,
                block_mid_channels=4,
                num_residual_blocks=1,
                block_dilations=[2],
            ),
        ),
        'set model.neck.in_channels=32',
    ),
    'decode head': (
        dict(
            backbone=pelk(),
            decode_head=uper_head([8, 16, 24, 33]),
            scope='mmseg',
        ),
        'set model.decode_head.in_channels=[8, 16, 24, 32]',
    ),
    'auxiliary head': (
        dict(
            backbone=pelk(),
            decode_head=uper_head(GIVEN),
            auxiliary_head=fcn_head(in_channels=1024),
            scope='mmseg',
        ),
        'set model.auxiliary_head.in_channels=24',
    ),
    'second auxiliary head': (
        dict(
            backbone=pelk(),
            auxiliary_head=[fcn_head(), fcn_head(in_index=1)],
            scope='mmseg',
        ),
        'set model.auxiliary_head.1.in_channels=16',
    ),
    'another index': (
        dict(
            backbone=pelk(out_indices=(2, 3)),
            decode_head=fcn_head(),
            scope='mmseg',
        ),
        'in_index=2 asks for output 2, but the backbone PeLK gives 2 '
        '(model.backbone.out_indices=(2, 3))',
    ),
    'resize_concat': (
        dict(
            backbone=pelk(),
            decode_head=fcn_head(
                in_channels=[16, 33],
                in_index=[1, 3],
                input_transform='resize_concat',
            ),
            scope='mmseg',
        ),
        'set model.decode_head.in_channels=[16, 32]',
    ),
    'classifier': (
        dict(
            backbone=pelk(maps=False, out_indices=3),
            head=linear_head(2048),
            scope='mmpretrain',
        ),
        'model.head.fc (Linear) takes 2048 channels and is given 32',
    ),
    'channels of the image': (
        dict(backbone=dict(pelk(), in_channels=4)),
        'model.backbone (PeLK): ',
    ),
    'named archs': (
        dict(backbone=pelk(arch='tiny'), neck=fpn([96, 192, 384, 768])),
        "(arch='tiny', out_indices=(0, 1, 2, 3)): "
        'set model.neck.in_channels=[83, 166, 332, 665]',
    ),
    'vectors for an FPN': (
        dict(backbone=pelk(maps=False), neck=fpn(GIVEN)),
        'needs maps and is given vectors, (2, 8): set '
        'model.backbone.gap_before_final_norm=False',
    ),
    'vectors for a segmentor': (
        dict(
            backbone=pelk(maps=False, out_indices=3),
            decode_head=fcn_head(in_channels=32, in_index=0),
            scope='mmseg',
        ),
        'model.backbone.gap_before_final_norm=False',
    ),
    'vectors for a pooling neck': (
        dict(
            backbone=pelk(maps=False, out_indices=3),
            neck=POOL,
            head=linear_head(32),
            scope='mmpretrain',
        ),
        'or model.neck=None',
    ),
    'maps for a linear head': (
        dict(
            backbone=pelk(out_indices=3),
            head=linear_head(32),
            scope='mmpretrain',
        ),
        "gap_before_final_norm=True, or model.neck=dict(type='GlobalAvera",
    ),
    'pooled maps for a head of maps': (
        dict(
            backbone=pelk(out_indices=3),
            neck=POOL,
            head=dict(
                type='CSRAClsHead',
                in_channels=32,
                num_classes=3,
                num_heads=1,
                lam=0.1,
            ),
            scope='mmpretrain',
        ),
        'set model.neck=None',
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_parts_that_do_not_fit(case):
    parts, message = WRONG[case]
    if case == 'named archs':
        from pelk_mm.models import PeLK

        gives = str(PeLK.out_channels('tiny'))
        message = re.sub(r'\[83.*\]', gives, message)
    assert message in told(parts)


def test_a_batch_of_one():
    parts = dict(backbone=pelk(), decode_head=uper_head(GIVEN), scope='mmseg')
    parts['decode_head']['norm_cfg'] = dict(type='BN')
    model = Chain(**parts).train()
    with pytest.raises(ValueError) as caught:
        model(torch.rand(1, 3, 64, 64))
    line = why(caught.value, model, Config(dict(model=parts)))
    assert 'model.decode_head.psp_modules.0.1.bn' in line
    assert 'set train_dataloader.batch_size to 2 or more' in line


def test_what_nothing_is_known_of():
    model = Chain(pelk())
    for error in (ZeroDivisionError(), RuntimeError('of another kind')):
        assert why(error, model, Config(dict(model=dict()))) is None


def refuses(rehearse, config, message) -> str:
    with pytest.raises(LaunchError, match=message) as caught:
        rehearse(config)
    return str(caught.value)


def test_labels_mixed_for_another_number(classification, rehearse):
    classification.model.data_preprocessor = dict(
        type='ClsDataPreprocessor', num_classes=1000, to_onehot=True
    )
    classification.model.head.loss = dict(
        type='LabelSmoothLoss', label_smooth_val=0.1
    )
    text = refuses(rehearse, classification, 'data_preprocessor.num_classes')
    assert 'model.head.num_classes is 3' in text
    assert 'AssertionError' in text


def test_reduce_zero_label_in_the_pipeline_only(segmentation, rehearse):
    pipeline = segmentation.train_dataloader.dataset.pipeline
    pipeline[1].reduce_zero_label = True
    refuses(
        rehearse,
        segmentation,
        r'LoadAnnotations failed on .*\.png: .* set '
        r'train_dataloader\.dataset\.reduce_zero_label=True',
    )


@pytest.mark.parametrize('damage', ['text', 'nothing'])
def test_images_that_cannot_be_decoded(
    damage, classification, rehearse, tmp_path
):
    path = tmp_path / 'train' / 'b' / '2.jpg'
    path.write_bytes(b'<html>404</html>' if damage == 'text' else b'')
    refuses(rehearse, classification, r'b/2\.jpg is not an image')


def test_a_label_that_comes_later(classification, tmp_path, monkeypatch):
    """Not among the samples looked at: told when it comes."""
    from pelk_mm.apis.launch import train

    classification.rehearse = False
    classification.work_dir = str(tmp_path / 'work')
    classification.experiment_name = tmp_path.name
    classification.train_cfg.max_epochs = 1
    classification.model.head.num_classes = 2
    with pytest.raises(LaunchError, match='label is 2; .*model.head: 2'):
        train(classification)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(bbox=None), 'an annotation has no bbox: once, annotation 1'),
        (dict(area=None), 'an annotation has no area: once, annotation 1'),
    ],
)
def test_annotations_that_end_the_training(
    change, message, detection, tmp_path
):
    import json

    from pelk_mm.apis.launch import train

    path = tmp_path / 'coco.json'
    content = json.loads(path.read_text())
    content['annotations'][0].update(change)
    if None in change.values():
        for key in change:
            del content['annotations'][0][key]
    path.write_text(json.dumps(content))
    detection.work_dir = str(tmp_path / 'work')
    detection.experiment_name = tmp_path.name
    with pytest.raises(LaunchError, match=f'coco.json: {message}'):
        train(detection)


def test_a_wrapped_model(monkeypatch):
    from mmengine.registry import MODEL_WRAPPERS

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    monkeypatch.setitem(MODEL_WRAPPERS.module_dict, 'Wrapper', Wrapper)
    parts = dict(backbone=pelk(), neck=fpn([1, 2, 3, 4]))
    model = Chain(**parts)
    with pytest.raises(RuntimeError) as caught:
        model(torch.rand(2, 3, 64, 64))
    config = Config(dict(model=parts))
    assert 'model.neck' in why(caught.value, Wrapper(model), config)
