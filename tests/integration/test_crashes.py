"""Killed at any moment, on a full disk: a run goes on as if nothing were."""

import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pelk_mm.engine.hooks.safe_checkpoint_hook import find_resumable
from tests.helpers.forked import finish
from tests.helpers.killable_runs import (
    CONFIG,
    die_at,
    log_of,
    slow_disk,
    small_files,
    start,
)
from tests.helpers.sparse_task import differences


def write_config(folder: Path, iters: int, keep: int = 3) -> Path:
    path = folder / 'toy.py'
    path.write_text(CONFIG.format(iters=iters, keep=keep))
    return path


def load(path: Path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=True)


def numbers(work_dir: Path) -> list[int]:
    return sorted(
        int(re.fullmatch(r'iter_(\d+)\.pth', path.name)[1])
        for path in work_dir.glob('iter_*.pth')
    )


def newest(work_dir: Path) -> int:
    return max(numbers(work_dir), default=0)


def resume_options(work_dir: Path) -> list[str]:
    """As a script would that restarts a run until it is done."""
    return ['--resume'] if find_resumable(work_dir) else []


def check_work_dir(work_dir: Path) -> None:
    """What may be resumed is whole, and the newest is found."""
    for number in numbers(work_dir):
        assert load(work_dir / f'iter_{number}.pth')['meta']['iter'] == number
    found = find_resumable(work_dir)
    expected = newest(work_dir)
    assert found == (
        str(work_dir / f'iter_{expected}.pth') if expected else None
    )


def check_same_end(work_dir: Path, undisturbed: Path, iters: int) -> None:
    ends = [
        load(folder / f'iter_{iters}.pth')
        for folder in (work_dir, undisturbed)
    ]
    for part in (
        'state_dict',
        'optimizer',
        'param_schedulers',
        'dynamic_sparsity',
    ):
        assert differences(*(end[part] for end in ends)) == []
    losses = [
        end['message_hub']['log_scalars']['train/loss']['history_buffer'][
            'log'
        ]
        for end in ends
    ]
    assert len(losses[0]) == iters
    assert np.array_equal(*losses)
    # Nothing half-written is left behind.
    assert [path.name for path in work_dir.glob('.*')] == []


def undisturbed(config: Path, tmp_path: Path) -> Path:
    work_dir = tmp_path / 'undisturbed'
    assert finish(start(config, work_dir)) == 0, log_of(work_dir).read_text()
    return work_dir


def wait_for(condition, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, 'the run ended by itself'
        assert time.monotonic() < end, 'nothing happens'
        time.sleep(0.001)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    'kills', [3, pytest.param(20, marks=pytest.mark.slow)]
)
def test_killed_at_random_moments(tmp_path, kills):
    """A third of the kills while starting, while saving, or whenever."""
    chance = random.Random(kills)
    iters = 14 * kills
    config = write_config(tmp_path, iters)
    work_dir = tmp_path / 'killed'
    torn = 0
    for kill in range(kills):
        process = start(
            config,
            work_dir,
            *resume_options(work_dir),
            trouble=slow_disk,
            arguments=(0.02,),
        )
        moment = ('saving', 'whenever', 'starting')[kill % 3]
        target = newest(work_dir) + chance.randint(1, 8)
        if moment == 'starting':
            time.sleep(chance.uniform(0, 1))
        else:
            wait_for(lambda: newest(work_dir) >= target, process)  # noqa: B023
            if moment == 'saving':
                wait_for(lambda: list(work_dir.glob('.iter_*.pth')), process)
            else:
                time.sleep(chance.uniform(0, 0.05))
        process.kill()
        assert finish(process) == -9
        torn += bool(list(work_dir.glob('.iter_*.pth')))
        check_work_dir(work_dir)
    # The test did hit what it is about.
    assert torn >= kills // 3
    assert 0 < newest(work_dir) < iters
    process = start(config, work_dir, *resume_options(work_dir))
    assert finish(process) == 0
    check_work_dir(work_dir)
    check_same_end(work_dir, undisturbed(config, tmp_path), iters)


