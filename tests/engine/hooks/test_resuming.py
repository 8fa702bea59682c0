"""A checkpoint whose optimizer is not the one that would go on."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import LinearLR, OptimWrapperDict, build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

from pelk_mm.engine.hooks.resuming import check_resumed
from pelk_mm.models import PeLK
from pelk_mm.utils.errors import LaunchError
from tests.helpers.toy_task import TOY_CONFIG

DECAY = 'LayerDecayOptimWrapperConstructor'
SMALL = dict(
    depths=(1, 1, 1, 1), channels=(4, 4, 4, 4), kernel_sizes=(5, 5, 5, 5)
)


def at_start(
    constructor=DECAY, end=8, warm_up=True, lr=1e-3, paramwise=None, **backbone
):
    """What a runner holds before the first step."""
    arch = SMALL | backbone.pop('arch', {})
    model = nn.ModuleDict(
        dict(backbone=PeLK(arch, **backbone), head=nn.Linear(4, 2))
    )
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
        constructor=constructor,
    )
    if paramwise is None and constructor == DECAY:
        paramwise = dict(decay_rate=0.9)
    if paramwise is not None:
        cfg['paramwise_cfg'] = paramwise
    wrapper = build_optim_wrapper(model, cfg)
    schedulers = [LinearLR(wrapper, end=end)] if warm_up else []
    return SimpleNamespace(
        model=model, optim_wrapper=wrapper, param_schedulers=schedulers
    )


def checkpoint_of(runner):
    return dict(
        optimizer=runner.optim_wrapper.state_dict(),
        param_schedulers=[s.state_dict() for s in runner.param_schedulers],
    )


@pytest.fixture
def warnings(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelname == 'WARNING'
    ]
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(frozen_stages=2),
        dict(constructor='DefaultOptimWrapperConstructor'),
        dict(
            constructor='DefaultOptimWrapperConstructor',
            paramwise=dict(norm_decay_mult=0.0),
        ),
    ],
)
def test_the_same_run_goes_on_without_a_word(settings, warnings):
    before = at_start(**settings)
    for scheduler in before.param_schedulers:
        before.optim_wrapper.step()
        scheduler.step()
    check_resumed(at_start(**settings), checkpoint_of(before))
    assert warnings() == []


@pytest.mark.parametrize(
    ('then', 'now', 'message'),
    [
        (
            dict(frozen_stages=2),
            {},
            r'train now, not then: backbone\.downsample_layers\.0\.0\.bias'
            r'.* and \d+ more\. Resume with the frozen_stages',
        ),
        (
            {},
            dict(frozen_stages=4),
            r'trained then, not now: backbone\.downsample_layers\.0',
        ),
        (
            {},
            dict(arch=dict(depths=(1, 1, 1, 2))),
            r'train now, not then: backbone\.stages\.3\.blocks\.1',
        ),
        (
            {},
            dict(paramwise=dict(decay_rate=0.9, norm_decay_mult=0.5)),
            r'in \d+ groups, this run \d+ in \d+\. Resume',
        ),
        (
            dict(
                constructor='DefaultOptimWrapperConstructor',
                paramwise=dict(norm_decay_mult=0.0),
            ),
            dict(
                constructor='DefaultOptimWrapperConstructor',
                paramwise=dict(norm_decay_mult=0.0),
                frozen_stages=1,
            ),
            r'has 76 parameters in 76 groups, this run 58 in 58\. Resume',
        ),
    ],
)
def test_other_groups_are_named(then, now, message):
    checkpoint, runner = checkpoint_of(at_start(**then)), at_start(**now)
    with pytest.raises(LaunchError, match=message) as caught:
        check_resumed(runner, checkpoint)
    assert 'load_from' in str(caught.value)
    # torch would end here, or mix up what belongs to whom.
    with pytest.raises(ValueError, match='parameter group'):
        runner.optim_wrapper.load_state_dict(checkpoint['optimizer'])


@pytest.mark.parametrize(
    ('now', 'message'),
    [
        (dict(lr=2e-3), 'lr 0.001, not 0.002 in 12 of 12 groups'),
        (
            dict(paramwise=dict(decay_rate=0.5)),
            'lr 0.0009, not 0.0005 in 10 of 12 groups',
        ),
        (
            dict(paramwise=dict(decay_rate=0.9, num_layers=4), end=16),
            'LinearLR from 0 to 8, not 0 to 16.',
        ),
        (dict(warm_up=False), '1 schedulers, not 0.'),
    ],
)
def test_settings_that_resuming_overrides(now, message, warnings):
    runner, checkpoint = at_start(**now), checkpoint_of(at_start())
    check_resumed(runner, checkpoint)
    (text,) = warnings()
    assert message in text
    assert 'load_from' in text
    runner.optim_wrapper.load_state_dict(checkpoint['optimizer'])
    kept = [
        group['lr'] for group in runner.optim_wrapper.optimizer.param_groups
    ]
    assert kept == [g['lr'] for g in checkpoint['optimizer']['param_groups']]


@pytest.mark.parametrize(
    ('then', 'now', 'lacking'),
    [('AdamW', 'SGD', 'momentum, dampening'), ('SGD', 'AdamW', 'betas, eps')],
)
def test_another_optimizer_is_named(then, now, lacking):
    model = nn.Linear(2, 2)
    runs = [
        SimpleNamespace(
            model=model,
            optim_wrapper=build_optim_wrapper(
                model, dict(optimizer=dict(type=kind, lr=0.1))
            ),
            param_schedulers=[],
        )
        for kind in (then, now)
    ]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, after = (run.optim_wrapper for run in runs)
    before.step()
    checkpoint = checkpoint_of(runs[0])
    message = f"not this run's {now}: it has no {lacking}. Resume"
    with pytest.raises(LaunchError, match=message):
        check_resumed(runs[1], checkpoint)
    # What it would have come to.
    after.load_state_dict(checkpoint['optimizer'])
    with pytest.raises(KeyError):
        after.step()


def test_adam_and_adamw_go_on_from_each_other(warnings):
    model = nn.Linear(2, 2)
    checkpoint, run = (
        SimpleNamespace(
            model=model,
            optim_wrapper=build_optim_wrapper(
                model,
                dict(optimizer=dict(type=kind, lr=0.1, weight_decay=0.1)),
            ),
            param_schedulers=[],
        )
        for kind in ('Adam', 'AdamW')
    )
    check_resumed(run, checkpoint_of(checkpoint))
    assert warnings() == []


def test_a_best_checkpoint_holds_no_optimizer(warnings):
    check_resumed(at_start(), {})
    (text,) = warnings()
    assert 'holds no optimizer' in text


def test_a_sharded_optimizer_is_left_to_fsdp(warnings):
    """It names the parameters of each group and finds them again."""
    checkpoint = checkpoint_of(at_start())
    for group in checkpoint['optimizer']['param_groups']:
        group['params'] = list(group['param_names'])
    check_resumed(at_start(frozen_stages=2, lr=1.0), checkpoint)
    assert warnings() == []


def test_several_optimizers():
    parts = at_start(), at_start(frozen_stages=1)
    for runner in parts:
        wrapper = runner.optim_wrapper
        wrappers = OptimWrapperDict(one=wrapper)
        runner.optim_wrapper, runner.param_schedulers = wrappers, {}
    checkpoint = dict(optimizer=parts[0].optim_wrapper.state_dict())
    check_resumed(parts[0], checkpoint)
    with pytest.raises(LaunchError, match='trained then, not now'):
        check_resumed(parts[1], checkpoint)


def test_in_a_run(tmp_path):
    """SafeCheckpointHook asks before mmengine loads the optimizer.

    Mostly three times what mmengine collects about the machine.
    """
    config = Config.fromstring(TOY_CONFIG, '.py')
    config.work_dir = str(tmp_path)
    Runner.from_cfg(config).train()
    config.update(load_from=str(tmp_path / 'iter_3.pth'), resume=True)
    config.optim_wrapper.optimizer.lr = 1.0
    Runner.from_cfg(config).train()
    log = sorted(tmp_path.glob('*/*.log'))[-1].read_text()
    assert 'lr 0.01, not 1.' in log
    config.optim_wrapper.paramwise_cfg = dict(flat_decay_mult=0.0)
    with pytest.raises(LaunchError, match='6 parameters in 1 groups'):
        Runner.from_cfg(config).train()
