"""Each cell of a large kernel learns at its own rate, lr / area."""

import copy
import pickle
from functools import partial

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import SGD, Adam, AdamW

from pelk_mm.engine.optimizers.cell_learning_rates import CellLearningRates
from pelk_mm.engine.sparsity.enforcer import MaskEnforcer
from pelk_mm.models import PeLK
from pelk_mm.models.layers import PeripheralConv2d
from pelk_mm.models.utils.kernel_growth import regrid
from pelk_mm.ops import SharingGrid

GRID = SharingGrid.from_sizes([3, 1, 1, 1, 3])
LR = 0.1
OPTIMIZERS = {
    'SGD': partial(SGD, momentum=0.9, weight_decay=0.1),
    'Adam': partial(Adam, weight_decay=0.1),
    'AdamW': partial(AdamW, weight_decay=0.1),
    'AdamW, one by one': partial(AdamW, foreach=False),
    'AdamW, foreach': partial(AdamW, foreach=True),
    'AdamW, fused': partial(AdamW, fused=True),
}


def conv(bias=False):
    return PeripheralConv2d(4, GRID, bias=bias)


def attached(model, optimizer=AdamW, lr=LR):
    optimizer = optimizer(model.parameters(), lr=lr)
    CellLearningRates(model).attach(optimizer)
    return optimizer


