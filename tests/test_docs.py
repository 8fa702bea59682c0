"""What the documents link to, name and show is there and works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from pelk_mm.utils.config import build_model, load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path.relative_to(ROOT)
    for path in [*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md')]
]
BLOCK = re.compile(r'^( *)```.*?^\1```', re.DOTALL | re.MULTILINE)
CODE = re.compile(r'`[^`]+`')
LINK = re.compile(r'\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)')
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
#: A file of the repository; not NAME.py, which stands for one.
PATH = re.compile(
    r'(?<![\w./$:])'
    r'((?:configs|docs|pelk_mm|requirements|tests|tools)/'
    r'(?:[\w.-]+/)*(?![A-Z]+\.)[\w.-]+\.[a-z]+)\b'
)


def anchors(page: Path) -> set[str]:
    """What the site, and a host of repositories, make of headings."""
    titles = HEADING.findall(BLOCK.sub('', page.read_text()))
    plain = [re.sub(r'[^\w\s-]', '', title) for title in titles]
    return {re.sub(r'[\s-]+', '-', title.strip()).lower() for title in plain}


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_links(page):
    text = CODE.sub('', BLOCK.sub('', (ROOT / page).read_text()))
    for target, anchor in LINK.findall(text):
        there = ROOT / page.parent / target if target else ROOT / page
        assert there.exists(), target
        if page.parts[0] == 'docs':
            # The site has nothing else.
            assert (ROOT / 'docs') in there.resolve().parents, target
        if anchor:
            assert anchor in anchors(there), f'{target}#{anchor}'


@pytest.mark.parametrize('page', PAGES, ids=str)
def test_files_that_are_named(page):
    named = set(PATH.findall((ROOT / page).read_text()))
    assert not [path for path in named if not (ROOT / path).exists()]


def test_notebook(root, tmp_path, monkeypatch):
    """Its code runs, as it would in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MPLBACKEND', 'agg')
    notebook = json.loads((root / 'docs/first_steps.ipynb').read_text())
    names: dict[str, object] = {}
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), names)
    assert torch.allclose(names['output'], names['written_out'], atol=1e-3)
    assert names['runner'].iter == 4


CONFIGS = [
    pytest.param(config, id=f'{page}-{number}')
    for page in PAGES
    for number, config in enumerate(
        re.findall(
            r'^_base_ = .*?(?=^```|^# )',
            (ROOT / page).read_text(),
            re.DOTALL | re.MULTILINE,
        )
    )
]


@pytest.mark.parametrize('config', CONFIGS)
def test_configs(config, tmp_path):
    """Those that are to be written on top of others."""
    file = tmp_path / 'config.py'
    file.write_text(config)
    build_model(load_config(str(file)), 'meta')
