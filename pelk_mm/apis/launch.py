"""From a config and command-line options to a runner, for every task."""

from __future__ import annotations

import errno
import logging
import os
import os.path as osp
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..engine.hooks.safe_checkpoint_hook import (
    PlainCheckpoints,
    check_resumable,
    find_resumable,
)
from ..engine.preflight.data_paths import check_data
from ..engine.preflight.weights import StartingWeightsHook
from ..engine.rehearsal import RehearsalHook
from ..engine.rehearsal.failures import why, with_cause
from ..engine.schedules import leave_out_late
from ..engine.strategies import SHARDING
from ..models.utils import Checkpoints
from ..utils.config import replace_types, type_name
from ..utils.errors import LaunchError
from .screen import FirstLine, with_short_screen
from .strategy_checks import check_strategy
from .test_options import draw_to, require_writable, use_tta

#: BatchNorms over all processes: registered names, and torch's and mmcv's.
_SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
#: What a disk says that is full, or that may not be written any more.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def prepare_training(
    config: Config,
    *,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    checkpoints: Checkpoints | None = None,
) -> Config:
    """Turn the options of ``tools/train.py`` into fields of the config.

    The config is changed in place. ``resume`` is a path, ``'auto'`` for the
    newest whole checkpoint of the work dir, or None; ``checkpoints`` keeps
    what is read, for :func:`train`. A LaunchError says what cannot be done.
    """
    _let_the_first_speak(launcher)
    if work_dir is not None:
        config.work_dir = work_dir
    if amp:
        _use_amp(config)
    if auto_scale_lr:
        _use_auto_scale_lr(config)
    if config.get('strategy') is not None:
        check_strategy(config)
    checkpoints = checkpoints or Checkpoints()
    if resume is not None:
        _resume(config, resume, checkpoints)
    elif config.get('resume') and not isinstance(config.resume, str):
        _check_resume(config, checkpoints)
    elif config.get('load_from') and '://' not in config.load_from:
        require_checkpoint(config.load_from, checkpoints)
    for line in leave_out_late(config):
        print_log(f'param_scheduler: {line}', 'current', logging.WARNING)
    _check_folders(config, 'train', 'val')
    _use_launcher(config, launcher)
    return config


def prepare_testing(
    config: Config,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    show_dir: str | None = None,
    out: str | None = None,
    tta: bool = False,
    launcher: str = 'none',
    checkpoints: Checkpoints | None = None,
) -> Config:
    """Turn the options of ``tools/test.py`` into fields of the config.

    The config is changed in place. Drawn predictions go to ``show_dir``, raw
    ones to ``out``, a ``.pkl`` file; ``tta`` tests with the config's test-time
    augmentation; ``checkpoints`` keeps what is read, for :func:`test`. A
    LaunchError says what cannot be done.
    """
    _let_the_first_speak(launcher)
    if work_dir is not None:
        config.work_dir = work_dir
    if '://' not in checkpoint:
        require_checkpoint(checkpoint, checkpoints)
    config.load_from = checkpoint
    config.resume = False
    if tta:
        use_tta(config)
    if show_dir is not None:
        draw_to(config, show_dir)
    if out is not None:
        if not out.endswith(('.pkl', '.pickle')):
            raise LaunchError(f'--out must end in .pkl, got {out}')
        require_writable(osp.dirname(osp.abspath(out)), 'out')
        evaluators = config.test_evaluator
        if isinstance(evaluators, Mapping):
            evaluators = [evaluators]
        config.test_evaluator = [
            *evaluators,
            dict(type='DumpResults', out_file_path=out),
        ]
    _check_folders(config, 'test')
    _use_launcher(config, launcher)
    return config


#: Where each launcher says which of the processes one is.
_RANK = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def _let_the_first_speak(launcher: str) -> None:
    """Of several processes, have one log what comes before the runner.

    mmengine's loggers do so by themselves once the processes are connected.
    """
    if os.environ.get(_RANK.get(launcher, ''), '0') != '0':
        MMLogger.get_current_instance().setLevel(logging.ERROR)


