"""Reading configs of both syntaxes, and what they are about."""

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import MODELS

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.apis.inference import _prepare_pipeline
from pelk_mm.apis.test_options import draw_to
from pelk_mm.utils.config import (
    build_model,
    library_of,
    load_config,
    replace_types,
    type_name,
)
from pelk_mm.utils.errors import LaunchError
from tests.helpers.toy_task import ToyModel

PURE = """
from mmengine.config import read_base
with read_base():
    from .base import *
from {module} import {name}

model.type = {name}
"""
MODELS_OF = {
    'mmpretrain': ('mmpretrain.models', 'ImageClassifier'),
    'mmseg': ('mmseg.models', 'EncoderDecoder'),
    'mmdet': ('mmdet.models', 'MaskRCNN'),
}


@pytest.fixture(params=list(MODELS_OF))
def library(request) -> str:
    return request.param


@pytest.fixture
def pure(library, tmp_path) -> Config:
    """A pure Python config, as the libraries' own: default_scope is None."""
    module, name = MODELS_OF[library]
    (tmp_path / '__init__.py').touch()
    text = 'default_scope = None\nmodel = dict(width=3)\n'
    (tmp_path / 'base.py').write_text(text)
    (tmp_path / 'pure.py').write_text(PURE.format(module=module, name=name))
    return load_config(str(tmp_path / 'pure.py'))


def test_a_pure_python_config_works_in_its_library(pure, library):
    assert isinstance(pure.model.type, type)
    assert library_of(pure) == pure.default_scope == library


def test_a_pure_python_config_can_be_drawn_with(pure, library, tmp_path):
    draw_to(pure, str(tmp_path / 'shown'))
    assert pure.custom_hooks[-1].library == library
    assert pure.visualizer.type.startswith(f'{library}.')


@pytest.mark.parametrize('spelling', ['{name}', '{library}.{name}'])
def test_the_library_is_that_of_the_model(library, spelling):
    kind = spelling.format(library=library, name=MODELS_OF[library][1])
    for scope in (library, 'mmengine', None):
        if '.' in kind or scope == library:
            config = Config(dict(model=dict(type=kind), default_scope=scope))
            assert library_of(config) == library


def test_a_model_of_ones_own():
    own = Config(dict(model=dict(type=ToyModel), default_scope='mmseg'))
    assert library_of(own) == 'mmseg'
    with pytest.raises(LaunchError, match=r'ToyModel.*default_scope=None'):
        library_of(Config(dict(model=dict(type='ToyModel'))))


@pytest.mark.parametrize(
    'text',
    [
        "import os.path as osp\n_base_ = './base.py'\n",
        "from torch import nn\n_base_ = ['./base.py']\nx = nn.Linear\n",
        "import os.path as osp\nmodel = dict(type='PeLK')\n",
    ],
)
def test_an_import_beside_base(text, tmp_path):
    (tmp_path / 'base.py').write_text("import json\nmodel = dict(type='PeLK')")
    path = tmp_path / 'config.py'
    path.write_text(text + "work_dir = 'a'\n")
    config = load_config(str(path))
    assert config.model.type == 'PeLK' and config.work_dir == 'a'


def test_other_formats(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text('{"model": {"type": "PeLK"}}')
    assert load_config(str(path)).model.type == 'PeLK'


@pytest.mark.parametrize(
    'config',
    [
        dict(type='DeepSpeedStrategy'),
        ConfigDict(type='mm.DeepSpeedStrategy'),
        dict(type=type('DeepSpeedStrategy', (), {})),
        type('DeepSpeedStrategy', (), {})(),
    ],
)
def test_type_name(config):
    assert type_name(config) == 'DeepSpeedStrategy'


def test_types_are_replaced_whatever_their_spelling():
    kinds = ['SyncBN', torch.nn.SyncBatchNorm, 'mmengine.SyncBN', 'GN']
    node = dict(a=[dict(type=kind) for kind in kinds], b=dict(n=1))
    assert replace_types(node, ('SyncBN', 'SyncBatchNorm'), 'BN') == 3
    assert [each['type'] for each in node['a']] == ['BN'] * 3 + ['GN']


@MODELS.register_module()
class Norms(BaseModel):
    """A model of one norm."""

    def __init__(self, norm_cfg, data_preprocessor=None) -> None:
        super().__init__()
        from mmcv.cnn import build_norm_layer

        self.norm = build_norm_layer(norm_cfg, 3)[1]

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


@MODELS.register_module()
class Augmented(BaseTTAModel):
    """Of which only the model inside has weights in a checkpoint."""

    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_mmcvs_sync_bn_needs_no_process_group():
    for kind in ('MMSyncBN', 'SyncBN', 'BN'):
        cfg = dict(type='Norms', norm_cfg=dict(type=kind))
        model = build_model(Config(dict(model=cfg)), 'meta')
        assert set(model.state_dict()) == {
            f'norm.{name}'
            for name in ('weight', 'bias', 'running_mean', 'running_var')
        } | {'norm.num_batches_tracked'}
        assert cfg['norm_cfg']['type'] == kind


def test_the_model_inside_of_test_time_augmentation():
    inner = dict(type='Norms', norm_cfg=dict(type='BN'))
    config = Config(dict(model=dict(type='Augmented', module=inner)))
    assert type(build_model(config)) is Norms


def test_images_are_prepared_as_for_validation():
    from mmcv.transforms import LoadImageFromFile

    steps = [dict(type=LoadImageFromFile), dict(type='mmseg.LoadAnnotations')]
    loader = dict(dataset=dict(pipeline=steps))
    config = Config(dict(val_dataloader=loader, test_dataloader=None))
    _prepare_pipeline(config)
    made = config.test_dataloader.dataset.pipeline
    assert [step.type for step in made] == [
        'LoadImageFromFile',
        'LoadAnnotations',
    ]
    with pytest.raises(LaunchError, match=r'test_dataloader.*is missing'):
        _prepare_pipeline(Config(dict(test_dataloader=None)))
