"""Mistakes are named before training, and right configs pass."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint

from pelk_mm.engine.preflight.checks import check_weights, preflight
from pelk_mm.models import PeLK
from pelk_mm.utils.config import build_model
from pelk_mm.utils.errors import LaunchError
from tests.helpers.convnext_layouts import (
    BACKBONE,
    CONVNEXT,
    make_convnext,
    write,
)
from tests.helpers.models import ARCH, CLASSIFIER, DETECTOR, SEGMENTOR
from tests.helpers.toy_task import TOY_CONFIG


@pytest.fixture
def classification() -> Config:
    return Config(CLASSIFIER)


@pytest.fixture
def segmentation() -> Config:
    return Config(SEGMENTOR)


@pytest.fixture
def detection() -> Config:
    return Config(DETECTOR)


def refuses(config: Config, message: str, **kwargs) -> str:
    with pytest.raises(LaunchError, match=message) as error:
        preflight(config, **kwargs)
    return str(error.value)


@pytest.mark.parametrize(
    'task', ['classification', 'segmentation', 'detection']
)
def test_right_configs_pass_unchanged(task, request):
    config = request.getfixturevalue(task)
    before = config.pretty_text
    preflight(config)
    assert config.pretty_text == before


def test_configs_of_other_kinds_pass():
    preflight(Config.fromstring(TOY_CONFIG, '.py'))


def save_weights(config: Config, path) -> dict:
    state = build_model(config).state_dict()
    torch.save(dict(state_dict=state), path)
    return state


def test_a_head_of_other_classes_starts_anew_only_if_asked(
    classification, tmp_path
):
    other = Config(CLASSIFIER)
    other.model.head.num_classes = 7
    other.model.backbone.layer_scale_init_value = 0.5
    save_weights(other, tmp_path / 'seven.pth')
    classification.load_from = str(tmp_path / 'seven.pth')
    message = refuses(classification, r'head\.fc\.weight is \(7, 20\)')
    assert 'new_head=True' in message
    classification.new_head = True
    preflight(classification)
    # What the runner then does.
    model = build_model(classification)
    before = model.head.fc.weight.clone()
    loaded = load_checkpoint(model, str(tmp_path / 'seven.pth'))
    assert torch.equal(model.head.fc.weight, before)
    name = 'stages.0.blocks.0.gamma'
    assert torch.equal(
        model.backbone.state_dict()[name],
        loaded['state_dict'][f'backbone.{name}'],
    )
    # Neither a resumed training nor a test can have another head.
    refuses(classification, 'does not fit', training=False)
    classification.resume = True
    refuses(classification, 'does not fit')


def test_a_stem_for_other_images_starts_anew_in_training(
    classification, tmp_path, caplog
):
    path = str(tmp_path / 'three.pth')
    three = save_weights(Config(CLASSIFIER), path)
    classification.model.backbone.in_channels = 4
    classification.load_from = path
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    preflight(classification)
    logger.removeHandler(caplog.handler)
    name = 'backbone.downsample_layers.0.0.weight'
    assert [text for text in caplog.messages if 'at random' in text] == [
        f'{path}: {name} is (8, 3, 4, 4) in the checkpoint, for images of 3 '
        'channels, and (8, 4, 4, 4) in the model: it starts at random, the '
        'rest is loaded'
    ]
    # What the runner then does.
    model = build_model(classification)
    before = model.state_dict()[name].clone()
    load_checkpoint(model, path)
    after = model.state_dict()
    assert torch.equal(after.pop(name), before)
    assert all(torch.equal(after[key], three[key]) for key in after)
    # Neither a resumed training nor a test can have another stem.
    refuses(classification, r'weight is \(8, 3, 4, 4\)', training=False)
    classification.resume = True
    refuses(classification, r'weight is \(8, 3, 4, 4\)')


def test_checkpoints_of_other_models(classification, tmp_path):
    classification.load_from = str(tmp_path / 'x.pth')
    refuses(classification, 'x.pth')
    torch.save({'fc.weight': torch.zeros(1)}, tmp_path / 'x.pth')
    refuses(classification, 'holds no weight of this model')
    other = Config(CLASSIFIER)
    other.model.backbone.arch = dict(ARCH, depths=(1, 1, 1, 1))
    save_weights(other, tmp_path / 'x.pth')
    refuses(classification, 'another arch')
    save_weights(classification, tmp_path / 'x.pth')
    preflight(classification)


def test_a_test_needs_every_weight(classification, tmp_path):
    classification.load_from = str(tmp_path / 'x.pth')
    state = save_weights(classification, tmp_path / 'x.pth')
    preflight(classification, training=False)
    del state['head.fc.bias']
    torch.save(state, tmp_path / 'x.pth')
    preflight(classification)
    refuses(
        classification,
        r'lacks 1 of the \d+ entries.*head\.fc\.bias',
        training=False,
    )


def test_pretrained_backbones(segmentation, tmp_path):
    path = tmp_path / 'backbone.pth'
    segmentation.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(path), prefix='backbone.'
    )
    refuses(segmentation, r'model\.backbone\.init_cfg: .*backbone\.pth')
    # A test has its weights from its checkpoint.
    preflight(segmentation, training=False)
    torch.save(PeLK(dict(ARCH, channels=(8, 12, 16, 24))).state_dict(), path)
    refuses(segmentation, 'another arch')
    torch.save(PeLK(ARCH).state_dict(), path)
    preflight(segmentation)


def test_convnexts_of_whole_models(segmentation, tmp_path):
    """As the runner loads them: the head fits, or is refused as ever."""
    theirs, path = Config(SEGMENTOR), str(tmp_path / 'x.pth')
    theirs.model.backbone = CONVNEXT
    save_weights(theirs, path)
    segmentation.load_from = path
    refuses(segmentation, 'the checkpoint holds a ConvNeXt .*Build it with')
    segmentation.model.backbone = dict(type='PeLK', **BACKBONE)
    preflight(segmentation)
    preflight(segmentation, training=False)
    segmentation.model.decode_head.num_classes = 7
    refuses(segmentation, r'conv_seg\.weight is \(3, ')


def test_convnexts_alone(segmentation, tmp_path):
    """For the backbone they do; a whole model would start without them."""
    path = str(tmp_path / 'x.pth')
    torch.save(write(make_convnext(), 'timm'), path)
    segmentation.model.backbone = dict(type='PeLK', **BACKBONE)
    segmentation.load_from = path
    refuses(segmentation, r'holds a ConvNeXt: .*init_cfg=.*from_convnext\.py')
    segmentation.load_from = None
    segmentation.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=path, prefix='backbone.'
    )
    preflight(segmentation)
    segmentation.model.backbone.conv_ratio = 0.5
    refuses(segmentation, r'model\.backbone\.init_cfg: .*conv_ratio')


@pytest.mark.parametrize(
    'field, value, message',
    [
        (
            'arch',
            'tinny',
            r"PeLK: unknown arch 'tinny' \(did you mean 'tiny'\?\)",
        ),
        ('drop_path_rate', 'much', 'PeLK: drop_path_rate must be a number'),
        ('small_kernels', 5, r"no argument 'small_kernels' \(did you mean"),
        ('type', 'PeKL', r"no PeKL in the registry .*did you mean 'PeLK'"),
    ],
)
def test_models_that_cannot_be_built(field, value, message, classification):
    classification.model.backbone[field] = value
    refuses(classification, f'^the model cannot be built: .*{message}')


def test_models_for_real_devices_only_are_checked_too(
    classification, monkeypatch
):
    from pelk_mm.engine.preflight import checks as module

    build = module.build_model

    def build_on_real_devices(config, device='cpu'):
        if device == 'meta':
            raise NotImplementedError('no kernel for meta')
        return build(config, device)

    monkeypatch.setattr(module, 'build_model', build_on_real_devices)
    preflight(classification)
    classification.load_from = 'nothing.pth'
    refuses(classification, 'nothing.pth')


@pytest.fixture
def enlarged(classification) -> Config:
    """A ConvNeXt of mmpretrain with larger kernels."""
    inner = dict(
        type='ConvNeXt', arch=dict(depths=[1] * 4, channels=[8, 8, 8, 16])
    )
    classification.model.backbone = dict(
        type='EnlargedKernels', backbone=inner, kernel_size=31
    )
    classification.model.head.in_channels = 16
    return classification


@pytest.mark.parametrize('training', [True, False])
def test_weights_from_before_the_kernels_grew_fit(
    enlarged, training, tmp_path
):
    before = copy.deepcopy(enlarged)
    before.model.backbone = enlarged.model.backbone.backbone
    enlarged.load_from = str(tmp_path / 'x.pth')
    for config in (before, enlarged):
        state = save_weights(config, enlarged.load_from)
        preflight(enlarged, training=training)
        check_weights(enlarged, state, 'x.pth')
    state['backbone.stages.0.0.depthwise_conv.weight'] = torch.zeros(
        8, 1, 5, 5
    )
    torch.save(state, enlarged.load_from)
    refuses(enlarged, r'depthwise_conv.weight is \(8, 1, 5, 5\)')
