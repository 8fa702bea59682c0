"""Models for the tools: a small classifier's config, the demos' models."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pelk_mm.utils.config import build_model
from tests.helpers.models import CONFIG


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'small_pelk.py'
    path.write_text(CONFIG.format(classes=3))
    return path


CONFIGS = {
    'classification': 'demo_pelk_digits.py',
    'segmentation': 'demo_upernet_pelk_digits.py',
    'detection': 'demo_cascade_mask_rcnn_pelk_digits.py',
}


@pytest.fixture(scope='module', params=list(CONFIGS))
def model(request, root, tmp_path_factory):
    """Task, config path and a checkpoint of random weights."""
    path = root / 'configs' / CONFIGS[request.param]
    config = Config.fromfile(path)
    torch.manual_seed(0)
    # The detection demo would start from another demo's checkpoint.
    config.model.backbone.init_cfg = None
    network = build_model(config)
    network.init_weights()
    dataset = config.test_dataloader.dataset
    checkpoint = tmp_path_factory.mktemp('weights') / 'random.pth'
    torch.save(
        dict(
            meta=dict(dataset_meta=dict(dataset.metainfo)),
            state_dict=network.state_dict(),
        ),
        checkpoint,
    )
    return request.param, str(path), str(checkpoint)
