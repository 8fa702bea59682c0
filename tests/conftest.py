"""What every test may use.

The process that hands tests out to others reads this too. It should not take
the seconds that importing torch and the libraries takes: functions do it.
"""

import gc
import io
import os
import random
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, on fast and on slow machines; others, and
# shrunken ones, by `--hypothesis-profile=explore`.
settings.register_profile(
    'same', derandomize=True, deadline=None, database=None
)
settings.register_profile('explore', deadline=None, print_blob=True)
settings.load_profile('same')


# What is imported stays, and is most of what there is: looking through it for
# garbage was a quarter of the time of tests of small networks.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_addoption(parser) -> None:
    parser.addoption(
        '--shuffle',
        type=int,
        metavar='SEED',
        help='run the tests in an order drawn with this seed',
    )


def pytest_collection_modifyitems(config, items) -> None:
    if (seed := config.getoption('--shuffle')) is not None:
        random.Random(seed).shuffle(items)
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker('gpu'):
                item.add_marker(pytest.mark.skip('no CUDA device'))


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope='session')
def sample_data() -> Path:
    """Small real data in the layout of ``data/``; absent in most clones."""
    folder = Path(
        os.environ.get('PELK_MM_DATA', ROOT.parent / 'shared' / 'data')
    )
    if not folder.is_dir():
        pytest.skip(f'no sample data at {folder}; set PELK_MM_DATA')
    return folder


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Same random numbers for every test, no scope or logger of another.

    A logger would go on writing to what pytest captured then.
    """
    import torch
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()
    MMLogger._instance_dict.clear()


@pytest.fixture(autouse=True, scope='session')
def _nothing_is_drawn_on_meta() -> Iterator[None]:
    """torch works out in Python what it draws for tensors without numbers."""
    from torch.nn import init

    draw = init.trunc_normal_

    def trunc_normal_(tensor, *args, **kwargs):
        return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    with mock.patch.object(init, 'trunc_normal_', trunc_normal_):
        yield


@pytest.fixture(autouse=True, scope='session')
def _runners_start_soon() -> Iterator[None]:
    from tests.helpers.short_logs import short_logs

    with short_logs():
        yield


@pytest.fixture(scope='session')
def run_tool() -> Callable[..., tuple[int, str, str]]:
    """Run a file of ``tools/`` as its command line would, in this process.

    Returns its exit status, and what it wrote to stdout and stderr.
    """

    def run(tool: str, *args) -> tuple[int, str, str]:
        path = str(ROOT / 'tools' / tool)
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with (
            mock.patch.object(sys, 'argv', [path, *map(str, args)]),
            mock.patch.object(sys, 'path', [os.path.dirname(path), *sys.path]),
            mock.patch.dict(os.environ),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                runpy.run_path(path, run_name='__main__')
            except SystemExit as stop:
                # Python prints a text and exits with 1.
                if isinstance(stop.code, str):
                    print(stop.code, file=sys.stderr)
                status = 1 if isinstance(stop.code, str) else stop.code or 0
        return status, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """Paths of a task's config and checkpoint, by ``trained(task)``."""
    import torch
    from mmengine.config import Config

    from tests.helpers import trained_models

    folder = tmp_path_factory.mktemp('trained')

    def make(task: str) -> tuple[Path, Path]:
        config, checkpoint = folder / f'{task}.py', folder / f'{task}.pth'
        if not checkpoint.exists():
            config.write_text(trained_models.CONFIGS[task])
            torch.save(
                trained_models.train(Config.fromfile(config)), checkpoint
            )
        return config, checkpoint

    return make
