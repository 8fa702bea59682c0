"""Exact tables of who learns how fast."""

from re import search

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from pelk_mm.engine import LayerDecayOptimWrapperConstructor
from pelk_mm.models import PeLK
from pelk_mm.models.layers import PartialPeripheralConv2d
from pelk_mm.ops import SharingGrid
from pelk_mm.utils.errors import explain, from_config

LR, WD = 1e-3, 0.05


def groups_of(model, optimizer=None, **paramwise):
    """The optimizer's groups, by name; torch's own optimizer is built."""
    constructor = LayerDecayOptimWrapperConstructor(
        dict(
            type='OptimWrapper',
            optimizer=optimizer or dict(type='AdamW', lr=LR, weight_decay=WD),
        ),
        dict(decay_rate=0.7) | paramwise,
    )
    wrapper = constructor(model)
    assert isinstance(wrapper, OptimWrapper)
    groups = wrapper.optimizer.param_groups
    by_name = {group['group_name']: group for group in groups}
    assert len(by_name) == len(groups)
    return by_name


def meta(build):
    with torch.device('meta'):
        return build()


def pelk(arch='tiny', **kwargs):
    return meta(lambda: PeLK(arch, **kwargs))


def segmentor(backbone):
    """Named as mmseg's EncoderDecoder with UperNet names its parts."""
    model = nn.Module()
    model.backbone = backbone
    model.decode_head = meta(
        lambda: nn.Sequential(
            nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 2, 1),
        )
    )
    return model


# Names of a block's parameters that decay, and those that do not.
DECAY = (
    'conv.large.weight',
    'conv.small.weight',
    'pointwise_conv1.weight',
    'pointwise_conv2.weight',
)
NO_DECAY = (
    'gamma',
    'conv.large_norm.weight',
    'conv.large_norm.bias',
    'conv.small_norm.weight',
    'conv.small_norm.bias',
    'norm.weight',
    'norm.bias',
    'pointwise_conv1.bias',
    'pointwise_conv2.bias',
)


def blocks(stage, first, last, names):
    return {
        f'stages.{stage}.blocks.{block}.{name}'
        for block in range(first, last)
        for name in names
    }


def down(stage):
    """(decaying, other) parameters of a stem or downsampling layer."""
    conv, norm = ('0', '1') if stage == 0 else ('1', '0')
    name = f'downsample_layers.{stage}.'
    return (
        {f'{name}{conv}.weight'},
        {f'{name}{conv}.bias', f'{name}{norm}.weight', f'{name}{norm}.bias'},
    )


def layer_wise_table(third):
    """Depth -> (decaying, other) parameters of a PeLK, by hand."""
    table = {0: down(0)}

    def add(depth, decaying, other):
        old = table.get(depth, (set(), set()))
        table[depth] = (old[0] | decaying, old[1] | other)

    layers = third // 3
    for stage, first in ((0, 1), (1, 2), (2, 3), (3, 3 + layers)):
        add(first, set(), {f'stages.{stage}.pos_embed'})
        if stage:
            add(first, *down(stage))
        for part in range(layers if stage == 2 else 1):
            add(
                first + part,
                blocks(stage, 3 * part, 3 * part + 3, DECAY),
                blocks(stage, 3 * part, 3 * part + 3, NO_DECAY),
            )
    return table, 4 + layers


def stage_wise_table(third):
    table = {
        0: (
            set().union(*(down(i)[0] for i in range(4))),
            set().union(*(down(i)[1] for i in range(4))),
        )
    }
    for stage, depth in enumerate((3, 3, third, 3)):
        table[stage + 1] = (
            blocks(stage, 0, depth, DECAY),
            blocks(stage, 0, depth, NO_DECAY) | {f'stages.{stage}.pos_embed'},
        )
    return table


def check(groups, table, last, rate, prefix='', head=((), ())):
    """Hold the groups against a table, names, rates, decays and all."""
    expected = {}
    tail = (set(head[0]), set(head[1]))
    rows = {
        depth: tuple({prefix + name for name in names} for names in row)
        for depth, row in table.items()
    }
    rows[last] = tail
    for depth, (decaying, other) in rows.items():
        scale = rate ** (last - depth)
        for names, kind, wd in (
            (decaying, 'decay', WD),
            (other, 'no_decay', 0.0),
        ):
            if names:
                expected[f'layer_{depth}_{kind}'] = (scale, wd, names)
    assert set(groups) == set(expected)
    for name, (scale, wd, names) in expected.items():
        group = groups[name]
        assert group['lr_scale'] == pytest.approx(scale, rel=1e-12)
        assert group['lr'] == pytest.approx(LR * scale, rel=1e-12)
        assert group['weight_decay'] == wd
        assert len(group['params']) == len(group['param_names'])
        assert sorted(group['param_names']) == sorted(names)


