"""The network: what it computes, merged or not, and what it refuses."""

import copy
import math
import pickle
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint
from mmpretrain.models.backbones import ConvNeXt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pelk_mm.models import PeLK

CONVNEXTS = tuple(ConvNeXt.arch_settings)
ARCHS = ('tiny', 'small', 'base', 'tiny-101', 'base-101', 'tiny-151')
#: A PeLK in small: all parts, odd widths, kernels larger than the maps.
SMALL = dict(
    depths=(1, 1, 4, 1),
    channels=(8, 12, 17, 24),
    kernel_sizes=(13, 9, 7, 5),
    center_radius=2,
)
ALL = (0, 1, 2, 3)


def small(**kwargs):
    """A small PeLK with LayerScale 1, or every branch would be invisible."""
    kwargs = (
        dict(
            layer_scale_init_value=1.0,
            out_indices=ALL,
            gap_before_final_norm=False,
        )
        | kwargs
    )
    return PeLK(SMALL, **kwargs)


@cache
def full_size(arch, deploy=False):
    """Shapes without weights; not to be changed."""
    with torch.device('meta'):
        return PeLK(arch, deploy=deploy)


def images(*size, channels=3):
    return torch.randn(2, channels, *(size or (32, 64)))


@torch.no_grad()
def outputs(model, x=None, seed=0):
    torch.manual_seed(seed)
    return model(images() if x is None else x)


def same(left, right, **tolerance):
    """Whether two tuples of tensors are the same, shapes included."""
    return len(left) == len(right) and all(
        a.shape == b.shape and torch.allclose(a, b, **tolerance)
        for a, b in zip(left, right, strict=True)
    )


def some_loss(maps):
    """A sum with random signs: a plain one is blind behind a LayerNorm."""
    return sum((y * torch.randn_like(y)).sum() for y in maps)


