"""Command-line options become fields of the config, or a clear error."""

import errno
import weakref
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from torch import nn

from pelk_mm.apis import launch, strategy_checks
from pelk_mm.apis.launch import (
    prepare_testing,
    prepare_training,
    require_checkpoint,
)
from pelk_mm.models.utils import Checkpoints
from pelk_mm.utils.config import load_config
from pelk_mm.utils.errors import LaunchError
from pelk_mm.utils.trust import weights_only
from pelk_mm.utils.unpickling import read_histories
from tests.helpers.toy_task import TOY_CONFIG


@pytest.fixture
def config(tmp_path) -> Config:
    config = Config.fromstring(TOY_CONFIG, '.py')
    config.work_dir = str(tmp_path / 'work')
    return config


def test_load_config_overrides_and_names_the_work_dir(tmp_path):
    path = tmp_path / 'my_model.py'
    path.write_text(TOY_CONFIG)
    config = load_config(str(path), {'train_dataloader.batch_size': 2})
    assert config.train_dataloader.batch_size == 2
    assert config.work_dir.endswith('my_model')


@pytest.mark.parametrize(
    'text, expected',
    [
        ('x = 1', 'has no model'),
        ('model = (', 'cannot be read as a config'),
        ("_base_ = ['missing.py']", 'cannot be read as a config'),
    ],
)
def test_load_config_refuses_what_is_no_config(tmp_path, text, expected):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(LaunchError, match=expected):
        load_config(str(path))


def test_load_config_names_a_missing_file():
    with pytest.raises(LaunchError, match='no config nowhere.py'):
        load_config('nowhere.py')


def test_resume_needs_a_checkpoint(config, tmp_path):
    with pytest.raises(LaunchError, match='no checkpoint in .*start without'):
        prepare_training(config, work_dir=str(tmp_path), resume='auto')
    with pytest.raises(LaunchError, match='there is no checkpoint'):
        prepare_training(config, resume=str(tmp_path / 'iter_1.pth'))


def test_resume_auto_takes_the_newest_whole_checkpoint(config, tmp_path):
    torch.save(
        dict(state_dict={}, meta={}, message_hub={}), tmp_path / 'iter_3.pth'
    )
    (tmp_path / 'iter_6.pth').write_bytes(b'torn')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    prepare_training(config, work_dir=str(tmp_path), resume='auto')
    assert config.resume is True
    assert config.load_from == str(tmp_path / 'iter_3.pth')


def test_resume_refuses_weights_alone(config, tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'weights.pth')
    with pytest.raises(LaunchError, match='name it in load_from'):
        prepare_training(config, resume=str(tmp_path / 'weights.pth'))


class _Payload:
    def __reduce__(self):
        return print, ('executed',)


def test_a_pickle_payload_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / 'hostile.pth'
    torch.save(dict(state_dict={}, meta=_Payload()), path)
    with pytest.raises(LaunchError, match='pickled Python objects'):
        require_checkpoint(str(path))
    assert 'executed' not in capsys.readouterr().out


