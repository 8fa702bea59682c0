"""The ImageNet configs build what their names and the recipe say."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS
from mmengine.runner import Runner

from pelk_mm.datasets.digit_scenes import (
    CLASSIFICATION_METAINFO,
    Recipe,
    make_digit_scenes,
)
from pelk_mm.models import PeLK
from pelk_mm.utils.config import build_model

#: Config name: arch, drop path, layers of the learning-rate decay, side of
#: the images, and parameters in millions with 60 % of the 2-D and 4-D weights
#: (published: 29, 50, 89 and 90 M).
CONFIGS = {
    'pelk_t_in1k': ('tiny', 0.1, 6, 224, 28.8),
    'pelk_t_in1k_120e': ('tiny', 0.1, 6, 224, 28.8),
    'pelk_t_dense_in1k': ('tiny', 0.1, 6, 224, 28.8),
    'pelk_s_in1k': ('small', 0.4, 12, 224, 50.8),
    'pelk_b_in1k': ('base', 0.5, 12, 224, 89.6),
    'pelk_101_t_in1k': ('tiny-101', 0.1, 6, 224, 28.9),
    'pelk_b_101_in1k': ('base-101', 0.5, 12, 224, 89.9),
    'pelk_b_in1k_384': ('base', 0.8, 12, 384, 89.6),
    'pelk_b_101_in1k_384': ('base-101', 0.8, 12, 384, 89.9),
    'pelk_101_t_in1k_384': ('tiny-101', 0.1, 6, 384, 28.9),
}
DEMO = 'demo_pelk_digits'
each_config = pytest.mark.parametrize('name', list(CONFIGS))


def hooks(config: Config) -> dict:
    return {hook['type']: hook for hook in config.custom_hooks}


def test_every_config_is_tested(root):
    names = {path.stem for path in (root / 'configs').glob('*.py')}
    assert {
        name for name in names if 'in1k' in name and 'convnext' not in name
    } == {*CONFIGS}
    assert DEMO in names


@each_config
def test_model_is_the_one_in_the_name(load, name):
    arch, drop_path, _, side, millions = CONFIGS[name]
    model = build_model(load(name), device='meta')
    backbone = model.backbone
    assert isinstance(backbone, PeLK)
    assert backbone.arch == arch
    assert ('_101_' in name) == arch.endswith('-101')
    last = backbone.stages[-1].blocks[-1]
    assert last.drop_path.drop_prob == pytest.approx(drop_path)
    assert model.head.in_channels == PeLK.out_channels(arch)[-1]
    kept = sum(
        value.numel() * (0.6 if value.ndim in (2, 4) else 1)
        for value in model.parameters()
    )
    assert kept / 1e6 == pytest.approx(millions, abs=0.1)
    model.eval()
    logits = model(torch.empty(2, 3, side, side, device='meta'))
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize(
    'name',
    ['pelk_t_in1k', 'pelk_b_in1k', 'pelk_b_in1k_384', 'pelk_101_t_in1k_384'],
)
def test_learning_rates_and_weight_decay(load, name):
    _, _, layers, side, _ = CONFIGS[name]
    config = load(name)
    model = build_model(config, device='meta')
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    names = {id(value): key for key, value in model.named_parameters()}
    groups = {
        names[id(value)]: group
        for group in optimizer.param_groups
        for value in group['params']
    }
    assert groups.keys() == set(names.values())
    # A group of every parameter would make each step slow.
    assert len(optimizer.param_groups) == 2 * (layers + 2)
    lr, decay, rate = (4e-3, 0.05, 1) if side == 224 else (5e-5, 1e-8, 0.7)
    for key, power in (
        ('backbone.downsample_layers.0.0.weight', layers + 1),
        ('backbone.stages.0.blocks.0.pointwise_conv1.weight', layers),
        ('backbone.stages.1.blocks.0.conv.large.weight', layers - 1),
        ('backbone.stages.2.blocks.0.pointwise_conv1.weight', layers - 2),
        ('backbone.stages.3.blocks.0.pointwise_conv1.weight', 1),
        ('head.fc.weight', 0),
    ):
        assert groups[key]['lr'] == pytest.approx(lr * rate**power), key
        assert groups[key]['weight_decay'] == decay
    for key in (
        'backbone.stages.0.pos_embed',
        'backbone.norm3.weight',
        'backbone.stages.2.blocks.0.gamma',
        'head.fc.bias',
    ):
        assert groups[key]['weight_decay'] == 0


@each_config
def test_recipe(load, name):
    config = load(name)
    found = hooks(config)
    fine_tuning = name.endswith('_384')
    assert config.auto_scale_lr.base_batch_size == (
        32 * config.train_dataloader.batch_size
    )
    assert config.default_hooks.checkpoint.type == 'SafeCheckpointHook'
    loss = config.model.head.loss
    assert (loss.type, loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)
    steps = {
        step.type: step for step in config.train_dataloader.dataset.pipeline
    }
    assert steps['RandAugment'].magnitude_level == 9
    assert steps['RandAugment'].magnitude_std == 0.5
    assert steps['RandomErasing'].erase_prob == 0.25
    if fine_tuning:
        assert config.train_cfg.max_epochs == 30
        assert config.model.train_cfg is None
        (decay,) = config.param_scheduler
        assert decay.begin == 0
        assert found.keys() == {'DynamicSparsityHook'}
        sparsity = found['DynamicSparsityHook']
        assert sparsity.init == 'zeros' and sparsity.update_interval is None
        start = config.load_from.split('/')[1]
        assert CONFIGS[start][0] == CONFIGS[name][0]
        return
    assert config.train_cfg.max_epochs == (120 if '120e' in name else 300)
    augments = {
        step.type: step.alpha for step in config.model.train_cfg.augments
    }
    assert augments == dict(Mixup=0.8, CutMix=1.0)
    warm_up, decay = config.param_scheduler
    assert warm_up.end == decay.begin == 20
    assert found['EMAHook'].momentum == pytest.approx(1 - 0.9999)
    assert found['EMAHook'].update_buffers
    if 'dense' in name:
        assert found.keys() == {'EMAHook'}
        return
    sparsity = found['DynamicSparsityHook']
    assert (sparsity.sparsity, sparsity.init) == (0.4, 'snip')
    tiny = CONFIGS[name][0].startswith('tiny')
    assert (sparsity.prune_rate, sparsity.update_interval) == (
        (0.5, 2000) if tiny else (0.3, 100)
    )


@pytest.mark.parametrize('name', ['pelk_t_in1k', 'pelk_b_in1k_384'])
def test_pipelines_read_imagenet(load, name, sample_data):
    side = CONFIGS[name][3]
    config = load(name)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = str(sample_data / 'imagenet')
        # The sample has one image a class, for training and validation.
        loader.dataset.data_prefix = 'train'
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset.metainfo['classes']) == 1000
        # The folders are the sorted WordNet numbers, as mmpretrain's names.
        assert [dataset.get_data_info(i)['gt_label'] for i in (0, 999)] == [
            0,
            999,
        ]
        for index in (0, 500):
            sample = dataset[index]
            assert sample['inputs'].shape == (3, side, side)
            assert sample['inputs'].dtype == torch.uint8
    metric = METRICS.build(config.val_evaluator)
    assert metric.topk == (1, 5)


def test_demos_share_their_backbone_and_see_pictures_alike(root):
    """So that the weights of one are of use to the others."""
    arches, normalisations = [], []
    for name in (
        DEMO,
        'demo_upernet_pelk_digits',
        'demo_cascade_mask_rcnn_pelk_digits',
    ):
        config = Config.fromfile(root / 'configs' / f'{name}.py')
        with torch.device('meta'):
            backbone = PeLK(config.model.backbone.arch)
        arches.append(
            (
                backbone.depths,
                backbone.channels,
                backbone.kernel_sizes,
                backbone.center_radius,
            )
        )
        given = {
            **config.get('data_preprocessor', {}),
            **config.model.get('data_preprocessor', {}),
        }
        normalisations.append((given['mean'], given['std']))
        assert given.get('to_rgb') or given.get('bgr_to_rgb')
        for loader in (config.train_dataloader, config.val_dataloader):
            assert 'StretchedGrey' in [
                step.type for step in loader.dataset.pipeline
            ]
    assert arches[0] == arches[1] == arches[2]
    assert normalisations[0] == normalisations[1] == normalisations[2]


def test_demo_classes_are_those_of_the_digits(load):
    config = load(DEMO)
    for loader in (config.train_dataloader, config.val_dataloader):
        assert (
            loader.dataset.metainfo.classes
            == CLASSIFICATION_METAINFO['classes']
        )


def test_demo_trains_two_iterations(load, tmp_path):
    make_digit_scenes(
        tmp_path / 'data',
        Recipe(
            train_scenes=1,
            val_scenes=1,
            scene_size=64,
            train_digits=20,
            val_digits=10,
            digit_size=32,
        ),
        progress=False,
    )
    config = load(DEMO)
    config.work_dir = str(tmp_path / 'work')
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config.merge_from_dict(
            {
                f'{loader}.num_workers': 0,
                f'{loader}.persistent_workers': False,
                f'{loader}.batch_size': 10,
                f'{loader}.dataset.data_root': str(tmp_path / 'data/imagenet'),
            }
        )
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.param_scheduler = []
    config.default_hooks.checkpoint.interval = 1
    runner = Runner.from_cfg(config)
    before = {
        name: value.clone() for name, value in runner.model.named_parameters()
    }
    runner.train()
    assert runner.iter == 2
    changed = [
        name
        for name, value in runner.model.named_parameters()
        if not torch.equal(value, before[name])
    ]
    assert len(changed) == len(before)
    assert 0 <= runner.test()['accuracy/top1'] <= 100