class TestArchs:
    @pytest.mark.parametrize('name', CONVNEXTS)
    def test_convnexts_are_those_of_mmpretrain(self, name):
        source = ConvNeXt.arch_settings[name]
        for suffix, largest in (('', 51), ('-101', 101)):
            arch = PeLK.arch_settings[f'convnext-{name}{suffix}']
            assert list(arch['depths']) == source['depths']
            assert list(arch['channels']) == source['channels']
            assert arch['kernel_sizes'][0] == largest
            assert arch['center_radius'] == 3

    def test_convnexts_have_its_block(self):
        conv = full_size('convnext-tiny').stages[0].blocks[0].conv
        assert conv.split == (96, 0)
        assert conv.merged and conv.small is None
        assert full_size('convnext-tiny').stages[0].pos_embed is None
        with torch.device('meta'):
            model = PeLK('convnext-tiny', conv_ratio=0.5, pos_embed=True)
        assert model.stages[0].blocks[0].conv.split == (48, 48)
        assert model.stages[0].pos_embed is not None

    @pytest.mark.parametrize(
        ('arch', 'millions'),
        [('tiny', 28.8), ('small', 50.8), ('base', 89.6), ('base-101', 89.9)],
    )
    def test_parameter_counts_of_the_paper(self, arch, millions):
        """60 % of every 2-D and 4-D weight are live, classifier included."""
        with torch.device('meta'):
            classifier = nn.Linear(PeLK.out_channels(arch)[-1], 1000)
        live = sum(
            p.numel() * (0.6 if p.ndim in (2, 4) else 1)
            for part in (full_size(arch), classifier)
            for p in part.parameters()
        )
        assert live / 1e6 == pytest.approx(millions, abs=0.1)

    @pytest.mark.parametrize('arch', ARCHS)
    def test_builds_as_in_the_table(self, arch):
        size, _, large = arch.partition('-')
        base = {'tiny': 96, 'small': 96, 'base': 128}[size]
        depths = {'tiny': 9, 'small': 27, 'base': 27}[size]
        kernels = {
            '': (51, 49, 47, 13),
            '101': (101, 69, 67, 13),
            '151': (151, 89, 87, 13),
        }[large]
        model = full_size(arch)
        widths = [base * 2**i * 13 // 10 for i in range(4)]
        assert PeLK.out_channels(arch) == widths
        assert [len(stage.blocks) for stage in model.stages] == [
            3,
            3,
            depths,
            3,
        ]
        for stage, kernel, width in zip(
            model.stages, kernels, widths, strict=True
        ):
            assert stage.pos_embed.shape == (1, kernel, kernel)
            for block in stage.blocks:
                grid = block.conv.large.grid
                assert grid.kernel_size == kernel
                assert block.conv.split[0] == width * 3 // 8
                assert block.pointwise_conv1.weight.shape == (4 * width, width)
                # r_c = 2, or 3 where the kernel is larger; K = 13 and 3 has
                # cells of 1 in the outermost place too.
                assert grid.unshared_radius == (2 if not large else 3)

    def test_arch_can_be_a_dict(self):
        arch = dict(SMALL, center_radius=1)
        model = PeLK(arch)
        assert model.depths == (1, 1, 4, 1)
        assert model.stages[0].blocks[0].conv.large.grid.unshared_radius == 1
        del arch['center_radius']
        assert PeLK(arch).center_radius == 2
        assert PeLK.out_channels(arch) == [8, 12, 17, 24]

    def test_out_channels_can_be_changed(self):
        PeLK.out_channels('tiny').append(1)
        assert PeLK.out_channels('tiny') == [124, 249, 499, 998]


class TestForward:
    def test_maps_are_contiguous_and_strided(self):
        """mmcv's operators read the memory of other layouts wrongly."""
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = outputs(
                small(out_indices=ALL).eval(),
                images(64, 96).to(memory_format=layout),
            )
            assert [tuple(y.shape) for y in maps] == [
                (2, 8, 16, 24),
                (2, 12, 8, 12),
                (2, 17, 4, 6),
                (2, 24, 2, 3),
            ]
            assert all(y.is_contiguous() for y in maps)

    def test_odd_sizes_are_cut_like_convnexts(self):
        """Strides floor: the last rows and columns of 37 x 53 go unseen."""
        model = small().eval()
        x = images(37, 53)
        maps = outputs(model, x)
        assert [y.shape[2:] for y in maps] == [(9, 13), (4, 6), (2, 3), (1, 1)]
        cut = x[..., :36, :52].clone()
        assert same(maps, outputs(model, cut))

    @pytest.mark.parametrize('size', [(32, 32), (32, 250)])
    def test_maps_smaller_than_the_kernel(self, size):
        model = small(deploy=True).eval()
        assert all(y.isfinite().all() for y in outputs(model, images(*size)))

    def test_batch_does_not_mix_in_eval_mode(self):
        model, x = small().eval(), images()
        assert same(
            [y[:1] for y in outputs(model, x)],
            outputs(model, x[:1]),
            atol=1e-5,
        )

    def test_follows_the_paper_block_by_block(self, randomise):
        """The stem, one block and the output norm, written out again."""
        model = randomise(
            PeLK(
                dict(SMALL, depths=(1, 1, 1, 1)),
                out_indices=0,
                gap_before_final_norm=False,
                layer_scale_init_value=0.7,
            )
        ).eval()
        state, x = model.state_dict(), images(32, 32)

        def norm(y, name):
            return F.layer_norm(
                y.permute(0, 2, 3, 1),
                y.shape[1:2],
                state[f'{name}.weight'],
                state[f'{name}.bias'],
                1e-6,
            ).permute(0, 3, 1, 2)

        def batch_norm(y, name):
            shape = (1, -1, 1, 1)
            mean, var, weight, bias = (
                state[f'{name}.{part}'].view(shape)
                for part in ('running_mean', 'running_var', 'weight', 'bias')
            )
            return (y - mean) / (var + 1e-5).sqrt() * weight + bias

        stem = 'downsample_layers.0'
        y = norm(
            F.conv2d(
                x, state[f'{stem}.0.weight'], state[f'{stem}.0.bias'], stride=4
            ),
            f'{stem}.1',
        )
        block = 'stages.0.blocks.0'
        grid = model.stages[0].blocks[0].conv.large.grid
        kernel = grid.expand(state[f'{block}.conv.large.weight'])
        head = y[:, :3]
        z = batch_norm(
            F.conv2d(head, kernel, padding=6, groups=3),
            f'{block}.conv.large_norm',
        )
        z = z + batch_norm(
            F.conv2d(
                head, state[f'{block}.conv.small.weight'], padding=2, groups=3
            ),
            f'{block}.conv.small_norm',
        )
        constant = (kernel[:, 0] * state['stages.0.pos_embed']).sum((1, 2))
        assert constant.abs().min() > 1e-3
        z = torch.cat((z + constant[:, None, None], y[:, 3:]), 1)
        z = norm(z, f'{block}.norm').permute(0, 2, 3, 1)
        for i in (1, 2):
            name = f'{block}.pointwise_conv{i}'
            z = F.linear(z, state[f'{name}.weight'], state[f'{name}.bias'])
            z = F.gelu(z) if i == 1 else z
        y = y + (z * 0.7).permute(0, 3, 1, 2)
        torch.testing.assert_close(
            model(x)[0], norm(y, 'norm0'), rtol=1e-4, atol=1e-5
        )

    def test_pooled_vectors_are_normalised_means(self):
        maps, vectors = small(), small(gap_before_final_norm=True)
        vectors.load_state_dict(maps.state_dict())
        for model in (maps, vectors):
            model.eval()
        pooled = outputs(vectors)
        for i, norm in enumerate(ALL):
            setattr(maps, f'norm{norm}', nn.Identity())
            raw = outputs(maps)[i]
            torch.testing.assert_close(
                pooled[i],
                F.layer_norm(raw.mean((2, 3)), raw.shape[1:2], eps=1e-6),
            )

    @pytest.mark.parametrize(
        ('asked', 'gap', 'pooled'),
        [
            (-1, None, True),
            ((3,), None, True),
            (-1, False, False),
            (2, None, False),
            (ALL, None, False),
            ((2, 3), None, False),
            (ALL, True, True),
        ],
    )
    def test_the_last_stage_alone_is_pooled(self, asked, gap, pooled):
        model = PeLK(SMALL, out_indices=asked, gap_before_final_norm=gap)
        assert model.gap_before_final_norm is pooled
        dimensions = {y.ndim for y in outputs(model.eval())}
        assert dimensions == {2 if pooled else 4}

    @pytest.mark.parametrize(
        ('asked', 'stages'),
        [
            (-1, (3,)),
            (0, (0,)),
            ((1,), (1,)),
            ((0, 2), (0, 2)),
            ([3, 0, 1], (3, 0, 1)),
            ((-4, -1), (0, 3)),
            ((-2, 2), (2, 2)),
            (range(4), ALL),
        ],
    )
    def test_out_indices(self, asked, stages):
        whole, model = small().eval(), small(out_indices=asked).eval()
        assert len(model.stages) == max(stages) + 1
        model.load_state_dict(whole.state_dict(), strict=False)
        every = outputs(whole)
        assert same(outputs(model), [every[i] for i in stages])
        norms = {
            name
            for name, _ in model.named_children()
            if name.startswith('norm')
        }
        assert norms == {f'norm{i}' for i in stages}


class TestTraining:
    @pytest.mark.parametrize('pooled', [True, False])
    def test_every_parameter_gets_a_gradient(self, pooled):
        model = small(gap_before_final_norm=pooled)
        some_loss(model(images(64, 64))).backward()
        without = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or parameter.grad.abs().max() < 1e-6
        ]
        assert not without

    @pytest.mark.parametrize(
        ('pooled', 'with_cp', 'compiled'),
        [
            (False, True, False),
            (True, False, False),
            pytest.param(False, False, True, marks=pytest.mark.slow),
        ],
    )
    def test_norms_that_nobody_reads_get_zeros(
        self, pooled, with_cp, compiled
    ):
        """And all else what it gets where they are left out."""
        kwargs = dict(gap_before_final_norm=pooled, with_cp=with_cp)
        model = small(out_indices=(0, 1), **kwargs)
        alone = small(out_indices=1, **kwargs)
        alone.load_state_dict(model.state_dict(), strict=False)
        x = images()

        def read(x):
            return model(x)[1]

        if compiled:
            read = torch.compile(read, fullgraph=True, backend='aot_eager')
        for y in (read(x), alone(x)[0]):
            y.pow(3).sum().backward()
        expected = {name: p.grad for name, p in alone.named_parameters()}
        for name, parameter in model.named_parameters():
            if name.startswith('norm0'):
                assert not parameter.grad.any()
            else:
                torch.testing.assert_close(
                    parameter.grad, expected[name], rtol=1e-3, atol=1e-3
                )

    def test_a_norm_that_is_not_a_number_stays_alone(self):
        model = small()
        nn.init.constant_(model.norm0.weight, math.nan)
        maps = model(images())[1:]
        assert all(y.isfinite().all() for y in maps)
        some_loss(maps).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_distributed_where_not_all_is_read(self, tmp_path):
        """One process waits for every gradient as several do."""
        store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
        torch.distributed.init_process_group(
            'gloo', store=store, rank=0, world_size=1
        )
        try:
            model = nn.parallel.DistributedDataParallel(small())
            for _ in range(3):
                some_loss(model(images())[2:]).backward()
        finally:
            torch.distributed.destroy_process_group()

    def test_any_kind_of_gradient_with_all_norms(self):
        """Twice, by torch.func, forward, and for each sample by itself."""
        model = small(out_indices=(0, 1)).double()
        for part in model.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        weights = {
            name: p.detach()
            for name, p in model.named_parameters()
            if name.startswith('norm')
        }
        x = images().double()

        def loss(weights, x):
            maps = torch.func.functional_call(model, weights, (x,))
            return maps[1].square().sum()

        grads = torch.func.grad(loss)(weights, x)
        assert not grads['norm0.bias'].any() and grads['norm1.bias'].all()
        per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(
            weights, x[:, None]
        )
        for name, grad in grads.items():
            torch.testing.assert_close(per_sample[name].sum(0), grad)
        step = {name: torch.ones_like(p) for name, p in weights.items()}
        _, tangent = torch.func.jvp(lambda w: loss(w, x), (weights,), (step,))
        expected = sum(grad.sum() for grad in grads.values())
        torch.testing.assert_close(tangent, expected)
        hessian = torch.func.hessian(loss)(weights, x)
        assert not hessian['norm1.bias']['norm0.bias'].any()

    @pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
    def test_checkpointing_equals_plain(self, norm):
        """Outputs, gradients and the norms' statistics, over two steps."""
        torch.manual_seed(1)
        plain = small(drop_path_rate=0.5, norm_cfg=dict(type=norm))
        saving = small(
            drop_path_rate=0.5, norm_cfg=dict(type=norm), with_cp=True
        )
        saving.load_state_dict(plain.state_dict())
        results = []
        for model in (plain, saving):
            torch.manual_seed(2)
            for _ in range(2):
                maps = model(images())
                some_loss(maps).backward()
            results.append(
                (
                    maps,
                    [p.grad for p in model.parameters()],
                    list(model.buffers()),
                )
            )
        for a, b in zip(*results, strict=True):
            assert same(a, b, rtol=1e-4, atol=1e-5)
        counts = {
            int(b)
            for name, b in saving.named_buffers()
            if name.endswith('num_batches_tracked')
        }
        assert counts == {2}

    def test_checkpointing_keeps_fewer_activations(self):
        def kept(model):
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.append(x.numel()) or x, lambda x: x
            ):
                model(images())
            return sum(sizes)

        assert kept(small(with_cp=True)) < 0.5 * kept(small())

    def test_checkpointing_in_a_distributed_run(self, tmp_path):
        """Its hooks see every gradient once, and the norms' own buffers."""
        plain = small(norm_cfg=dict(type='BN'))
        saving = small(norm_cfg=dict(type='BN'), with_cp=True)
        saving.load_state_dict(plain.state_dict())
        torch.distributed.init_process_group(
            'gloo',
            init_method=f'file://{tmp_path}/rendezvous',
            rank=0,
            world_size=1,
        )
        try:
            models = plain, nn.parallel.DistributedDataParallel(saving)
            for seed in range(2):
                for model in models:
                    torch.manual_seed(seed)
                    some_loss(model(images())).backward()
        finally:
            torch.distributed.destroy_process_group()
        assert same(
            [p.grad for p in plain.parameters()],
            [p.grad for p in saving.parameters()],
            rtol=1e-4,
            atol=1e-5,
        )
        assert same(list(plain.buffers()), list(saving.buffers()))

    def test_an_interrupted_recomputation_leaves_the_norms_alone(self):
        model = small(with_cp=True)
        buffers = dict(model.named_buffers())
        loss = sum(y.sum() for y in model(images()))
        # The second run of the last block fails.
        model.stages[-1].blocks[-1].act = nn.Linear(1, 1)
        with pytest.raises(RuntimeError):
            loss.backward()
        assert all(
            buffers[name] is buffer for name, buffer in model.named_buffers()
        )

    @pytest.mark.parametrize('stages', range(-1, 5))
    def test_frozen_stages(self, stages):
        model = small(frozen_stages=stages)
        for mode in (None, True, False, True):
            if mode is not None:
                assert model.train(mode) is model
            for i in range(4):
                parts = (model.downsample_layers[i], model.stages[i])
                for part in parts:
                    for module in part.modules():
                        assert module.training == (
                            mode is not False and i >= stages
                        )
                    for parameter in part.parameters():
                        assert parameter.requires_grad == (i >= stages)
                assert getattr(model, f'norm{i}').weight.requires_grad
        before = copy.deepcopy(model.state_dict())
        sum(y.square().mean() for y in model(images())).backward()
        moved = {
            int(name.split('.')[1])
            for name, value in model.state_dict().items()
            if 'running' in name and not torch.equal(value, before[name])
        }
        assert moved == set(range(max(stages, 0), 4))

    def test_frozen_stages_beyond_those_built(self):
        model = small(out_indices=1, frozen_stages=4)
        assert not any(p.requires_grad for p in model.stages.parameters())

    def test_drop_path_grows_linearly(self):
        rates = [
            block.drop_path.drop_prob
            for stage in small(drop_path_rate=0.6).stages
            for block in stage.blocks
        ]
        assert rates == pytest.approx([0.1 * i for i in range(7)])
        # Whatever is built, a block has the rate it has in the whole.
        first = small(drop_path_rate=0.6, out_indices=1).stages[1].blocks[0]
        assert first.drop_path.drop_prob == pytest.approx(0.1)

    def test_drop_path_drops_whole_samples_in_training_only(self):
        model = small(drop_path_rate=0.5, norm_cfg=dict(type='BN'))
        block = model.stages[3].blocks[0]
        x = torch.randn(64, 24, 2, 2)
        with torch.no_grad():
            changes = (block(x) - x).abs().amax((1, 2, 3))
        dropped = int((changes == 0).sum())
        assert 16 < dropped < 48
        assert changes[changes > 0].min() > 1e-3
        model.eval()
        assert same(outputs(model, seed=1), outputs(model, seed=1))
        assert (block(x) != x).flatten(1).any(1).all()

    def test_weights_start_as_convnexts(self):
        model = PeLK(dict(SMALL, channels=(64, 64, 64, 64)))
        # With nothing to do, it leaves them as they are.
        model.init_weights()
        for name, parameter in model.named_parameters():
            owner = model.get_submodule(name.rpartition('.')[0])
            if name.endswith('bias'):
                assert not parameter.any(), name
            elif name.endswith('gamma'):
                assert (parameter == 1e-6).all(), name
            elif isinstance(owner, (nn.LayerNorm, _BatchNorm)):
                assert (parameter == 1).all(), name
            else:
                assert parameter.std().item() == pytest.approx(
                    0.02, rel=0.05 + 3 / parameter.numel() ** 0.5
                ), name