def step(optimizer, *seeds):
    """Steps with gradients that depend on the seed alone."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for group in optimizer.param_groups:
            for p in group['params']:
                p.grad = torch.randn(p.shape, generator=generator).to(p)
        optimizer.step()


class TestRates:
    @pytest.mark.parametrize('optimizer', OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_equal_a_group_for_each_area(self, optimizer):
        model = conv().double()
        areas = GRID.areas.expand_as(model.weight)
        groups = [
            dict(params=[nn.Parameter(model.weight[areas == area].detach())])
            for area in (1, 3, 9)
        ]
        for group, area in zip(groups, (1, 3, 9), strict=True):
            group['lr'] = LR / area
        apart = optimizer(groups, lr=LR)
        ours = attached(model, optimizer)
        for _ in range(4):
            model.weight.grad = torch.randn_like(model.weight)
            for group, area in zip(groups, (1, 3, 9), strict=True):
                group['params'][0].grad = model.weight.grad[areas == area]
            ours.step()
            apart.step()
        for group, area in zip(groups, (1, 3, 9), strict=True):
            moved = model.weight[areas == area]
            torch.testing.assert_close(moved, group['params'][0].detach())

    @pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
    def test_leave_unshared_weights_and_other_parameters(self, dtype):
        """Not a bit of them changes."""
        scaled = conv(bias=True).to(dtype)
        plain = copy.deepcopy(scaled)
        step(attached(scaled), 0, 1)
        step(AdamW(plain.parameters(), lr=LR), 0, 1)
        alone = GRID.areas.expand_as(plain.weight) == 1
        assert torch.equal(scaled.weight[alone], plain.weight[alone])
        assert not torch.isclose(scaled.weight, plain.weight)[~alone].any()
        assert torch.equal(scaled.bias, plain.bias)

    def test_leave_what_has_no_gradient(self):
        model = nn.ModuleList([conv(), conv(), conv()])
        model[1].weight.requires_grad_(False)
        before = copy.deepcopy(model.state_dict())
        optimizer = attached(model)
        model[2].weight.grad = torch.ones_like(model[2].weight)
        optimizer.step()
        same = [
            torch.equal(before[n], w) for n, w in model.state_dict().items()
        ]
        assert same == [True, True, False]

    def test_scale_a_weight_of_two_layers_once(self):
        model, alone = nn.ModuleList([conv(), conv()]), conv()
        model[1].weight = model[0].weight
        alone.load_state_dict(model[0].state_dict())
        step(attached(model), 0)
        step(attached(alone), 0)
        assert torch.equal(model[0].weight, alone.weight)

    def test_follow_a_model_to_another_type(self):
        """As to another device, after the optimizer was built."""
        model = conv()
        optimizer = attached(model, SGD)
        before = model.double().weight.detach().clone()
        model.weight.grad = torch.ones_like(before)
        optimizer.step()
        expected = before - LR / GRID.areas
        torch.testing.assert_close(model.weight.detach(), expected)


class TestTraining:
    def test_resumes_bit_for_bit(self):
        whole = conv()
        optimizer = attached(whole)
        step(optimizer, 0, 1)
        resumed = conv()
        resumed.load_state_dict(whole.state_dict())
        other = attached(resumed, lr=1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each in (optimizer, other):
            step(each, 2, 3)
        assert torch.equal(whole.weight, resumed.weight)

    def test_a_loss_scaler_skips_steps(self):
        """In between, the weights may be changed by others."""
        model = conv()
        optimizer = attached(model, SGD)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0)
        scaler.scale(model.weight.sum() * float('inf')).backward()
        before = model.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(model.weight, before)
        with torch.no_grad():
            before = model.weight.mul_(2).clone()
        optimizer.zero_grad()
        scaler.scale(model.weight.sum()).backward()
        scaler.step(optimizer)
        expected = before - LR / GRID.areas.float()
        torch.testing.assert_close(model.weight.detach(), expected)

    @pytest.mark.parametrize('masks_first', [False, True])
    def test_pruned_weights_stay_zero(self, masks_first):
        model = conv()
        mask = torch.rand_like(model.weight) < 0.5
        optimizer = AdamW(model.parameters(), lr=LR)
        enforcer = MaskEnforcer(
            {'weight': mask}, dict(model.named_parameters()), [optimizer], []
        )
        rates = CellLearningRates(model)
        attach = [enforcer.attach, partial(rates.attach, optimizer)]
        for each in attach if masks_first else reversed(attach):
            each()
        for seed in range(3):
            step(optimizer, seed)
            mask = enforcer.masks['weight']
            assert not model.weight[~mask].any()
            assert model.weight[mask].all()
            enforcer.move(0.5, torch.Generator().manual_seed(seed))

    @pytest.mark.parametrize(
        'copied', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
    )
    def test_copies_of_an_optimizer_leave_its_weights(self, copied):
        model = conv()
        optimizer = attached(model)
        step(optimizer, 0)
        before = model.weight.detach().clone()
        step(copied(optimizer), 1)
        assert torch.equal(model.weight, before)

    def test_zero_redundancy_holds_the_weights_themselves(self, tmp_path):
        model, alone = conv(), conv()
        alone.load_state_dict(model.state_dict())
        init_process_group(
            'gloo', init_method=f'file://{tmp_path}/store', rank=0,
            world_size=1,
        )  # fmt: skip
        try:
            zero = partial(ZeroRedundancyOptimizer, optimizer_class=AdamW)
            step(attached(model, zero), 0, 1)
        finally:
            destroy_process_group()
        step(attached(alone), 0, 1)
        assert torch.equal(model.weight, alone.weight)


class TestOutOfReach:
    MESSAGE = (
        r'an optimizer of 0\.weight itself.*leave scale_lr_by_cell_area out '
        r".*custom_keys=\{'0.weight': dict\(lr_mult=0.1\)\}"
    )

    def test_pieces_of_the_weights(self):
        """FSDP leaves flat ones in the place of the parameters."""
        model = nn.Sequential(conv())
        model[0].weight.data = model[0].weight.data.flatten()
        with pytest.raises(RuntimeError, match=self.MESSAGE):
            attached(model)

    def test_copies_of_the_weights(self):
        """DeepSpeed and Apex exchange them after construction."""
        model = nn.Sequential(conv())
        optimizer = attached(model)
        group = optimizer.param_groups[0]
        group['params'] = [nn.Parameter(p.detach()) for p in group['params']]
        with pytest.raises(RuntimeError, match=self.MESSAGE):
            step(optimizer, 0)


def build(model, **paramwise):
    cfg = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=LR, weight_decay=0.0),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=1.0, **paramwise),
    )
    return build_optim_wrapper(model, cfg).optimizer


def messages(caplog, model, **paramwise):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    build(model, **paramwise)
    logger.removeHandler(caplog.handler)
    found = [r for r in caplog.records if 'cell' in r.getMessage()]
    return [(r.levelname, r.getMessage()) for r in found]


class TestConstructor:
    @pytest.mark.parametrize('scaled', [False, True])
    def test_finds_layers_by_type_without_a_backbone(self, scaled):
        model = nn.Sequential(nn.Sequential(conv()), nn.Linear(2, 2))
        before = copy.deepcopy(model.state_dict())
        optimizer = build(model, scale_lr_by_cell_area=scaled)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        moved = {n: before[n] - w for n, w in model.state_dict().items()}
        for name, rate in moved.items():
            areas = GRID.areas if scaled and name == '0.0.weight' else 1
            expected = torch.ones_like(rate) * LR / areas
            torch.testing.assert_close(rate, expected.float())

    def test_logs_how_many_and_the_smallest(self, caplog):
        model = nn.Sequential(conv(), conv(), PeripheralConv2d(4, GRID5))
        assert messages(caplog, model, scale_lr_by_cell_area=True) == [
            (
                'INFO',
                'learning rates by cell area: 2 large kernels, lr x 0.1111 '
                'in their largest cell',
            )
        ]

    def test_warns_where_nothing_is_shared(self, caplog):
        model = PeripheralConv2d(4, GRID5)
        [(level, text)] = messages(caplog, model, scale_lr_by_cell_area=True)
        assert level == 'WARNING' and 'does nothing' in text


GRID5 = SharingGrid.from_sizes([1] * 5)


class TestDrift:
    """How far one step moves what the network computes."""

    def grown(self, kernel):
        arch = dict(
            depths=(1, 1, 1, 1),
            channels=(8, 8, 8, 8),
            kernel_sizes=(kernel,) * 4,
            center_radius=3,
        )
        torch.manual_seed(0)
        model = PeLK(
            arch,
            conv_ratio=1.0,
            small_kernel=None,
            pos_embed=False,
            layer_scale_init_value=1.0,
            out_indices=(0, 1, 2, 3),
        )
        torch.manual_seed(0)
        for layer in model.modules():
            # As large as in a network that was trained for a while.
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.reset_parameters()
        for stage in model.stages:
            large = stage.blocks[0].conv.large
            small = nn.init.trunc_normal_(torch.empty(8, 1, 7, 7), std=0.02)
            large.weight.data = regrid(small, SharingGrid(7, 3), large.grid)
        return model

    def drift(self, kernel, scaled):
        model = self.grown(kernel)
        optimizer = build(model, scale_lr_by_cell_area=scaled)
        for group in optimizer.param_groups:
            group['lr'] = 1e-4
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, 3, 1, 1, generator=generator)
        images = images + torch.randn(2, 3, 128, 128, generator=generator)
        before = model(images)
        loss = sum(
            (out * torch.randn(out.shape, generator=generator)).mean()
            for out in before
        )
        loss.backward()
        optimizer.step()
        return [
            float((new - old).norm() / old.norm())
            for new, old in zip(model(images), before, strict=True)
        ]

    def test_is_that_of_the_kernel_before_it_grew(self):
        small, grown, scaled = (
            self.drift(*case) for case in ((7, False), (51, False), (51, True))
        )
        for plain, by_area in zip(small, scaled, strict=True):
            assert by_area < 3 * plain
        assert grown[0] > 5 * small[0]
