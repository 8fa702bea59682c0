"""UperNet with PeLK-T on real scenes: it learns."""

import pytest

from pelk_mm.apis.launch import build_runner, prepare_training
from pelk_mm.utils.config import load_config

#: Smaller crops than the recipe's keep an iteration within seconds.
CROP = (128, 128)


@pytest.mark.slow
def test_overfits_two_images(root, sample_data, tmp_path):
    data = str(sample_data / 'ade/ADEChallengeData2016')
    config = load_config(
        str(root / 'configs' / 'upernet_pelk_t_ade20k.py'),
        {
            'train_dataloader.dataset.data_root': data,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader': None,
            'val_cfg': None,
            'val_evaluator': None,
            'test_dataloader': None,
            'test_cfg': None,
            'test_evaluator': None,
            'model.data_preprocessor.size': CROP,
            'model.backbone.drop_path_rate': 0.0,
            'optim_wrapper.optimizer.lr': 5e-4,
            'param_scheduler': [],
            'train_cfg.max_iters': 16,
            'default_hooks.logger.interval': 1,
            'default_hooks.checkpoint.interval': 100,
            'default_hooks.checkpoint.save_last': False,
            'default_hooks.checkpoint.save_best': None,
        },
    )
    config.train_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='Resize', scale=CROP, keep_ratio=False),
        dict(type='PackSegInputs'),
    ]
    config.randomness = dict(seed=0)
    runner = build_runner(prepare_training(config, work_dir=str(tmp_path)))
    runner.train()

    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 16
    assert losses[-2:].mean() < losses[:2].mean() / 2