class TestArguments:
    @pytest.mark.parametrize(
        ('kwargs', 'effect'),
        [
            (dict(in_channels=1), lambda m: m(images(channels=1))),
            (
                dict(small_kernel=3),
                lambda m: 'conv.small.weight' in str(m.state_dict().keys())
                and m.stages[0].blocks[0].conv.small.kernel_size == (3, 3),
            ),
            (
                dict(small_kernel=None),
                lambda m: not any(
                    isinstance(x, _BatchNorm) for x in m.modules()
                ),
            ),
            (
                dict(conv_ratio=0.5),
                lambda m: m.stages[0].blocks[0].conv.split == (4, 4),
            ),
            (
                dict(pos_embed=False),
                lambda m: not any('pos_embed' in x for x in m.state_dict()),
            ),
            (
                dict(use_grn=True),
                lambda m: 'stages.3.blocks.0.grn.gamma' in m.state_dict(),
            ),
            (
                dict(norm_cfg=dict(type='SyncBN')),
                lambda m: all(
                    isinstance(x, nn.SyncBatchNorm)
                    for x in m.modules()
                    if isinstance(x, _BatchNorm)
                ),
            ),
            (
                dict(norm_cfg=dict(type='BN', momentum=0.5)),
                lambda m: all(
                    x.momentum == 0.5
                    for x in m.modules()
                    if isinstance(x, _BatchNorm)
                ),
            ),
            (
                dict(layer_scale_init_value=0.5),
                lambda m: (m.stages[3].blocks[0].gamma == 0.5).all(),
            ),
            (
                dict(layer_scale_init_value=0),
                lambda m: not any('gamma' in x for x in m.state_dict()),
            ),
            (
                dict(backend='fft'),
                lambda m: {
                    b.conv.large.backend for s in m.stages for b in s.blocks
                }
                == {'fft'},
            ),
            (
                dict(deploy=True),
                lambda m: not any('norm.running' in x for x in m.state_dict()),
            ),
            (
                dict(init_cfg=dict(type='Constant', layer='Linear', val=3.0)),
                lambda m: m.init_weights()
                or (m.stages[0].blocks[0].pointwise_conv1.weight == 3).all(),
            ),
        ],
    )
    def test_each_has_its_effect_and_runs(self, kwargs, effect):
        model = small(**kwargs)
        # The effect is this argument's, not what every PeLK has.
        plain = small()
        assert effect(model)
        try:
            assert not effect(plain)
        except (ValueError, IndexError) as error:
            assert 'in_channels' in kwargs and 'got shape' in str(error)
        x = images(channels=kwargs.get('in_channels', 3))
        assert all(y.isfinite().all() for y in outputs(model, x))

    def test_layer_scale_and_drop_path_change_what_is_computed(self):
        model, other = small(), small(layer_scale_init_value=0.5)
        other.load_state_dict(
            {k: v for k, v in model.state_dict().items() if 'gamma' not in k},
            strict=False,
        )
        assert not same(outputs(model), outputs(other), rtol=1e-2, atol=1e-2)
        without = small(layer_scale_init_value=0)
        without.load_state_dict(model.state_dict(), strict=False)
        assert same(outputs(model), outputs(without))
        dropping, both = (
            small(drop_path_rate=0.9, layer_scale_init_value=scale)
            for scale in (0, 1)
        )
        for other in (dropping, both):
            other.load_state_dict(model.state_dict(), strict=False)
        assert same(outputs(dropping), outputs(both), rtol=1e-4, atol=1e-4)
        assert not same(
            outputs(model), outputs(dropping), rtol=1e-2, atol=1e-2
        )

    def test_eval_and_train_return_the_model(self):
        model = small(frozen_stages=1)
        assert model.eval() is model
        assert not model.training
        assert model.train() is model

    def test_the_callers_objects_stay_as_they_were(self):
        arch = dict(
            depths=[1, 1, 1, 1],
            channels=[8, 8, 8, 8],
            kernel_sizes=[5, 5, 5, 5],
        )
        given = dict(
            arch=arch,
            out_indices=[0, -1],
            norm_cfg=dict(type='BN', requires_grad=True),
            init_cfg=[dict(type='TruncNormal', layer='Linear')],
        )
        before = copy.deepcopy(given)
        model = PeLK(**given)
        model.init_weights()
        model.switch_to_deploy()
        assert given == before
        # Nor does the model follow what happens to them later.
        given['out_indices'].append(1)
        arch['depths'][0] = 9
        arch['channels'] = None
        assert model.out_indices == (0, 3)
        assert model.depths == (1, 1, 1, 1)
        assert model.arch['depths'] == [1, 1, 1, 1]

    @pytest.mark.parametrize('deploy', [False, True])
    def test_copies_and_pickles(self, deploy):
        model = small(frozen_stages=1).eval()
        if deploy:
            model.switch_to_deploy()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert same(outputs(model), outputs(twin))
            with torch.no_grad():
                twin.stages[2].blocks[0].norm.weight.add_(1)
            assert not same(outputs(model), outputs(twin))

    @pytest.mark.parametrize(
        ('arch', 'error', 'message'),
        [
            ('huge', ValueError, "unknown arch 'huge'.*'tiny'"),
            (3, TypeError, 'arch'),
            (dict(SMALL, widths=(1,)), ValueError, 'unknown.*widths'),
            (dict(depths=(1, 1, 1, 1)), ValueError, 'missing.*channels'),
            (dict(SMALL, depths=(1, 1, 1)), ValueError, 'depths.*4.*got 3'),
            (dict(SMALL, channels=(8,) * 5), ValueError, 'channels.*got 5'),
            (dict(SMALL, kernel_sizes=()), ValueError, 'kernel_sizes.*got 0'),
            (dict(SMALL, kernel_sizes=51), TypeError, 'kernel_sizes.*51'),
            (dict(SMALL, depths='3393'), TypeError, "depths.*'3393'"),
            (dict(SMALL, depths=(1, 0, 1, 1)), ValueError, r"depths'\]\[1\]"),
            (
                dict(SMALL, channels=(8, 8.0, 8, 8)),
                TypeError,
                r"channels'\]\[1\]",
            ),
            (dict(SMALL, channels=(8, 8, 8, 2)), ValueError, 'to convolve'),
            (
                dict(SMALL, kernel_sizes=(13, 9, 8, 5)),
                ValueError,
                'kernel_sizes.*odd.*8',
            ),
            (
                dict(SMALL, kernel_sizes=(13, 9, 3, 5)),
                ValueError,
                'kernel_sizes.*3.*centre',
            ),
            (dict(SMALL, center_radius=-1), ValueError, 'center_radius'),
            (dict(SMALL, center_radius=2.0), TypeError, 'center_radius'),
        ],
    )
    def test_wrong_archs_say_what_is_wrong(self, arch, error, message):
        with pytest.raises(error, match=message):
            PeLK(arch)
        with pytest.raises((TypeError, ValueError)):
            PeLK(arch, in_channels=0)

    @pytest.mark.parametrize(
        ('name', 'value', 'error'),
        [
            ('in_channels', 0, ValueError),
            ('in_channels', '3', TypeError),
            ('in_channels', True, TypeError),
            ('small_kernel', 4, ValueError),
            ('small_kernel', 7, ValueError),
            ('small_kernel', 5.0, TypeError),
            ('conv_ratio', 0, ValueError),
            ('conv_ratio', 1.1, ValueError),
            ('conv_ratio', math.nan, ValueError),
            ('conv_ratio', None, TypeError),
            ('pos_embed', 1, TypeError),
            ('use_grn', None, TypeError),
            ('norm_cfg', 'BN', TypeError),
            ('norm_cfg', dict(type='LN'), ValueError),
            ('drop_path_rate', -0.1, ValueError),
            ('drop_path_rate', 1, ValueError),
            ('drop_path_rate', [0.1], TypeError),
            ('layer_scale_init_value', -1e-6, ValueError),
            ('layer_scale_init_value', None, TypeError),
            ('out_indices', 4, ValueError),
            ('out_indices', (0, -5), ValueError),
            ('out_indices', (), TypeError),
            ('out_indices', None, TypeError),
            ('out_indices', '0123', TypeError),
            ('out_indices', (1.0,), TypeError),
            ('frozen_stages', -2, ValueError),
            ('frozen_stages', 5, ValueError),
            ('frozen_stages', None, TypeError),
            ('gap_before_final_norm', 0, TypeError),
            ('with_cp', 'yes', TypeError),
            ('deploy', 0, TypeError),
            ('backend', 'abacus', ValueError),
        ],
    )
    def test_wrong_arguments_are_named(self, name, value, error):
        with pytest.raises(error, match=f'{name}|{value!r}'):
            PeLK(SMALL, **{name: value})

    @pytest.mark.parametrize(
        ('shape', 'message'),
        [
            ((1, 3, 31, 64), '31 x 64.*32 x 32'),
            ((1, 3, 64, 3), '64 x 3 '),
            ((1, 4, 64, 64), r'3, H, W.*\(1, 4, 64, 64\)'),
            ((3, 64, 64), r'\(3, 64, 64\)'),
        ],
    )
    def test_wrong_images_are_refused(self, shape, message):
        with pytest.raises(ValueError, match=message):
            small()(torch.randn(shape))

    def test_fewer_stages_take_smaller_images(self):
        model = small(out_indices=0).eval()
        assert outputs(model, images(4, 4))[0].shape == (2, 8, 1, 1)
        with pytest.raises(ValueError, match='3 x 4'):
            model(images(3, 4))


