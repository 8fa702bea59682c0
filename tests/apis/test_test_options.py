"""Options of a test: augmentation, drawn pictures, metrics with units."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from pelk_mm.apis import launch
from pelk_mm.apis.test_options import draw_to, use_tta, with_units
from pelk_mm.utils.errors import LaunchError


def tta_config(library: str, kind: str, **fields) -> Config:
    pack = dict(type='Pack', meta_keys=('img_id',))
    dataset = dict(pipeline=[dict(type='LoadImageFromFile'), pack])
    return Config(
        dict(
            default_scope=library,
            model=dict(type=kind, backbone=dict(type='PeLK')),
            # Wrapped, as the libraries' tools allow for.
            test_dataloader=dict(dataset=dict(dataset=dataset)),
            **fields,
        )
    )


MIRRORED = ('img_id', 'flip', 'flip_direction')


@pytest.mark.parametrize(
    'library, kind, expected, keys',
    [
        ('mmdet', 'RetinaNet', 'DetTTAModel', MIRRORED),
        ('mmseg', 'EncoderDecoder', 'mmseg.SegTTAModel', MIRRORED),
        (
            'mmpretrain',
            'ImageClassifier',
            'mmpretrain.AverageClsScoreTTA',
            ('img_id',),
        ),
    ],
)
def test_tta_of_a_config_without(library, kind, expected, keys):
    config = tta_config(library, kind)
    use_tta(config)
    assert config.model.type == expected
    assert config.model.module.type == kind
    load, augment = config.test_dataloader.dataset.dataset.pipeline
    assert (load.type, augment.type) == ('LoadImageFromFile', 'TestTimeAug')
    flips, [pack] = augment.transforms
    # The libraries take the annotations of the first.
    assert [flip.prob for flip in flips] == [0, 1]
    assert tuple(pack.meta_keys) == keys


def test_tta_of_a_config_with():
    fields = dict(
        tta_model=dict(type='Mine', tta_cfg=dict(a=1)),
        tta_pipeline=[dict(type='TestTimeAug')],
    )
    config = tta_config('mmseg', 'EncoderDecoder', **fields)
    use_tta(config)
    assert (config.model.type, config.model.tta_cfg.a) == ('Mine', 1)
    assert config.model.module.type == 'EncoderDecoder'
    pipeline = config.test_dataloader.dataset.dataset.pipeline
    assert [step.type for step in pipeline] == ['TestTimeAug']


def test_tta_that_the_library_does_not_have():
    config = tta_config('mmdet', 'MaskRCNN')
    config.model.roi_head = dict(mask_head=dict(type='FCNMaskHead'))
    with pytest.raises(LaunchError, match='no masks.*without --tta'):
        use_tta(config)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of one name, in folders as of classes."""
    rng = np.random.default_rng(0)
    for folder in 'abcde':
        path = tmp_path / 'data' / folder / 'one.jpg'
        path.parent.mkdir(parents=True)
        image = rng.integers(0, 255, (40, 32, 3), np.uint8)
        cv2.imwrite(str(path), image)
    return tmp_path / 'data'


@pytest.mark.parametrize('tta', [False, True])
def test_show_dir_has_a_picture_by_name(pictures, trained, tmp_path, tta):
    path, checkpoint = trained('classifier')
    config = Config.fromfile(path)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(32, 32)),
        dict(type='PackInputs'),
    ]
    config.merge_from_dict(
        dict(
            work_dir=str(tmp_path / 'work'),
            optim_wrapper=None,
            custom_hooks=None,
            test_dataloader=dict(
                batch_size=2,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(
                    type='CustomDataset',
                    data_root=str(pictures),
                    pipeline=pipeline,
                ),
            ),
            test_cfg=dict(),
            test_evaluator=dict(type='Accuracy'),
        )
    )
    options = dict(show_dir=str(tmp_path / 'drawn'), tta=tta)
    config = launch.prepare_testing(config, str(checkpoint), **options)
    metrics = launch.test(config)
    assert set(metrics) == {'accuracy/top1'}
    drawn = sorted((tmp_path / 'drawn').rglob('*.*'))
    names = [str(file.relative_to(tmp_path / 'drawn')) for file in drawn]
    assert names == [f'{folder}/one.png' for folder in 'abcde']
    # Enlarged, so that the text can be read.
    assert cv2.imread(str(drawn[0])).shape == (280, 224, 3)


def test_show_dir_is_tried_beforehand(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(LaunchError, match='another one with --show-dir'):
        draw_to(tta_config('mmseg', 'EncoderDecoder'), f'{tmp_path}/file')


def test_show_dir_needs_a_known_library(tmp_path):
    config = Config(
        dict(model=dict(type='ToyModel'), default_scope='mmengine')
    )
    with pytest.raises(LaunchError, match='default_scope'):
        draw_to(config, str(tmp_path))


def test_metrics_have_units():
    metrics = {
        'accuracy/top1': 82.5712,
        'single-label/support': [4, 5],
        'mIoU': np.float32(48.1),
        'coco/bbox_mAP_50': 0.5142,
        'coco/bbox_mAP_l': -1.0,
        'loss': torch.tensor(0.25).item(),
    }
    assert list(with_units(metrics)) == [
        'accuracy/top1: 82.57 %',
        'single-label/support: [4, 5]',
        'mIoU: 48.10 %',
        'coco/bbox_mAP_50: 51.42 %',
        'coco/bbox_mAP_l: no such objects',
        'loss: 0.2500',
    ]
