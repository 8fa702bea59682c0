"""Runs of tools/train.py that can be killed, and start in no time.

They are forked from a server that has imported everything once.
"""

from __future__ import annotations

import builtins
import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

# For the server: what a run imports only when it needs it.
import matplotlib.backends.backend_agg  # noqa: F401
import mmengine.runner  # noqa: F401
import torch
import torch._dynamo

import pelk_mm  # noqa: F401
from tests.conftest import ROOT
from tests.helpers import toy_task

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload([__name__])

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
    process = CONTEXT.Process(
        target=_live,
        args=(
            [str(config), '--work-dir', str(work_dir), *options],
            log_of(work_dir),
            trouble,
            arguments,
        ),
        daemon=True,
    )
    process.start()
    return process


def log_of(work_dir: Path) -> Path:
    return work_dir.with_name(f'{work_dir.name}.log')


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait for the end; the exit code, negative for a signal."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f'did not end within {seconds} s')
    return process.exitcode


def _live(
    arguments: list[str],
    log: Path,
    trouble: Callable | None,
    trouble_arguments: tuple,
) -> None:
    torch.set_num_threads(1)
    os.chdir(ROOT)
    sys.argv = ['tools/train.py', *arguments]

    # Asking the compiler for its version and the like takes a second a run,
    # and so does the layout of the config, which is in every checkpoint. The
    # fork of mmengine imports what does that at each use.
    def as_it_is(text: str, **_) -> tuple[str, bool]:
        return text, True

    with (
        _all_printed_to(log),
        mock.patch('mmengine.runner.runner.collect_env', dict),
        mock.patch('yapf.yapflib.yapf_api.FormatCode', as_it_is),
        mock.patch('mmengine.config.config.FormatCode', as_it_is, create=True),
    ):
        if trouble is not None:
            trouble(*trouble_arguments)
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')


@contextlib.contextmanager
def _all_printed_to(log: Path) -> Iterator[None]:
    """Up to how it ends. What follows, as coverage's own files, has no part in
    a run and is not bound by a limit that was its trouble."""
    streams = {number: os.dup(number) for number in (1, 2)}
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number in streams:
        os.dup2(handle, number)
    try:
        yield
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        _say(end.code)
        raise SystemExit(1) from None
    except BaseException:
        _say(traceback.format_exc())
        raise SystemExit(1) from None
    finally:
        _say('')
        for number, stream in streams.items():
            os.dup2(stream, number)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log's disk may be full
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        print(text, end='\n' * bool(text), file=sys.stderr, flush=True)


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
