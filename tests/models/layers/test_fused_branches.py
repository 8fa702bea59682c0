"""When the branches are computed in one go, and when part by part.

It is done on GPUs alone: the tests make it look as if they had one. What is
computed is tested in tests/ops/test_triton_branches.py.
"""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm.models.layers import (
    PartialPeripheralConv2d,
    fused_branches,
    replacing,
)
from pelk_mm.ops import SharingGrid

pytest.importorskip('triton')


@pytest.fixture
def asked(monkeypatch):
    """The options of every call that would go to the GPU."""
    from pelk_mm.ops.backends import triton_branches

    calls = []

    def join_branches(x, *operands):
        calls.append(operands[-4:])
        return torch.zeros_like(x, dtype=operands[-1])

    monkeypatch.setattr(triton_branches, 'join_branches', join_branches)
    for name in ('is_eager_gpu', 'is_for_triton'):
        monkeypatch.setattr(fused_branches, name, lambda *_: True)
    return calls


def make(channels=8, ratio=0.5, **options):
    layer = PartialPeripheralConv2d(
        channels, SharingGrid(7, 1), ratio, 3, **options
    )
    x = torch.randn(2, channels, 4, 5)
    return layer, x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('ratio', [0.5, 1.0])
@pytest.mark.parametrize('pos', [False, True])
def test_dtypes_are_those_of_the_parts(asked, autocast, ratio, pos):
    layer, x = make(ratio=ratio)
    pos_sums = torch.randn(1, 5, 5) if pos else None
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        layer(x, pos_sums)
        handle = layer.small.register_forward_hook(lambda *_: None)
        expected = layer(x, pos_sums)
        handle.remove()
    (options,) = asked
    assert options[:2] == (layer.large.grid, layer.small.grid)
    assert options[2:] == (autocast or torch.float32, expected.dtype)


def test_weights_of_bfloat16(asked):
    layer, x = make()
    layer.bfloat16()(x.bfloat16())
    assert asked[0][2:] == (torch.bfloat16, torch.bfloat16)


def test_norm_in_place_of_a_reverted_sync_bn(asked):
    layer, x = make(norm_cfg=dict(type='SyncBN'))
    revert_sync_batchnorm(layer)(x)
    assert len(asked) == 1


def evaluated(layer):
    layer.eval()


def norm_evaluated(layer):
    layer.small_norm.eval()


def hooked(layer):
    layer.large_norm.register_forward_hook(lambda *_: None)


def backward_hooked(layer):
    layer.large.register_full_backward_hook(lambda *_: None)


def parametrized(layer):
    parametrizations.weight_norm(layer.small)


def patched(layer):
    layer.large.forward = lambda x: 2 * x


def other_norm(layer):
    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * x

    layer.small_norm = Own(4)


def other_conv(layer):
    layer.large = nn.Conv2d(4, 4, 7, padding=3, groups=4)


def with_bias(layer):
    layer.small.bias = nn.Parameter(torch.zeros(4))


def cumulative(layer):
    layer.large_norm.momentum = None


def not_affine(layer):
    layer.large_norm = nn.BatchNorm2d(4, affine=False)


def subclass(layer):
    class Quantised(nn.Parameter):
        pass

    layer.small.weight = Quantised(layer.small.weight.detach())


def merged(layer):
    layer.merge()


@pytest.mark.parametrize(
    'change',
    [
        evaluated,
        norm_evaluated,
        hooked,
        backward_hooked,
        parametrized,
        patched,
        other_norm,
        other_conv,
        with_bias,
        cumulative,
        not_affine,
        subclass,
        merged,
    ],
)
def test_changed_layers_are_called_part_by_part(asked, change):
    layer, x = make()
    layer(x)
    assert len(asked) == 1
    change(layer)
    layer(x)
    assert len(asked) == 1


def test_other_inputs_are_given_to_the_parts(asked):
    layer, x = make()
    layer(x.contiguous())
    with pytest.raises(ValueError, match='more than 1 value'):
        layer(x[:1, :, :1, :1])
    with pytest.raises(TypeError, match='dtype'):
        layer(x.double())
    assert not asked


def test_what_is_recorded_or_watched_is_not_fused():
    def is_eager(x=None):
        seen.append(replacing.is_eager_gpu(SimpleNamespace(is_cuda=True)))
        return x

    seen = []
    is_eager()
    assert seen == [True]
    x = torch.ones(2)
    torch.jit.trace(is_eager, x, check_trace=False)
    torch.vmap(is_eager)(x)
    with forward_ad.dual_level():
        is_eager()
    with TorchDispatchMode():
        is_eager()
    assert len(seen) >= 5 and not any(seen[1:])
    assert not replacing.is_eager_gpu(x)


def test_global_hooks_are_called(asked):
    layer, x = make()
    called = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: called.append(module)
    )
    try:
        layer(x)
    finally:
        handle.remove()
    assert layer.small in called and not asked
