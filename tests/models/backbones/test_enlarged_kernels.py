"""Networks of the libraries with larger kernels: the same, then more."""

import copy
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pelk_mm.engine.optimizers import LayerDecayOptimWrapperConstructor
from pelk_mm.models import PeLK, enlarge_kernels
from pelk_mm.models.layers import EnlargedConv2d

CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 2, 1], channels=[8, 12, 16, 20]),
    layer_scale_init_value=1.0,
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
)
#: Configs, arguments, and how many layers are replaced.
NETWORKS = dict(
    convnext=(CONVNEXT, dict(kernel_size=101), 5),
    convnext_v2=(
        CONVNEXT | dict(use_grn=True, layer_scale_init_value=0.0),
        dict(kernel_size={r'stages\.[01]\.': 51, r'stages\.2': 31}),
        4,
    ),
    replknet=(
        dict(
            type='mmpretrain.RepLKNet',
            arch=dict(
                large_kernel_sizes=[11, 9, 9, 7],
                layers=[1, 1, 1, 1],
                channels=[8, 12, 16, 20],
                small_kernel=5,
                dw_ratio=1,
            ),
        ),
        dict(kernel_size={'lkb_origin': 31}, center_radius=5),
        4,
    ),
    mobilenet_v2=(
        dict(type='mmpretrain.MobileNetV2', widen_factor=0.25),
        dict(kernel_size={r'layer[1-5]': 13}, center_radius=1),
        10,
    ),
    mobilenet_v3=(
        dict(type='mmpretrain.MobileNetV3', arch='small_050'),
        dict(kernel_size=21, only_size=5),
        6,
    ),
    efficientnet=(
        dict(type='mmpretrain.EfficientNet', arch='b0'),
        dict(kernel_size=21),
        12,
    ),
    van=(
        dict(
            type='mmpretrain.VAN',
            arch=dict(
                embed_dims=[8, 8, 16, 16],
                depths=[1, 1, 1, 1],
                ffn_ratios=[2, 2, 2, 2],
            ),
        ),
        # 7 x 7 dilated by 3.
        dict(kernel_size={'DW_D_conv': 51}, center_radius=9),
        4,
    ),
    mscan=(
        dict(
            type='mmseg.MSCAN',
            embed_dims=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            mlp_ratios=[2, 2, 2, 2],
            norm_cfg=dict(type='BN'),
        ),
        # Strips of 1 x 21 are the longest.
        dict(kernel_size={r'spatial_gating_unit\.conv': 51}, center_radius=10),
        28,
    ),
)


@torch.no_grad()
def build(config: dict) -> nn.Module:
    """In eval mode; no norm, bias or scale is where it starts."""
    model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        if parameter.numel() == max(parameter.shape):
            parameter.uniform_(0.5, 1.5)
    model.eval()
    return model


def enlarged(model: nn.Module) -> list[EnlargedConv2d]:
    return [m for m in model.modules() if isinstance(m, EnlargedConv2d)]


def is_new(layer: EnlargedConv2d) -> torch.Tensor:
    """Which cells the old kernel did not have."""
    return layer.embed(torch.ones(layer.old_shape)) == 0


@torch.no_grad()
def apart(got, expected) -> float:
    """The largest relative difference of any output."""
    pairs = zip(got, expected, strict=True)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_of_the_libraries(name):
    """The same at first; then it trains, beyond the old kernels too."""
    config, arguments, count = NETWORKS[name]
    model = build(config)
    x = torch.randn(2, 3, 64, 64)
    before, state = model(x), copy.deepcopy(model.state_dict())
    assert enlarge_kernels(model, **arguments) is model
    layers = enlarged(model)
    assert len(layers) == count
    assert list(model.state_dict()) == list(state)
    assert apart(model(x), before) < 1e-5

    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sum(y.square().mean() for y in model(x)).backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    # Later maps may end where the old kernels do.
    assert layers[0].weight.grad[is_new(layers[0])].any()
    optimizer.step()
    after = model(x)
    assert apart(after, before) > 1e-3

    again = enlarge_kernels(build(config), **arguments)
    again.load_state_dict(model.state_dict())
    assert apart(again(x), after) == 0
    # And weights of the network as it was.
    again.load_state_dict(state)
    assert apart(again(x), before) < 1e-5