def build_runner(config: Config) -> Runner:
    """Build the runner that the config describes.

    The screen shows what happens from the first iteration on; the long
    reports of mmengine are in the log file.
    """
    kind = config.get('runner_type', 'Runner')
    found = RUNNERS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise LaunchError(f'runner_type: there is no {kind!r}')
    runner = with_short_screen(found).from_cfg(config)
    runner.register_hook(FirstLine())
    return runner


class _LetGo(Hook):
    """Ends the sharing of checkpoints when all that is loaded is loaded."""

    priority = 'LOWEST'

    def __init__(self, sharing: ExitStack) -> None:
        self.sharing = sharing

    def before_train(self, runner: Runner) -> None:
        self.sharing.close()

    before_test = before_train


@contextmanager
def _loading(config: Config, read: Checkpoints | None) -> Iterator[Runner]:
    """The runner of a config, loading what was read."""
    with ExitStack() as sharing:
        sharing.enter_context((read or Checkpoints()).shared())
        runner = build_runner(config)
        runner.register_hook(_LetGo(sharing))
        yield runner


def train(config: Config, checkpoints: Checkpoints | None = None) -> None:
    """Train as a config from :func:`prepare_training` describes.

    ``checkpoints``, what was read, is empty when the training begins. A full
    or read-only disk ends it with a LaunchError: a run that seems to train,
    and saves nothing, would lose more than one that ends.
    """
    try:
        with _loading(config, checkpoints) as runner, _explained(runner):
            _save_plainly(runner)
            runner.register_hook(StartingWeightsHook())
            if not any(isinstance(h, RehearsalHook) for h in runner.hooks):
                runner.register_hook(RehearsalHook())
            runner.train()
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        found = find_resumable(config.work_dir)
        state = 'no checkpoint had been saved yet'
        if found:
            state = f'{found} is whole: free some space, then continue from '
            state += 'it with --resume'
        what = f'cannot write {error.filename or "a file"}: {error.strerror}'
        raise LaunchError(f'{what}. {state}') from error


def _save_plainly(runner: Runner) -> None:
    """Have the checkpoints load safely, also those of a library's hook."""
    if not any(isinstance(hook, PlainCheckpoints) for hook in runner.hooks):
        # Behind the hooks that add to a checkpoint.
        runner.register_hook(PlainCheckpoints(), priority='LOWEST')


def test(
    config: Config, checkpoints: Checkpoints | None = None
) -> dict[str, float]:
    """Test as a config from :func:`prepare_testing` describes; the metrics."""
    with _loading(config, checkpoints) as runner, _explained(runner):
        return runner.test()


@contextmanager
def _explained(runner: Runner) -> Iterator[None]:
    """A LaunchError for a failure that the runner's objects explain."""
    try:
        yield
    except Exception as error:
        told = isinstance(error, LaunchError)
        line = None if told else why(error, runner.model, runner.cfg)
        if line is None:
            raise
        raise LaunchError(with_cause(line, error)) from error


