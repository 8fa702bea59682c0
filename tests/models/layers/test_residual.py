"""When a block's branch is added in one go, and when part by part.

It is done on GPUs alone: the tests make it look as if they had one. What is
computed is tested in tests/ops/test_triton_residual.py; the whole block here,
in a process that tests/ops/test_triton.py starts.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pelk_mm.models import PeLK
from pelk_mm.models.backbones.pelk import PeLKBlock
from pelk_mm.models.layers import DropPath, fused_branches, pointwise, residual
from pelk_mm.models.layers.peripheral_conv import PeripheralConv2d, SmallConv2d
from pelk_mm.ops import SharingGrid
from tests.helpers.devices import distance
from tests.ops.test_triton import INTERPRETED

pytest.importorskip('triton')


def make(**options):
    """A block whose parts all matter, and a map."""
    torch.manual_seed(0)
    options = dict(layer_scale_init_value=1.0, drop_path_rate=0.4) | options
    block = PeLKBlock(5, SharingGrid(7, 1), small_kernel=3, **options)
    x = torch.randn(3, 5, 4, 6)
    return block, x.to(memory_format=torch.channels_last)


def run(block, x):
    """With numbers drawn anew, the same for every way to add."""
    torch.manual_seed(2)
    return block(x)


@pytest.fixture
def asked(monkeypatch):
    """The options of every call that would go to the GPU."""
    from pelk_mm.ops.backends import triton_residual

    calls = []

    def add_scaled(x, *operands):
        calls.append(operands)
        return torch.zeros_like(x, dtype=operands[-1])

    monkeypatch.setattr(triton_residual, 'add_scaled', add_scaled)
    monkeypatch.setattr(residual, 'is_eager_gpu', lambda x: True)
    monkeypatch.setattr(residual, 'is_for_triton', lambda *_: True)
    return calls


@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('scale', [0.0, 1.0])
def test_dtypes_are_those_of_the_parts(asked, autocast, scale):
    block, x = make(layer_scale_init_value=scale)
    with torch.autocast('cpu', autocast, enabled=autocast is not None):
        run(block, x)
        block.drop_path.register_forward_hook(lambda *_: None)
        expected = run(block, x)
    ((y, gamma, drawn, kept, dtype),) = asked
    assert y.dtype == (autocast or torch.float32)
    assert gamma is block.gamma and kept == 0.6
    assert drawn.shape == (3,) and drawn.dtype == torch.float32
    assert dtype == expected.dtype


def test_nothing_is_drawn_that_is_not_needed(asked):
    block, x = make()
    block.eval()(x)
    make(drop_path_rate=0.0)[0](x)
    for *_, drawn, kept, _ in asked:
        assert drawn is None and kept == 1
    assert len(asked) == 2


def hooked(block):
    block.drop_path.register_forward_hook(lambda *_: None)


def patched(block):
    block.drop_path.forward = lambda x: 2 * x


def other_drop_path(block):
    class Own(DropPath):
        pass

    block.drop_path = Own(0.4)


def subclass(block):
    class Quantised(nn.Parameter):
        pass

    block.gamma = Quantised(block.gamma.detach())


@pytest.mark.parametrize(
    'change', [hooked, patched, other_drop_path, subclass]
)
def test_changed_parts_are_called(asked, change):
    block, x = make()
    run(block, x)
    assert len(asked) == 1
    change(block)
    run(block, x)
    assert len(asked) == 1


def test_parametrized_scale(asked):
    """A tensor like any other."""
    block, x = make()
    parametrizations.spectral_norm(block, 'gamma')
    run(block, x)
    assert len(asked) == 1


def test_other_maps_are_added_part_by_part(asked):
    block, x = make()
    run(block, x.contiguous())
    run(block, x[:0])
    assert not asked


@pytest.mark.parametrize('backend', ['dense', 'fft'])
def test_no_triton_where_another_backend_is_asked_for(monkeypatch, backend):
    monkeypatch.setattr(residual, 'is_eager_gpu', lambda x: True)
    block, x = make(backend=backend)
    block.double()
    assert torch.equal(run(block, x.double()), run(block, x.double()))


def test_drop_path_keeps_or_drops_samples():
    drop_path, x = DropPath(0.25), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    y = drop_path(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.95 < y.mean() < 1.05
    assert drop_path.eval()(x) is x and drop_path.draw(x) is None


class TestInterpreted:
    __test__ = INTERPRETED

    @pytest.mark.parametrize(
        ('dtype', 'with_cp'), [(torch.float32, False), (torch.bfloat16, True)]
    )
    def test_network(self, monkeypatch, dtype, with_cp):
        """All that a GPU does in another way, against the same without."""
        torch.manual_seed(0)
        network = PeLK(
            dict(
                depths=(1, 2, 1, 1),
                channels=(5, 6, 9, 11),
                kernel_sizes=(7, 7, 5, 5),
                center_radius=1,
            ),
            small_kernel=3,
            layer_scale_init_value=1.0,
            drop_path_rate=0.4,
            with_cp=with_cp,
            out_indices=1,
        )
        x = torch.randn(3, 3, 32, 32)

        def gradients(backend, of=torch.float32):
            twin = copy.deepcopy(network).to(of)
            for block in twin.modules():
                if isinstance(block, PeripheralConv2d | SmallConv2d):
                    block.backend = backend
            with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                y = run(twin, x.to(of))[0]
            y.square().sum().backward()
            return [y.detach(), *(p.grad for p in twin.parameters())]

        truth = gradients('dense', torch.float64)
        parts = gradients('triton')
        for module in (fused_branches, residual):
            monkeypatch.setattr(module, 'is_eager_gpu', lambda x: True)
        monkeypatch.setattr(pointwise, 'padded_dtype', lambda x: dtype)
        fused = gradients('triton')
        for a, b in zip(fused, parts, strict=True):
            assert a.dtype == b.dtype
        # Not the same computation twice, and no less exact.
        assert distance(fused, parts) > 0
        assert distance(fused, truth) < 1.5 * distance(parts, truth)
