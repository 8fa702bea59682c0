"""Sparse training of PeLK in the three task libraries."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from tests.helpers.models import RETINA_TRAIN_CFG
from tests.helpers.sparse_task import load, make_runner, sparsity_hook

ARCH = dict(
    depths=(1, 1, 1, 1), channels=(16, 16, 16, 32), kernel_sizes=(13, 9, 7, 5)
)
MAPS = dict(type='PeLK', arch=ARCH, out_indices=(0, 1, 2, 3), frozen_stages=1)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        256, (8, 3, 64, 64), dtype=torch.uint8, generator=generator
    )


def classification():
    from mmpretrain.structures import DataSample

    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            num_classes=10, mean=[0.0] * 3, std=[255.0] * 3
        ),
        backbone=dict(type='PeLK', arch=ARCH, drop_path_rate=0.2),
        head=dict(
            type='LinearClsHead',
            num_classes=10,
            in_channels=32,
            loss=dict(
                type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
            ),
        ),
        train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]),
    )
    return (
        'mmpretrain',
        model,
        [
            dict(inputs=image, data_samples=DataSample().set_gt_label(i))
            for i, image in enumerate(images())
        ],
    )


def segmentation():
    from mmseg.structures import SegDataSample

    model = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
        backbone=MAPS,
        decode_head=dict(
            type='FCNHead',
            in_channels=32,
            in_index=3,
            channels=8,
            num_classes=4,
            num_convs=1,
            norm_cfg=dict(type='BN'),
        ),
        test_cfg=dict(mode='whole'),
    )
    data = []
    for i, image in enumerate(images()):
        sample = SegDataSample(metainfo=dict(img_shape=(64, 64)))
        sample.gt_sem_seg = PixelData(data=torch.full((1, 64, 64), i % 4))
        data.append(dict(inputs=image, data_samples=sample))
    return 'mmseg', model, data


def detection():
    from mmdet.structures import DetDataSample

    model = dict(
        type='RetinaNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor', pad_size_divisor=32
        ),
        backbone=MAPS,
        neck=dict(
            type='FPN',
            in_channels=[16, 16, 16, 32],
            out_channels=8,
            num_outs=5,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[1.0],
                strides=[4, 8, 16, 32, 64],
            ),
        ),
        train_cfg=RETINA_TRAIN_CFG,
    )
    data = []
    for i, image in enumerate(images()):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1)
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[8.0, 8.0, 40.0, 48.0]]),
            labels=torch.tensor([i % 3]),
        )
        data.append(dict(inputs=image, data_samples=sample))
    return 'mmdet', model, data


@pytest.mark.parametrize(
    'task, weights',
    [(classification, 21), (segmentation, 15), (detection, 15)],
)
def test_snip_and_training(tmp_path, task, weights):
    pytest.importorskip(
        dict(
            classification='mmpretrain',
            segmentation='mmseg',
            detection='mmdet',
        )[task.__name__]
    )
    np.random.seed(0)
    library, model, data = task()
    init_default_scope(library)
    torch.manual_seed(0)
    scope = dict(include='.') if task is classification else {}
    runner = make_runner(
        tmp_path,
        4,
        dict(init='snip', sparsity=0.4, update_interval=2, **scope),
        model=MODELS.build(model),
        data=data,
    )
    runner.train()
    enforcer = sparsity_hook(runner).enforcer
    # Four convolutions, 4 x (large, small, 2 pointwise), and the classifier;
    # of the others the first stage is frozen.
    assert len(enforcer.masks) == weights
    assert enforcer.density == pytest.approx(0.6, abs=0.01)
    params = dict(runner.model.named_parameters())
    for name, mask in enforcer.masks.items():
        assert (params[name][~mask] == 0).all()
        assert mask.any()
    assert sparsity_hook(runner).step == 4
    assert load(tmp_path, 4)['dynamic_sparsity']['step'] == 4
