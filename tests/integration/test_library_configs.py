"""Every family of the installed libraries' configs, with PeLK for its ResNet.

Nothing that a library builds and steps is refused. What would fail is named
before the first iteration, and the advice leads to a config that trains.
"""

import copy
import re
import sys
from ast import literal_eval
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.config import Config

from pelk_mm.apis.launch import build_runner, prepare_training, train
from pelk_mm.utils.errors import LaunchError
from tests.helpers.library_configs import (
    LIBRARIES,
    DrawnData,
    backbones,
    configs,
    families,
    set_channels,
    shrink,
)

# A family takes 3 to 15 seconds, all of them about 20 minutes; one of them
# is run by `-k mmseg-upernet`.
pytestmark = pytest.mark.slow

FAMILIES = {
    f'{library}-{family}': (library, family)
    for library in LIBRARIES
    for family in families(library)
}
#: What a library does not build or step here, and how it says so.
NOT_HERE = {
    'mmseg-dsdl': ('needs dsdl', 'Package dsdl is not installed'),
    'mmseg-icnet': ('takes the parts of a ResNet', "no attribute 'stem'"),
    'mmseg-ocrnet': ('its stages have one stride', 'Expected size for first'),
    'mmdet-albu_example': ('needs albumentations', 'is not installed'),
    'mmdet-boxinst': ('needs scikit-image', 'skimage is not installed'),
    'mmdet-carafe': ('an operator of GPUs', 'device cpu not found'),
    'mmdet-dsdl': ('needs dsdl', 'Package dsdl is not installed'),
    'mmdet-grounding_dino': ('needs fairscale and BERT', ''),
    'mmdet-instaboost': ('needs instaboostfast', 'install instaboostfast'),
    'mmdet-ld': ('reads a config from ./configs', 'No such file'),
}
#: What has to be known of a part's own rules, and no object says.
BY_HAND = {
    # The last of them and the first of the context are the second of it.
    'mmseg-bisenetv1': {'model.backbone.spatial_channels': (256, 256, 256, 8)},
    # Deformable convolutions of 3x3 on its coarsest maps.
    'mmdet-ddod': {'model.data_preprocessor.pad_size_divisor': 320},
    # The losses of a teacher with random weights are so close that their
    # variance can come out below 0 in float32; as 'full' it can not.
    'mmdet-lad': {'model.teacher_bbox_head.covariance_type': 'full'},
    # Pictures of persons are high, and smaller here.
    'mmdet-reid': {
        'model.neck.kernel_size': (3, 3),
        'train_dataloader.dataset.triplet_sampler.num_ids': 2,
    },
}
#: Rounds of advice that a config may need.
_MOST = 6
_ADVICE = re.compile(r'\bset (model[\w.]*)=(\[.*?\]|\(.*?\)|-?\w+)')
#: True of some configs, and no mistake of theirs.
_TOLD = re.compile(
    r'is skipped since (its requires_grad=False|bypass_duplicate=True)'
    r'|trainable parameters get no gradient'
    r'|the backbone starts from random weights'
)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory) -> DrawnData:
    return DrawnData(tmp_path_factory.mktemp('drawn'))


@pytest.fixture
def case(request, drawn, tmp_path, monkeypatch) -> tuple[str, Config]:
    """A family, and a config of it that has the channels of ResNet."""
    name = request.param
    config = _first(name)
    if config is None:
        pytest.skip('no config that trains a ResNet of four stages')
    # The one function of it that mmdetection takes.
    panopticapi, utils = ModuleType('panopticapi'), ModuleType('utils')
    utils.rgb2id = lambda color: color.astype('uint32') @ [1, 256, 65536]
    panopticapi.utils = utils
    monkeypatch.setitem(sys.modules, 'panopticapi', panopticapi)
    return name, shrink(copy.deepcopy(config), drawn, tmp_path / name)


@cache
def _first(name: str) -> Config | None:
    return next((config for _, config in configs(*FAMILIES[name])), None)


def test_families_are_found():
    """None is lost without a word, as where a config cannot be read."""
    found = [name for name in FAMILIES if _first(name) is not None]
    for library, least in zip(LIBRARIES, (12, 27, 90), strict=True):
        assert sum(name.startswith(library) for name in found) >= least


@pytest.mark.parametrize('case', FAMILIES, indirect=True)
def test_advice_leads_to_a_training(case):
    """Channels of ResNet are named, set as advised, and PeLK trains."""
    name, config = case
    if name in NOT_HERE:
        reason, message = NOT_HERE[name]
        set_channels(config.model)
        # As soon as this trains it is to be taken off the list.
        with pytest.raises(Exception, match=message):
            build_runner(copy.deepcopy(config)).train()
        pytest.skip(reason)
    config.merge_from_dict(BY_HAND.get(name, {}))
    told = []
    while line := _refusal(config):
        told.append(line)
        assert len(told) <= _MOST, '\n'.join(told)
        found = _ADVICE.search(line)
        assert found, line
        config.merge_from_dict({found[1]: literal_eval(found[2])})
    assert told
    assert not _warnings(config)


@pytest.mark.parametrize('case', FAMILIES, indirect=True)
def test_too_few_outputs_are_named(case):
    """One output for a part that takes several, or another one."""
    name, config = case
    backbone = next(backbones(config.model))
    if name in NOT_HERE or backbone['out_indices'] in (3, [3], (3,)):
        pytest.skip('not here, or a single output')
    _make_right(name, config)
    backbone['out_indices'] = (min(backbone['out_indices']),)
    line = _refusal(config)
    wanted = r'model\.(\w+\.)+(out_indices|in_channels)='
    assert line and re.search(r'\bset ' + wanted, line), line


@pytest.mark.parametrize('case', FAMILIES, indirect=True)
def test_vectors_for_maps_are_named(case):
    """The field that gives maps is advised, wherever the backbone is."""
    name, config = case
    if name in NOT_HERE:
        pytest.skip(NOT_HERE[name][0])
    _make_right(name, config)
    backbone = next(backbones(config.model))
    backbone['gap_before_final_norm'] = True
    line = _refusal(config)
    found = line and _ADVICE.search(line)
    assert found, line
    assert found[1].endswith('.gap_before_final_norm')
    assert found[2] == 'False'
    # That is where this backbone is.
    config.merge_from_dict({found[1]: False})
    assert next(backbones(config.model))['gap_before_final_norm'] is False


def _make_right(name: str, config: Config) -> None:
    set_channels(config.model)
    config.merge_from_dict(BY_HAND.get(name, {}))


def _refusal(config: Config) -> str | None:
    """What a training is refused for, None if it comes to its end."""
    config = copy.deepcopy(config)
    try:
        train(prepare_training(config))
    except LaunchError as error:
        line = str(error).split('\n')[0]
        # That is, in the rehearsal.
        assert line.startswith('the first training iteration fails: model.')
        return line
    return None


def _warnings(config: Config) -> list[str]:
    logs = Path(config.work_dir).rglob('*.log')
    lines = ''.join(path.read_text() for path in logs).splitlines()
    return [
        line
        for line in lines
        if ' - WARNING - ' in line and not _TOLD.search(line)
    ]
