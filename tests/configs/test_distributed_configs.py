"""The configs for FSDP and DeepSpeed, as far as one process can tell."""

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import FUNCTIONS, STRATEGIES, init_default_scope

from pelk_mm.apis import strategy_checks
from pelk_mm.models import PeLK
from pelk_mm.models.backbones.pelk import PeLKBlock

BASE = 'upernet_pelk_b_101_ade20k'
ADDED = {'runner_type', 'strategy'}
SMALL = dict(
    depths=(1, 1, 3, 1), channels=(8, 16, 24, 32), kernel_sizes=(13, 9, 7, 5)
)


@pytest.fixture(params=['fsdp', 'deepspeed'])
def config(request, root) -> Config:
    init_default_scope('mmseg')
    return Config.fromfile(
        root / 'configs' / 'distributed' / f'{BASE}_{request.param}.py'
    )


def test_only_what_shards_is_added(config, root):
    base = Config.fromfile(root / 'configs' / f'{BASE}.py')
    assert set(config) - set(base) == ADDED
    differing = {key for key in base if config[key] != base[key]}
    assert differing <= {'optim_wrapper', 'default_hooks'}
    assert config.optim_wrapper.optimizer == base.optim_wrapper.optimizer
    assert config.optim_wrapper.paramwise_cfg == (
        base.optim_wrapper.paramwise_cfg
    )


def test_every_config_is_tested(root):
    assert {
        path.name
        for path in (root / 'configs/distributed').iterdir()
        if path.suffix == '.py'
    } == {f'{BASE}_fsdp.py', f'{BASE}_deepspeed.py'}


def test_the_strategy_fits(config, monkeypatch):
    monkeypatch.setattr(strategy_checks, '_check_deepspeed', lambda: None)
    strategy_checks.check_strategy(config)
    assert STRATEGIES.get(config.strategy.type) is not None


def test_layers_decay(config):
    wrapper = build_optim_wrapper(PeLK(arch=SMALL), config.optim_wrapper)
    groups = wrapper.optimizer.param_groups
    assert {group['weight_decay'] for group in groups} == {0.0, 0.05}
    assert len({group['lr'] for group in groups}) > 3


def test_blocks_are_units(root):
    config = Config.fromfile(root / 'configs/distributed' / f'{BASE}_fsdp.py')
    policy = FUNCTIONS.get(config.strategy.model_wrapper.auto_wrap_policy)
    backbone = PeLK(arch=SMALL)
    units = [
        module
        for module in backbone.modules()
        if policy(module, recurse=False, nonwrapped_numel=0)
    ]
    assert len(units) == sum(SMALL['depths'])
    assert all(isinstance(unit, PeLKBlock) for unit in units)
    assert policy(backbone, recurse=True, nonwrapped_numel=0)
