"""Schedules that do not go with the length of the training."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import scheduler as schedulers
from mmengine.runner import IterBasedTrainLoop, Runner

from pelk_mm.engine.schedules import check_schedule, leave_out_late
from pelk_mm.utils.errors import LaunchError
from tests.helpers.toy_task import TOY_CONFIG


def by_iterations(count):
    loop = object.__new__(IterBasedTrainLoop)
    loop._max_iters, loop._max_epochs = count, 1
    return loop


def by_epochs(count):
    return SimpleNamespace(max_epochs=count, max_iters=10 * count)


def runner(loop, *configs, hooks=(), wrap=list):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    # As mmengine's runner does.
    ends = {True: loop.max_epochs, False: loop.max_iters}
    built = [
        getattr(schedulers, kind)(
            optimizer,
            **dict(end=ends[arguments.get('by_epoch', True)]) | arguments,
        )
        for kind, arguments in configs
    ]
    return SimpleNamespace(
        train_loop=loop, param_schedulers=wrap(built), hooks=hooks
    )


WARM_UP = ('LinearLR', dict(start_factor=0.1, by_epoch=False, end=20))


@pytest.mark.parametrize(
    ('loop', 'configs'),
    [
        (by_epochs(4), []),
        (
            by_epochs(4),
            [WARM_UP, ('MultiStepLR', dict(milestones=[2, 3], end=4))],
        ),
        (by_epochs(4), [('CosineAnnealingLR', dict(T_max=3, begin=1))]),
        (by_epochs(4), [('StepLR', dict(step_size=9))]),
        (by_epochs(4), [('ConstantLR', dict(factor=1.0))]),
        (by_epochs(4), [('OneCycleLR', dict(eta_max=1.0, total_steps=4))]),
        (
            by_epochs(4),
            [
                (
                    'CosineRestartLR',
                    dict(periods=[2], restart_weights=[1], eta_min=0),
                )
            ],
        ),
        (
            by_iterations(40),
            [WARM_UP, ('PolyLR', dict(begin=20, end=40, by_epoch=False))],
        ),
        (by_iterations(40), [('ReduceOnPlateauLR', dict(monitor='accuracy'))]),
    ],
)
def test_schedules_that_fit(loop, configs):
    assert check_schedule(runner(loop, *configs)) == []
    several = runner(loop, *configs, wrap=lambda built: dict(one=built))
    assert check_schedule(several) == []


@pytest.mark.parametrize(
    ('loop', 'configs', 'message'),
    [
        (
            # mmpretrain's schedule of 90 epochs, cut to 1.
            by_epochs(1),
            [
                WARM_UP,
                ('MultiStepLR', dict(milestones=[30, 60, 80])),
                ('CosineAnnealingLR', dict(T_max=85, begin=5, end=90)),
            ],
            'ends after 1 epochs (10 iterations), before its schedule does '
            '(LinearLR at iteration 20, MultiStepLR at epoch 80, '
            'CosineAnnealingLR at epoch 90); give',
        ),
        (
            by_iterations(10),
            [WARM_UP],
            'ends after 10 iterations, before its schedule does (LinearLR at '
            'iteration 20)',
        ),
        (
            by_epochs(4),
            [('CosineAnnealingLR', dict(T_max=5))],
            '(CosineAnnealingLR at epoch 5)',
        ),
        (
            by_iterations(40),
            [('LinearLR', dict(end=5)), ('MultiStepLR', dict(milestones=[2]))],
            'LinearLR, MultiStepLR in param_scheduler counts epochs',
        ),
    ],
)
def test_schedules_that_do_not(loop, configs, message):
    (text,) = check_schedule(runner(loop, *configs))
    assert message in text
    several = runner(loop, *configs, wrap=lambda built: dict(one=built))
    assert check_schedule(several) == [text]


def test_a_cycle_that_would_end_the_training():
    cycle = ('OneCycleLR', dict(eta_max=1.0, total_steps=3))
    short, long = runner(by_epochs(3), cycle), runner(by_epochs(5), cycle)
    assert check_schedule(short) == []
    with pytest.raises(LaunchError, match='OneCycleLR.*3 epochs.*training, 5'):
        check_schedule(long)
    # As mmengine does.
    for _ in range(3):
        long.param_schedulers[0].step()
    with pytest.raises(ValueError, match='total steps'):
        long.param_schedulers[0].step()


def test_checkpoints_of_epochs_that_never_end():
    hooks = [CheckpointHook(by_epoch=True)]
    assert check_schedule(runner(by_epochs(4), hooks=hooks)) == []
    (text,) = check_schedule(runner(by_iterations(40), hooks=hooks))
    assert 'CheckpointHook counts epochs' in text


def test_of_a_run(tmp_path):
    config = Config.fromstring(TOY_CONFIG, '.py')
    config.work_dir = str(tmp_path)
    config.train_cfg.max_iters = 2
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    trained = Runner.from_cfg(config)
    trained.train()
    (text,) = check_schedule(trained)
    assert 'ends after 2 iterations' in text
    assert '(PolyLR at iteration 6)' in text


def test_schedulers_that_never_begin_are_left_out():
    """As of a recipe of many epochs that is tried for one."""
    warm_up = dict(type='LinearLR', end=5)
    config = Config(
        dict(
            train_cfg=dict(max_epochs=5),
            param_scheduler=[
                warm_up,
                dict(type='CosineAnnealingLR', begin=5),
                # In iterations, of which the number is not known yet.
                dict(type='ConstantLR', by_epoch=False, begin=5),
            ],
        )
    )
    (line,) = leave_out_late(config)
    assert line.startswith('CosineAnnealingLR begins at epoch 5')
    kinds = [scheduler.type for scheduler in config.param_scheduler]
    assert kinds == ['LinearLR', 'ConstantLR']
    config.train_cfg.max_epochs = 6
    assert leave_out_late(config) == []
    assert leave_out_late(Config(dict(param_scheduler=warm_up))) == []
