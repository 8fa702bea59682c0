import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.models.layers import PartialPeripheralConv2d, PeripheralConv2d
from pelk_mm.models.layers.peripheral_conv import SmallConv2d
from pelk_mm.ops import SharingGrid

GRID = SharingGrid(13)


def eq3(x, weight, h, sizes):
    """Eq. 3 read letter by letter, position by position, in float64.

    ``Y(p) = sum_{i,j} w(i, j) (X(p + (i, j)) + h(i, j))``, X zero outside.
    """
    # Which cell every kernel row (or column) is in.
    cell = [a for a, size in enumerate(sizes) for _ in range(size)]
    radius = len(cell) // 2
    batch, channels, height, width = x.shape
    y = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            for i, a in enumerate(cell):
                for j, b in enumerate(cell):
                    r, c = row + i - radius, column + j - radius
                    inside = 0 <= r < height and 0 <= c < width
                    value = (
                        x[:, :, r, c]
                        if inside
                        else x.new_zeros(batch, channels)
                    )
                    y[:, :, row, column] += weight[:, 0, a, b] * (
                        value + h[0, i, j]
                    )
    return y


class TestPeripheralConv2d:
    @pytest.mark.parametrize('bias', [True, False])
    def test_equals_the_expanded_convolution(self, bias):
        conv = PeripheralConv2d(4, GRID, bias=bias).double()
        if bias:
            nn.init.normal_(conv.bias)
        x = torch.randn(2, 4, 9, 15, dtype=torch.float64)
        expected = F.conv2d(
            x, GRID.expand(conv.weight), conv.bias, padding=6, groups=4
        )
        torch.testing.assert_close(conv(x), expected)

    def test_starts_like_the_other_layers(self):
        conv = PeripheralConv2d(64, SharingGrid(51))
        assert conv.weight.shape == (64, 1, 13, 13)
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert torch.equal(conv.bias, torch.zeros(64))

    def test_names_what_it_is(self):
        assert repr(PeripheralConv2d(4, GRID)) == (
            'PeripheralConv2d(4, kernel_size=13, cells=9, bias=True)'
        )

    def test_backend_is_passed_on(self):
        x = torch.randn(1, 4, 9, 9)
        with pytest.raises(ValueError, match='unknown backend'):
            PeripheralConv2d(4, GRID, backend='abacus')
        conv = PeripheralConv2d(4, GRID, backend='dense')
        conv.backend = 'abacus'
        with pytest.raises(ValueError, match='unknown backend'):
            conv(x)


class TestSmallConv2d:
    def test_is_the_convolution_that_it_is_a_subclass_of(self):
        conv = SmallConv2d(4, 5).double()
        assert set(conv.state_dict()) == {'weight'}
        x = torch.randn(2, 4, 9, 15, dtype=torch.float64, requires_grad=True)
        leaves = x, conv.weight
        for got, expected in zip(
            (conv(x), *torch.autograd.grad((conv(x) ** 2).sum(), leaves)),
            (
                nn.Conv2d.forward(conv, x),
                *torch.autograd.grad(
                    (nn.Conv2d.forward(conv, x) ** 2).sum(), leaves
                ),
            ),
            strict=True,
        ):
            torch.testing.assert_close(got, expected)

    def test_backend_is_passed_on(self):
        layer = PartialPeripheralConv2d(8, GRID, backend='dense')
        assert layer.small.backend == 'dense'
        layer.small.backend = 'abacus'
        with pytest.raises(ValueError, match='unknown backend'):
            layer(torch.randn(1, 8, 9, 9))

    def test_other_devices_use_their_own(self):
        conv = SmallConv2d(4, 5, backend='cpp').to('meta')
        assert conv(torch.empty(1, 4, 9, 9, device='meta')).shape[1:] == (
            4,
            9,
            9,
        )


