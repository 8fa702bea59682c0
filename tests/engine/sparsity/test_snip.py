"""SNIP: its gradients, right and without a trace, and its densities."""

import random

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import nn

from pelk_mm.engine.sparsity.snip import (
    probe_snip_scores,
    snip_densities,
    snip_scores,
)


class Noisy(BaseModel):
    """Draws from every source of chance and keeps statistics."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)
        self.norm = nn.BatchNorm1d(3)
        self.unused = nn.Linear(2, 2, bias=False)

    def forward(self, inputs, mode='loss'):
        inputs.mul_(2)
        noise = random.random() + np.random.rand()
        x = self.norm(self.layer(inputs))
        return dict(loss=(x * torch.rand(3) * noise).exp().sum())


def probe(model, batch, scale=1.0):
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    weights = dict(a=model.layer.weight, b=model.unused.weight)
    return probe_snip_scores(model, batch, wrapper, weights, scale)


def test_scores_are_those_of_the_loss():
    model, batch = Noisy(), [torch.randn(5, 4)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    scores = probe(model, batch)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    loss = model(batch[0].clone())['loss']
    loss.backward()
    weight = model.layer.weight
    torch.testing.assert_close(scores['a'], (weight * weight.grad).abs())
    assert scores['b'].shape == (2, 2) and not scores['b'].any()


def test_scale_is_a_factor():
    model, batch = Noisy(), [torch.randn(5, 4)]
    torch.testing.assert_close(
        probe(model, batch, 64.0)['a'], probe(model, batch)['a'] * 64
    )


def test_nothing_is_left_behind():
    model, batch = Noisy(), [torch.randn(5, 4)]
    model.layer.weight.grad = torch.full((3, 4), 7.0)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    inputs = batch[0].clone()

    def chance():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )

    before = chance()
    probe(model, batch)
    assert chance() == before
    assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    assert batch[0].equal(inputs)
    assert model.layer.weight.grad.unique().tolist() == [7.0]
    assert model.norm.weight.grad is None


def test_a_model_without_a_loss_is_refused():
    class Silent(Noisy):
        def train_step(self, data, optim_wrapper):
            return {}

    with pytest.raises(RuntimeError, match='passed no loss'):
        probe(Silent(), [torch.randn(5, 4)])


def test_a_model_may_take_its_steps_itself():
    """As those with several losses do; here they only go backward."""

    class OwnSteps(Noisy):
        def train_step(self, data, optim_wrapper):
            with optim_wrapper.optim_context(self):
                loss = self(*data)['loss']
            loss = optim_wrapper.scale_loss(loss)
            optim_wrapper.backward(loss)
            optim_wrapper.step()
            optim_wrapper.zero_grad()
            return dict(loss=loss)

    batch, scores = [torch.randn(5, 4)], []
    for kind in (Noisy, OwnSteps):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        model = kind()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        scores.append(probe(model, batch)['a'])
        assert all(v.equal(state[k]) for k, v in model.state_dict().items())
    assert scores[0].any()
    assert torch.equal(*scores)


def test_snip_scores_are_the_sensitivity():
    weight = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    gradient = torch.tensor([[-4.0, -5.0], [6.0, 0.0]])
    assert snip_scores(weight, gradient).tolist() == [[4, 10], [0, 0]]


def test_snip_densities_count_the_best_of_all_layers():
    scores = dict(
        a=torch.tensor([9.0, 8.0, 7.0, 0.0]),
        b=torch.tensor([[6.0, 5.0], [4.0, 3.0]]),
        c=torch.tensor([1.0, 2.0]),
    )
    assert snip_densities(scores, 0.5) == dict(a=0.75, b=0.5, c=0.0)


def test_snip_densities_with_ties_keep_exactly_as_many():
    scores = dict(a=torch.ones(6), b=torch.ones(4))
    assert snip_densities(scores, 0.7) == dict(a=1.0, b=0.25)


@pytest.mark.parametrize('value', [float('inf'), float('nan')])
def test_snip_densities_refuse_what_is_not_finite(value):
    scores = dict(good=torch.ones(3), bad=torch.tensor([1.0, value]))
    with pytest.raises(ValueError, match="'bad'"):
        snip_densities(scores, 0.5)


def test_snip_densities_refuse_no_gradient_at_all():
    with pytest.raises(ValueError, match='all SNIP scores are zero'):
        snip_densities(dict(a=torch.zeros(3)), 0.5)
