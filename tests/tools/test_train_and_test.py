"""The command-line tools, run as a user runs them, on a toy task.

Each once in a process of its own; then in forked ones, which take no time.
"""

import re
import sys

import pytest
import torch

from tests.helpers import forked
from tests.helpers.commands import run
from tests.helpers.toy_task import TOY_CONFIG


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'toy.py'
    path.write_text(TOY_CONFIG)
    return path


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work')
    result = run(
        sys.executable, 'tools/train.py', config, '--work-dir', work_dir
    )
    assert result.returncode == 0, result.stderr
    return work_dir


def test_train_saves_and_validates(trained):
    assert (trained / 'iter_3.pth').is_file()
    assert (trained / 'iter_6.pth').is_file()
    assert (trained / 'last_checkpoint').read_text().endswith('iter_6.pth')


def test_a_resumed_run_ends_like_an_undisturbed_one(config, trained, tmp_path):
    result = forked.run(
        'tools/train.py',
        config,
        '--work-dir',
        tmp_path,
        '--resume',
        trained / 'iter_3.pth',
    )
    assert result.returncode == 0, result.stderr
    assert 'resumed epoch: 0, iter: 3' in result.stdout
    straight = torch.load(trained / 'iter_6.pth')
    resumed = torch.load(tmp_path / 'iter_6.pth')
    # The order of the data is not part of a checkpoint, the schedule and the
    # histories are.
    assert resumed['meta']['iter'] == straight['meta']['iter'] == 6
    assert resumed['param_schedulers'] == straight['param_schedulers']
    history = 'train/loss'
    for end in (straight, resumed):
        scalars = end['message_hub']['log_scalars']
        assert len(scalars[history]['history_buffer']['log']) == 6


def test_resume_without_a_checkpoint_is_an_error(config, tmp_path):
    result = forked.run(
        'tools/train.py', config, '--work-dir', tmp_path, '--resume'
    )
    assert result.returncode != 0
    assert result.stderr.startswith('error: --resume: there is no checkpoint')
    assert 'Traceback' not in result.stderr


def test_test_prints_the_metrics(config, trained, tmp_path):
    result = run(
        sys.executable,
        'tools/test.py',
        config,
        trained / 'iter_6.pth',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'raw.pkl',
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r'^accuracy: (0|1)\.\d+$', result.stdout, re.M)
    assert (tmp_path / 'raw.pkl').is_file()


def test_dist_train_runs_on_two_processes(config, tmp_path):
    result = run('tools/dist_train.sh', config, 2, '--work-dir', tmp_path)
    assert result.returncode == 0, result.stderr
    (log,) = tmp_path.rglob('*.log')
    assert 'Distributed training: True' in log.read_text()
    assert (tmp_path / 'iter_6.pth').is_file()


@pytest.mark.slow
def test_dist_test_runs_on_two_processes(config, trained, tmp_path):
    result = run(
        'tools/dist_test.sh',
        config,
        trained / 'iter_6.pth',
        2,
        '--work-dir',
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert 'accuracy: ' in result.stdout


@pytest.mark.parametrize(
    'arguments, expected',
    [
        (('tools/dist_train.sh', 'config.py'), 'usage: tools/dist_train.sh'),
        (('tools/dist_test.sh', 'config.py', 'a.pth'), 'CHECKPOINT GPUS'),
        (('tools/dist_train.sh', 'config.py', 'two'), 'positive integer'),
        (('tools/slurm_train.sh', 'partition'), 'usage: tools/slurm_train.sh'),
    ],
)
def test_launchers_explain_themselves(arguments, expected):
    result = run(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr


@pytest.mark.parametrize('name', ['dist_train', 'dist_test', 'slurm_train'])
def test_launchers_have_help(name):
    result = run(f'tools/{name}.sh', '-h')
    assert result.returncode == 0
    assert f'tools/{name}.sh' in result.stdout
    assert '#' not in result.stdout and 'exec' not in result.stdout


def test_launchers_check_the_environment():
    result = run('tools/dist_train.sh', 'config.py', 1, PORT='http')
    assert result.returncode == 2
    assert result.stderr == (
        "error: PORT must be a whole number, got 'http'\n"
    )


def test_several_nodes_need_a_port():
    result = run('tools/dist_train.sh', 'config.py', 1, NNODES='2')
    assert result.returncode == 2
    assert 'set PORT' in result.stderr
