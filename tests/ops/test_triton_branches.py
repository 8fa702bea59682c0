"""Two branches and their norms in one go, interpreted and on a GPU.

``test_triton.py`` starts the process that interprets.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.backends import triton_branches, triton_launch
from pelk_mm.ops.backends.triton_branches import join_branches, make_step
from pelk_mm.ops.backends.triton_launch import make_work
from tests.ops.test_triton import DTYPES, INTERPRETED

pytest.importorskip('triton')

# Largest error over the largest value: of the output, of the gradients. Sums
# over the map of rounded gradients cancel out.
TOLERANCE = {
    torch.float32: (2e-6, 1e-5),
    torch.float16: (2**-10, 2**-7),
    torch.bfloat16: (2**-7, 2**-4),
}


class Branches(nn.Module):
    """What is joined, by operators that need no GPU."""

    def __init__(self, channels, grid, small, pos_embed):
        super().__init__()
        self.grid, self.small_grid = grid, SharingGrid.from_sizes([1] * small)
        cells = grid.num_cells
        self.large = nn.Parameter(torch.randn(channels, 1, cells, cells))
        self.small = nn.Parameter(torch.randn(channels, 1, small, small))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))
        self.pos_sums = None
        if pos_embed:
            self.pos_sums = nn.Parameter(torch.randn(1, cells, cells))
        for norm in self.norms:
            norm.momentum = 0.3
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        channels, padding = len(self.small), self.small.shape[2] // 2
        head, rest = x[:, :channels], x[:, channels:]
        large = peripheral_conv2d(head, self.large, self.grid)
        options = dict(padding=padding, groups=channels)
        small = F.conv2d(head, self.small, **options)
        y = self.norms[0](large) + self.norms[1](small)
        if self.pos_sums is not None:
            constant = (self.large * self.pos_sums).sum((1, 2, 3))
            y = y + constant[:, None, None]
        return torch.cat((y, rest), 1)

    def joined(self, x, dtype=torch.float32, out_dtype=torch.float32):
        return join_branches(
            x,
            self.large,
            self.small,
            [*self.norms],
            self.pos_sums,
            self.grid,
            self.small_grid,
            dtype,
            out_dtype,
        )


def make(shape, channels, grid, small=5, pos_embed=True, device='cpu'):
    torch.manual_seed(0)
    x = torch.randn(shape).mul_(2).add_(1)
    branches = Branches(channels, grid, small, pos_embed)
    x, grad = (
        value.to(device, memory_format=torch.channels_last)
        for value in (x, torch.randn(shape))
    )
    return branches.to(device), x.requires_grad_(), grad


def values(branches, x, grad, run):
    """Output, gradients and buffers."""
    y = run(x)
    grads = torch.autograd.grad(y, [x, *branches.parameters()], grad)
    return y.detach(), grads, [*branches.buffers()]


def error(got, truth):
    return ((got.double() - truth).abs().max() / truth.abs().max()).item()


def check(shape, channels, grid, dtype, device='cpu', **options):
    branches, x, grad = make(shape, channels, grid, device=device, **options)
    exact = copy.deepcopy(branches).double()
    with torch.no_grad():
        # What both are computed from.
        for weight in (branches.large, branches.small):
            weight.copy_(weight.to(dtype))
        for weight in (exact.large, exact.small):
            weight.copy_(weight.to(dtype))
        x[:, :channels] = x[:, :channels].to(dtype)
    got = values(branches, x, grad, lambda x: branches.joined(x, dtype))
    exact_x = x.detach().double().requires_grad_()
    expected = values(exact, exact_x, grad.double(), exact)
    of_output, of_grads = TOLERANCE[dtype]
    assert got[0].dtype == torch.float32
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert error(got[0], expected[0]) <= of_output
    for a, b in zip(got[1], expected[1], strict=True):
        assert a.dtype == torch.float32 and error(a, b) <= of_grads
    for a, b in zip(got[2], expected[2], strict=True):
        assert error(a, b) <= of_output
    # The other channels are copied.
    assert torch.equal(got[0][:, channels:], x[:, channels:])
    assert torch.equal(got[1][0][:, channels:], grad[:, channels:])
    return got


def flat(results):
    return [results[0], *results[1], *results[2]]


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a test has replaced is neither used nor kept by the launches."""
    for kept in (make_work, make_step):
        kept.cache_clear()
    yield
    for kept in (make_work, make_step):
        kept.cache_clear()