def test_load_from_is_checked_before_training(config, tmp_path):
    config.load_from = str(tmp_path / 'gone.pth')
    with pytest.raises(LaunchError, match='gone.pth'):
        prepare_training(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
def test_amp_without_a_gpu_says_so(config):
    with pytest.raises(LaunchError, match='--amp needs a GPU'):
        prepare_training(config, amp=True)


def test_amp_changes_the_wrapper(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    prepare_training(config, amp=True)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
    assert config.optim_wrapper.loss_scale == 'dynamic'


def test_amp_knows_what_it_works_on(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    own = dict(type='AmpOptimWrapper', loss_scale=512.0, dtype='bfloat16')
    config.optim_wrapper.update(own)
    prepare_training(config, amp=True)
    assert {key: config.optim_wrapper[key] for key in own} == own
    config.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(LaunchError, match='ApexOptimWrapper'):
        prepare_training(config, amp=True)


def test_processes_without_a_gpu(config, monkeypatch):
    """Only torchrun's; gradients are averaged, and no norm needs a GPU."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(LaunchError, match="'slurm'.*dist_train.sh"):
        prepare_training(config, launcher='slurm')
    MMLogger.get_current_instance()  # asks for its rank when it is made
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    config.sync_bn = 'torch'
    config.model.update(
        norm_cfg=dict(type='SyncBN'),
        parts=[
            dict(norm_cfg=dict(type='SyncBN', eps=1e-3)),
            dict(type='ReLU'),
        ],
    )
    prepare_training(config, launcher='pytorch')
    assert config.launcher == 'pytorch'
    assert config.model_wrapper_cfg.type == 'MMDistributedDataParallel'
    assert config.model_wrapper_cfg.device_ids is None
    assert 'sync_bn' not in config
    assert config.model.norm_cfg == dict(type='BN')
    assert config.model.parts == [
        dict(norm_cfg=dict(type='BN', eps=1e-3)),
        dict(type='ReLU'),
    ]
    # One's own wrapper is left alone.
    config.model_wrapper_cfg = dict(type='Mine')
    prepare_training(config, launcher='pytorch')
    assert config.model_wrapper_cfg == dict(type='Mine')


@pytest.mark.parametrize('rank, lines', [('0', 1), ('1', 0)])
def test_one_of_several_processes_speaks(
    config, rank, lines, monkeypatch, capsys
):
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setattr(launch, '_use_launcher', lambda *_: None)
    config.param_scheduler = [dict(type='StepLR', begin=6, by_epoch=False)]
    prepare_training(config, launcher='pytorch')
    assert capsys.readouterr().out.count('left out') == lines


def test_auto_scale_lr(config):
    with pytest.raises(LaunchError, match='base_batch_size'):
        prepare_training(config, auto_scale_lr=True)
    config.auto_scale_lr = dict(base_batch_size=16)
    prepare_training(config, auto_scale_lr=True)
    assert config.auto_scale_lr.enable is True


def test_out_adds_to_the_metrics(config, tmp_path):
    checkpoint = tmp_path / 'model.pth'
    torch.save(dict(state_dict={}), checkpoint)
    with pytest.raises(LaunchError, match='pkl'):
        prepare_testing(config, str(checkpoint), out='results.json')
    prepare_testing(config, str(checkpoint), out='results.pkl')
    assert [metric.type for metric in config.test_evaluator] == [
        'ToyAccuracy',
        'DumpResults',
    ]


SHARDED = dict(
    runner_type='FlexibleRunner', strategy=dict(type='FullStateFSDPStrategy')
)


@pytest.mark.parametrize(
    'changes, expected',
    [
        (dict(strategy=dict(type='FSDPStrategy')), 'FlexibleRunner'),
        (
            dict(SHARDED, strategy=dict(type='FSDPStrategy')),
            'FullStateFSDPStrategy',
        ),
        (
            dict(SHARDED, custom_hooks=[dict(type='EMAHook')]),
            'EMAHook needs whole parameters',
        ),
        (
            dict(
                SHARDED,
                custom_hooks=[dict(type='pelk_mm.DynamicSparsityHook')],
            ),
            'DynamicSparsityHook needs whole parameters',
        ),
        (
            dict(SHARDED, strategy=dict(type='DeepSpeedStrategy')),
            'not installed|saves its checkpoints itself',
        ),
    ],
)
def test_strategies_that_would_not_do_what_is_asked(config, changes, expected):
    config.merge_from_dict(changes)
    with pytest.raises(LaunchError, match=expected):
        prepare_training(config)


def test_a_strategy_that_fits(config, monkeypatch):
    config.merge_from_dict(SHARDED)
    with pytest.raises(LaunchError, match='start it with tools/dist_train.sh'):
        prepare_training(config)
    monkeypatch.setattr(launch, '_use_launcher', lambda *_: None)
    prepare_training(config)
    config.strategy.type = 'DDPStrategy'
    config.custom_hooks = [dict(type='EMAHook')]
    prepare_training(config)


def test_deepspeed_resumes_from_a_named_folder(config, tmp_path, monkeypatch):
    monkeypatch.setattr(strategy_checks, '_check_deepspeed', lambda: None)
    monkeypatch.setattr(launch, '_use_launcher', lambda *_: None)
    config.merge_from_dict(SHARDED)
    config.strategy.type = 'DeepSpeedStrategy'
    config.default_hooks.checkpoint.type = 'CheckpointHook'
    with pytest.raises(LaunchError, match='the folder of a checkpoint'):
        prepare_training(config, resume='auto')
    folder = tmp_path / 'iter_3.pth'
    folder.mkdir()
    # As shells complete the name of a folder.
    prepare_training(config, resume=f'{folder}/')
    assert config.resume == str(folder)
    assert config.load_from is None
    with (
        weights_only(),
        pytest.raises(
            LaunchError, match='with pickle.*set TORCH_FORCE_NO_WEIGHTS_ONLY'
        ),
    ):
        prepare_training(config, resume=str(folder))
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with weights_only():
        prepare_training(config, resume=str(folder))


@pytest.mark.parametrize(
    'has, expected',
    [
        (None, 'not installed'),
        ('runtime/fp16', 'too new'),
        ('runtime/fp16/onebit', None),
    ],
)
def test_deepspeed_has_to_be_one_that_mmengine_knows(
    tmp_path, monkeypatch, has, expected
):
    spec = None
    if has is not None:
        (tmp_path / has).mkdir(parents=True)
        spec = ModuleSpec('deepspeed', None, origin=str(tmp_path / 'x.py'))
    monkeypatch.setattr(strategy_checks, 'find_spec', lambda name: spec)
    if expected is None:
        strategy_checks._check_deepspeed()
        return
    with pytest.raises(LaunchError, match=expected):
        strategy_checks._check_deepspeed()


@HOOKS.register_module()
class Held(Hook):
    """What is left of a checkpoint's contents once the run has begun."""

    tensor, alive = None, []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        Held.alive.append(Held.tensor() is not None)


def test_a_training_does_not_hold_what_it_has_loaded(config, monkeypatch):
    launch.train(prepare_training(config))
    checkpoints = Checkpoints()
    path = f'{config.work_dir}/iter_3.pth'
    prepare_training(config, resume=path, checkpoints=checkpoints)
    weights = checkpoints.read(path)['state_dict']['hidden.weight']
    Held.tensor, Held.alive = weakref.ref(weights), []
    del weights
    config.custom_hooks = [dict(type='Held')]
    launch.train(config, checkpoints)
    assert Held.alive == [False] * 3


def test_a_full_disk_is_one_line(config, monkeypatch):
    class FullDisk(Mock):
        model = nn.Identity()

        def train(self):
            raise OSError(errno.ENOSPC, 'No space left on device', 'x.pth')

    monkeypatch.setattr(
        launch, 'build_runner', lambda config: FullDisk(hooks=[])
    )
    with pytest.raises(
        LaunchError,
        match='cannot write x.pth: No space left '
        'on device. no checkpoint had been saved yet',
    ):
        launch.train(config)


def test_other_errors_pass(config, monkeypatch):
    class Missing(Mock):
        model = nn.Identity()

        def train(self):
            raise FileNotFoundError(errno.ENOENT, 'No such file', 'x.jpg')

    monkeypatch.setattr(
        launch, 'build_runner', lambda config: Missing(hooks=[])
    )
    with pytest.raises(FileNotFoundError):
        launch.train(config)


def test_the_work_dir_is_tried_beforehand(config, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(
        LaunchError,
        match=r'cannot write to the folder .*'
        'run: Not a directory; choose another one',
    ):
        prepare_training(config, work_dir=str(tmp_path / 'file' / 'run'))


@pytest.mark.parametrize('hook', ['CheckpointHook', 'SafeCheckpointHook'])
def test_what_is_saved_loads_safely_whatever_the_hook(
    config, hook, monkeypatch
):
    class Odd(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            checkpoint['odd'] = dict(path=Path('x'), kinds={1})

    config.default_hooks.checkpoint.type = hook
    monkeypatch.setitem(HOOKS.module_dict, 'Odd', Odd)
    config.custom_hooks = [dict(type='Odd')]
    launch.train(prepare_training(config))
    saved = Path(config.work_dir, 'last_checkpoint').read_text()
    # Also where torch has no list of what may be read.
    torch.serialization.clear_safe_globals()
    try:
        contents = require_checkpoint(saved)
    finally:
        read_histories()
    assert contents['odd'] == dict(path='x', kinds=[1])
    config.train_cfg.max_iters = 9
    launch.train(prepare_training(config, resume=saved))
