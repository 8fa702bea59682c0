"""A long training holds no more at its end than soon after its beginning."""

import json
from pathlib import Path

import numpy as np
import pytest

from pelk_mm.datasets.digit_scenes import Recipe, make_digit_scenes
from tests.conftest import ROOT
from tests.helpers.forked import finish
from tests.helpers.killable_runs import log_of, start

#: It validates, saves and moves its masks all the time.
CONFIG = """
_base_ = '{root}/configs/demo_pelk_digits.py'
custom_imports = dict(imports=['pelk_mm', 'tests.helpers.resources'])
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True, depths=(1, 1, 1, 1), channels=(8, 8, 16, 16),
            kernel_sizes=(13, 9, 7, 5))),
    head=dict(in_channels=16))
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_root='{data}/imagenet'))
val_dataloader = dict(
    batch_size=10, dataset=dict(data_root='{data}/imagenet'))
test_dataloader = val_dataloader
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=500, val_interval=20)
param_scheduler = [dict(type='PolyLR', by_epoch=False, end=500)]
optim_wrapper = dict(type='CPUAmpOptimWrapper')
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(by_epoch=False, interval=20, max_keep_ckpts=2))
log_processor = dict(by_epoch=False)
custom_hooks = [
    dict(type='EMAHook', momentum=0.01),
    dict(type='DynamicSparsityHook', init='snip', update_interval=10),
    dict(type='ResourceRecorder', leak={leak})]
"""
#: Iterations of each of the two runs after which nothing more is set up.
WARM = 100


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return make_digit_scenes(
        tmp_path_factory.mktemp('data') / 'digits',
        Recipe(train_scenes=1, val_scenes=1, train_digits=40, val_digits=20),
        progress=False,
    )


def train(config: Path, work_dir: Path, *options: str) -> None:
    """With two processes that load data, as the demo has."""
    process = start(config, work_dir, *options)
    assert finish(process, 900) == 0, log_of(work_dir).read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('leak', [0, 2**15])
def test_nothing_grows(tmp_path, data, leak):
    """500 iterations, resumed after the first half; 32 KiB each are seen."""
    config, work_dir = tmp_path / 'long.py', tmp_path / 'work'
    config.write_text(CONFIG.format(root=ROOT, data=data, leak=leak))
    half = ('--cfg-options', 'train_cfg.max_iters=250')
    for first, options in ((0, half), (250, ('--resume',))):
        train(config, work_dir, *options)
        text = (work_dir / 'resources.jsonl').read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        lines = [line for line in lines if line['iter'] > first + WARM]
        assert lines[-1]['iter'] == first + 250
        iters, memory, files, threads = (
            np.array([line[key] for line in lines])
            for key in ('iter', 'memory', 'files', 'threads')
        )
        slope = 100 * np.polyfit(iters, memory, 1)[0]
        print(
            f'from {first}: {memory.mean():.0f} MiB, {slope:+.2f} MiB in 100 '
            f'iterations; {files.max()} files, {threads.max()} threads'
        )
        assert (slope > 2) if leak else (slope < 1)
        assert len({*files}) == 1 and len({*threads}) == 1
