"""Cascade Mask R-CNN with PeLK-T on real pictures: it learns and resumes."""

import numpy as np
import pytest
from mmengine.config import Config

from pelk_mm.apis.inference import build_predictor, list_images, predict_files
from pelk_mm.apis.launch import build_runner, prepare_training
from pelk_mm.engine.hooks.safe_checkpoint_hook import find_resumable
from pelk_mm.utils.config import load_config

CONFIG = 'cascade_mask_rcnn_pelk_t_coco.py'
#: Smaller pictures and fewer regions keep an iteration within seconds.
SCALE = (256, 160)


def configure(root, coco, work_dir, **options) -> Config:
    resize = dict(type='Resize', scale=SCALE, keep_ratio=True)
    config = load_config(
        str(root / 'configs' / CONFIG),
        {
            'train_dataloader.dataset.data_root': str(coco),
            'train_dataloader.dataset.indices': 2,
            'val_dataloader.dataset.data_root': str(coco),
            'test_dataloader': None,
            'test_cfg': None,
            'test_evaluator': None,
            'val_evaluator.ann_file': str(
                coco / 'annotations/instances_val2017.json'
            ),
            'model.backbone.drop_path_rate': 0.0,
            'model.train_cfg.rpn_proposal.max_per_img': 64,
            'model.test_cfg.rpn.max_per_img': 32,
            'optim_wrapper.paramwise_cfg.decay_rate': 1.0,
            'param_scheduler': [],
            'optim_wrapper.optimizer.lr': 4e-4,
            'default_hooks.logger.interval': 1,
            **{
                f'{split}_dataloader.{field}': value
                for split in ('train', 'val')
                for field, value in (
                    ('num_workers', 0),
                    ('persistent_workers', False),
                    ('batch_size', 1),
                )
            },
            **options,
        },
    )
    config.train_dataloader.dataset.pipeline = [
        step
        for step in config.train_pipeline
        if step.type not in ('RandomFlip', 'RandomChoice')
    ]
    config.train_dataloader.dataset.pipeline.insert(2, resize)
    config.val_dataloader.dataset.pipeline = [
        resize if step.type == 'Resize' else step
        for step in config.test_pipeline
    ]
    config.randomness = dict(seed=0)
    return prepare_training(config, work_dir=str(work_dir))


@pytest.mark.slow
def test_learns_validates_saves_and_resumes(root, sample_data, tmp_path):
    coco, epochs = sample_data / 'coco', 18
    every = {
        'train_cfg.val_interval': epochs,
        'default_hooks.checkpoint.interval': epochs,
    }
    runner = build_runner(
        configure(
            root, coco, tmp_path, **every, **{'train_cfg.max_epochs': epochs}
        )
    )
    runner.train()

    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 2 * epochs
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) / 2
    # COCO's own metric over the validation pictures.
    for kind in ('bbox', 'segm'):
        figure = runner.message_hub.get_scalar(
            f'val/coco/{kind}_mAP'
        ).current()
        assert 0 <= figure <= 1
    assert (tmp_path / f'epoch_{epochs}.pth').is_file()

    config = configure(
        root, coco, tmp_path, **every, **{'train_cfg.max_epochs': epochs + 1}
    )
    resumed = build_runner(
        prepare_training(config, work_dir=str(tmp_path), resume='auto')
    )
    resumed.train()
    assert resumed.iter == 2 * (epochs + 1)

    recipe = Config.fromfile(root / 'configs' / CONFIG)
    predictor = build_predictor(recipe, find_resumable(tmp_path), 'cpu')
    images = list_images(coco / 'val2017')[:2]
    drawn = list(predict_files(predictor, images, tmp_path / 'drawn'))
    assert all(result.drawn.is_file() for result in drawn)
    later = resumed.message_hub.get_scalar('train/loss').data[0]
    # It goes on where it was: the history is there and the loss stays low.
    assert len(later) == 2 * (epochs + 1)
    assert np.mean(later[-2:]) < np.mean(losses[:4]) / 2