class TestPositionalEmbedding:
    @pytest.mark.parametrize('sizes', [(2, 1, 2), (3, 2, 1, 1, 1, 2, 3)])
    @pytest.mark.parametrize('shape', [(2, 5, 4, 6), (1, 5, 9, 3)])
    def test_constant_equals_eq3_letter_by_letter(self, sizes, shape):
        grid = SharingGrid.from_sizes(sizes)
        layer = PartialPeripheralConv2d(
            5, grid, conv_ratio=1, small_kernel=None
        ).double()
        nn.init.normal_(layer.large.weight)
        h = torch.randn(
            1, grid.kernel_size, grid.kernel_size, dtype=torch.float64
        )
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(
            layer(x, grid.reduce(h)), eq3(x, layer.large.weight, h, sizes)
        )

    def test_gets_a_gradient_that_a_batch_norm_would_take(self):
        """Why the constant is added behind the BatchNorms, not before."""
        layer = PartialPeripheralConv2d(8, GRID, conv_ratio=1).double()
        h = torch.randn(1, 13, 13, dtype=torch.float64, requires_grad=True)
        x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
        target = torch.randn(2, 8, 7, 7, dtype=torch.float64)

        def gradient(output):
            return torch.autograd.grad((output * target).sum(), h)[0]

        constant = (layer.large.weight[:, 0] * GRID.reduce(h)).sum((1, 2))
        starved = layer.large_norm(
            layer.large(x) + constant[:, None, None]
        ) + layer.small_norm(layer.small(x))
        ours = layer(x, GRID.reduce(h))
        assert gradient(starved).abs().max() < 1e-12
        expected = (
            GRID.expand(layer.large.weight[:, 0])
            * target.sum((0, 2, 3))[:, None, None]
        )
        torch.testing.assert_close(gradient(ours), expected.sum(0)[None])
        assert expected.abs().max() > 1e-2

    def test_in_eval_mode_it_is_a_constant_per_channel(self):
        layer = PartialPeripheralConv2d(8, GRID, conv_ratio=1).eval()
        x, h = torch.randn(1, 8, 6, 6), torch.randn(1, 13, 13)
        difference = layer(x, GRID.reduce(h)) - layer(x)
        torch.testing.assert_close(
            difference, difference[:, :, :1, :1].expand_as(difference)
        )
        assert difference.abs().min() > 1e-4


