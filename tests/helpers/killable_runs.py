"""Runs of tools/train.py that can be killed, and start in no time."""

from __future__ import annotations

import builtins
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.helpers import forked, toy_task

#: Sparse, with an optimizer and a schedule that have a memory; saves always.
CONFIG = (
    toy_task.TOY_CONFIG
    + """
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters={iters}, val_interval=1000)
param_scheduler = dict(type='PolyLR', by_epoch=False, end={iters})
custom_hooks = [
    dict(type='DynamicSparsityHook', init='erk', include='.',
         update_interval=5)
]
default_hooks = dict(
    checkpoint=dict(
        type='SafeCheckpointHook', by_epoch=False, interval=1,
        max_keep_ckpts={keep}),
    logger=dict(type='LoggerHook', interval=10))
"""
)


def start(
    config: Path,
    work_dir: Path,
    *options: str,
    trouble: Callable | None = None,
    arguments: tuple = (),
) -> BaseProcess:
    """Start to train; what it prints goes to ``work_dir`` + '.log'.

    Args:
        config (Path): The config file.
        work_dir (Path): Its work dir.
        *options (str): Of ``tools/train.py``.
        trouble (Callable, optional): Of this module; called in the new
            process before it trains. Default: None.
        arguments (tuple): Those of ``trouble``. Default: ().
    """
    return forked.start(
        'tools/train.py',
        config,
        '--work-dir',
        work_dir,
        *options,
        out=log_of(work_dir),
        before=partial(trouble, *arguments) if trouble else None,
    )


def log_of(work_dir: Path) -> Path:
    return work_dir.with_name(f'{work_dir.name}.log')


# Troubles ------------------------------------------------------------------


def slow_disk(seconds: float) -> None:
    """Files take that long to write, so that a kill finds one half-done."""

    def write(path: Path, data: bytes) -> None:
        with open(path, 'wb') as file:
            for share in range(10):
                file.write(
                    data[
                        len(data) * share // 10 : len(data) * (share + 1) // 10
                    ]
                )
                file.flush()
                time.sleep(seconds / 10)

    Path.write_bytes = write


def small_files(size: int) -> None:
    """No file may grow beyond so many bytes."""
    resource.setrlimit(
        resource.RLIMIT_FSIZE,
        (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]),
    )


def die_at(step: str, name: str) -> None:
    """SIGKILL at one step of saving the checkpoint of that name."""
    write, replace, unlink = Path.write_bytes, os.replace, os.remove
    opened = builtins.open

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_written(path: Path, data: bytes) -> None:
        ours = step == 'half written' and path.name.startswith(
            f'.{Path(name).stem}.'
        )
        write(path, data[: len(data) // 2] if ours else data)
        if ours:
            die()

    def renamed(source: str, target: str) -> None:
        ours = Path(target).name == name
        if ours and step == 'before the rename':
            die()
        replace(source, target)
        if ours and step == 'after the rename':
            die()

    def pointed(file, mode='r', *args, **kwargs):
        result = opened(file, mode, *args, **kwargs)
        if (
            step == 'pointer torn'
            and 'w' in mode
            and Path(file).name == 'last_checkpoint'
            and (Path(file).parent / name).exists()
        ):
            die()
        return result

    def removed(path, *args, **kwargs) -> None:
        if (
            step == 'before the removal'
            and (Path(path).parent / name).exists()
        ):
            die()
        unlink(path, *args, **kwargs)

    Path.write_bytes, os.replace, os.remove = half_written, renamed, removed
    builtins.open = pointed
