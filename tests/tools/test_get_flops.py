"""get_flops.py, as people call it."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def get_flops(run_tool):
    return lambda *args: run_tool('analysis_tools/get_flops.py', *args)


def test_prints_and_writes_the_parts(get_flops, config, tmp_path):
    out = tmp_path / 'new' / 'counts.json'
    status, printed, err = get_flops(config, '--shape', 64, 96, '--json', out)
    assert status == 0, err
    assert '64 × 96 pixels, 40.0% zeros' in printed
    for part in ('stem', 'downsampling', 'large kernels', 'FFN', 'head'):
        assert part in printed
    counts = json.loads(out.read_text())
    assert counts['shape'] == [64, 96]
    assert counts['total']['macs_executed'] < counts['total']['macs_dense']
    # Nothing is cut off.
    assert '…' not in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('missing.py',), 'there is no config missing.py'),
        (('mmnothing::a.py',), "package 'mmnothing' is not installed"),
        (('mmpretrain::a.py',), 'comes with no such config'),
        ((), 'give a config, or --paper-tables'),
        (('a.py', '--paper-tables'), 'give a config, or --paper-tables'),
        (('--paper-tables', '--shape', 32, 32), 'leave out --shape'),
    ],
)
def test_refuses(get_flops, arguments, message):
    status, _, err = get_flops(*arguments)
    assert status != 0
    assert message in err


def test_refuses_wrong_values(get_flops, config, tmp_path):
    for arguments, message in (
        (('--shape', 100, 64), 'multiples of 32'),
        (('--sparsity', 1.5), 'in [0, 1)'),
        ((tmp_path / 'none.pth',), 'none.pth'),
    ):
        status, _, err = get_flops(config, *arguments)
        assert status == 1
        assert message in err
    (tmp_path / 'file').touch()
    status, _, err = get_flops(config, '--json', tmp_path / 'file' / 'a.json')
    assert status == 1
    assert 'file' in err
    assert not list(tmp_path.glob('.*'))


@pytest.mark.slow
def test_paper_tables(root, tmp_path):
    out = tmp_path / 'paper.json'
    result = subprocess.run(
        [
            sys.executable,
            'tools/analysis_tools/get_flops.py',
            '--paper-tables',
            '--json',
            out,
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '…' not in result.stdout
    rows = json.loads(out.read_text())
    assert len(rows) == 13
    assert all(
        abs(row['ours']['gmacs'] / row['paper']['gmacs'] - 1) < 0.045
        for row in rows
    )
