"""What is said of the weights that a training starts from."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from pelk_mm.engine.hooks import DynamicSparsityHook
from pelk_mm.engine.preflight import weights
from pelk_mm.engine.preflight.weights import StartingWeightsHook
from pelk_mm.utils.config import build_model
from tests.helpers.models import CLASSIFIER, SEGMENTOR


@pytest.fixture
def told(monkeypatch):
    """What the hook says of a model."""

    def tell(config, model=None, hooks=(), load_from=None, resume=False):
        lines: list[str] = []
        monkeypatch.setattr(
            weights, 'print_log', lambda line, *_: lines.append(line)
        )
        runner = SimpleNamespace(
            cfg=config, model=model or build_model(config), hooks=hooks
        )
        runner._load_from, runner._resume = load_from, resume
        StartingWeightsHook().before_train(runner)
        return lines

    return tell


def test_random_weights_are_told_with_the_way_to_others(told):
    config = Config(SEGMENTOR)
    (line,) = told(config)
    assert line.startswith('the backbone starts from random weights')
    assert 'model.backbone.init_cfg.checkpoint=PATH' in line
    assert told(config, load_from='x.pth') == []
    assert told(config, resume=True) == []
    # A config that says how to begin means it.
    config.model.backbone.init_cfg = dict(type='Kaiming', layer='Conv2d')
    assert told(config) == []
    # As classifiers do.
    assert told(Config(CLASSIFIER)) == []


def test_zeros_that_will_be_filled_are_told(told):
    config = Config(CLASSIFIER)
    model = build_model(config)
    weight = model.backbone.stages[0].blocks[0].pointwise_conv1.weight
    with torch.no_grad():
        weight[:, ::2] = 0
    (line,) = told(config, model, load_from='x.pth')
    assert line.split()[0].endswith('%') and 'update_interval=None' in line
    assert told(config, model, hooks=[DynamicSparsityHook()]) == []
    # A kernel that was grown, and a layer that starts at zero.
    model = build_model(config)
    with torch.no_grad():
        model.backbone.stages[0].blocks[0].conv.large.weight[..., 0] = 0
        model.head.fc.weight.zero_()
    assert told(config, model) == []
