"""The COCO configs build, and hold what their names and the recipe say."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope

from pelk_mm.models import PeLK

ROOT = Path(__file__).resolve().parents[2]
NAME = 'cascade_mask_rcnn_pelk_{}_coco.py'
# Size in the file's name: arch, drop path, decay rate, layers.
RECIPES = {
    't': ('tiny', 0.4, 0.7, 6),
    's': ('small', 0.6, 0.7, 12),
    'b': ('base', 0.7, 0.8, 12),
    'b_101': ('base-101', 0.7, 0.8, 12),
}


def load(size: str) -> Config:
    config = Config.fromfile(ROOT / 'configs' / NAME.format(size))
    init_default_scope(config.default_scope)
    return config


def build(config: Config) -> torch.nn.Module:
    """The model without memory for its weights: only names and shapes."""
    with torch.device('meta'):
        return MODELS.build(config.model)


def test_every_config_is_in_the_table():
    found = {
        path.name
        for path in (ROOT / 'configs').glob('cascade_*pelk_[!c]*coco.py')
    }
    assert found == {NAME.format(size) for size in RECIPES}


@pytest.mark.parametrize('size', RECIPES)
def test_model_and_optimizer_follow_the_recipe(size):
    arch, drop_path, rate, layers = RECIPES[size]
    config = load(size)
    model = build(config)

    assert model.backbone.arch == arch
    rates = [
        block.drop_path.drop_prob
        for stage in model.backbone.stages
        for block in stage.blocks
    ]
    assert rates == sorted(rates)
    assert rates[0] == 0 and rates[-1] == drop_path
    assert config.model.backbone.layer_scale_init_value == 1
    assert model.neck.in_channels == PeLK.out_channels(arch)
    assert [
        model.backbone.norm0.weight.numel(),
        model.backbone.norm3.weight.numel(),
    ] == PeLK.out_channels(arch)[::3]
    for head in model.roi_head.bbox_head:
        assert (head.num_shared_convs, head.num_shared_fcs) == (4, 1)
        assert type(head.loss_bbox).__name__ == 'GIoULoss'
        assert head.reg_decoded_bbox and head.num_classes == 80
        assert isinstance(head.shared_convs[0].bn, torch.nn.SyncBatchNorm)
    stds = [head.bbox_coder.stds for head in model.roi_head.bbox_head]
    assert stds[0] > stds[1] > stds[2]

    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert type(optimizer).__name__ == 'AdamW'
    groups = optimizer.param_groups
    assert {group['weight_decay'] for group in groups} == {0, 0.05}
    assert max(group['lr'] for group in groups) == 2e-4
    assert min(group['lr'] for group in groups) == pytest.approx(
        2e-4 * rate ** (layers + 1)
    )
    assert config.train_cfg.max_epochs == 36
    assert config.auto_scale_lr.base_batch_size == 16
    assert config.train_dataloader.batch_size == 2


# Depth of every parameter of the detector with PeLK-T, whose third stage has
# nine blocks, three a layer. Patterns are tried in order.
DEPTHS = (
    (r'backbone\.downsample_layers\.0\.', 0),
    (r'backbone\.stages\.0\.', 1),
    (r'backbone\.downsample_layers\.1\.', 2),
    (r'backbone\.stages\.1\.', 2),
    (r'backbone\.downsample_layers\.2\.', 3),
    (r'backbone\.stages\.2\.(pos_embed|blocks\.[012]\.)', 3),
    (r'backbone\.stages\.2\.blocks\.[345]\.', 4),
    (r'backbone\.stages\.2\.blocks\.[678]\.', 5),
    (r'backbone\.downsample_layers\.3\.', 6),
    (r'backbone\.stages\.3\.', 6),
    (r'backbone\.norm[0-3]\.', 7),
    (r'(neck|rpn_head|roi_head)\.', 7),
)
# Tensors with and without weight decay at each depth: a block has 4 weights
# and 9 others (norm weights and biases, linear biases, LayerScale), a
# downsampling 1 and 3, and a stage has one embedding.
TENSORS = {
    0: (1, 3),
    1: (12, 28),
    2: (13, 31),
    3: (13, 31),
    4: (12, 27),
    5: (12, 27),
    6: (13, 31),
    # Output norms (8), FPN (8 convolutions with biases), RPN (3), three box
    # heads (4 convolutions with norms, 3 linear layers) and three mask heads
    # (4 + 1 + 1 convolutions).
    7: (8 + 3 + 3 * 7 + 3 * 6, 8 + 8 + 3 + 3 * (8 + 3) + 3 * 6),
}


def test_layer_decay_table_of_the_detector():
    config = load('t')
    model = build(config)
    groups = build_optim_wrapper(
        model, config.optim_wrapper
    ).optimizer.param_groups
    given = {}
    for group in groups:
        for name in group['param_names']:
            assert name not in given
            given[name] = (group['lr'], group['weight_decay'])
    parameters = dict(model.named_parameters())
    assert given.keys() == parameters.keys()

    counts = Counter()
    for name, (lr, weight_decay) in given.items():
        depth = next(
            depth for pattern, depth in DEPTHS if re.match(pattern, name)
        )
        assert lr == pytest.approx(2e-4 * 0.7 ** (7 - depth)), name
        decayed = parameters[name].ndim > 1 and not name.endswith('pos_embed')
        assert weight_decay == (0.05 if decayed else 0), name
        counts[depth, decayed] += 1
    assert {
        depth: (counts[depth, True], counts[depth, False])
        for depth in range(8)
    } == TENSORS


@pytest.mark.parametrize('size', RECIPES)
def test_pipelines_and_metric_on_coco_images(size, sample_data):
    config = load(size)
    coco = sample_data / 'coco'
    config.merge_from_dict(
        {
            'train_dataloader.dataset.data_root': str(coco),
            'val_dataloader.dataset.data_root': str(coco),
            'val_evaluator.ann_file': str(
                coco / 'annotations/instances_val2017.json'
            ),
        }
    )
    train = DATASETS.build(config.train_dataloader.dataset)
    assert len(train) > 0
    sample = train[0]
    height, width = sample['data_samples'].img_shape
    assert sample['inputs'].shape == (3, height, width)
    assert sample['inputs'].dtype == torch.uint8
    # Every way through the pipeline ends with one of the training scales.
    assert min(height, width) <= 800 and max(height, width) <= 1333
    truth = sample['data_samples'].gt_instances
    assert len(truth.bboxes) == len(truth.masks) == len(truth.labels)
    assert truth.masks.masks.shape[1:] == (height, width)

    val = DATASETS.build(config.val_dataloader.dataset)
    sample = val[0]
    height, width = sample['data_samples'].img_shape
    assert min(height, width) == 800 or max(height, width) == 1333
    assert sample['data_samples'].scale_factor[0] == pytest.approx(
        width / sample['data_samples'].ori_shape[1]
    )
    metric = METRICS.build(config.val_evaluator)
    assert metric.metrics == ['bbox', 'segm']


def test_demo_starts_from_what_the_classification_demo_saves():
    """Same backbone, and the checkpoint's name is the last epoch's."""
    detection, classification = (
        Config.fromfile(ROOT / 'configs' / name)
        for name in (
            'demo_cascade_mask_rcnn_pelk_digits.py',
            'demo_pelk_digits.py',
        )
    )
    assert detection.model.backbone.arch == classification.model.backbone.arch
    assert detection.model.backbone.init_cfg.checkpoint == (
        'work_dirs/demo_pelk_digits/'
        f'epoch_{classification.train_cfg.max_epochs}.pth'
    )


def test_demo_model_and_optimizer():
    config = Config.fromfile(
        ROOT / 'configs' / 'demo_cascade_mask_rcnn_pelk_digits.py'
    )
    init_default_scope(config.default_scope)
    model = build(config)
    assert list(model.neck.in_channels) == list(model.backbone.channels)
    groups = build_optim_wrapper(
        model, config.optim_wrapper
    ).optimizer.param_groups
    assert sum(len(group['params']) for group in groups) == len(
        list(model.parameters())
    )
    # Layer-wise: the stem learns slowest, all behind the backbone fully.
    rates = {
        name: group['lr_scale']
        for group in groups
        for name in group['param_names']
    }
    assert (
        rates['backbone.downsample_layers.0.0.weight']
        == min(rates.values())
        < 0.5
    )
    assert all(
        rate == 1
        for name, rate in rates.items()
        if not name.startswith('backbone.')
    )
