"""Tools that read pictures: the odd ones are right, the broken ones named."""

import pytest
import torch
from mmengine.config import Config

from pelk_mm.utils.config import build_model
from tests.helpers.pictures import BAD, GOOD, write, write_odd_sizes

FEW = ('cmyk.jpg', 'rgb16.png', 'palette.png', 'exif6.jpg')


def test_image_demo(model, tmp_path, run_tool):
    """One command for a folder with all of them: each has its own fate."""
    task, config, checkpoint = model
    folder = tmp_path / 'pictures'
    # What reads them is the same for all tasks.
    good = GOOD if task == 'segmentation' else FEW
    write(folder, *good, *BAD)
    odd = write_odd_sizes(folder)
    status, stdout, stderr = run_tool(
        'image_demo.py',
        config,
        checkpoint,
        folder,
        '--out',
        tmp_path / 'out',
        '--device',
        'cpu',
        '--batch-size',
        4,
    )
    assert status == 1
    skipped = {
        line.split(' ')[1]: line
        for line in stderr.splitlines()
        if line.startswith('skipped: ')
    }
    for name, (_, message) in BAD.items():
        assert message in skipped.pop(str(folder / name))
    # Too small or thin for some pipelines: said in a line, by name.
    for path in odd:
        line = skipped.pop(f'{path}:', '')
        assert not line or ('x' in line and 'pixels fails in' in line)
    assert not skipped
    assert 'Traceback' not in stderr
    drawn = len(list((tmp_path / 'out').rglob('*.png')))
    total = len(good) + len(BAD) + len(odd)
    assert f'{drawn} of {total} pictures drawn' in stdout
    assert drawn >= len(good)


@pytest.fixture
def weights(config, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(build_model(Config.fromfile(config)).state_dict(), path)
    return path


def tool(name, config, weights, folder, out):
    return {
        'visualize_erf': [
            'analysis_tools/visualize_erf.py',
            config,
            weights,
            '--images',
            folder,
            '--out',
            out,
            '--size',
            32,
            '--num',
            99,
        ],
        'verify': [
            'deployment/verify.py',
            '--reference',
            config,
            weights,
            '--candidate',
            config,
            weights,
            '--images',
            folder,
            '--shape',
            32,
            32,
            '--num',
            99,
        ],
    }[name]


@pytest.mark.parametrize('name', ['visualize_erf', 'verify'])
def test_the_others_are_used_and_the_status_tells(
    name, config, weights, tmp_path, run_tool
):
    folder = tmp_path / 'pictures'
    write(folder, *GOOD)
    write_odd_sizes(folder)
    arguments = tool(name, config, weights, folder, tmp_path / 'out')
    status, stdout, stderr = run_tool(*arguments)
    assert status == 0, stderr
    assert 'skipped' not in stderr
    write(folder, *BAD)
    status, stdout, stderr = run_tool(*arguments)
    assert status == 1
    skipped = [line for line in stderr.splitlines() if 'skipped: ' in line]
    assert len(skipped) == len(BAD)
    for path, (_, message) in BAD.items():
        assert any(f'{folder / path} {message}' in line for line in skipped)
    count = len(GOOD) + 3
    assert f'{count} images' in stdout or f'only {count} images' in stdout


@pytest.mark.parametrize('name', ['visualize_erf', 'verify'])
def test_none_that_can_be_read(name, config, weights, tmp_path, run_tool):
    folder = tmp_path / 'pictures'
    write(folder, *BAD)
    status, _, stderr = run_tool(
        *tool(name, config, weights, folder, tmp_path / 'out')
    )
    assert status == 1
    assert f'error: no image of {folder} can be read' in stderr
    assert 'Traceback' not in stderr
