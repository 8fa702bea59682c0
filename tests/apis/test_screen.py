"""The screen shows the run; long reports are in the log file."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from pelk_mm.apis.launch import build_runner, prepare_training
from pelk_mm.utils.errors import LaunchError
from tests.helpers.toy_task import TOY_CONFIG


@pytest.fixture
def config(tmp_path) -> Config:
    config = Config.fromstring(TOY_CONFIG, '.py')
    config.work_dir = str(tmp_path)
    config.default_hooks.logger.interval = 4
    config.log_processor = dict(by_epoch=False)
    return prepare_training(config)


def test_the_screen_shows_the_run_and_the_file_has_the_rest(config, capsys):
    runner = build_runner(config)
    runner.train()
    screen = capsys.readouterr().out
    log = Path(runner.logger.log_file)
    assert str(log) in screen
    assert len(screen.splitlines()) < 20
    for report in ('System environment', 'Config:', 'Hooks will be executed'):
        assert report not in screen
        assert report in log.read_text()
    # The first iteration, and then each interval.
    steps = re.findall(r'Iter\(train\) +\[(\d)/6\]', screen)
    assert steps == ['1', '4']


@RUNNERS.register_module()
class OwnRunner(Runner):
    """A runner of a user's own."""


def test_a_runner_of_ones_own_stays_one(config):
    config.runner_type = 'OwnRunner'
    assert isinstance(build_runner(config), OwnRunner)
    config.runner_type = 'NoRunner'
    with pytest.raises(LaunchError, match="there is no 'NoRunner'"):
        build_runner(config)
