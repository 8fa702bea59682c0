"""Configs of the libraries train as ours do, with the parts for them."""

import re
from ast import literal_eval

import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper

from pelk_mm.utils.config import build_model, load_config

#: The library's config, ours, and what of the models has to be equal.
CASES = {
    'mmpretrain': ('resnet/resnet50_8xb32_in1k.py', 'pelk_t_in1k', ''),
    'mmseg': (
        'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
        'upernet_pelk_t_ade20k',
        '',
    ),
    'mmdet': (
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
        'cascade_mask_rcnn_pelk_t_coco',
        'backbone',
    ),
}


def snippet(recipe: str) -> str:
    """What the comment on top of a recipe says to write."""
    return '\n'.join(re.findall(r'^#     (.*)$', recipe, re.MULTILINE))


@pytest.fixture(params=CASES)
def library(request) -> str:
    return request.param


@pytest.fixture
def configs(root, library, tmp_path) -> tuple[Config, Config]:
    theirs, ours, _ = CASES[library]
    recipe = root / 'configs' / '_base_' / 'recipes' / f'{library}.py'
    text = snippet(recipe.read_text())
    assert len(text.splitlines()) <= 8
    own = tmp_path / 'own.py'
    own.write_text(text.replace('THE CONFIG', f'{library}::{theirs}'))
    return load_config(str(own)), load_config(ours)


def test_equal_to_ours(library, configs):
    models = [build_model(config, 'meta') for config in configs]
    part = CASES[library][2]
    shown = [str(getattr(model, part) if part else model) for model in models]
    assert shown[0] == shown[1]
    own, ours = map(groups, models, configs)
    assert own == ours
    for name in re.findall(r'^(?!model)(\w+) = _base_', configs[0].text, re.M):
        said = [str(config[name]) for config in configs]
        assert literal_eval(said[0].replace('pelk_mm.', '')) == (
            literal_eval(said[1])
        )


def groups(model: BaseModel, config: Config) -> dict[str, tuple]:
    """By the backbone's parameters what they are trained with."""
    names = {id(p): name for name, p in model.backbone.named_parameters()}
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    return {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
        if id(parameter) in names
    }
