"""Trainings leave cores to other programs, unless a user says how to wait."""

import ast
import os
import runpy
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ('own', 'count'),
    [
        ({}, '1000'),
        ({'GOMP_SPINCOUNT': '7'}, '7'),
        ({'OMP_WAIT_POLICY': 'active'}, None),
    ],
)
def test_what_a_user_has_set_stays(monkeypatch, own, count):
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        # What the tool sets is undone afterwards.
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(ROOT / 'tools/share_cores.py'))
    assert os.environ.get('GOMP_SPINCOUNT') == count
    assert os.environ.get('OMP_WAIT_POLICY') == own.get('OMP_WAIT_POLICY')


@pytest.mark.parametrize('tool', ['train', 'test', 'demo', 'image_demo'])
def test_it_comes_before_torch(tool):
    imported = []
    for node in ast.parse((ROOT / f'tools/{tool}.py').read_text()).body:
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module)
    first = next(n for n in imported if n not in sys.stdlib_module_names)
    assert first == 'share_cores'