NORMS = [f'norm{i}.{part}' for i in range(4) for part in ('weight', 'bias')]


class TestTables:
    @pytest.mark.parametrize(
        ('arch', 'third', 'layers'), [('tiny', 9, 6), ('base', 27, 12)]
    )
    @pytest.mark.parametrize('given', [True, False])
    def test_layer_wise(self, arch, third, layers, given):
        table, last = layer_wise_table(third)
        assert last == layers + 1
        groups = groups_of(
            pelk(arch, out_indices=(0, 1, 2, 3)),
            decay_type='layer_wise',
            num_layers=layers if given else None,
        )
        check(groups, table, last, 0.7, head=((), NORMS))

    @pytest.mark.parametrize(
        ('arch', 'third', 'layers'), [('tiny', 9, 6), ('base', 27, 12)]
    )
    @pytest.mark.parametrize(
        'prefix', ['backbone.', 'module.backbone.', 'detector.backbone.']
    )
    def test_stage_wise_in_a_segmentor(self, arch, third, layers, prefix):
        model = segmentor(pelk(arch, out_indices=(0, 1, 2, 3)))
        head = (
            ['decode_head.0.weight', 'decode_head.2.weight'],
            [
                'decode_head.1.weight',
                'decode_head.1.bias',
                'decode_head.2.bias',
            ],
        )
        outer = prefix[: -len('backbone.')]
        if outer:
            model = nn.ModuleDict({outer[:-1]: model})
        # mmengine takes off a wrapper called `module` by itself.
        shown = outer.removeprefix('module.')
        head = [[shown + name for name in names] for names in head]
        head[1] += [f'{shown}backbone.{name}' for name in NORMS]
        groups = groups_of(
            model, decay_rate=0.9, decay_type='stage_wise', num_layers=layers
        )
        check(
            groups,
            stage_wise_table(third),
            layers + 1,
            0.9,
            prefix=f'{shown}backbone.',
            head=head,
        )

    def test_in_mmpretrains_classifier(self):
        """It has a get_layer_depth of its own, without a prefix."""
        from mmpretrain.models import ImageClassifier

        model = meta(
            lambda: ImageClassifier(
                backbone=dict(type='PeLK'),
                head=dict(
                    type='LinearClsHead', in_channels=998, num_classes=9
                ),
            )
        )
        table, last = layer_wise_table(9)
        check(
            groups_of(model),
            table,
            last,
            0.7,
            prefix='backbone.',
            head=(
                ['head.fc.weight'],
                [
                    'head.fc.bias',
                    'backbone.norm3.weight',
                    'backbone.norm3.bias',
                ],
            ),
        )

    def test_groups_are_sorted_and_logged_by_depth(self):
        names = list(groups_of(pelk()))
        assert names[:3] == [
            'layer_0_no_decay',
            'layer_0_decay',
            'layer_1_no_decay',
        ]
        assert names[-1] == 'layer_7_no_decay'


class TestEveryParameter:
    SMALL = dict(
        depths=(1, 1, 3, 1), channels=(8, 8, 8, 8), kernel_sizes=(5, 5, 5, 5)
    )

    def test_is_in_exactly_one_group_if_it_trains(self):
        model = segmentor(pelk(self.SMALL, frozen_stages=2))
        model.decode_head[2].requires_grad_(False)
        placed = [
            id(p)
            for group in groups_of(model).values()
            for p in group['params']
        ]
        assert sorted(placed) == sorted(
            id(p) for p in model.parameters() if p.requires_grad
        )
        assert len(placed) < len(list(model.parameters()))

    @pytest.mark.parametrize('bypass', [False, True])
    def test_is_not_listed_twice_when_it_is_shared(self, bypass):
        model = segmentor(pelk(self.SMALL))
        model.auxiliary_head = nn.Sequential(
            model.decode_head[0], model.decode_head[2]
        )
        model.tied = model.decode_head[2].weight
        groups = groups_of(model, bypass_duplicate=bypass)
        placed = [id(p) for group in groups.values() for p in group['params']]
        assert len(placed) == len(set(placed))
        assert set(placed) == {id(p) for p in model.parameters()}
        names = {n for group in groups.values() for n in group['param_names']}
        assert not any('auxiliary' in name for name in names)

    def test_two_backbones_decay_each_by_its_own_depth(self):
        model = nn.ModuleDict(dict(student=pelk('tiny'), teacher=pelk('base')))
        scale = {
            name: group['lr_scale']
            for group in groups_of(model).values()
            for name in group['param_names']
        }
        stem = 'downsample_layers.0.0.weight'
        assert scale[f'student.{stem}'] == pytest.approx(0.7**7)
        assert scale[f'teacher.{stem}'] == pytest.approx(0.7**13)

    def test_merged_backbones_too(self):
        names = {
            n
            for group in groups_of(pelk(deploy=True)).values()
            for n in group['param_names']
            if 'bias' in n and group['weight_decay'] == 0
        }
        assert 'stages.0.blocks.0.conv.large.bias' in names