def depthwise(size: int, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(4, 4, size, padding=size // 2, groups=4, **kwargs)


def plain() -> nn.Sequential:
    """Two of 3 x 3, one of them twice, and some that cannot be replaced."""
    shared = depthwise(3)
    return nn.Sequential(
        nn.Sequential(shared, depthwise(3, stride=2)),
        nn.ModuleDict(dict(a=depthwise(3), b=shared)),
        nn.Conv2d(4, 4, 3, padding=1),
        depthwise(5),
        depthwise(5, padding_mode='reflect'),
    )


def test_what_is_left_is_said(capsys):
    model = plain()
    kept = model[0][1], *model[2:]
    enlarge_kernels(model, 31, only_size=3)
    assert model[0][0].grid.kernel_size == 31
    assert model[1].b is model[0][0] is not model[1].a
    assert (model[0][1], *model[2:]) == kept
    assert capsys.readouterr().out.endswith(
        'enlarge_kernels: 2 of 5 depthwise convolutions of Sequential '
        'replaced (2 from 3 x 3 to 31); 1 left for stride 2: 0.1\n'
    )
    # Those of 3 x 3 are no ordinary ones any more.
    enlarge_kernels(model, 13)
    assert len(enlarged(model)) == 3
    assert "1 left for padding_mode 'reflect': 4" in capsys.readouterr().out


def test_patterns():
    model = enlarge_kernels(plain(), {r'^1\.b': 9, r'\.': 13, '^3': 31})
    sizes = [layer.grid.kernel_size for layer in enlarged(model)]
    # A shared one has several names.
    assert sizes == [9, 13, 31]
    assert isinstance(enlarge_kernels(depthwise(7), 13), EnlargedConv2d)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(kernel_size=30), 'kernel_size must be odd, got 30'),
        (dict(kernel_size='31'), 'kernel_size must be an integer'),
        (dict(kernel_size=5), 'has no room for a centre of 7x7'),
        (dict(kernel_size=31, center_radius=-1), 'center_radius must be'),
        (dict(kernel_size={}), 'must have a size or patterns'),
        (dict(kernel_size={'(': 31}), r"regular expressions .* '\(': missing"),
        (dict(kernel_size={3: 31}), 'regular expressions as keys, got 3'),
        (dict(kernel_size=31, only_size='7'), 'only_size must be an integer'),
        (dict(kernel_size=31, only_size=[1, 7, 1]), 'one or two sizes'),
        (
            dict(kernel_size=31, only_size=7),
            r'only_size=7: nothing to enlarge in Sequential, whose depthwise '
            r'convolutions are: 3 of 3 x 3 \(0.0, 0.1, 1.a\), 2 of 5 x 5',
        ),
        (
            dict(kernel_size=3, center_radius=1),
            '; 2 left for a size of 3 already: 0.0, 1.a; ',
        ),
        (
            dict(kernel_size={'0': 31, 'stages': 51}),
            "nothing to enlarge for 'stages' in Sequential",
        ),
        (dict(kernel_size={'0.1': 31}), "for '0.1' .*; 1 left for stride 2"),
        (
            dict(kernel_size={'3': 31}, center_radius=1),
            r"3 cannot be enlarged to 31, as kernel_size\['3'\] says: a size "
            'of 5, for center_radius=2 or more',
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    model = plain()
    with pytest.raises((TypeError, ValueError), match=message):
        enlarge_kernels(model, **arguments)
    assert not enlarged(model)


def test_networks_without():
    with pytest.raises(ValueError, match='Linear, .* convolutions are: none'):
        enlarge_kernels(nn.Linear(3, 3), 31)
    with pytest.raises(TypeError, match='must be an nn.Module, got dict'):
        enlarge_kernels(CONVNEXT, 31)
    # Its own small kernels take part in its merging.
    arch = dict(depths=(1,) * 4, channels=(8,) * 4, kernel_sizes=(9, 9, 9, 9))
    with pytest.raises(ValueError, match='4 left for SmallConv2d with a'):
        enlarge_kernels(PeLK(arch), 31)


def in_config(**fields) -> dict:
    return dict(
        type='pelk_mm.EnlargedKernels',
        backbone=CONVNEXT,
        kernel_size=51,
        **fields,
    )


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg', 'mmdet', None])
def test_config(scope):
    """The network comes back, wherever its config stands."""
    if scope:
        init_default_scope(scope)
    config = in_config(frozen_stages=1, init_cfg=dict(type='Xavier'))
    unchanged = copy.deepcopy(config)
    model = MODELS.build(config)
    assert config == unchanged
    assert type(model) is MODELS.get('mmpretrain.ConvNeXt')
    assert model.frozen_stages == 1
    assert model.init_cfg == dict(type='Xavier')
    model.train()
    trained = [layer.weight.requires_grad for layer in enlarged(model)]
    assert trained == [False, True, True, True, True]
    assert not enlarged(model)[0].training


def test_config_files(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        'from mmengine.config import read_base\n'
        'from mmpretrain.models import ConvNeXt\n'
        'from pelk_mm.models import EnlargedKernels\n'
        "model = dict(type=EnlargedKernels, kernel_size={r'stages\\.0': 51},\n"
        "    backbone=dict(type=ConvNeXt, arch='atto'))\n"
    )
    config = Config.fromfile(path)
    config.dump(tmp_path / 'dumped.py')
    for each in (config, Config.fromfile(tmp_path / 'dumped.py')):
        assert len(enlarged(MODELS.build(each.model))) == 2


@pytest.mark.slow
def test_config_without_an_import():
    """The scope is enough, in a process that knows nothing."""
    code = (
        'from mmengine.registry import MODELS\n'
        "conv = dict(type='Conv2d', in_channels=4, out_channels=4, groups=4,"
        ' kernel_size=7, padding=3)\n'
        "print(MODELS.build(dict(type='pelk_mm.EnlargedKernels',"
        ' backbone=conv, kernel_size=31)))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert 'EnlargedConv2d(4, kernel_size=31' in done.stdout, done.stderr


@pytest.mark.parametrize(
    ('backbone', 'message'),
    [
        (None, 'backbone must be the config of a network'),
        (dict(type='ConvNext'), 'ConvNext is not in the mmpretrain::model'),
        (dict(type='ConvNeXt', arch='giant'), 'Unavailable arch'),
        (dict(type='ConvNeXt', archs='tiny'), "unexpected .* 'archs'"),
        (dict(type='ResNet', depth=18), 'nothing to enlarge in ResNet'),
    ],
)
def test_wrong_inner_configs(backbone, message):
    init_default_scope('mmpretrain')
    with pytest.raises(Exception, match=message):
        MODELS.build(
            dict(type='EnlargedKernels', backbone=backbone, kernel_size=31)
        )


def test_pretrained_weights_of_the_inner_network(tmp_path):
    """By init_cfg, and of a whole model by load_from."""
    inner, x = build(CONVNEXT), torch.randn(1, 3, 64, 64)
    weights = {f'backbone.{k}': v for k, v in inner.state_dict().items()}
    path = str(tmp_path / 'convnext.pth')
    torch.save(dict(state_dict=weights), path)
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    model = MODELS.build(in_config(init_cfg=init_cfg))
    model.init_weights()
    model.eval()
    assert apart(model(x), inner(x)) < 1e-5

    whole = nn.Module()
    whole.backbone = MODELS.build(in_config())
    load_checkpoint(whole, path, strict=True)
    whole.eval()
    assert apart(whole.backbone(x), inner(x)) < 1e-5


@DATASETS.register_module()
class Noise(list):
    """Pictures of noise, each of one of four classes."""

    def __init__(self) -> None:
        super().__init__(
            dict(
                inputs=torch.randint(256, (3, 64, 64)).byte(),
                data_samples=DataSample().set_gt_label(label),
            )
            for label in range(4)
        )


def train(folder, backbone: dict, **fields) -> Runner:
    config = dict(
        default_scope='mmpretrain',
        work_dir=str(folder),
        experiment_name=str(len(list(folder.iterdir()))),
        model=dict(
            type='ImageClassifier',
            data_preprocessor=dict(type='ClsDataPreprocessor'),
            backbone=backbone,
            head=dict(type='LinearClsHead', num_classes=4, in_channels=20),
        ),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type='Noise'),
            sampler=dict(type='DefaultSampler', shuffle=True),
        ),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-3),
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(decay_rate=0.9, scale_lr_by_cell_area=True),
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        **fields,
    )
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def test_a_training_goes_on_with_larger_kernels(tmp_path):
    """From the inner network's checkpoint, and from its own."""
    inner = CONVNEXT | dict(out_indices=-1, gap_before_final_norm=True)
    backbone = dict(type='EnlargedKernels', backbone=inner, kernel_size=51)
    train(tmp_path, inner, train_cfg=dict(by_epoch=True, max_epochs=1))
    old = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    runner = train(
        tmp_path,
        backbone,
        train_cfg=dict(by_epoch=True, max_epochs=1),
        load_from=str(tmp_path / 'epoch_1.pth'),
    )
    weight = enlarged(runner.model)[0].weight.detach()
    name = 'backbone.stages.0.0.depthwise_conv.weight'
    moved = weight[:, :, 4:11, 4:11] - old['state_dict'][name]
    assert 0 < moved.abs().max() < 0.01
    assert 0 < weight[is_new(enlarged(runner.model)[0])].abs().max() < 0.01
    runner = train(
        tmp_path,
        backbone,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        resume=True,
    )
    assert runner.iter == 4
    moments = runner.optim_wrapper.state_dict()['state'].values()
    assert {int(each['step']) for each in moments} == {4}


@torch.no_grad()
def test_torch_export():
    model = enlarge_kernels(build(CONVNEXT), 51)
    x = torch.randn(1, 3, 64, 64)
    program = torch.export.export(model, (x,))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count('pelk_mm.peripheral_conv2d.default') == 5
    assert apart(program.module()(x), model(x)) < 1e-5


def test_layer_decay_is_as_before():
    wrapper = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05))
    construct = LayerDecayOptimWrapperConstructor(
        wrapper, dict(decay_rate=0.5, dwconv_decay_mult=0.5)
    )
    groups = [
        [
            {key: value for key, value in group.items() if key != 'params'}
            for group in construct.make_groups(MODELS.build(config))
        ]
        for config in (CONVNEXT, in_config())
    ]
    assert groups[0] == groups[1] and len(groups[0]) > 8
