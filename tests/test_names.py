"""The libraries find what is here by its name."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.hub import hub
from mmengine.infer import BaseInferencer

import pelk_mm_names

BASE = "_base_ = 'pelk_mm::pelk/{}.py'\n"


@pytest.fixture
def based_on(tmp_path):
    """A config of a user, on one of ours."""

    def read(name: str, more: str = '') -> Config:
        path = tmp_path / 'own.py'
        path.write_text(BASE.format(name) + more)
        return Config.fromfile(path)

    return read


def test_base(root, based_on):
    config = based_on('pelk_t_in1k', 'train_cfg = dict(max_epochs=3)\n')
    expected = Config.fromfile(root / 'configs' / 'pelk_t_in1k.py')
    expected.train_cfg.max_epochs = 3
    assert config.to_dict() == expected.to_dict()


def test_unknown_base(based_on):
    text = r'own\.py: there is no config pelk_mm::pelk/pelk_tt_in1k\.py; did '
    with pytest.raises(FileNotFoundError, match=text + 'you mean pelk_t_in1k'):
        based_on('pelk_tt_in1k')


def test_base_of_another_package(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'\n")
    assert Config.fromfile(path).model['_scope_'] == 'mmdet'


def test_classifier_by_name():
    """Importing mmpretrain takes nearly all of the time."""
    from mmpretrain import get_model, list_models

    assert 'pelk_t_in1k' in list_models('pelk')
    assert not list_models('upernet_pelk')
    with torch.device('meta'):
        model = get_model('pelk_t_in1k', backbone=dict(arch='tiny-101'))
    assert model.backbone.arch == 'tiny-101'


def test_hub(root, monkeypatch):
    """Whatever its metadata say of where it is."""
    monkeypatch.setattr(hub, 'install_package', lambda name: None)
    installed = {'pelk_mm': str(root / 'pelk_mm')}
    monkeypatch.setattr(hub, 'get_installed_path', installed.__getitem__)
    with torch.device('meta'):
        model = hub.get_model('pelk_mm::pelk/pelk_t_in1k.py')
    assert type(model).__module__.startswith('mmpretrain.')
    config = hub.get_config('pelk_mm::pelk/pelk_101_t_in1k.py')
    assert config.model.backbone.arch == 'tiny-101'


MODELS = {
    'mmseg': 'upernet_pelk_t_ade20k',
    'mmdet': 'cascade_mask_rcnn_pelk_t_coco',
}


@pytest.mark.parametrize('library', MODELS)
def test_inferencer_by_name(library):
    import_module(library)
    found = BaseInferencer.list_models(library, '.*pelk')
    assert set(found) & set(MODELS.values()) == {MODELS[library]}
    config, weights = BaseInferencer._load_model_from_metafile(
        SimpleNamespace(scope=library), MODELS[library]
    )
    assert Path(config.filename).stem == MODELS[library]
    assert weights is None


@pytest.mark.parametrize('library', ['mmpretrain', *MODELS])
def test_index(root, library):
    """What it lists is there, under its name, and of its library."""
    index = root / 'pelk_mm' / '.mim' / 'model-index.yml'
    file = f'configs/pelk/metafile_{library}.yml'
    assert file in yaml.safe_load(index.read_text())['Import']
    content = yaml.safe_load((index.parent / file).read_text())
    for model in content['Models']:
        path = index.parent / model['Config']
        assert path.stem == model['Name']
        assert Config.fromfile(path).default_scope == library


def test_it_waits_for_modules(tmp_path, monkeypatch):
    """Which may be looked for without being imported."""
    (tmp_path / 'waited_for.py').write_text('here = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setitem(pelk_mm_names._TO_DO, 'waited_for', seen.append)
    assert find_spec('waited_for') and find_spec('waited_for')
    assert not seen
    module = import_module('waited_for')
    assert seen == [module] and module.here


def test_a_library_that_is_too_old_is_imported_all_the_same(monkeypatch):
    old = ModuleType('old')
    monkeypatch.setitem(pelk_mm_names._TO_DO, 'old', pelk_mm_names._add_bases)
    with pytest.warns(UserWarning, match="old cannot .* 'Config'"):
        pelk_mm_names._add(old)
