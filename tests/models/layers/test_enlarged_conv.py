"""A depthwise convolution and what replaces it compute the same."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding, ConvWS2d
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.nn.utils.parametrizations import orthogonal

from pelk_mm.models.layers import (
    EnlargedConv2d,
    SmallConv2d,
    embed_weights,
    why_not_enlarged,
)
from pelk_mm.ops import SharingGrid

GRID = SharingGrid(31, 3)


def depthwise(size=7, padding=3, kind=nn.Conv2d, **kwargs) -> nn.Conv2d:
    return kind(6, 6, size, padding=padding, groups=6, **kwargs)


@pytest.mark.parametrize(
    'conv',
    [
        depthwise(),
        depthwise(bias=False),
        depthwise(1, 0),
        depthwise((1, 7), (0, 3)),
        depthwise((5, 3), 'same'),
        depthwise(3, 3, dilation=3),
        depthwise((3, 2), 2, dilation=(2, 4)),
        depthwise(5, 0, Conv2dAdaptivePadding),
        depthwise(3, 4, Conv2dAdaptivePadding, dilation=2),
    ],
    ids=str,
)
def test_same_and_both_weights_load(conv):
    layer = EnlargedConv2d(conv, GRID)
    x = torch.randn(2, 6, 9, 40)
    expected = conv(x)
    torch.testing.assert_close(layer(x), expected)
    own = copy.deepcopy(layer.state_dict())
    old = {name: 2 * value for name, value in conv.state_dict().items()}
    layer.load_state_dict(old)
    torch.testing.assert_close(layer(x), 2 * expected)
    assert old['weight'].shape == conv.weight.shape
    layer.load_state_dict(own)
    torch.testing.assert_close(layer(x), expected)


def test_what_stays():
    conv = depthwise(bias=False, dtype=torch.float64, device='meta').eval()
    conv.weight.requires_grad_(False)
    layer = EnlargedConv2d(conv, GRID)
    assert layer.weight.is_meta and layer.weight.dtype == torch.float64
    assert not layer.weight.requires_grad and not layer.training
    conv = depthwise()
    conv.weight.requires_grad_(False)
    torch.manual_seed(0)
    layer = EnlargedConv2d(conv, GRID)
    assert layer.bias is conv.bias and layer.bias.requires_grad
    assert torch.initial_seed() == 0
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert 'old=(7, 7)' in repr(layer)


def hooked() -> nn.Conv2d:
    conv = depthwise()
    conv.register_forward_hook(lambda *_: None)
    return conv


def patched() -> nn.Conv2d:
    conv = depthwise()
    conv.forward = lambda x: x
    return conv


@pytest.mark.parametrize(
    ('conv', 'reason'),
    [
        (depthwise(stride=2), 'stride 2'),
        (depthwise(stride=(1, 2)), 'stride 2'),
        (depthwise(padding=2), r'padding \(2, 2\)'),
        (depthwise(padding='valid'), 'padding valid'),
        (depthwise(padding_mode='reflect'), "padding_mode 'reflect'"),
        (depthwise(4, 'same'), 'an even kernel'),
        (depthwise(31, 15), 'a size of 31 already'),
        (depthwise(9, 4), 'a size of 9, for center_radius=4 or more'),
        (depthwise(3, 4, dilation=4), 'for center_radius=4 or more'),
        (depthwise(kind=ConvWS2d), 'ConvWS2d with a forward pass of its own'),
        (SmallConv2d(6, 5), 'SmallConv2d with a forward pass'),
        (patched(), 'Conv2d with a forward pass of its own'),
        (hooked(), 'hooks or parametrizations'),
        (prune.identity(depthwise(), 'weight'), 'hooks or param'),
        (weight_norm(depthwise()), 'hooks or param'),
        (spectral_norm(depthwise()), 'hooks or param'),
        (orthogonal(depthwise()), 'hooks or param'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_why_not(conv, reason):
    with pytest.raises(ValueError, match=f'cannot be enlarged: .*{reason}'):
        EnlargedConv2d(conv, GRID)
    assert why_not_enlarged(depthwise(), GRID) is None


def test_embed_weights():
    model = nn.Sequential(EnlargedConv2d(depthwise(), GRID), depthwise())
    weight = torch.randn(6, 1, 7, 7)
    given = {'a.0.weight': weight, 'a.1.weight': weight, 'a.0.bias': 0}
    embedded = embed_weights(model, given, 'a.')
    assert embedded['a.0.weight'].shape == (6, 1, 13, 13)
    assert torch.equal(embedded['a.0.weight'][:, :, 3:10, 3:10], weight)
    assert embedded['a.1.weight'] is weight is given['a.0.weight']
    # Of another network altogether: for torch to refuse.
    with pytest.raises(RuntimeError, match='size mismatch for 0.weight'):
        model.load_state_dict({'0.weight': weight[..., 1:]}, strict=False)