class TestMultipliers:
    SMALL = TestEveryParameter.SMALL

    def settings(self, optimizer=None, **paramwise):
        model = segmentor(pelk(self.SMALL))
        return {
            name: (
                group['lr'] / LR,
                group.get('weight_decay'),
                group['group_name'],
            )
            for group in groups_of(model, optimizer, **paramwise).values()
            for name in group['param_names']
        }

    def test_longest_custom_key_wins_on_top_of_the_decay(self):
        settings = self.settings(
            custom_keys={
                'decode_head': dict(lr_mult=10.0),
                'decode_head.2': dict(lr_mult=2.0, decay_mult=0.5),
                'stages.3': dict(decay_mult=0.0),
                'pos_embed': dict(decay_mult=1.0),
            }
        )
        assert settings['decode_head.0.weight'] == (
            pytest.approx(10),
            WD,
            'layer_5_decay_lr_x10',
        )
        assert settings['decode_head.1.bias'] == (
            pytest.approx(10),
            0,
            'layer_5_no_decay_lr_x10',
        )
        # It says decay_mult, so it holds for the bias as well.
        assert settings['decode_head.2.bias'] == (
            pytest.approx(2),
            WD / 2,
            'layer_5_decay_x0.5_lr_x2',
        )
        name = 'backbone.stages.{}.blocks.0.pointwise_conv1.weight'
        assert settings[name.format(3)][:2] == (pytest.approx(0.7**1), 0)
        assert settings[name.format(0)][:2] == (pytest.approx(0.7**4), WD)
        assert settings['backbone.stages.0.pos_embed'][1] == WD
        # 'stages.3' and 'pos_embed': the longer one.
        assert settings['backbone.stages.3.pos_embed'][1] == WD

    def test_other_fields_of_custom_keys_reach_the_optimizer(self):
        """As mmpretrain's SimSiam fixes the rate of its predictor."""
        model = segmentor(pelk(self.SMALL))
        keys = {
            'decode_head.2': dict(fix_lr=True, decay_mult=0.5),
            'stages.0': dict(betas=(0.5, 0.9), lr=0.3),
        }
        groups = groups_of(model, custom_keys=keys)
        fixed = {n: g for n, g in groups.items() if 'fix_lr' in g}
        assert list(fixed) == ['layer_5_decay_x0.5_decode_head.2']
        assert next(iter(fixed.values()))['param_names'] == [
            'decode_head.2.weight',
            'decode_head.2.bias',
        ]
        for group in groups.values():
            own = {'stages.0' in name for name in group['param_names']}
            assert len(own) == 1
            changed = group['betas'] == (0.5, 0.9), group['lr'] == 0.3
            assert changed == (own.pop(),) * 2

    def test_a_likely_slip_in_custom_keys_is_warned_about(self, caplog):
        """mmseg's DNLNet has a wd_mult, which mmengine hands on as well."""
        logger = MMLogger.get_current_instance()
        logger.addHandler(caplog.handler)
        groups_of(
            segmentor(pelk(self.SMALL)),
            custom_keys=dict(head=dict(lr_mul=10.0), theta=dict(fix_lr=True)),
        )
        logger.removeHandler(caplog.handler)
        warned = [r for r in caplog.records if r.levelname == 'WARNING']
        assert [r.getMessage() for r in warned] == [
            "custom_keys['head']: 'lr_mul' is no multiplier, it goes into the "
            "optimizer's group as it is (did you mean 'lr_mult'?)"
        ]

    @pytest.mark.parametrize(
        ('field', 'who'),
        [
            ('bias_lr_mult', {'conv', 'dcn', 'large', 'linear'}),
            ('dcn_offset_lr_mult', {'offset'}),
            ('dwconv_decay_mult', {'depthwise', 'large_weight'}),
        ],
    )
    def test_the_other_multipliers_of_mmengine(self, field, who):
        from mmcv.ops import ModulatedDeformConv2dPack

        part = PartialPeripheralConv2d(8, SharingGrid(7), deploy=True)
        model = segmentor(pelk(self.SMALL))
        model.decode_head = nn.ModuleDict(
            dict(
                conv=nn.Conv2d(8, 8, 3),
                depthwise=nn.Conv2d(8, 8, 3, groups=8, bias=False),
                dcn=ModulatedDeformConv2dPack(8, 8, 3),
                part=part,
                norm=nn.BatchNorm2d(8),
                linear=nn.Linear(2, 2),
            )
        )
        names = {
            'decode_head.conv.bias': 'conv',
            'decode_head.depthwise.weight': 'depthwise',
            'decode_head.dcn.bias': 'dcn',
            'decode_head.dcn.conv_offset.weight': 'offset',
            'decode_head.dcn.conv_offset.bias': 'offset',
            'decode_head.part.large.weight': 'large_weight',
            'decode_head.part.large.bias': 'large',
            'decode_head.linear.bias': 'linear',
        }
        rate = 'lr' if 'lr' in field else 'weight_decay'
        plain, changed = (
            {
                name: group[rate]
                for group in groups_of(model, **multiplier).values()
                for name in group['param_names']
                if name.startswith('decode_head')
            }
            for multiplier in ({}, {field: 0.5})
        )
        moved = {n for n in plain if changed[n] == plain[n] / 2 != 0}
        assert {names[name] for name in moved} == who
        assert all(changed[n] == plain[n] for n in plain if n not in moved)

    @pytest.mark.parametrize(
        ('field', 'who'),
        [
            ('norm_decay_mult', 'backbone.stages.0.blocks.0.norm.bias'),
            (
                'norm_decay_mult',
                'backbone.stages.0.blocks.0.conv.large_norm.bias',
            ),
            ('bias_decay_mult', 'backbone.downsample_layers.0.0.bias'),
            ('bias_decay_mult', 'decode_head.2.bias'),
            ('flat_decay_mult', 'backbone.stages.0.blocks.0.gamma'),
            ('flat_decay_mult', 'backbone.stages.2.pos_embed'),
        ],
    )
    def test_kinds_of_parameters(self, field, who):
        plain, changed = self.settings(), self.settings(**{field: 0.5})
        assert plain[who][1] == 0
        assert changed[who][1] == WD / 2
        kinds = {
            field: {n for n in plain if plain[n][1] != changed[n][1]}
            for field, changed in (
                (f, self.settings(**{f: 0.5}))
                for f in (
                    'norm_decay_mult',
                    'bias_decay_mult',
                    'flat_decay_mult',
                )
            )
        }
        assert who in kinds[field]
        # The three kinds are apart, and together they are what has no decay.
        assert sum(map(len, kinds.values())) == len(
            set().union(*kinds.values())
        )
        assert set().union(*kinds.values()) == {
            n for n in plain if plain[n][1] == 0
        }

    def test_optimizers_own_decay_spares_the_same_parameters(self):
        """AdamW decays by 0.01 where its config says nothing."""
        settings = self.settings(dict(type='AdamW', lr=LR))
        assert settings['backbone.stages.2.pos_embed'][1] == 0
        assert settings['decode_head.1.bias'][1] == 0
        assert settings['decode_head.0.weight'][1] == 0.01

    def test_optimizer_without_decay(self):
        settings = self.settings(dict(type='Rprop', lr=LR))
        assert settings['decode_head.0.weight'][:2] == (1, None)
        assert settings['backbone.downsample_layers.0.0.weight'][0] == (
            pytest.approx(0.7**5)
        )


