"""What every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope='session')
def sample_data() -> Path:
    """Small real data in the layout of ``data/``; absent in most clones."""
    folder = Path(
        os.environ.get('PELK_MM_DATA', ROOT.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip(f'no sample data at {folder}; set PELK_MM_DATA')
    return folder


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Same random numbers for every test, and no scope of an earlier one."""
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()
