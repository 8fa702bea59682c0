"""Whole networks on a GPU: trained, compiled, captured and merged.

What makes sense on a CPU is tested there too.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from pelk_mm.models import PeLK
from tests.helpers import devices
from tests.helpers.devices import DEVICES, captured

ARCH = dict(
    depths=(1, 1, 2, 1), channels=(8, 12, 17, 24), kernel_sizes=(31, 13, 9, 7)
)
DTYPES = torch.float32, torch.bfloat16, torch.float16


def build(device, **arguments) -> PeLK:
    """Every stage's map, LayerScale 1: an error anywhere shows."""
    torch.manual_seed(0)
    arguments |= dict(layer_scale_init_value=1.0, out_indices=(0, 1, 2, 3))
    model = PeLK(ARCH, **arguments)
    model.init_weights()
    return model.to(device, memory_format=torch.channels_last).train()


def images(device, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 64, 96, generator=generator)
    return x.to(device, memory_format=torch.channels_last)


def loss_of(model: nn.Module, x: torch.Tensor, dtype) -> torch.Tensor:
    enabled = dtype not in (torch.float32, torch.float64)
    with torch.autocast(x.device.type, dtype, enabled=enabled):
        outputs = model(x)
    return sum((y.to(x.dtype) - 1).square().mean() for y in outputs)


def gradients(model, x, dtype=torch.float32) -> list[torch.Tensor]:
    """Of every parameter that has one, behind the loss."""
    model.zero_grad()
    loss = loss_of(model, x, dtype)
    # Through float16 without a scaler: none of these is too small for it.
    loss.backward()
    grads = (p.grad for p in model.parameters())
    return [loss.detach(), *(g.clone() for g in grads if g is not None)]


def distance(got, truth) -> float:
    """Of all gradients, without the loss before them."""
    return devices.distance(got[1:], truth[1:])


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('device', DEVICES)
def test_gradients_are_as_near_the_truth_as_dense_ones(device, dtype):
    x = images(device)
    truth = gradients(build(device, backend='dense').double(), x.double())
    dense = gradients(build(device, backend='dense'), x, dtype)
    own = gradients(build(device), x, dtype)
    assert all(g.isfinite().all() for g in own)
    assert distance(own, truth) < 2 * distance(dense, truth) + 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', DTYPES[1:], ids=str)
def test_trains_under_autocast(dtype):
    model, x = build('cuda', drop_path_rate=0.1), images('cuda')
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    options = dict(init_scale=1024.0, enabled=dtype == torch.float16)
    scaler = torch.amp.GradScaler('cuda', **options)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of(model, x, dtype)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.gpu
def test_nothing_in_a_step_waits_for_the_gpu():
    model, x = build('cuda', drop_path_rate=0.1), images('cuda')
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        loss_of(model, x, torch.bfloat16).backward()
        optimizer.step()

    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
def test_graph_of_a_step_is_replayed_on_other_images():
    model, static = build('cuda'), images('cuda')
    eager = deepcopy(model)

    def step():
        return gradients(model, static, torch.bfloat16)

    replay, results = captured(step)
    for seed in (1, 2):
        static.copy_(images('cuda', seed))
        replay()
        expected = gradients(eager, static, torch.bfloat16)
        # A replay that still sees the old images is off by far more.
        assert distance(results, expected) < 0.01
        torch.testing.assert_close(results[0], expected[0], rtol=1e-3, atol=0)


@pytest.mark.gpu
@pytest.mark.slow
def test_compiled():
    """Inductor takes a minute for a network."""
    model, x = build('cuda'), images('cuda')
    exact = [g.double() for g in gradients(model, x)]
    # Where a fused chain rounds is its own affair.
    rounding = distance(gradients(model, x, torch.bfloat16), exact)
    model.compile(fullgraph=True)
    assert distance(gradients(model, x, torch.bfloat16), exact) < 2 * rounding


@pytest.mark.parametrize('device', DEVICES)
def test_merged(device, randomise, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    model, x = randomise(build('cpu')).to(device).eval(), images(device)
    with torch.no_grad():
        before = model(x)
        model.switch_to_deploy()
        after = model(x)
        for one, other in zip(after, before, strict=True):
            error = (one - other).abs().max() / other.abs().max()
            assert error < 3e-5


@pytest.mark.parametrize('device', DEVICES)
def test_weights_of_bfloat16(device):
    model, x = build(device).eval(), images(device)
    with torch.no_grad():
        expected = model(x)
        got = model.bfloat16()(x.bfloat16())
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.bfloat16
        error = (one - other).norm() / other.norm()
        assert error < 0.05