class TestBuilding:
    def test_from_a_config_as_recipes_write_it(self):
        cfg = ConfigDict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=LR, weight_decay=WD),
            constructor='LayerDecayOptimWrapperConstructor',
            clip_grad=dict(max_norm=1.0),
            paramwise_cfg=dict(
                decay_rate=0.9, decay_type='stage_wise', num_layers=6
            ),
        )
        before = cfg.to_dict()
        wrapper = build_optim_wrapper(segmentor(pelk()), cfg)
        assert cfg.to_dict() == before
        assert wrapper.clip_grad_kwargs == dict(max_norm=1.0)
        assert wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(
            LR * 0.9**7
        )

    @pytest.mark.parametrize(
        ('paramwise', 'error', 'message'),
        [
            (None, ValueError, 'decay_rate'),
            (dict(num_layers=6), ValueError, 'decay_rate'),
            ([0.9], TypeError, 'paramwise_cfg'),
            (dict(decay_rate=0), ValueError, 'decay_rate'),
            (dict(decay_rate=1.1), ValueError, 'decay_rate'),
            (dict(decay_rate='0.9'), TypeError, 'decay_rate'),
            (dict(decay_rate=True), TypeError, 'decay_rate'),
            (dict(decay_rate=0.9, decay_type='block'), ValueError, "'block'"),
            (dict(decay_rate=0.9, num_layers=0), ValueError, 'num_layers'),
            (dict(decay_rate=0.9, num_layers=6.0), TypeError, 'num_layers'),
            (dict(decay_rate=0.9, layers=6), ValueError, 'layers'),
            (
                dict(decay_rate=0.9, custom_keys=['x']),
                TypeError,
                'custom_keys',
            ),
            (dict(decay_rate=0.9, custom_keys=dict(x=2)), TypeError, "'x'"),
            (
                dict(decay_rate=0.9, bypass_duplicate=1),
                TypeError,
                'bypass_duplicate',
            ),
            (
                dict(decay_rate=0.9, scale_lr_by_cell_area=0.1),
                TypeError,
                'scale_lr_by_cell_area',
            ),
            # mmpretrain's name for it.
            (dict(layer_decay_rate=0.9), ValueError, "mean 'decay_rate'"),
            (
                dict(decay_rate=0.9, custom_keys=dict(x=dict(lr_mult=-1))),
                ValueError,
                "'x'.*lr_mult",
            ),
            (
                dict(decay_rate=0.9, norm_decay_mult=None),
                TypeError,
                'norm_decay_mult',
            ),
        ],
    )
    def test_wrong_settings_are_named(self, paramwise, error, message):
        with pytest.raises(error, match=message):
            LayerDecayOptimWrapperConstructor(
                dict(optimizer=dict(type='AdamW', lr=LR, weight_decay=WD)),
                paramwise,
            )

    def test_nothing_to_scale(self):
        with pytest.raises(ValueError, match='needs an lr'):
            LayerDecayOptimWrapperConstructor(
                dict(optimizer=dict(type='AdamW')), dict(decay_rate=0.9)
            )
        with pytest.raises(ValueError, match='needs a weight_decay'):
            LayerDecayOptimWrapperConstructor(
                dict(optimizer=dict(type='AdamW', lr=LR)),
                dict(decay_rate=0.9, norm_decay_mult=0.5),
            )

    def test_layers_that_are_not_the_backbones(self):
        with pytest.raises(ValueError, match=r'num_layers=12.*PeLK has 6'):
            groups_of(pelk(), num_layers=12)
        with pytest.raises(ValueError, match=r'num_layers=3.*stages.3'):
            groups_of(pelk(), decay_type='stage_wise', num_layers=3)

    def test_no_backbone_knows_its_depths(self):
        from mmpretrain.models import ImageClassifier

        for model in (
            nn.Linear(2, 2),
            meta(lambda: ImageClassifier(backbone=dict(type='LeNet5'))),
        ):
            with pytest.raises(ValueError, match='get_layer_depth'):
                groups_of(model)

    def test_depths_do_not_matter_where_nothing_decays(self):
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        keys = {'1.weight': dict(lr_mult=0.5)}
        groups = groups_of(model, decay_rate=1.0, custom_keys=keys)
        assert {
            name: (group['param_names'], group['lr'], group['weight_decay'])
            for name, group in groups.items()
        } == {
            'layer_0_decay': (['0.weight'], LR, WD),
            'layer_0_no_decay': (['0.bias', '1.bias'], LR, 0),
            'layer_0_no_decay_lr_x0.5': (['1.weight'], LR / 2, 0),
        }