@pytest.fixture
def few_programs(monkeypatch):
    """The interpreter runs them one after the other."""
    monkeypatch.setattr(triton_branches, '_PROGRAMS', 4)


@pytest.mark.usefixtures('few_programs')
class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize('dtype', DTYPES)
    def test_dtypes(self, dtype):
        check((2, 3, 10, 6), 2, SharingGrid(13), dtype)

    @pytest.mark.parametrize(
        ('shape', 'channels', 'kernel_size', 'options'),
        [
            # No other channels.
            ((1, 2, 3, 18), 2, 7, dict(small=3, pos_embed=False)),
            # A small kernel wider than the centre, a large one than the map.
            ((2, 2, 2, 4), 1, 31, dict(small=9)),
            # Several tiles of columns.
            ((1, 2, 2, 70), 1, 13, dict()),
        ],
    )
    def test_shapes(self, shape, channels, kernel_size, options):
        grid = SharingGrid(kernel_size, min(2, kernel_size // 4))
        check(shape, channels, grid, torch.float32, **options)

    def test_groups_of_channels(self, monkeypatch):
        kind = (1, 3, 4, 5), 2, SharingGrid(7, 1)
        whole = check(*kind, torch.float32)
        monkeypatch.setattr(triton_launch, '_SCRATCH_BYTES', 1)
        for kept in (make_work, make_step):
            kept.cache_clear()
        parts = check(*kind, torch.float32)
        assert all(map(torch.equal, flat(whole), flat(parts)))

    def test_any_gradient(self):
        """Not of the output's layout, expanded, or in another dtype."""
        branches, x, grad = make((1, 2, 3, 5), 1, SharingGrid(7, 1))
        expected = values(branches, x, grad, branches.joined)[1]
        got = values(branches, x, grad.contiguous(), branches.joined)[1]
        assert all(map(torch.equal, got, expected))
        y = branches.joined(x, out_dtype=torch.bfloat16)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert torch.equal(x.grad[:, 1], torch.ones(1, 3, 5))

    def test_second_derivatives(self):
        branches, x, _ = make((1, 2, 3, 5), 1, SharingGrid(7, 1), small=3)
        inputs = [x, *branches.parameters()]

        def twice(run):
            y = run(x).pow(3).sum()
            grads = torch.autograd.grad(y, inputs, create_graph=True)
            length = sum(grad.square().sum() for grad in grads)
            return [*grads, *torch.autograd.grad(length, inputs)]

        for a, b in zip(*map(twice, (branches.joined, branches)), strict=True):
            assert error(a, b.double()) < 2e-5

    def test_memory_that_is_kept(self):
        """Of the input a copy of the channels that are convolved."""
        branches, x, _ = make((1, 32, 4, 16), 2, SharingGrid(7, 1))
        kept = []

        def pack(tensor):
            kept.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            branches.joined(x, torch.bfloat16)
        planes = 2 * 4 * 16 * 2
        parameters = sum(p.nbytes for p in branches.parameters())
        assert sum(kept) <= 3 * planes + parameters + x[:, :6].nbytes


@pytest.mark.gpu
class TestOnGPU:
    """At full size, against float64 on the same GPU."""

    @pytest.mark.parametrize('dtype', DTYPES)
    @pytest.mark.parametrize(
        ('shape', 'channels', 'grid'),
        [
            ((64, 124, 56, 56), 46, SharingGrid(51)),
            ((64, 249, 28, 28), 93, SharingGrid(49)),
            ((16, 499, 14, 14), 187, SharingGrid(47)),
            ((3, 998, 7, 7), 374, SharingGrid(13)),
            ((2, 124, 128, 128), 46, SharingGrid(101, 3)),
            ((2, 11, 33, 95), 7, SharingGrid(31)),
        ],
    )
    def test_sizes(self, shape, channels, grid, dtype):
        check(shape, channels, grid, dtype, 'cuda')

    def test_repeats_bit_by_bit(self):
        kind = (16, 124, 56, 56), 46, SharingGrid(51), torch.bfloat16, 'cuda'
        one, two = (flat(check(*kind)) for _ in range(2))
        assert all(map(torch.equal, one, two))
