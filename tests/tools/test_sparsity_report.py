"""The sparsity report, run as a user runs it."""

import json

import pytest
import torch

from pelk_mm.engine.sparsity.state import STATE_KEY, pack_state
from pelk_mm.models import PeLK
from tests.helpers import forked

CONFIG = """
custom_imports = dict(imports=['pelk_mm'])
model = dict(
    type='PeLK',
    arch=dict(
        depths=(1, 1, 1, 1), channels=(8, 8, 8, 16),
        kernel_sizes=(13, 9, 7, 5)))
"""


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    model = PeLK(
        dict(
            depths=(1, 1, 1, 1),
            channels=(8, 8, 8, 16),
            kernel_sizes=(13, 9, 7, 5),
        )
    )
    masks = {}
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim in (2, 4):
                masks[name] = torch.rand_like(param) < 0.6
                param *= masks[name]
    path = folder / 'sparse.pth'
    torch.save(
        dict(
            state_dict=model.state_dict(),
            **{
                STATE_KEY: pack_state(
                    masks, init='snip', step=7, prune_rate=0.25
                )
            },
        ),
        path,
    )
    (folder / 'config.py').write_text(CONFIG)
    return path


def report(*args):
    return forked.run('tools/analysis_tools/sparsity_report.py', *args)


def test_table_plot_and_merged_kernels(checkpoint, tmp_path):
    out = tmp_path / 'report.json'
    result = report(
        checkpoint, '--config', checkpoint.parent / 'config.py', '--json', out
    )
    assert result.returncode == 0, result.stderr
    assert 'masks by snip, step 7, prune rate 0.2500' in result.stdout
    assert 'save nothing at run time' in result.stdout
    counts = json.loads(out.read_text())
    for layer in counts['layers']:
        assert layer['name'] in result.stdout
        assert f'{layer["density"]:.4f}' in result.stdout
        assert layer['masked'] and 0.2 < layer['density'] < 0.9
    merged = {layer['name']: layer for layer in counts['merged']}
    assert len(merged) == 4
    assert all(name.endswith('conv.large.weight') for name in merged)
    assert checkpoint.with_suffix('.density.png').is_file()


def test_bad_input(tmp_path):
    result = report(tmp_path / 'none.pth')
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert 'there is no checkpoint' in result.stderr
