"""A small training of each task, on pictures that are drawn."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from pelk_mm.engine import RehearsalHook
from tests.helpers.models import (
    CLASSIFIER,
    DETECTOR,
    RETINA_TRAIN_CFG,
    SEGMENTOR,
)

LOAD = dict(type='LoadImageFromFile')


def draw(path, size=(40, 40), seed=0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(
        0, 255, (*size, 3), dtype=np.uint8
    )
    Image.fromarray(noise).save(path)


def training(task: dict, dataset: dict, evaluator: dict) -> Config:
    """No iteration: only what comes before the first."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        dataset=dataset,
    )
    valid = dict(loader, sampler=dict(type='DefaultSampler', shuffle=False))
    return Config(
        dict(
            task,
            train_dataloader=loader,
            val_dataloader=valid,
            val_evaluator=evaluator,
            train_cfg=dict(by_epoch=True, max_epochs=0),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(checkpoint=None),
            randomness=dict(seed=0),
        )
    )


@pytest.fixture
def classification(tmp_path) -> Config:
    for i, name in enumerate('aabbcc'):
        draw(tmp_path / 'train' / name / f'{i}.jpg', seed=i)
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path),
        data_prefix='train',
        metainfo=dict(classes=tuple('abc')),
        pipeline=[
            LOAD,
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    )
    return training(CLASSIFIER, dataset, dict(type='Accuracy'))


@pytest.fixture
def segmentation(tmp_path) -> Config:
    for i in range(4):
        draw(tmp_path / 'img' / f'{i}.jpg', seed=i)
        labels = np.random.default_rng(i).integers(0, 3, (40, 40))
        Image.fromarray(labels.astype(np.uint8)).save(
            tmp_path / 'img' / f'{i}.png'
        )
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='img', seg_map_path='img'),
        metainfo=dict(classes=('sky', 'sea', 'ship'), palette=[[0] * 3] * 3),
        pipeline=[
            LOAD,
            dict(type='LoadAnnotations'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ],
    )
    config = training(SEGMENTOR, dataset, dict(type='IoUMetric'))
    config.model.data_preprocessor.size = (40, 40)
    return config


@pytest.fixture
def detection(tmp_path) -> Config:
    for i in range(4):
        draw(tmp_path / 'img' / f'{i}.jpg', seed=i)
    box = [4, 4, 30, 30]
    annotations = [
        dict(
            id=i + 1,
            image_id=i,
            category_id=1 + i % 2,
            bbox=box,
            area=900,
            iscrowd=0,
        )
        for i in range(4)
    ]
    content = dict(
        images=[
            dict(id=i, file_name=f'{i}.jpg', width=40, height=40)
            for i in range(4)
        ],
        annotations=annotations,
        categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    )
    (tmp_path / 'coco.json').write_text(json.dumps(content))
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='coco.json',
        data_prefix=dict(img='img'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[
            LOAD,
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(40, 40)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackDetInputs'),
        ],
    )
    metric = dict(type='CocoMetric', ann_file=str(tmp_path / 'coco.json'))
    config = training(DETECTOR, dataset, metric)
    config.model.train_cfg = RETINA_TRAIN_CFG
    config.model.test_cfg = dict(score_thr=0.0, nms_pre=9, max_per_img=9)
    config.model.test_cfg.nms = dict(type='nms', iou_threshold=0.5)
    packed = config.val_dataloader.dataset.pipeline
    packed[-1].meta_keys = (
        'img_id',
        'img_path',
        'ori_shape',
        'img_shape',
        'scale_factor',
        'flip',
        'flip_direction',
    )
    return config


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """Lines that the rehearsal logs."""
    from pelk_mm.engine.rehearsal import hook

    lines: list[str] = []
    monkeypatch.setattr(
        hook, 'print_log', lambda line, *_, **__: lines.append(line)
    )
    return lines


@pytest.fixture
def rehearse(tmp_path) -> Callable[[Config], Runner]:
    """Prepare a training, rehearse it, and end before the first iteration."""
    counter = iter(range(1000))

    def run(config: Config) -> Runner:
        config.work_dir = str(tmp_path / 'work')
        config.experiment_name = f'{tmp_path.name}{next(counter)}'
        runner = Runner.from_cfg(config)
        runner.register_hook(RehearsalHook())
        runner.train()
        return runner

    return run
