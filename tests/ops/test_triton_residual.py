"""A residual branch added in one go, interpreted and on a GPU.

``test_triton.py`` starts the process that interprets.
"""

from __future__ import annotations

import pytest
import torch

from pelk_mm.ops.backends import triton_residual
from pelk_mm.ops.backends.triton_residual import add_scaled
from tests.ops.test_triton import DTYPES, INTERPRETED

pytest.importorskip('triton')

KEPT = 0.6
# Of the branch, the map and the scale.
MIXED = [
    *((dtype, dtype, dtype) for dtype in DTYPES),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float16, torch.float32, torch.float32),
    (torch.bfloat16, torch.float16, torch.bfloat16),
]
EPS = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def make(shape, width, dtypes=(torch.float32,) * 3, device='cpu', **options):
    """Map, branch, scale and numbers drawn; the first is what is dropped."""
    batch, channels, *size = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    y, x, scale = draw(batch, *size, width), draw(*shape), draw(channels)
    drawn = torch.rand(batch, generator=generator)
    drawn[0], drawn[-1] = 0.9, 0.1
    y, x, scale = (
        value.to(device, dtype)
        for value, dtype in zip((y, x, scale), dtypes, strict=True)
    )
    x = x.contiguous(memory_format=torch.channels_last)
    return (
        x.requires_grad_(),
        y.requires_grad_(),
        scale.requires_grad_() if options.get('has_scale', True) else None,
        drawn.to(device) if options.get('has_drop', True) else None,
    )


def added(x, y, scale, drawn):
    """By operators of torch."""
    y = y[..., : x.shape[1]]
    if scale is not None:
        y = y * scale
    if drawn is not None:
        y = y * ((drawn < KEPT) / KEPT)[:, None, None, None].to(y)
    return x + y.permute(0, 3, 1, 2)


def fused(x, y, scale, drawn, dtype=torch.float32):
    kept = 1.0 if drawn is None else KEPT
    return add_scaled(x, y, scale, drawn, kept, dtype)


def values(run, x, y, scale, drawn, grad):
    """Output and gradients."""
    output = run(x, y, scale, drawn)
    wanted = [x, y] if scale is None else [x, y, scale]
    return output, *torch.autograd.grad(output, wanted, grad.to(output))


def check(shape, width, dtypes=(torch.float32,) * 3, device='cpu', **options):
    operands = make(shape, width, dtypes, device, **options)
    dtype = added(*operands).dtype
    # What both are computed from.
    grad = torch.randn(shape, device=device).to(dtype)
    grad = grad.contiguous(memory_format=torch.channels_last)
    exact = [
        value if value is None else value.detach().double().requires_grad_()
        for value in operands[:3]
    ]
    expected = values(added, *exact, operands[3], grad)
    got = values(lambda *args: fused(*args, dtype), *operands, grad)
    assert got[0].dtype == dtype
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for a, b, like in zip(
        got, expected, (got[0], *operands[:3]), strict=False
    ):
        assert a.dtype == like.dtype and a.shape == like.shape
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error <= EPS[a.dtype]
    # Behind the channels there is nothing.
    assert not got[2][..., shape[1] :].any()
    return got


class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize('dtypes', MIXED)
    def test_dtypes(self, dtypes):
        check((3, 5, 4, 3), 8, dtypes)

    @pytest.mark.parametrize('has_scale', [False, True])
    @pytest.mark.parametrize('has_drop', [False, True])
    def test_without_a_part(self, has_scale, has_drop):
        check((3, 5, 4, 3), 8, has_scale=has_scale, has_drop=has_drop)

    @pytest.mark.parametrize(
        ('shape', 'width'),
        [
            ((1, 1, 1, 1), 1),  # a pixel
            ((2, 128, 3, 3), 128),  # whole tiles of channels
            ((2, 126, 2, 2), 136),  # a tile of channels without a channel
            ((2, 300, 2, 5), 304),
            ((5, 3, 7, 6), 8),  # tiles of rows of several images
        ],
    )
    def test_shapes(self, shape, width):
        check(shape, width)

    def test_several_tiles_in_a_split(self, monkeypatch):
        monkeypatch.setattr(triton_residual, '_PROGRAMS', 4)
        triton_residual._grad_launch.cache_clear()
        check((4, 130, 7, 9), 136)
        triton_residual._grad_launch.cache_clear()

    def test_any_gradient(self):
        """Not of the output's layout, or expanded."""
        operands = make((2, 3, 4, 5), 8)
        grad = torch.randn(2, 3, 4, 5)
        expected = values(added, *operands, grad)
        got = values(fused, *operands, grad)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
        x, y, *_ = operands
        fused(*operands).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
        assert not y.grad[0].any() and y.grad[-1].any()

    def test_second_derivatives(self):
        def twice(run):
            operands = make((2, 3, 4, 5), 8)
            inputs = operands[:3]
            y = run(*operands).pow(3).sum()
            grads = torch.autograd.grad(y, inputs, create_graph=True)
            length = sum(grad.square().sum() for grad in grads)
            return [*grads, *torch.autograd.grad(length, inputs)]

        for a, b in zip(twice(fused), twice(added), strict=True):
            torch.testing.assert_close(a, b)

    def test_what_is_frozen(self):
        x, y, scale, drawn = make((2, 3, 4, 5), 8)
        scale.requires_grad_(False)
        fused(x.detach(), y, scale, drawn).sum().backward()
        assert y.grad.any() and x.grad is None and scale.grad is None
        with torch.no_grad():
            assert not fused(x, y, scale, drawn).requires_grad


@pytest.mark.gpu
class TestOnGPU:
    """At full size, against float64 on the same GPU."""

    @pytest.mark.parametrize('dtypes', MIXED)
    @pytest.mark.parametrize(
        ('shape', 'width'),
        [
            ((64, 124, 56, 56), 128),
            ((64, 249, 28, 28), 256),
            ((16, 499, 14, 14), 504),
            ((3, 998, 7, 7), 1000),
            ((2, 17, 33, 95), 17),
        ],
    )
    def test_sizes(self, shape, width, dtypes):
        check(shape, width, dtypes, 'cuda')

    def test_repeats_bit_by_bit(self):
        kind = (16, 124, 56, 56), 128, MIXED[3], 'cuda'
        torch.manual_seed(0)
        one = check(*kind)
        torch.manual_seed(0)
        assert all(map(torch.equal, one, check(*kind)))

    def test_parts_of_larger_tensors(self):
        """Which begin anywhere in memory."""
        x, y, scale, drawn = make((3, 7, 5, 5), 8, device='cuda')
        expected = values(added, x[1:], y[1:], scale, drawn[1:], x[1:])
        got = values(fused, x[1:], y[1:], scale, drawn[1:], x[1:])
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
