"""Torch's own layers compute what ours do."""

import pytest
import torch
from torch import nn

from pelk_mm.deployment.standard_layers import (
    StandardAdaptiveAvgPool2d,
    StandardPeripheralConv2d,
    to_standard_layers,
)
from pelk_mm.models import PeLK, enlarge_kernels
from pelk_mm.models.layers import (
    PartialPeripheralConv2d,
    PeripheralConv2d,
    SmallConv2d,
)
from pelk_mm.ops import SharingGrid

GRIDS = [
    SharingGrid(23),
    SharingGrid(31, 3),
    SharingGrid(5, 0),
    SharingGrid(9, base=1),
    # The outermost cell is the smallest one, as in a kernel of 69.
    SharingGrid.from_sizes([1, 4, 2, 1, 1, 1, 2, 4, 1]),
    SharingGrid.from_sizes([4, 4, 2, 1, 1, 1, 2, 4, 4]),
    SharingGrid.from_sizes([1, 2, 5, 2, 1]),
    # Boxes of one size, in the centre and as a pair.
    SharingGrid.from_sizes([5, 2, 5, 2, 5]),
    SharingGrid.from_sizes([3, 3, 3]),
    SharingGrid.from_sizes([7]),
]
#: What is written out: everything, nothing, rows, columns, a part of each.
LEAST = [(99, 99), (1, 1), (99, 1), (1, 99), (4, 2)]


@pytest.mark.parametrize('least', LEAST, ids=str)
@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_convolutions(grid, least):
    layer = PeripheralConv2d(2, grid, backend='dense').double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    standard = StandardPeripheralConv2d(layer, *least)
    for shape in ((7, 3), (24, 37)):
        x = torch.randn(2, 2, *shape, dtype=torch.float64)
        torch.testing.assert_close(standard(x), layer(x))


@pytest.mark.parametrize('kernels', ['dense', 'compact'])
def test_convolutions_that_were_enlarged(kernels):
    """Wherever they stand, also in two places."""
    conv = nn.Conv2d(4, 4, (1, 7), padding=(0, 3), groups=4)
    network = nn.ModuleDict(dict(a=conv, b=nn.Sequential(conv)))
    enlarge_kernels(network, 51)
    standard = to_standard_layers(network, kernels)
    x = torch.randn(1, 4, 20, 30)
    for layer in (standard.a, standard.b):
        torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-6)


def test_box_sums_save_work():
    layer = PeripheralConv2d(1, SharingGrid(101, 3))
    taps = {
        least: sum(
            value.numel()
            for value in StandardPeripheralConv2d(layer, *least)
            .state_dict()
            .values()
        )
        for least in ((102, 102), (16, 2), (1, 1))
    }
    # Weights are multiply-adds an output; one of them is the bias.
    assert taps[102, 102] == 101**2 + 1
    assert taps[16, 2] < taps[102, 102] / 8
    assert taps[1, 1] < taps[16, 2]


@pytest.mark.parametrize('bins', [(1, 2), (3, 3), (6, 6), (7, 2)])
def test_adaptive_pooling(bins):
    for shape in ((5, 3), (16, 17), (30, 18)):
        x = torch.randn(2, 3, *shape, dtype=torch.float64)
        torch.testing.assert_close(
            StandardAdaptiveAvgPool2d(bins)(x),
            nn.AdaptiveAvgPool2d(bins)(x),
            atol=1e-6,
            rtol=1e-6,
        )


@pytest.mark.parametrize('kernels', ['dense', 'compact'])
@pytest.mark.parametrize(
    'channels, options',
    [
        (24, dict()),
        # All channels are convolved: there is none to fill a block with.
        (8, dict(conv_ratio=1.0)),
        # The small kernel does not fit into the unshared centre and stays.
        (48, dict(center=1)),
        # Even the centre is shared: no kernel leaves a channel as it is.
        (48, dict(sizes=(1, 3, 1))),
    ],
)
def test_blocks(kernels, channels, options):
    options = dict(options)
    sizes = options.pop('sizes', None)
    grid = (
        SharingGrid.from_sizes(sizes)
        if sizes
        else SharingGrid(13, options.pop('center', 2))
    )
    block = nn.Sequential(
        PartialPeripheralConv2d(channels, grid, backend='dense', **options)
    )
    block.eval()
    for norm in (block[0].large_norm, block[0].small_norm):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    with pytest.raises(ValueError, match='switch_to_deploy'):
        to_standard_layers(block, kernels)
    block[0].merge()
    names = list(block.state_dict())
    x = torch.randn(2, channels, 9, 12)
    standard = to_standard_layers(block, kernels)
    torch.testing.assert_close(standard(x), block(x), atol=1e-5, rtol=1e-5)
    assert not any(
        isinstance(module, (PeripheralConv2d, SmallConv2d))
        for module in standard.modules()
    )
    assert list(block.state_dict()) == names
    convolved = int(options.get('conv_ratio', 0.375) * channels)
    filled = 16 * -(-convolved // 16)
    can = filled <= channels and grid.unshared_radius >= 0
    assert standard[0].split[0] == (filled if can else convolved)


def test_whole_backbone_has_none_of_our_layers():
    model = PeLK(
        dict(
            depths=(1, 1, 1, 1),
            channels=(16, 24, 32, 48),
            kernel_sizes=(23, 13, 9, 5),
        ),
        backend='dense',
    )
    model.switch_to_deploy()
    standard = to_standard_layers(model, 'compact')
    assert not any(
        isinstance(module, PeripheralConv2d) for module in standard.modules()
    )
    with pytest.raises(ValueError, match='dense.*compact'):
        to_standard_layers(model, 'sparse')