class TestOtherBackbones:
    """Any that knows its depths, as mmpretrain's do."""

    def check_against_itself(self, model):
        scale = {
            name: group['lr_scale']
            for group in groups_of(segmentor(model)).values()
            for name in group['param_names']
        }
        for name, _ in model.named_parameters():
            depth, total = model.get_layer_depth(name)
            assert scale[f'backbone.{name}'] == pytest.approx(
                0.7 ** (total - 1 - depth)
            )
        assert scale['decode_head.0.weight'] == 1

    def test_convnext(self):
        from mmpretrain.models import ConvNeXt

        model = ConvNeXt(dict(depths=[1, 1, 9, 1], channels=[8, 8, 8, 8]))
        self.check_against_itself(model)
        scale = {
            name: group['lr_scale']
            for group in groups_of(
                model, decay_type='stage_wise', num_layers=6
            ).values()
            for name in group['param_names']
        }
        assert scale['stages.2.8.gamma'] == pytest.approx(0.7**4)
        assert scale['downsample_layers.3.1.weight'] == pytest.approx(0.7**7)
        assert scale['norm3.weight'] == 1

    def test_swin(self):
        from mmpretrain.models import SwinTransformer

        model = SwinTransformer(
            dict(embed_dims=8, depths=[2, 2, 6, 2], num_heads=[1, 1, 1, 1])
        )
        self.check_against_itself(model)
        scale = {
            name: group['lr_scale']
            for group in groups_of(
                model, decay_type='stage_wise', num_layers=12
            ).values()
            for name in group['param_names']
        }
        assert scale['stages.0.downsample.reduction.weight'] == (
            pytest.approx(0.7**12)
        )
        assert scale['patch_embed.projection.weight'] == pytest.approx(0.7**13)

    def test_vision_transformer(self):
        from mmpretrain.models import VisionTransformer

        model = VisionTransformer(
            dict(
                embed_dims=8,
                num_layers=3,
                num_heads=2,
                feedforward_channels=16,
            ),
            img_size=32,
        )
        self.check_against_itself(model)
        groups = groups_of(model)
        assert {'cls_token', 'pos_embed'} <= set(
            groups['layer_0_no_decay']['param_names']
        )
        with pytest.raises(ValueError, match=r'cannot place.*layers\.0'):
            groups_of(model, decay_type='stage_wise')