@pytest.mark.timeout(600)
def test_killed_at_every_step_of_a_save(tmp_path):
    """Each life dies at another step of saving the next checkpoint."""
    config = write_config(tmp_path, 8, keep=1)
    work_dir = tmp_path / 'killed'
    for number, (step, stands) in enumerate(
        [
            ('half written', False),
            ('before the rename', False),
            ('after the rename', True),
            ('pointer torn', True),
            ('before the removal', True),
        ],
        start=1,
    ):
        process = start(
            config,
            work_dir,
            *resume_options(work_dir),
            trouble=die_at,
            arguments=(step, f'iter_{number}.pth'),
        )
        assert finish(process) == -9, step
        check_work_dir(work_dir)
        assert newest(work_dir) == (number if stands else number - 1), step
    process = start(config, work_dir, '--resume')
    assert finish(process) == 0
    check_same_end(work_dir, undisturbed(config, tmp_path), 8)


@pytest.mark.timeout(300)
def test_a_limit_on_file_size(tmp_path):
    """Any user can have this kind of a full disk."""
    config = write_config(tmp_path, 6)
    whole = undisturbed(config, tmp_path)
    work_dir = tmp_path / 'limited'
    work_dir.mkdir()
    shutil.copy(whole / 'iter_5.pth', work_dir)
    # More than the logs, less than a checkpoint.
    size = (whole / 'iter_5.pth').stat().st_size * 2 // 3
    process = start(
        config, work_dir, '--resume', trouble=small_files, arguments=(size,)
    )
    assert finish(process) == 1
    output = log_of(work_dir).read_text()
    assert 'Traceback' not in output
    assert output.splitlines()[-1].startswith(
        f'error: cannot write {work_dir}/iter_6.pth: File too large. '
        f'{work_dir}/iter_5.pth is whole: free some space, then '
        'continue from it with --resume'
    )
    assert numbers(work_dir) == [5]
    assert list(work_dir.glob('.*')) == []
    process = start(config, work_dir, '--resume')
    assert finish(process) == 0
    check_same_end(work_dir, whole, 6)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function to change how it is mounted."""
    folder = tmp_path / 'disk'
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)],
            check=True,
            capture_output=True,
            text=True,
        )

    try:
        mount('size=1m')
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, 'stderr', '') or str(error)
        pytest.skip(f'cannot mount a tmpfs here: {reason.strip()}')
    yield folder, lambda options: mount(f'remount,{options}')
    subprocess.run(['umount', '-l', str(folder)], check=True)


@pytest.mark.timeout(300)
def test_a_full_disk(tmp_path, small_disk):
    """It fills up with checkpoints, and is then given room."""
    disk, remount = small_disk
    config = write_config(tmp_path, 60, keep=-1)
    work_dir = disk / 'run'
    assert finish(start(config, work_dir)) == 1
    last = (tmp_path / 'disk/run.log').read_text().splitlines()
    kept = newest(work_dir)
    assert 0 < kept < 60
    check_work_dir(work_dir)
    assert list(work_dir.glob('.*')) == []
    remount('size=64m')
    # The log had no room either.
    assert not last or 'error: cannot write' in last[-1]
    process = start(config, work_dir, *resume_options(work_dir))
    assert finish(process) == 0
    check_same_end(work_dir, undisturbed(config, tmp_path), 60)


@pytest.mark.timeout(300)
def test_a_read_only_disk(tmp_path, small_disk, run_tool):
    disk, remount = small_disk
    config = write_config(tmp_path, 2)
    remount('ro')
    status, _, err = run_tool('train.py', config, '--work-dir', disk / 'run')
    assert status == 1
    assert re.search(
        r'error: cannot write to the folder .*run: Read-only '
        r'file system; .*--work-dir',
        err,
    )


@pytest.mark.parametrize('kind', ['file', 'folder without rights'])
def test_a_work_dir_that_cannot_be(tmp_path, run_tool, kind):
    config = write_config(tmp_path, 2)
    place = tmp_path / 'place'
    if kind == 'file':
        place.write_text('')
    elif os.geteuid() == 0:
        pytest.skip('root may write everywhere')
    else:
        place.mkdir(mode=0o500)
    status, _, err = run_tool('train.py', config, '--work-dir', place / 'run')
    assert status == 1
    assert f'cannot write to the folder {place / "run"}' in err
    assert 'Traceback' not in err
