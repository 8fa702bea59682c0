"""The UperNet configs build what their names and the recipe say."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from pelk_mm.datasets.digit_scenes import (
    ADE_ROOT,
    SEGMENTATION_METAINFO,
    Recipe,
    make_digit_scenes,
)
from pelk_mm.models import PeLK

#: Config name: arch, layers of the learning-rate decay, and parameters in
#: millions with 60 % of the backbone's 2-D and 4-D weights, as published
#: (62, 84, 126 and 126 M) but to the first decimal.
CONFIGS = {
    'upernet_pelk_t_ade20k': ('tiny', 6, 62.5),
    'upernet_pelk_s_ade20k': ('small', 12, 84.5),
    'upernet_pelk_b_ade20k': ('base', 12, 125.8),
    'upernet_pelk_b_101_ade20k': ('base-101', 12, 126.1),
}
DEMO = 'demo_upernet_pelk_digits'
PRETRAINED_DEMO = f'{DEMO}_pretrained'
each_config = pytest.mark.parametrize('name', list(CONFIGS))


def build_on_meta(config: Config) -> torch.nn.Module:
    """The full-size model with shapes and no numbers, in a moment."""
    with torch.device('meta'):
        return MODELS.build(config.model)


def test_every_config_is_tested(root):
    found = {
        path.stem for path in (root / 'configs').glob('*upernet_pelk_[!c]*.py')
    }
    assert found == {*CONFIGS, DEMO, PRETRAINED_DEMO}


@each_config
def test_model_is_the_one_in_the_name(load, name):
    arch, _, millions = CONFIGS[name]
    config = load(name)
    model = build_on_meta(config)

    backbone = model.backbone
    assert isinstance(backbone, PeLK)
    assert backbone.arch == arch
    assert backbone.init_cfg is None
    rates = [
        getattr(block.drop_path, 'drop_prob', 0.0)
        for stage in backbone.stages
        for block in stage.blocks
    ]
    assert rates[0] == 0 and rates[-1] == 0.4
    kept = sum(
        value.numel()
        * (0.6 if key.startswith('backbone.') and value.ndim in (2, 4) else 1)
        for key, value in model.named_parameters()
    )
    assert kept / 1e6 == pytest.approx(millions, abs=0.1)

    model.eval()
    features = model.extract_feat(torch.empty(1, 3, 512, 512, device='meta'))
    assert [tuple(x.shape[1:]) for x in features] == [
        (channels, 128 >> i, 128 >> i)
        for i, channels in enumerate(PeLK.out_channels(arch))
    ]
    for head in (model.decode_head, model.auxiliary_head):
        assert head.num_classes == 150
    assert model.decode_head(features).shape == (1, 150, 128, 128)
    assert model.auxiliary_head(features).shape == (1, 150, 32, 32)


def test_layer_scale_starts_at_one(load):
    config = load('upernet_pelk_t_ade20k')
    config.model.backbone.arch = dict(
        depths=(1, 1, 1, 1), channels=(8,) * 4, kernel_sizes=(5,) * 4
    )
    backbone = MODELS.build(config.model.backbone)
    for stage in backbone.stages:
        assert stage.blocks[0].gamma.eq(1).all()


@each_config
def test_learning_rates_decay_by_stage(load, name):
    _, layers, _ = CONFIGS[name]
    config = load(name)
    model = build_on_meta(config)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)

    names = {id(value): key for key, value in model.named_parameters()}
    placed = {}
    for group in wrapper.optimizer.param_groups:
        for value in group['params']:
            assert names[id(value)] not in placed
            placed[names[id(value)]] = group
    assert placed.keys() == set(names.values())
    for key, power in (
        ('backbone.downsample_layers.0.0.weight', layers + 1),
        ('backbone.downsample_layers.3.1.weight', layers + 1),
        ('backbone.stages.0.blocks.0.pointwise_conv1.weight', layers),
        ('backbone.stages.1.blocks.2.conv.large.weight', layers - 1),
        ('backbone.stages.2.blocks.8.pointwise_conv2.weight', layers - 2),
        ('backbone.stages.3.blocks.2.pointwise_conv1.weight', layers - 3),
        ('decode_head.conv_seg.weight', 0),
        ('auxiliary_head.conv_seg.weight', 0),
    ):
        assert placed[key]['lr'] == pytest.approx(1e-4 * 0.9**power), key
        assert placed[key]['weight_decay'] == 0.05
    for key in (
        'backbone.stages.0.pos_embed',
        'backbone.norm3.weight',
        'backbone.stages.2.blocks.0.gamma',
        'decode_head.conv_seg.bias',
    ):
        assert placed[key]['weight_decay'] == 0


@each_config
def test_recipe(load, name):
    config = load(name)
    assert config.train_cfg.max_iters == 160000
    # 8 GPUs times 2 images.
    assert config.train_dataloader.batch_size * 8 == 16
    assert config.auto_scale_lr.base_batch_size == 16
    warm_up, decay = config.param_scheduler
    assert (warm_up.type, warm_up.end) == ('LinearLR', 1500)
    assert (decay.type, decay.begin, decay.end) == ('PolyLR', 1500, 160000)
    assert not (warm_up.by_epoch or decay.by_epoch)
    # Mixed precision is asked for on the command line: it needs a GPU.
    assert config.optim_wrapper.type == 'OptimWrapper'
    assert config.model.test_cfg == dict(
        mode='slide', crop_size=(512, 512), stride=(341, 341)
    )
    for head in (config.model.decode_head, config.model.auxiliary_head):
        assert head.norm_cfg.type == 'SyncBN'
    assert config.default_hooks.checkpoint.type == 'SafeCheckpointHook'
    (crop,) = (
        step
        for step in config.train_dataloader.dataset.pipeline
        if step.type == 'RandomCrop'
    )
    assert crop.crop_size == config.model.data_preprocessor.size == (512, 512)


def test_real_ade20k_passes_the_pipelines(load, sample_data):
    config = load('upernet_pelk_t_ade20k')
    root = str(sample_data / 'ade/ADEChallengeData2016')
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = root

    training = DATASETS.build(config.train_dataloader.dataset)
    assert len(training.metainfo['classes']) == 150
    for item in training:
        labels = item['data_samples'].gt_sem_seg.data
        assert item['inputs'].dtype == torch.uint8
        assert item['inputs'].shape[1:] == labels.shape[1:]
        assert max(labels.shape) <= 512
        assert set(np.unique(labels)) <= {*range(150), 255}

    validation = DATASETS.build(config.val_dataloader.dataset)
    item = validation[0]
    sample = item['data_samples']
    assert min(item['inputs'].shape[1:]) == 512
    assert sample.gt_sem_seg.data.shape[1:] == sample.ori_shape


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    recipe = Recipe(
        train_scenes=3,
        val_scenes=3,
        scene_size=128,
        train_digits=10,
        val_digits=10,
    )
    return make_digit_scenes(
        tmp_path_factory.mktemp('scenes') / 'data', recipe, progress=False
    )


def test_demo_reads_digit_scenes(load, scenes):
    config = load(DEMO)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = str(scenes / ADE_ROOT)
    training, validation = (
        DATASETS.build(loader.dataset)
        for loader in (config.train_dataloader, config.val_dataloader)
    )

    assert len(training) == len(validation) == 3
    for key in ('classes', 'palette'):
        assert list(validation.metainfo[key]) == list(
            SEGMENTATION_METAINFO[key]
        )
    found = set()
    for item in validation:
        labels = item['data_samples'].gt_sem_seg.data
        assert labels.shape[1:] == item['inputs'].shape[1:] == (128, 128)
        found.update(np.unique(labels).tolist())
    # The background is a class of its own and no pixel is ignored.
    assert 0 in found and found <= set(range(11)) and len(found) > 2
    assert config.model.decode_head.num_classes == 11


def test_pretrained_demo_differs_in_weights_and_decay_alone(load, root):
    plain, pretrained = load(DEMO), load(PRETRAINED_DEMO)
    init = pretrained.model.backbone.pop('init_cfg')
    classifier = Config.fromfile(root / 'configs' / 'demo_pelk_digits.py')
    assert init == dict(
        type='Pretrained',
        prefix='backbone.',
        checkpoint='work_dirs/demo_pelk_digits/'
        f'epoch_{classifier.train_cfg.max_epochs}.pth',
    )
    assert plain.model.backbone.pop('init_cfg').type == 'Kaiming'
    assert plain.optim_wrapper.pop('paramwise_cfg') == dict(decay_rate=1.0)
    assert pretrained.optim_wrapper.pop('paramwise_cfg').decay_rate < 1
    assert pretrained.to_dict() == plain.to_dict()


def test_starting_from_a_classification_checkpoint(load, tmp_path):
    config = load(DEMO)
    weights = MODELS.build(config.model.backbone).state_dict()
    checkpoint = tmp_path / 'imagenet.pth'
    torch.save(
        dict(
            state_dict={
                f'backbone.{key}': torch.full_like(value, 3)
                for key, value in weights.items()
            }
        ),
        checkpoint,
    )
    # As the comment in the config says, from the command line.
    config.merge_from_dict(
        {
            'model.backbone.init_cfg.type': 'Pretrained',
            'model.backbone.init_cfg.prefix': 'backbone.',
            'model.backbone.init_cfg.checkpoint': str(checkpoint),
        }
    )
    model = MODELS.build(config.model)
    model.init_weights()

    for value in model.backbone.state_dict().values():
        assert value.eq(3).all()
    assert not model.decode_head.conv_seg.weight.eq(3).any()


def test_an_image_smaller_than_the_stride_is_refused(load):
    model = MODELS.build(load(DEMO).model)
    small = dict(
        inputs=[torch.zeros(3, 20, 40, dtype=torch.uint8)],
        data_samples=[
            SegDataSample(
                metainfo=dict(img_shape=(20, 40), ori_shape=(20, 40))
            )
        ],
    )
    with pytest.raises(ValueError, match='20 x 40 pixels is too small'):
        model.test_step(small)