def build_fast(arch, randomise, **kwargs):
    """A full-size PeLK without the seconds of truncated normals."""
    with torch.device('meta'):
        model = PeLK(arch, layer_scale_init_value=1.0, **kwargs)
    model.to_empty(device='cpu')
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, float('bias' not in name))
            else:
                nn.init.uniform_(parameter, -0.035, 0.035)
    return randomise(model)


class TestDeploy:
    def check(self, model, x):
        model.eval()
        expected = outputs(model, x)
        model.switch_to_deploy()
        merged = outputs(model, x)
        for y, z in zip(expected, merged, strict=True):
            assert y.dtype == torch.float32
            assert (y - z).abs().max() / y.abs().max() < 1e-5
        kinds = {
            name.split('conv.')[1]
            for name in model.state_dict()
            if '.conv.' in name
        }
        assert 'pos_embed' not in str(list(model.state_dict()))
        return kinds

    @pytest.mark.parametrize('arch', ARCHS)
    def test_is_exact_for_every_arch(self, arch, randomise):
        model = build_fast(
            arch, randomise, out_indices=ALL, gap_before_final_norm=False
        )
        kinds = self.check(model, torch.randn(1, 3, 64, 64))
        assert kinds == {'large.weight', 'large.bias'}

    @pytest.mark.parametrize(
        ('kwargs', 'kinds'),
        [
            (dict(), 2),
            (dict(small_kernel=3), 2),
            (dict(small_kernel=None), 2),
            (dict(small_kernel=None, pos_embed=False), 2),
            (dict(pos_embed=False), 2),
            (dict(norm_cfg=dict(type='SyncBN')), 2),
            (dict(arch=dict(SMALL, center_radius=1)), 3),
            (dict(gap_before_final_norm=True, frozen_stages=2), 2),
        ],
    )
    def test_is_exact_with_any_settings(self, kwargs, kinds, randomise):
        model = PeLK(
            **(
                dict(
                    arch=SMALL,
                    layer_scale_init_value=1.0,
                    gap_before_final_norm=False,
                )
                | kwargs
            )
        )
        assert len(self.check(randomise(model), images())) == kinds
        # And what is saved from it loads into a model built merged.
        built = PeLK(
            **(
                dict(
                    arch=SMALL,
                    layer_scale_init_value=1.0,
                    gap_before_final_norm=False,
                )
                | kwargs
            ),
            deploy=True,
        ).eval()
        built.load_state_dict(model.state_dict())
        assert same(outputs(built), outputs(model))

    def test_on_the_meta_device(self):
        with torch.device('meta'):
            model = small()
        model.switch_to_deploy()
        built = small(deploy=True).state_dict()
        for name, value in model.state_dict().items():
            assert value.is_meta and value.shape == built.pop(name).shape
        assert not built

    def test_twice_is_once(self, randomise):
        model = randomise(small()).eval()
        model.switch_to_deploy()
        once = copy.deepcopy(model.state_dict())
        model.switch_to_deploy()
        assert model.deploy
        assert all(
            torch.equal(once[name], value)
            for name, value in model.state_dict().items()
        )

    def test_merged_trains_without_norms(self):
        model = small(deploy=True)
        some_loss(model(images())).backward()
        assert all(p.grad is not None for p in model.parameters())