@contextmanager
def _refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds say why there can be no run."""
    try:
        yield
    except kinds as error:
        raise LaunchError(str(error)) from error


def require_checkpoint(
    path: str, checkpoints: Checkpoints | None = None
) -> dict:
    """The contents of a checkpoint; a LaunchError says why there are none."""
    with _refusing(OSError, RuntimeError):
        return (checkpoints or Checkpoints()).read(path)


def _check_folders(config: Config, *splits: str) -> None:
    """Raise unless the data is there, and files can be made in work_dir."""
    with _refusing(FileNotFoundError):
        check_data(config, splits)
    require_writable(config.work_dir, 'work-dir')


def _resume(config: Config, resume: str, checkpoints: Checkpoints) -> None:
    if type_name(config.get('strategy', {})) == 'DeepSpeedStrategy':
        # It resumes from folders, which are loaded by DeepSpeed itself.
        if not osp.isdir(resume):
            raise LaunchError(
                'DeepSpeed resumes from the folder of a checkpoint: '
                f'--resume WORK_DIR/iter_N.pth; got {resume}'
            )
        # As the tools set it, for all that is read; DeepSpeed then fails.
        if os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD') == '1':
            raise LaunchError(
                f'DeepSpeed reads {resume} with pickle, which can run code; '
                'if you trust who made it, set '
                'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 for this run'
            )
        # Behind a slash, as shells complete folders, mmengine would look for
        # a name that is empty.
        config.load_from, config.resume = None, osp.abspath(resume)
        return
    config.load_from = _resume_from(resume, config.work_dir, checkpoints)
    config.resume = True


def _resume_from(resume: str, work_dir: str, checkpoints: Checkpoints) -> str:
    if resume == 'auto':
        found = find_resumable(work_dir, checkpoints)
        if found is None:
            raise LaunchError(
                f'--resume: there is no checkpoint in {work_dir} to resume '
                'from; start without --resume, or name one with --resume PATH'
            )
        return found
    if '://' not in resume:
        with _refusing(OSError, ValueError):
            check_resumable(resume, checkpoints)
    return resume


def _check_resume(config: Config, checkpoints: Checkpoints) -> None:
    """``resume = True`` in a config: with no file named, the newest if any.

    mmengine would take the newest file whether it is whole or not.
    """
    path = config.get('load_from')
    path = path or find_resumable(config.work_dir, checkpoints)
    if path is None:
        config.resume = False
        print_log(
            f'resume: there is no checkpoint in {config.work_dir}, '
            'the training starts from the beginning',
            logger='current',
        )
    else:
        config.load_from = _resume_from(path, config.work_dir, checkpoints)


def _use_amp(config: Config) -> None:
    wrapper = config.optim_wrapper
    kind = type_name({'type': 'OptimWrapper', **wrapper})
    if not torch.cuda.is_available():
        raise LaunchError(
            '--amp needs a GPU (mmengine runs AmpOptimWrapper on none but '
            'accelerators) and torch sees none; leave out --amp'
        )
    if kind == 'OptimWrapper':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    elif kind != 'AmpOptimWrapper':
        raise LaunchError(
            "--amp needs optim_wrapper.type='OptimWrapper', "
            f'the config has {kind}'
        )


def _use_auto_scale_lr(config: Config) -> None:
    if not config.get('auto_scale_lr', {}).get('base_batch_size'):
        raise LaunchError(
            '--auto-scale-lr needs auto_scale_lr = dict(base_batch_size=…) in '
            'the config, the batch size that its learning rate is for'
        )
    config.auto_scale_lr.enable = True


def _use_launcher(config: Config, launcher: str) -> None:
    config.launcher = launcher
    kind = type_name(config.get('strategy') or {})
    if launcher == 'none' and kind in ('DDPStrategy', *SHARDING):
        raise LaunchError(
            f'strategy={kind} is for several processes: start '
            'it with tools/dist_train.sh CONFIG GPUS'
        )
    if launcher == 'none' or torch.cuda.is_available():
        return
    # Several processes without a GPU: mmengine would select CUDA devices,
    # and SyncBatchNorm has no CPU form.
    if not dist.is_initialized():
        if launcher != 'pytorch':
            raise LaunchError(
                f'without a GPU, launcher {launcher!r} is not supported; use '
                'tools/dist_train.sh, which starts torchrun'
            )
        settings = config.get('env_cfg', {}).get('dist_cfg', {})
        timeout = settings.get('timeout', 1800)
        dist.init_process_group('gloo', timeout=timedelta(seconds=timeout))
    if config.get('model_wrapper_cfg') is None:
        config.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            # mmengine would name a CUDA device here.
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=config.get('find_unused_parameters', False),
        )
    strategy = config.get('strategy')
    if strategy is not None and type_name(strategy) == 'DDPStrategy':
        strategy.setdefault('model_wrapper', config.model_wrapper_cfg)
    config.pop('sync_bn', None)
    if replace_types(config.model, _SYNC_BN, 'BN'):
        print_log(
            'no GPU: SyncBN becomes BN, each process normalises its own batch',
            logger='current',
        )
