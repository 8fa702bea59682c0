"""The config in mmengine's pure Python syntax says what its sibling does."""

from typing import Any

import pytest
import torch

from pelk_mm.utils.config import build_model, load_config

NAME = 'upernet_pelk_tiny_ade20k.py'
SIBLING = 'upernet_pelk_t_ade20k.py'


def with_names(node: Any) -> Any:
    """What a config says, classes by their names alone."""
    if isinstance(node, dict):
        kinds = {
            key: node[key].rpartition('.')[2]
            for key in ('type', 'constructor')
            if key in node
        }
        return {k: with_names(v) for k, v in {**node, **kinds}.items()}
    if isinstance(node, (list, tuple)):
        return [with_names(item) for item in node]
    return node


@pytest.fixture
def config(root):
    return load_config(str(root / 'pelk_mm' / 'configs' / NAME))


def test_every_config_is_tested(root):
    found = [path.name for path in (root / 'pelk_mm/configs').iterdir()]
    assert [name for name in found if name.endswith('.py')] == [NAME]


def test_it_says_what_the_other_syntax_says(root, config):
    expected = load_config(str(root / 'configs' / SIBLING))
    own, other = with_names(config.to_dict()), with_names(expected.to_dict())
    for key in other.keys() - {'work_dir'}:
        assert own[key] == other[key], key
    assert isinstance(config.optim_wrapper.type, type)


def test_model(root, config):
    expected = load_config(str(root / 'configs' / SIBLING))
    shapes = [
        {k: v.shape for k, v in build_model(each, 'meta').state_dict().items()}
        for each in (config, expected)
    ]
    assert shapes[0] == shapes[1]


def test_amp_and_no_gpu(config, monkeypatch, tmp_path):
    from pelk_mm.apis import launch

    monkeypatch.setattr(launch, 'check_data', lambda *_: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    launch.prepare_training(config, work_dir=str(tmp_path), amp=True)
    assert config.optim_wrapper.type == 'AmpOptimWrapper'
