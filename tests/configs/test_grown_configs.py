"""Configs that start from a ConvNeXt whose kernels are grown to 101 x 101."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from pelk_mm.models import PeLK
from pelk_mm.models.archs import CONVNEXT_BLOCK
from pelk_mm.models.utils import move_kernels
from pelk_mm.utils.config import build_model

#: Config name: arch, stochastic depth, decay of the learning rate by depth,
#: layers, and the number of depths with a rate of their own.
CONFIGS = {
    'upernet_pelk_convnext_t_101_ade20k': ('tiny', 0.4, 0.9, 6),
    'upernet_pelk_convnext_s_101_ade20k': ('small', 0.3, 0.9, 12),
    'upernet_pelk_convnext_b_101_ade20k': ('base', 0.4, 0.9, 12),
    'cascade_mask_rcnn_pelk_convnext_t_101_coco': ('tiny', 0.4, 0.7, 6),
    'cascade_mask_rcnn_pelk_convnext_s_101_coco': ('small', 0.6, 0.7, 12),
    'pelk_convnext_t_101_in1k': ('tiny', 0.1, 0.7, 6),
}
each_config = pytest.mark.parametrize('name', list(CONFIGS))


def test_every_config_is_tested(root):
    found = {path.stem for path in (root / 'configs').glob('*_convnext_*.py')}
    assert found == set(CONFIGS)


@each_config
def test_model_is_the_one_in_the_name(load, name):
    size, drop_path, _, _ = CONFIGS[name]
    config = load(name)
    model = build_model(config, device='meta')
    backbone = model.backbone
    assert backbone.arch == f'convnext-{size}-101'
    last = backbone.stages[-1].blocks[-1]
    assert last.drop_path.drop_prob == pytest.approx(drop_path)
    model.eval()
    images = torch.empty(2, 3, 128, 128, device='meta')
    features = backbone(images)
    channels = PeLK.out_channels(backbone.arch)
    if 'in1k' in name:
        assert model.head(features).shape == (2, 1000)
    elif 'ade20k' in name:
        assert model.decode_head(features).shape == (2, 150, 32, 32)
        assert model.auxiliary_head(features).shape == (2, 150, 8, 8)
    else:
        assert model.neck.in_channels == channels
        assert len(model.neck(features)) == 5


@each_config
def test_it_starts_from_a_convnext_of_its_size(load, name):
    config = load(name)
    init_cfg = config.model.backbone.get('init_cfg', {})
    source = init_cfg.get('checkpoint') or config.load_from
    assert f'/convnext-{CONFIGS[name][0]}_' in source
    # What ConvNeXts of ImageNet are given.
    images = config.model.get(
        'data_preprocessor', config.get('data_preprocessor')
    )
    assert images.mean == [123.675, 116.28, 103.53]
    assert images.std == [58.395, 57.12, 57.375]
    # A dense network has no zeros to keep.
    assert not config.get('custom_hooks')


@each_config
def test_learning_rates_decay_with_depth_and_area(load, name):
    _, _, decay, layers = CONFIGS[name]
    config = load(name)
    assert config.optim_wrapper.paramwise_cfg.scale_lr_by_cell_area is True
    model = build_model(config, device='meta')
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    rates = {
        parameter: group['lr']
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert rates.keys() == set(model.parameters())
    lr = config.optim_wrapper.optimizer.lr
    stem = model.backbone.downsample_layers[0][0].weight
    assert rates[stem] == pytest.approx(lr * decay ** (layers + 1))


def networks(kernel_sizes: tuple[int, ...]) -> tuple[PeLK, PeLK]:
    """A small 7 x 7 ConvNeXt, and the same with its kernels grown."""
    models, grids = [], []
    for sizes in ((7, 7, 7, 7), kernel_sizes):
        arch = dict(depths=(1,) * 4, channels=(8, 16, 16, 16))
        arch |= dict(kernel_sizes=sizes, center_radius=3)
        scale = dict(layer_scale_init_value=1.0, out_indices=range(4))
        models.append(PeLK(arch, **CONVNEXT_BLOCK, **scale))
        grids.append([stage.grid for stage in models[-1].stages])
    plain, grown = models
    for weight in plain.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    grown.load_state_dict(move_kernels(plain.state_dict(), '', *grids)[0])
    return plain, grown


def changes(model: PeLK, optim_wrapper: dict) -> list[float]:
    """How far one step moves each stage's output, relative to its norm."""
    wrapper = build_optim_wrapper(model, optim_wrapper)
    torch.manual_seed(0)
    images = torch.nn.functional.avg_pool2d(torch.randn(2, 3, 262, 262), 7, 1)
    before = model(images)
    wrapper.update_params(
        sum((y * torch.randn_like(y)).mean() for y in before)
    )
    after = model(images)
    pairs = zip(before, after, strict=True)
    return [float((b - a).norm() / a.norm()) for a, b in pairs]


@each_config
def test_a_step_moves_outputs_as_that_of_the_convnext(load, name):
    config = load(name)
    paramwise = config.optim_wrapper.paramwise_cfg
    # Of a network so small.
    del paramwise['num_layers']
    arch = PeLK.arch_settings[config.model.backbone.arch]
    torch.manual_seed(0)
    plain, grown = networks(arch['kernel_sizes'])
    unscaled = copy.deepcopy(grown)
    expected = changes(plain, config.optim_wrapper)
    found = changes(grown, config.optim_wrapper)
    for much, little in zip(found, expected, strict=True):
        assert much < 2 * little
    # At the same rate in all cells it is another matter.
    del paramwise['scale_lr_by_cell_area']
    assert changes(unscaled, config.optim_wrapper)[0] > 2 * expected[0]
