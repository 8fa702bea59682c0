"""The tools that draw, as people call them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pelk_mm.models import PeLK
from tests.helpers.models import ARCH


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert('RGB'))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(
        {
            f'backbone.{name}': value
            for name, value in PeLK(ARCH).state_dict().items()
        },
        path,
    )
    return path


# visualize_kernels.py ------------------------------------------------------


@pytest.fixture
def kernels(run_tool):
    return lambda *args: run_tool('analysis_tools/visualize_kernels.py', *args)


@pytest.mark.parametrize(
    'arguments',
    [
        ('--grid', 51),
        ('--grid', 101, '--center-radius', 3),
        ('--sizes', 2, 1, 2),
    ],
)
def test_grids_are_drawn(kernels, arguments, tmp_path):
    out = tmp_path / 'new' / 'grid.png'
    status, printed, err = kernels(*arguments, '--out', out)
    assert status == 0, err
    assert printed.split()[-1] == str(out)
    assert pixels(out).std() > 20


def test_learned_kernels_are_drawn(kernels, config, checkpoint, tmp_path):
    out = tmp_path / 'sheet.png'
    status, _, err = kernels(config, checkpoint, '--channels', 2, '--out', out)
    assert status == 0, err
    assert pixels(out).std() > 20


def test_kernels_refuse(kernels, config, checkpoint, tmp_path):
    out = tmp_path / 'a.png'
    other = tmp_path / 'other.py'
    other.write_text(
        config.read_text().replace('(1, 1, 2, 1)', '(1, 1, 3, 1)')
    )
    resnet = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    bare = tmp_path / 'file'
    bare.touch()
    for arguments, message in (
        ((), 'give CONFIG and CHECKPOINT'),
        ((config,), 'needs a CHECKPOINT'),
        ((config, '--grid', 5), 'give CONFIG and CHECKPOINT'),
        (('--sizes', 1, 2), 'must be symmetric'),
        (('--grid', 50), 'must be odd'),
        (('--grid', 3, '--center-radius', 2), 'has no room'),
        (('--sizes', 1, '--center-radius', 2), 'goes with --grid'),
        ((other, checkpoint), 'another arch'),
        ((config, tmp_path / 'none.pth'), 'none.pth'),
        ((resnet, checkpoint), 'no weights of a ResNet'),
        (('--grid', 5, '--out', bare / 'a.png'), 'file'),
    ):
        status, _, err = kernels('--out', out, *arguments)
        assert status != 0, arguments
        assert message in err
    assert not out.exists()


# visualize_erf.py ----------------------------------------------------------


@pytest.fixture
def erf(run_tool):
    return lambda *args: run_tool('analysis_tools/visualize_erf.py', *args)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(
            folder / f'{i}.png'
        )
    return folder


def test_fields_side_by_side(erf, config, checkpoint, images, tmp_path):
    out = tmp_path / 'erf'
    arguments = (
        config,
        checkpoint,
        '--also',
        config,
        '--also',
        'Residual=mmpretrain::resnet/resnet18_8xb32_in1k.py',
        '--images',
        images,
        '--num',
        2,
        '--size',
        64,
        '--device',
        'cpu',
        '--out',
        out,
    )
    status, printed, err = erf(*arguments)
    assert status == 0, err
    names = ['small_pelk', 'small_pelk-2', 'Residual']
    assert {path.name for path in out.iterdir()} == {
        'erf.png',
        *(f'{name}{end}' for name in names for end in ('.npy', '.json')),
    }
    summaries = [
        json.loads((out / f'{name}.json').read_text()) for name in names
    ]
    assert [summary['trained'] for summary in summaries] == [
        True,
        False,
        False,
    ]
    for name, summary in zip(names, summaries, strict=True):
        matrix = np.load(out / f'{name}.npy')
        assert matrix.shape == (64, 64)
        assert matrix.max() > 0
        assert summary['images'] == 2
        assert list(summary['area_ratios']) == ['0.2', '0.3', '0.5', '0.99']
        assert name in printed
    assert pixels(out / 'erf.png').std() > 20
    # What is done is not done again; what has changed is.
    done = (out / 'Residual.npy').stat().st_mtime_ns
    assert erf(*arguments)[0] == 0
    assert (out / 'Residual.npy').stat().st_mtime_ns == done
    assert erf(*arguments, '--num', 3)[0] == 0
    assert json.loads((out / 'Residual.json').read_text())['images'] == 3


def test_erf_refuses(erf, config, checkpoint, images, tmp_path):
    out = tmp_path / 'erf'
    empty = tmp_path / 'empty'
    empty.mkdir()
    other = tmp_path / 'other.py'
    other.write_text(
        config.read_text().replace('(1, 1, 2, 1)', '(1, 1, 3, 1)')
    )
    bare = tmp_path / 'file'
    bare.touch()
    for arguments, message in (
        ((config, '--images', empty), 'no images found'),
        ((config, '--images', images, '--size', 100), 'multiple of 32'),
        ((config, '--images', images, '--num', 0), 'at least 1'),
        ((other, checkpoint, '--images', images), 'another arch'),
        ((config, '--images', images, '--also', 'a', 'b', 'c'), '--also'),
        (('none.py', '--images', images), 'there is no config none.py'),
        ((config, '--images', images, '--out', bare / 'x'), 'file'),
    ):
        status, _, err = erf('--out', out, '--device', 'cpu', *arguments)
        assert status != 0, arguments
        assert message in err
    assert not out.exists() or not list(out.iterdir())


# kernel_scaling.py ---------------------------------------------------------


def test_scaling_is_drawn_and_written(run_tool, tmp_path):
    status, _, err = run_tool(
        'analysis_tools/kernel_scaling.py',
        '--kernel-sizes',
        7,
        13,
        '--shape',
        1,
        2,
        16,
        16,
        '--rounds',
        1,
        '--budget',
        0.01,
        '--backends',
        'fft',
        '--out',
        tmp_path / 'scaling',
    )
    assert status == 0, err
    result = json.loads((tmp_path / 'scaling.json').read_text())
    assert set(result) == {'environment', 'shape', 'counts', 'times'}
    assert {'cpu', 'torch', 'commit'} <= set(result['environment'])
    run = 'python tools/analysis_tools/kernel_scaling.py --kernel-sizes 7 13 '
    assert result['environment']['command'].startswith(run)
    assert [row['kernel_size'] for row in result['times']] == [7, 13]
    assert all(
        set(row['median_ms']) == {'dense', 'fft'} for row in result['times']
    )
    assert pixels(tmp_path / 'scaling.png').std() > 20


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--kernel-sizes', 8), 'must be odd'),
        (('--kernel-sizes', 7, '--backends', 'none'), 'unknown backend'),
        (('--clock', 'cpu'), 'needs --threads 1'),
    ],
)
def test_scaling_refuses(run_tool, arguments, message, tmp_path):
    status, _, err = run_tool(
        'analysis_tools/kernel_scaling.py', *arguments, '--out', tmp_path / 'a'
    )
    assert status != 0
    assert message in err
    assert not list(tmp_path.iterdir())