class TestLoading:
    """Nothing is loaded into other parts or another arch, however asked."""

    OTHER_PARTS = [
        (dict(), dict(deploy=True), 'deploy=True'),
        (dict(deploy=True), dict(), 'switch_to_deploy'),
        (dict(), dict(small_kernel=None), 'small_kernel'),
        (dict(small_kernel=None), dict(), 'small_kernel'),
        (dict(pos_embed=False), dict(), 'pos_embed'),
        (dict(), dict(pos_embed=False), 'pos_embed'),
        (dict(small_kernel=3), dict(), 'small'),
        (dict(small_kernel=None, pos_embed=False), dict(), 'large_norm'),
    ]

    @pytest.mark.parametrize('strict', [True, False])
    @pytest.mark.parametrize(('own', 'given', 'message'), OTHER_PARTS)
    def test_other_parts(self, own, given, message, strict, tmp_path):
        model, other = small(**own), small(**given)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(other.state_dict(), strict=strict)
        # As part of a model, by mmengine, which only warns by itself.
        path = str(tmp_path / 'whole.pth')
        torch.save(
            dict(state_dict=nn.ModuleDict(dict(backbone=other)).state_dict()),
            path,
        )
        with pytest.raises(RuntimeError, match=message):
            load_checkpoint(
                nn.ModuleDict(dict(backbone=model)), path, strict=strict
            )
        assert all(
            torch.equal(before[name], value)
            for name, value in model.state_dict().items()
        )

    @pytest.mark.parametrize(
        ('own', 'given', 'message'),
        [
            ('tiny', 'small', r'\[3, 3, 27, 3\].*\[3, 3, 9, 3\]'),
            ('small', 'tiny', r'\[3, 3, 9, 3\].*\[3, 3, 27, 3\]'),
            ('small', 'base', 'another arch'),
            ('base', 'small', 'another arch'),
            ('tiny', 'tiny-101', 'only the kernels differ'),
            ('base-101', 'base', 'only the kernels differ'),
        ],
    )
    @pytest.mark.parametrize('deploy', [False, True])
    def test_other_archs(self, own, given, message, deploy):
        model = full_size(own, deploy)
        state = full_size(given, deploy).state_dict()
        for strict in (True, False):
            with pytest.raises(RuntimeError, match='(?i)' + message):
                model.load_state_dict(state, strict=strict)

    def test_no_entry_of_it(self):
        model = small()
        state = model.state_dict()
        for wrong in (
            {'fc.weight': torch.ones(2)},
            {},
            {f'backbone.{k}': v for k, v in state.items()},
            # The whole file instead of what is in it.
            dict(meta={}, state_dict=state, optimizer={}),
        ):
            with pytest.raises(RuntimeError, match='0 of the'):
                model.load_state_dict(wrong, strict=False)

    def test_its_own_loads_everywhere(self, tmp_path):
        model, twin = small(), nn.Sequential(small())
        path = str(tmp_path / 'own.pth')
        torch.save(model.state_dict(), path)
        load_checkpoint(twin[0], path, strict=True)
        assert same(outputs(model.eval()), outputs(twin.eval()))
        # More or fewer outputs are no other arch.
        fewer = small(out_indices=1)
        missing, unexpected = fewer.load_state_dict(
            model.state_dict(), strict=False
        )
        assert not missing
        assert {name.split('.')[0] for name in unexpected} == {
            'downsample_layers',
            'stages',
            'norm0',
            'norm2',
            'norm3',
        }
        with pytest.raises(RuntimeError, match='Unexpected key'):
            fewer.load_state_dict(model.state_dict())

    def test_missing_entries_are_left_to_strict(self):
        model = small()
        state = model.state_dict()
        # As saved before torch counted batches.
        state = {
            name: value
            for name, value in state.items()
            if not name.endswith(('num_batches_tracked', 'gamma'))
        }
        missing, _ = model.load_state_dict(state, strict=False)
        assert all(name.endswith('gamma') for name in missing)
        with pytest.raises(RuntimeError, match='Missing key'):
            model.load_state_dict(state)


