"""Full-size PeLK-T on real photographs: trains, validates, saves, resumes."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from pelk_mm.apis.inference import build_predictor, list_images, predict_files
from pelk_mm.engine.hooks.safe_checkpoint_hook import find_resumable
from pelk_mm.engine.preflight.checks import preflight

pytestmark = pytest.mark.slow


@pytest.fixture
def config(root, sample_data, tmp_path) -> Config:
    """PeLK-T's recipe on the sample of ImageNet, a few iterations long."""
    config = Config.fromfile(root / 'configs' / 'pelk_t_in1k.py')
    config.work_dir = str(tmp_path)
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(sample_data / 'imagenet')
        # The sample has one image a class, for training and validation.
        loader.dataset.data_prefix = 'train'
        loader.dataset.indices = 4
    config.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=2, val_interval=2
    )
    config.param_scheduler = []
    config.log_processor = dict(by_epoch=False)
    config.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    config.default_hooks.logger.interval = 1
    return config


def test_trains_validates_saves_resumes_and_predicts(config, tmp_path):
    preflight(config)
    runner = Runner.from_cfg(config.copy())
    runner.train()
    weights = [
        value for value in runner.model.parameters() if value.ndim in (2, 4)
    ]
    zeros = sum(int((value == 0).sum()) for value in weights)
    total = sum(value.numel() for value in weights)
    assert zeros / total == pytest.approx(0.4, abs=0.01)

    resumed = config.copy()
    resumed.load_from, resumed.resume = find_resumable(tmp_path), True
    resumed.train_cfg.max_iters = 3
    resumed.experiment_name = 'resumed'
    runner = Runner.from_cfg(resumed)
    runner.train()
    assert runner.iter == 3
    metrics = runner.test()
    assert metrics.keys() >= {'accuracy/top1', 'accuracy/top5'}

    predictor = build_predictor(config, find_resumable(tmp_path), 'cpu')
    image = runner.test_dataloader.dataset.get_data_info(3)['img_path']
    (result,) = predict_files(
        predictor, list_images(image), tmp_path / 'drawn'
    )
    assert len(result.rows) == 5 and result.drawn.is_file()


def test_overfits_a_few_images(config):
    """Without augmentation eight photographs are soon learned by heart."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=64),
        dict(type='PackInputs'),
    ]
    config.train_dataloader.update(batch_size=8)
    config.train_dataloader.dataset.update(indices=8, pipeline=pipeline)
    config.model.train_cfg = None
    config.model.head.loss = dict(type='CrossEntropyLoss')
    config.model.backbone.update(
        drop_path_rate=0.0, layer_scale_init_value=1.0
    )
    config.optim_wrapper.optimizer.lr = 5e-4
    config.train_cfg.update(max_iters=25, val_interval=100)
    config.default_hooks.checkpoint.interval = 100
    config.custom_hooks = []
    config.experiment_name = 'overfit'
    torch.manual_seed(0)
    runner = Runner.from_cfg(config)
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert losses[-3:].mean() < losses[:3].mean() / 2
