"""Training steps of configs, timed on batches that are made up."""

import json
import sys

import pytest
import torch

from pelk_mm.models import PeLK
from pelk_mm.utils.errors import LaunchError


@pytest.fixture
def tool(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / 'tools/benchmarks'))
    import training_step

    return training_step


@pytest.fixture
def seen(monkeypatch):
    """Shapes of all images that a backbone is given."""
    shapes, check = [], PeLK._check

    def note(self, x):
        shapes.append(tuple(x.shape))
        check(self, x)

    monkeypatch.setattr(PeLK, '_check', note)
    return shapes


def test_three_tasks(tool, seen, root, tmp_path, monkeypatch, capsys):
    """What the config's model and optimizer make of batches of their kind."""
    file = tmp_path / 'steps.json'
    names = 'pelk', 'upernet_pelk', 'cascade_mask_rcnn_pelk'
    configs = [f'{root}/configs/demo_{name}_digits.py' for name in names]
    options = '--batch=2', '--rounds=1', '--budget=0.1', '--size', '64', '96'
    command = ['training_step.py', *configs, *options, '--json', str(file)]
    monkeypatch.setattr(sys, 'argv', command)
    monkeypatch.setattr(tool.bench, 'command', lambda script: script)
    tool.main()
    assert set(seen) == {(2, 3, 64, 96)}
    runs = json.loads(file.read_text())['runs']
    assert [*runs] == [f'{name}, 64 x 96, batch 2' for name in configs]
    for run in runs.values():
        assert run['images_per_s'] == pytest.approx(2e3 / run['median_ms'])
        assert run['peak_memory'] > 2**20
        assert run['environment']['torch'] == torch.__version__
    assert 'images/s' in capsys.readouterr().out


def test_steps_train(tool, root):
    """And with finite losses, which faster code must not have bought."""
    args = '--batch=2', '--size', '64', '64'
    parser = tool.make_parser()
    config = str(root / 'configs/demo_cascade_mask_rcnn_pelk_digits.py')
    made = tool.prepare(config, parser.parse_args([config, *args]))
    losses = made['step']()
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses['s0.loss_mask'] > 0


def test_no_such_config(tool):
    with pytest.raises(LaunchError, match='there is no config'):
        tool.prepare('nothing.py', None)
