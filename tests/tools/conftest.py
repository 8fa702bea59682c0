"""A small classifier for the tools that take a config."""

from pathlib import Path

import pytest

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PeLK', arch=dict(
        depths=(1, 1, 2, 1), channels=(8, 12, 16, 20),
        kernel_sizes=(13, 11, 9, 7), center_radius=2)),
    head=dict(type='LinearClsHead', num_classes={classes}, in_channels=20))
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / 'small_pelk.py'
    path.write_text(CONFIG.format(classes=3))
    return path