class TestPartial:
    @pytest.mark.parametrize(
        ('channels', 'convolved'),
        [(124, 46), (249, 93), (499, 187), (998, 374), (166, 62), (1331, 499)],
    )
    def test_default_share_is_three_eighths_cut(self, channels, convolved):
        with torch.device('meta'):
            layer = PartialPeripheralConv2d(channels, GRID)
        assert layer.large.channels == convolved

    @pytest.mark.parametrize('small_kernel', [None, 5])
    def test_other_channels_pass_through_untouched(self, small_kernel):
        layer = PartialPeripheralConv2d(8, GRID, small_kernel=small_kernel)
        x = torch.randn(2, 8, 7, 7)
        y = layer(x, torch.randn(1, 9, 9))
        assert torch.equal(y[:, 3:], x[:, 3:])
        assert (y[:, :3] != x[:, :3]).all()
        # Nor does what they hold reach the first channels.
        other = x.clone()
        other[:, 3:] = 7.0
        assert torch.equal(layer.eval()(x)[:, :3], layer(other)[:, :3])

    @pytest.mark.parametrize(
        ('given', 'used'),
        [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)],
    )
    def test_autocast_casts_once_for_both_branches(self, given, used):
        """Each keeps its input for the gradient: two copies would be two."""
        layer = PartialPeripheralConv2d(8, GRID).to(given)
        seen = []
        for branch in (layer.large, layer.small):
            branch.register_forward_pre_hook(
                lambda module, inputs: seen.append(inputs[0])
            )
        with torch.autocast('cpu', torch.bfloat16):
            layer(torch.randn(2, 8, 7, 7, dtype=given))
        assert seen[0] is seen[1]
        assert seen[0].dtype == used

    def test_branches_are_normalised_and_summed(self):
        layer = PartialPeripheralConv2d(8, GRID)
        x = torch.randn(2, 8, 7, 7)
        head = x[:, :3]
        large, small = layer.large(head), layer.small(head)
        expected = [
            (y - y.mean((0, 2, 3), keepdim=True))
            / (y.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
            for y in (large, small)
        ]
        torch.testing.assert_close(layer(x)[:, :3], sum(expected))


class TestMerge:
    def check(self, layer, h=None, size=9):
        """Merge a layer and compare; returns the merged one."""
        layer = layer.double().eval()
        sums = None if h is None else layer.large.grid.reduce(h.double())
        x = torch.randn(2, sum(layer.split), size, size, dtype=torch.float64)
        expected = layer(x, sums)
        merged = copy.deepcopy(layer)
        merged.merge(sums)
        torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-12)
        assert not any('norm' in name for name in merged.state_dict())
        return merged

    @pytest.mark.parametrize('pos_embed', [True, False])
    @pytest.mark.parametrize('small_kernel', [None, 1, 3, 5])
    def test_into_the_compact_kernel(self, small_kernel, pos_embed, randomise):
        layer = randomise(
            PartialPeripheralConv2d(8, GRID, small_kernel=small_kernel)
        )
        h = torch.randn(1, 13, 13) if pos_embed else None
        merged = self.check(layer, h)
        assert set(merged.state_dict()) == {'large.weight', 'large.bias'}
        assert merged.large.weight.shape == (3, 1, 9, 9)

    def test_small_kernel_beyond_the_centre_stays(self, randomise):
        layer = randomise(PartialPeripheralConv2d(8, GRID, small_kernel=7))
        merged = self.check(layer, torch.randn(1, 13, 13))
        assert set(merged.state_dict()) == {
            'large.weight',
            'large.bias',
            'small.weight',
        }

    @pytest.mark.parametrize('radius', [0, 1, 3])
    def test_other_centres(self, radius, randomise):
        grid = SharingGrid(13, center_radius=radius)
        layer = randomise(PartialPeripheralConv2d(8, grid))
        merged = self.check(layer, torch.randn(1, 13, 13))
        assert (merged.small is None) == (radius >= 2)

    def test_shared_centre_keeps_even_a_single_weight(self, randomise):
        grid = SharingGrid.from_sizes([2, 3, 2])
        layer = randomise(PartialPeripheralConv2d(8, grid, small_kernel=1))
        assert self.check(layer).small is not None

    def test_norms_without_weights(self, randomise):
        layer = PartialPeripheralConv2d(
            8, GRID, norm_cfg=dict(type='BN', affine=False, eps=1e-2)
        )
        self.check(randomise(layer))

    def test_keeps_what_is_frozen_frozen(self):
        layer = PartialPeripheralConv2d(8, GRID).requires_grad_(False)
        layer.merge()
        assert not layer.large.bias.requires_grad
        layer = PartialPeripheralConv2d(8, GRID)
        layer.merge()
        assert layer.large.bias.requires_grad

    @pytest.mark.parametrize('small_kernel', [None, 5, 7])
    def test_deploy_builds_it_merged(self, small_kernel):
        trained = PartialPeripheralConv2d(8, GRID, small_kernel=small_kernel)
        trained.merge()
        built = PartialPeripheralConv2d(
            8, GRID, small_kernel=small_kernel, deploy=True
        )
        shapes = [
            {name: value.shape for name, value in layer.state_dict().items()}
            for layer in (trained, built)
        ]
        assert shapes[0] == shapes[1]


class TestArguments:
    @pytest.mark.parametrize(
        ('kwargs', 'error', 'message'),
        [
            (dict(conv_ratio=0.1), ValueError, '0 to convolve'),
            (dict(conv_ratio=1.5), ValueError, 'conv_ratio'),
            (dict(conv_ratio='1'), TypeError, 'conv_ratio'),
            (dict(small_kernel=4), ValueError, 'small_kernel'),
            (dict(small_kernel=15), ValueError, r'small_kernel.*13.*15'),
            (dict(small_kernel=0), ValueError, 'small_kernel'),
            (dict(small_kernel=5.0), TypeError, 'small_kernel'),
            (dict(norm_cfg='BN'), TypeError, 'norm_cfg'),
            (
                dict(norm_cfg=dict(type='GN', num_groups=1)),
                ValueError,
                'norm_cfg',
            ),
            (
                dict(norm_cfg=dict(type='BN', track_running_stats=False)),
                ValueError,
                'norm_cfg',
            ),
            (dict(backend='abacus'), ValueError, 'abacus'),
        ],
    )
    def test_wrong_ones_are_named(self, kwargs, error, message):
        with pytest.raises(error, match=message):
            PartialPeripheralConv2d(8, GRID, **kwargs)

    def test_norm_cfg_is_used_and_left_alone(self):
        cfg = dict(type='BN', eps=1e-3, requires_grad=False)
        before = dict(cfg)
        layer = PartialPeripheralConv2d(8, GRID, norm_cfg=cfg)
        assert cfg == before
        for norm in (layer.large_norm, layer.small_norm):
            assert norm.eps == 1e-3
            assert not norm.weight.requires_grad
