"""Masks enforced on weights, gradients, moments and averages."""

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from pelk_mm.engine.sparsity.enforcer import MaskEnforcer
from pelk_mm.engine.sparsity.masks import draw_mask


class Shake(Optimizer):
    """Moves every weight, whatever its gradient: the worst case."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for param in group['params']:
                param.add_(1)


def make(optimizer=lambda params: AdamW(params, lr=0.1), averaged=()):
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)
    )
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    masks = {
        '0.weight': draw_mask((8, 6), 29, generator),
        '2.weight': draw_mask((4, 8), 19, generator),
    }
    optimizer = optimizer(model.parameters())
    averaged = [build(model) for build in averaged]
    enforcer = MaskEnforcer(
        masks, weights, [optimizer], [average.module for average in averaged]
    )
    enforcer.attach()
    return model, optimizer, enforcer, averaged


def step(model, optimizer, seed=0):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    loss = model(torch.randn(16, 6)).square().mean()
    loss.backward()
    optimizer.step()


def assert_dead_are_zero(enforcer, tensors):
    for name, tensor in tensors.items():
        dead = tensor[~enforcer.masks[name]]
        assert dead.numel() and (dead == 0).all(), name


def test_attaching_zeroes_dead_weights_only():
    torch.manual_seed(0)
    before = nn.Linear(6, 8, bias=False).weight
    torch.manual_seed(0)
    model, _, enforcer, _ = make()
    mask = enforcer.masks['0.weight']
    assert model[0].weight.equal(torch.where(mask, before, 0))


@pytest.mark.parametrize(
    'optimizer',
    [
        lambda p: AdamW(p, lr=0.1, weight_decay=0.05),
        lambda p: Adam(p, lr=0.1, amsgrad=True),
        lambda p: SGD(
            p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True
        ),
        lambda p: RMSprop(p, lr=0.1, momentum=0.9),
        Shake,
    ],
)
def test_dead_weights_stay_zero_and_feed_no_moments(optimizer):
    model, optimizer, enforcer, _ = make(optimizer)
    for seed in range(5):
        step(model, optimizer, seed)
        weights = dict(model.named_parameters())
        assert_dead_are_zero(enforcer, weights)
        for key in (
            'exp_avg',
            'exp_avg_sq',
            'max_exp_avg_sq',
            'momentum_buffer',
            'square_avg',
        ):
            moments = {
                name: optimizer.state[param][key]
                for name, param in weights.items()
                if key in optimizer.state[param]
            }
            assert_dead_are_zero(enforcer, moments)
        assert all(
            (p[enforcer.masks[n]] != 0).any() for n, p in weights.items()
        )
        enforcer.move(0.5, torch.Generator().manual_seed(seed))


def test_gradients_are_masked_before_clipping_and_overflow_checks():
    model, _, enforcer, _ = make()
    x = torch.randn(16, 6)
    weight, mask = model[2].weight, enforcer.masks['2.weight']
    dense = torch.autograd.grad(
        model[2](model[1](model[0](x))).square().mean(), weight
    )[0]
    enforcer.detach()
    free = torch.autograd.grad(
        model[2](model[1](model[0](x))).square().mean(), weight
    )[0]
    assert (free[~mask] != 0).any()
    assert dense.equal(torch.where(mask, free, 0))
    enforcer.attach()
    # An overflow among dead weights only concerns nobody.
    (weight * torch.where(mask, 1.0, float('inf'))).sum().backward()
    assert weight.grad.isfinite().all()


def test_move_drops_the_smallest_and_grows_from_zero():
    model, optimizer, enforcer, _ = make()
    step(model, optimizer)
    old = {n: m.clone() for n, m in enforcer.masks.items()}
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = {n: optimizer.state[p] for n, p in model.named_parameters()}
    moments = {n: s['exp_avg'].clone() for n, s in state.items()}
    share = enforcer.move(0.3, torch.Generator().manual_seed(0))
    dropped_in_all = 0
    for name, param in model.named_parameters():
        mask, before = enforcer.masks[name], old[name]
        count = round(0.3 * int(before.sum()))
        dropped, grown = before & ~mask, mask & ~before
        assert dropped.sum() == grown.sum() == count
        dropped_in_all += count
        kept = before & mask
        assert (
            weights[name][dropped].abs().max()
            <= weights[name][kept].abs().min()
        )
        assert param[kept].equal(weights[name][kept])
        assert (param[~kept] == 0).all()
        assert (state[name]['exp_avg'][~kept] == 0).all()
        assert state[name]['exp_avg'][kept].equal(moments[name][kept])
        assert state[name]['step'] == 1
    live = sum(int(m.sum()) for m in old.values())
    assert share == pytest.approx(dropped_in_all / live)


def test_nothing_moves_in_frozen_and_in_dense_layers():
    model, optimizer, enforcer, _ = make()
    enforcer.masks['2.weight'][:] = True
    model[0].weight.requires_grad_(False)
    enforcer.attach()
    step(model, optimizer)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    masks = {n: m.clone() for n, m in enforcer.masks.items()}
    assert enforcer.move(0.5, torch.Generator().manual_seed(0)) == 0
    for name, param in model.named_parameters():
        assert param.equal(weights[name])
        assert enforcer.masks[name].equal(masks[name])


def test_growth_takes_the_largest_dense_gradient():
    model, optimizer, enforcer, _ = make()
    enforcer.gathering = True
    dense = []
    for seed in range(3):
        enforcer.detach()
        torch.manual_seed(seed)
        loss = model(torch.randn(16, 6)).square().mean()
        dense.append(torch.autograd.grad(loss, model[0].weight)[0])
        enforcer.attach()
        step(model, optimizer, seed)
        enforcer.fold_gradients()
    average = dense[0]
    for grad in dense[1:]:
        average = 0.9 * average + 0.1 * grad
    torch.testing.assert_close(enforcer.momentum['0.weight'], average)
    old = enforcer.masks['0.weight'].clone()
    enforcer.move(0.3, torch.Generator().manual_seed(0))
    grown = enforcer.masks['0.weight'] & ~old
    left = ~enforcer.masks['0.weight'] & ~old
    assert grown.sum() == 9
    assert average[grown].abs().min() >= average[left].abs().max()
    assert enforcer.momentum == {}


def test_gradients_of_several_passes_add_up_and_can_be_forgotten():
    model, _, enforcer, _ = make()
    enforcer.gathering = True
    for _ in range(2):
        model(torch.ones(1, 6)).sum().backward()
    enforcer.fold_gradients(scale=2.0)
    twice = enforcer.momentum.copy()
    enforcer.momentum.clear()
    model(torch.ones(1, 6)).sum().backward()
    enforcer.fold_gradients()
    for name, grad in enforcer.momentum.items():
        torch.testing.assert_close(grad, twice[name])
    enforcer.momentum.clear()
    model(torch.ones(1, 6)).sum().backward()
    enforcer.forget_gradients()
    enforcer.fold_gradients()
    assert not any(grad.any() for grad in enforcer.momentum.values())


def test_averages_are_as_sparse_as_the_model():
    model, optimizer, enforcer, (average,) = make(
        averaged=[lambda m: ExponentialMovingAverage(m, momentum=0.3)]
    )
    for seed in range(6):
        step(model, optimizer, seed)
        if seed % 2:
            enforcer.move(0.5, torch.Generator().manual_seed(seed))
        average.update_parameters(model)
        assert_dead_are_zero(enforcer, dict(average.module.named_parameters()))
        assert all(
            (p[enforcer.masks[n]] != 0).any()
            for n, p in average.module.named_parameters()
        )


def test_detached_keeper_lets_go():
    model, optimizer, enforcer, _ = make()
    enforcer.detach()
    step(model, optimizer)
    assert (model[0].weight[~enforcer.masks['0.weight']] != 0).any()
    assert not enforcer.stepped


def test_summary_names_the_extremes():
    _, _, enforcer, _ = make()
    assert enforcer.density == pytest.approx(48 / 80)
    assert enforcer.summary() == (
        'density 0.6000 over 2 weights, most dense 0.weight 0.6042, least '
        'dense 2.weight 0.5938'
    )