class TestLayerDepth:
    TABLE = [
        ('downsample_layers.0.0.weight', 0, 0),
        ('downsample_layers.0.1.bias', 0, 0),
        ('stages.0.pos_embed', 1, 1),
        ('stages.0.blocks.2.gamma', 1, 1),
        ('downsample_layers.1.0.weight', 2, 2),
        ('stages.1.blocks.0.conv.large.weight', 2, 2),
        ('downsample_layers.2.1.weight', 3, 3),
        ('stages.2.pos_embed', 3, 3),
        ('stages.2.blocks.0.conv.small.weight', 3, 3),
        ('stages.2.blocks.2.norm.weight', 3, 3),
        ('stages.2.blocks.3.norm.weight', 4, 4),
        ('stages.2.blocks.8.norm.weight', 5, 5),
        ('stages.2.blocks.26.norm.weight', None, 11),
        ('downsample_layers.3.0.weight', 6, 12),
        ('stages.3.pos_embed', 6, 12),
        ('stages.3.blocks.0.pointwise_conv1.bias', 6, 12),
        ('norm0.weight', 7, 13),
        ('norm3.bias', 7, 13),
    ]

    def test_is_convnexts_table(self):
        tiny, base = full_size('tiny'), full_size('base')
        for name, of_tiny, of_base in self.TABLE:
            for prefix in ('', 'backbone.', 'module.detector.backbone.'):
                full = prefix + name
                if of_tiny is not None:
                    assert tiny.get_layer_depth(full, prefix) == (of_tiny, 8)
                assert base.get_layer_depth(full, prefix) == (of_base, 14)
        assert tiny.get_layer_depth('head.fc.weight', 'backbone.') == (7, 8)

    def test_every_parameter_has_one(self):
        model = small()
        depths = {
            model.get_layer_depth(name) for name, _ in model.named_parameters()
        }
        # Four blocks in the third stage are two layers.
        assert depths == {(depth, 7) for depth in range(7)}


class TestRuntimes:
    def test_autocast(self):
        model = small(out_indices=(0, 1))
        with torch.autocast('cpu', torch.bfloat16):
            maps = model(images())
            loss = some_loss(maps)
        loss.backward()
        assert all(y.isfinite().all() for y in maps)
        assert all(
            p.grad is not None and p.grad.isfinite().all()
            for p in model.parameters()
        )
        model.eval()
        x = images()
        exact = outputs(model, x)
        with torch.autocast('cpu', torch.bfloat16):
            rough = outputs(model, x)
        for y, z in zip(exact, rough, strict=True):
            assert (y - z).abs().max() < 0.05 * y.abs().max()
            assert not torch.equal(y, z)

    def test_exports(self, randomise):
        model = randomise(
            PeLK(dict(SMALL, depths=(1, 1, 1, 1)), layer_scale_init_value=1.0)
        ).eval()
        model.switch_to_deploy()
        x = images(64, 64)
        program = torch.export.export(model, (x,))
        assert same(program.module()(x), outputs(model, x), atol=1e-5)
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count('pelk_mm.peripheral_conv2d.default') == 4