class TestLibrariesConstructors:
    """Those of the libraries' recipes, with PeLK in the place of ConvNeXt."""

    WRAPPER = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=WD),
    )

    @pytest.mark.parametrize(
        ('constructor', 'paramwise', 'advice'),
        [
            (
                'mmdet.LearningRateDecayOptimizerConstructor',
                dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
                'dict(decay_rate=0.95)',
            ),
            (
                'mmseg.LearningRateDecayOptimizerConstructor',
                dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
                "dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6)",
            ),
            (
                'mmseg.LayerDecayOptimizerConstructor',
                dict(layer_decay_rate=0.8, num_layers=12),
                'dict(decay_rate=0.8)',
            ),
            (
                'mmpretrain.LearningRateDecayOptimWrapperConstructor',
                dict(layer_decay_rate=0.7),
                'dict(decay_rate=0.7)',
            ),
        ],
    )
    @pytest.mark.filterwarnings('ignore:.*Decay')
    def test_ours_is_named(self, constructor, paramwise, advice):
        model = segmentor(pelk())
        cfg = dict(
            self.WRAPPER, constructor=constructor, paramwise_cfg=paramwise
        )
        with pytest.raises(NotImplementedError) as caught:
            build_optim_wrapper(model, ConfigDict(cfg))
        assert from_config(caught.value)
        text = explain(caught.value)
        name = constructor.split('.')[1]
        assert text.startswith(f'{name} does not know the depths')
        ours = search(
            r"constructor='(\w+)' with paramwise_cfg=(dict\(.*?\))", text
        )
        assert ours[2] == advice
        # Doing what it says works.
        cfg |= dict(constructor=ours[1], paramwise_cfg=eval(ours[2]))
        assert build_optim_wrapper(model, ConfigDict(cfg))

    def test_mmpretrains_knows_a_classifiers_pelk(self):
        from mmpretrain.models import ImageClassifier

        model = meta(
            lambda: ImageClassifier(
                backbone=dict(type='PeLK'),
                head=dict(
                    type='LinearClsHead', in_channels=998, num_classes=9
                ),
            )
        )
        cfg = dict(
            self.WRAPPER,
            constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.7),
        )
        theirs = build_optim_wrapper(model, ConfigDict(cfg))
        scale = {
            group['param_name']: group['lr_scale']
            for group in theirs.optimizer.param_groups
        }
        assert scale == {
            name: group['lr_scale']
            for group in groups_of(model).values()
            for name in group['param_names']
        }
