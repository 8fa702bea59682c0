"""The operator: every backend against the truth, and what torch sees of it."""

from __future__ import annotations

import io
import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops import backends as backends_module
from tests.conftest import ROOT
from tests.helpers import forked
from tests.helpers.operator_cases import (
    BACKENDS,
    EXPLICIT_GRIDS,
    LAYOUTS,
    PAPER_GRIDS,
    check,
    make_map,
    require,
    run,
    truth,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    require(request.param)
    return request.param


@pytest.mark.parametrize('name', PAPER_GRIDS)
def test_paper_grids(backend, name):
    check(backend, (1, 2, 19, 13), PAPER_GRIDS[name])


@pytest.mark.parametrize('name', EXPLICIT_GRIDS)
def test_explicit_grids(backend, name):
    if backend == 'dense' and name == 'far':
        pytest.skip('a kernel of 2001 x 2001 written out is no test')
    check(backend, (2, 2, 11, 14), EXPLICIT_GRIDS[name])


@pytest.mark.parametrize(
    'size', [(1, 1), (1, 7), (6, 1), (2, 3), (7, 7), (9, 33), (40, 5)]
)
@pytest.mark.parametrize('layout', ['contiguous', 'slice'])
def test_sizes(backend, size, layout):
    check(backend, (1, 2, *size), SharingGrid(31), layout=layout)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_and_dtypes(backend, layout, dtype):
    check(backend, (2, 3, 13, 16), SharingGrid(13), dtype, layout)


def test_all_ones_grid_is_a_depthwise_convolution(backend):
    grid = SharingGrid.from_sizes([1] * 7)
    x, w = make_map((2, 5, 12, 9)), torch.randn(5, 1, 7, 7)
    expected = torch.nn.functional.conv2d(
        x.double(), w.double(), padding=3, groups=5
    )
    actual = peripheral_conv2d(x, w, grid, backend=backend)
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(
    'layout,format',
    [
        ('contiguous', torch.contiguous_format),
        ('channels_last', torch.channels_last),
        ('slice', torch.channels_last),
        ('strided', torch.contiguous_format),
    ],
)
def test_output_layout(backend, layout, format):
    x = make_map((2, 4, 5, 6), layout=layout)
    y = peripheral_conv2d(
        x, torch.randn(4, 1, 9, 9), SharingGrid(13), backend=backend
    )
    assert y.is_contiguous(memory_format=format)


def test_no_bias(backend):
    x, w = make_map((1, 3, 6, 7)), torch.randn(3, 1, 9, 9)
    grid, bias = SharingGrid(13), torch.randn(3)
    without = peripheral_conv2d(x, w, grid, backend=backend)
    with_bias = peripheral_conv2d(x, w, grid, bias, backend=backend)
    torch.testing.assert_close(without + bias[:, None, None], with_bias)


def test_backend_named_is_the_one_that_ran(backend):
    x = make_map((1, 3, 6, 7)).requires_grad_()
    w = torch.randn(3, 1, 9, 9, requires_grad=True)
    ran = []
    for name, other in backends_module.BACKENDS.items():
        for method in ('forward', 'weight_grad', 'backward'):
            original = getattr(other, method)

            def spy(*args, _name=name, _method=method, _original=original):
                ran.append((_name, _method))
                return _original(*args)

            patch = mock.patch.object(other, method, spy)
            patch.start()
    try:
        y = peripheral_conv2d(x, w, SharingGrid(13), backend=backend)
        y.sum().backward()
    finally:
        mock.patch.stopall()
    assert ran[:2] == [(backend, 'forward'), (backend, 'backward')]
    assert {name for name, _ in ran} == {backend}


def test_gradients_one_at_a_time(backend):
    """Of input or weight alone, as of both; the other may be frozen."""
    grid = SharingGrid(13)
    x = make_map((2, 5, 6, 7), torch.float64, 'slice').requires_grad_()
    w = torch.randn(5, 1, 9, 9, dtype=torch.float64, requires_grad=True)

    def gradients(x, w):
        y = peripheral_conv2d(x, w, grid, backend=backend)
        return torch.autograd.grad(
            (y**2).sum(), [leaf for leaf in (x, w) if leaf.requires_grad]
        )

    both = gradients(x, w)
    torch.testing.assert_close(gradients(x, w.detach())[0], both[0])
    torch.testing.assert_close(gradients(x.detach(), w)[0], both[1])


def test_backward_mixes_backends_where_that_is_faster(monkeypatch):
    """What suits a convolution need not suit the weight's gradient."""
    from pelk_mm.ops import peripheral_conv

    chosen = backends_module.BACKENDS
    monkeypatch.setattr(
        peripheral_conv,
        '_select',
        lambda *_, weight_grad=False: chosen[
            'fft' if weight_grad else 'dense'
        ],
    )
    leaves = (
        make_map((2, 3, 6, 7), torch.float64).requires_grad_(),
        torch.randn(3, 1, 9, 9, dtype=torch.float64, requires_grad=True),
    )
    y = peripheral_conv2d(*leaves, SharingGrid(13))
    mixed = torch.autograd.grad((y**2).sum(), leaves)
    monkeypatch.undo()
    y = peripheral_conv2d(*leaves, SharingGrid(13), backend='dense')
    for got, expected in zip(
        mixed, torch.autograd.grad((y**2).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_gradcheck_and_gradgradcheck(backend):
    grid = SharingGrid.from_sizes([3, 2, 1, 2, 3])
    x = make_map((2, 2, 5, 4), torch.float64, 'slice').requires_grad_()
    w = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def convolve(*leaves):
        return peripheral_conv2d(*leaves[:2], grid, leaves[2], backend=backend)

    assert torch.autograd.gradcheck(convolve, (x, w, b))
    assert torch.autograd.gradgradcheck(convolve, (x, w, b))


@pytest.mark.parametrize(
    'file, words, passed',
    [
        (
            'test_peripheral_conv.py',
            'gradients or gradcheck or opcheck or one_graph or checkpointing',
            6,
        ),
        pytest.param('test_transforms.py', 'test', 55, marks=pytest.mark.slow),
    ],
    ids=['gradients', 'transforms'],
)
def test_autograd_without_the_library(file, words, passed, tmp_path):
    """Where it is loaded, its formulas take the place of Python's on CPUs.

    Over 5 s, since it runs tests.
    """
    result = forked.run(
        Path(pytest.__file__).with_name('__main__.py'),
        '-q',
        '-pno:cacheprovider',
        ROOT / 'tests' / 'ops' / file,
        '-k',
        f'fft and ({words})',
        environment=dict(CXX='/nowhere/c++', XDG_CACHE_HOME=str(tmp_path)),
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(rf'\b{passed} passed, \d+ deselected', result.stdout)


@pytest.mark.parametrize('layout', ['contiguous', 'slice'])
def test_opcheck(backend, layout):
    grid = SharingGrid(13)
    x = make_map((2, 3, 6, 7), layout=layout).requires_grad_()
    w = torch.randn(3, 1, 9, 9, requires_grad=True)
    b = torch.randn(3, requires_grad=True)
    ops = torch.ops.pelk_mm
    torch.library.opcheck(
        ops.peripheral_conv2d.default, (x, w, b, grid.sizes, backend)
    )
    torch.library.opcheck(
        ops.peripheral_conv2d_weight_grad.default,
        (x, make_map((2, 3, 6, 7), layout=layout), grid.sizes, backend),
    )
    torch.library.opcheck(
        ops.peripheral_conv2d_backward.default,
        (
            x,
            w,
            make_map((2, 3, 6, 7), layout=layout).requires_grad_(),
            grid.sizes,
            backend,
        ),
    )


@pytest.mark.parametrize('layout', ['contiguous', 'slice'])
def test_no_images(backend, layout):
    """As conv2d: an empty map, and gradients that are zeros."""
    empty = make_map((2, 3, 6, 7), layout=layout)[:0].requires_grad_()
    leaves = (
        empty,
        torch.randn(3, 1, 9, 9, requires_grad=True),
        torch.randn(3, requires_grad=True),
    )

    def call(input, weight, bias):
        return peripheral_conv2d(
            input, weight, SharingGrid(13), bias, backend=backend
        )

    y = call(*leaves)
    assert y.shape == empty.shape
    grads = torch.autograd.grad(y.sum(), leaves, create_graph=True)
    for got in (grads, torch.func.vjp(call, *leaves)[1](y)):
        for grad, leaf in zip(got, leaves, strict=True):
            assert torch.equal(grad, torch.zeros_like(leaf))
    (twice,) = torch.autograd.grad(grads[1].sum(), (empty,))
    assert twice.shape == empty.shape
    y = call(empty.detach(), *leaves[1:])
    (grad,) = torch.autograd.grad(y.sum(), leaves[1:2])
    assert torch.equal(grad, torch.zeros_like(grad))
    assert torch.func.jvp(call, leaves, leaves)[1].shape == empty.shape
    weights = torch.randn(4, 3, 1, 9, 9)
    mapped = torch.func.vmap(call, (None, 0, None))(empty, weights, leaves[2])
    assert mapped.shape == (4, *empty.shape)


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('dtype', DTYPES)
def test_not_finite_where_the_kernel_reaches(backend, value, dtype):
    """Neither further nor in other planes, in the input's gradient too."""
    x, grad_output = (make_map((2, 2, 20, 23), dtype) for _ in range(2))
    w = torch.randn(2, 1, 9, 9).to(dtype)
    finite = run(x, w, torch.zeros(2, dtype=dtype), grad_output, convolve_13)
    for map_ in (x, grad_output):
        map_[0, 0, 2, 3] = map_[1, 1, 19, 22] = value
    x.requires_grad_()
    y = peripheral_conv2d(x, w, GRID, backend=backend)
    (grad,) = torch.autograd.grad(y, x, grad_output)
    reached = torch.zeros(x.shape, dtype=torch.bool)
    reached[0, 0, :9, :10] = reached[1, 1, 13:, 16:] = True
    for got, without in zip((y, grad), finite, strict=False):
        assert torch.equal(~got.isfinite(), reached)
        torch.testing.assert_close(
            got[~reached], without[~reached], rtol=1e-2, atol=1e-2
        )


def convolve_13(input, weight, bias):
    return peripheral_conv2d(input, weight, GRID, bias, backend='dense')


#: Views that hold no values of their own yet.
LAZY = {
    'as it is': lambda x: x,
    'negated': torch._neg_view,
    'imaginary': lambda x: torch.complex(x, x).conj().imag,
    'zeros': lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    'transposed': lambda x: x.transpose(0, -1).clone().transpose(0, -1),
    'expanded': lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('name', LAZY)
def test_lazy_views(backend, name, compiled):
    """Of what is given, and those that a backend makes within a graph."""
    view, grid, shape = LAZY[name], SharingGrid(13), (2, 3, 6, 7)
    values = make_map(shape), torch.randn(3, 1, 9, 9), torch.randn(3)
    grad_output = make_map(shape)

    def call(*operands):
        x, w, b, g = map(view, operands)
        y = peripheral_conv2d(x, w, grid, b, backend=backend)
        how = g, grid.sizes, backend
        backward = torch.ops.pelk_mm.peripheral_conv2d_backward(x, w, *how)
        weight_grad = torch.ops.pelk_mm.peripheral_conv2d_weight_grad(x, *how)
        return y, *backward, weight_grad

    run_it = torch.compile(call, backend='aot_eager') if compiled else call
    actual = run_it(*values, grad_output)
    plain = [
        view(x).resolve_neg().clone().double() for x in (*values, grad_output)
    ]
    expected = run(*plain, lambda *leaves: truth(*leaves, grid))[:3]
    for got, want in zip(actual, (*expected, expected[2]), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


class Module(torch.nn.Module):
    def __init__(self, backend: str | None) -> None:
        super().__init__()
        self.grid, self.backend = SharingGrid(13), backend
        self.weight = torch.nn.Parameter(torch.randn(3, 1, 9, 9))
        self.bias = torch.nn.Parameter(torch.randn(3))

    def forward(self, x):
        return peripheral_conv2d(
            x[:, :3], self.weight, self.grid, self.bias, backend=self.backend
        ).relu()


def test_compile_is_one_graph(backend):
    module = Module(backend)
    x = make_map((2, 5, 8, 9), layout='channels_last')
    expected = module(x)
    expected.sum().backward()
    grad = module.weight.grad.clone()
    module.weight.grad = None
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    actual = compiled(x)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(module.weight.grad, grad)


def test_export_and_save(backend):
    module = Module(backend).eval()
    x = make_map((2, 5, 8, 9))
    program = torch.export.export(module, (x,))
    calls = [
        node
        for node in program.graph.nodes
        if node.target is torch.ops.pelk_mm.peripheral_conv2d.default
    ]
    assert len(calls) == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), module(x))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(backend, dtype):
    module, x = Module(backend), make_map((1, 5, 8, 9))
    with torch.autocast('cpu', dtype):
        y = module(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert module.weight.grad.dtype == torch.float32
    plain = module(x)
    assert (y - plain).abs().max() <= 2**-6 * plain.abs().max()


def test_autocast_leaves_float64_alone(backend):
    x = make_map((1, 5, 8, 9), torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        assert Module(backend).double()(x).dtype == torch.float64


def test_calling_twice_and_checkpointing(backend):
    module, x = Module(backend), make_map((1, 5, 8, 9)).requires_grad_()
    (module(x).sum() + module(x).sum()).backward()
    twice, x.grad = x.grad.clone(), None
    torch.utils.checkpoint.checkpoint(
        module, x, use_reentrant=False
    ).sum().backward()
    torch.testing.assert_close(twice, 2 * x.grad)


def test_backward_keeps_only_input_and_weight(backend):
    saved = []
    x = make_map((2, 3, 20, 20)).requires_grad_()
    w = torch.randn(3, 1, 13, 13, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        peripheral_conv2d(x, w, SharingGrid(51), backend=backend)
    assert sorted(tensor.numel() for tensor in saved) == sorted(
        [x.numel(), w.numel()]
    )


GRID = SharingGrid(13)
X, W, B = torch.randn(1, 3, 6, 7), torch.randn(3, 1, 9, 9), torch.randn(3)


@pytest.mark.parametrize(
    'arguments,error,words',
    [
        ((X, W, 13), TypeError, ['SharingGrid', 'int']),
        ((X.numpy(), W, GRID), TypeError, ['input', 'ndarray']),
        ((X.int(), W, GRID), TypeError, ['input', 'torch.int32']),
        ((X, W.double(), GRID), TypeError, ['weight', 'float32', 'float64']),
        ((X[0], W, GRID), ValueError, ['(N, C, H, W)', '(3, 6, 7)']),
        ((X[..., :0], W, GRID), ValueError, ['empty', '(1, 3, 6, 0)']),
        ((X, W[:2], GRID), ValueError, ['(3, 1, 9, 9)', '(2, 1, 9, 9)']),
        ((X, W[..., 1:], GRID), ValueError, ['(3, 1, 9, 9)', '(3, 1, 9, 8)']),
        ((X, W, GRID, B[:2]), ValueError, ['bias', '(3,)', '(2,)']),
        ((X, W.to('meta'), GRID), ValueError, ['weight', 'cpu', 'meta']),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error) as raised:
        peripheral_conv2d(*arguments)
    for word in words:
        assert word in str(raised.value)


def test_unknown_backend():
    with pytest.raises(ValueError, match="'cudnn'.*'cpp'.*'dense'"):
        peripheral_conv2d(X, W, GRID, backend='cudnn')


def test_available_backends():
    assert available_backends()['dense'] is None
    assert 'CPU only' in available_backends('cuda')['cpp']
    absent = available_backends('cuda:99')
    assert all(absent.values())
    assert 'cuda:99' in absent['dense']
    assert 'float32' not in str(available_backends(dtype=torch.int8)['fft'])
    assert 'torch.int8' in available_backends(dtype=torch.int8)['cpp']
