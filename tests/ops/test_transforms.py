"""Derivatives in every mode and ``torch.func``, against ``conv2d``.

In float64, so that what differs is a rule and not a rounding.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import func
from torch.autograd import forward_ad

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from tests.helpers.operator_cases import BACKENDS, make_map, require

GRID = SharingGrid(13)
CELLS = GRID.num_cells


def conv2d(input, weight, bias=None):
    """What the operator is, written out."""
    how = dict(padding=GRID.kernel_size // 2, groups=input.shape[1])
    return F.conv2d(input, GRID.expand(weight), bias, **how)


@pytest.fixture(params=[*BACKENDS, None])
def operator(request):
    if request.param is not None:
        require(request.param)

    def run(input, weight, bias=None):
        return peripheral_conv2d(
            input, weight, GRID, bias, backend=request.param
        )

    return run


def draw(*shape, layout='contiguous'):
    if len(shape) == 4 and shape[-1] != CELLS:
        return make_map(shape, torch.float64, layout)
    return torch.randn(shape, dtype=torch.float64)


def operands(channels=2, size=(3, 4)):
    return (
        draw(2, channels, *size),
        draw(channels, 1, CELLS, CELLS),
        draw(channels),
    )


def same(transformed, operator):
    """``transformed(f)`` is the same of the operator and of ``conv2d``."""
    torch.manual_seed(1)
    got = transformed(operator)
    torch.manual_seed(1)
    expected = transformed(conv2d)
    torch.testing.assert_close(got, expected)
    for tensor in torch.utils._pytree.tree_leaves(expected):
        assert tensor.abs().max() > 0


def loss(f):
    """Of third order, so that no second derivative is a constant."""
    return lambda *operands: f(*operands).pow(3).sum()


ALL = (0, 1, 2)
OPERANDS = [(0,), (1,), (2,), (0, 1), ALL]


@pytest.mark.parametrize('which', OPERANDS)
def test_jvp(operator, which):
    """With tangents of some operands, the others being constants."""
    values = operands()
    tangents = [draw(*x.shape) for x in values]

    def transformed(f):
        def of_some(*some):
            full = list(values)
            for i, x in zip(which, some, strict=True):
                full[i] = x
            return f(*full)

        return func.jvp(
            of_some,
            tuple(values[i] for i in which),
            tuple(tangents[i] for i in which),
        )

    same(transformed, operator)


@pytest.mark.parametrize('which', OPERANDS)
@pytest.mark.parametrize('grad', [True, False])
def test_forward_mode(operator, which, grad):
    """Without ``torch.func``, and the tangent differentiated backwards."""
    values = operands()
    tangents = [draw(*x.shape) for x in values]

    def transformed(f):
        leaves = [x.clone().requires_grad_(grad) for x in values]
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x, tangents[i]) if i in which else x
                for i, x in enumerate(leaves)
            ]
            primal, tangent = forward_ad.unpack_dual(f(*duals).pow(3))
        if not grad:
            return primal, tangent
        assert tangent.requires_grad
        return primal, tangent, *torch.autograd.grad(tangent.sum(), leaves)

    same(transformed, operator)


def test_forward_mode_of_a_backward_pass(operator):
    """Tangents that the gradients take along: Hessian times a vector."""
    values = operands()
    tangents = [draw(*x.shape) for x in values]

    def transformed(f):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x.clone().requires_grad_(), t)
                for x, t in zip(values, tangents, strict=True)
            ]
            grads = torch.autograd.grad(loss(f)(*duals), duals)
            return [tuple(forward_ad.unpack_dual(grad)) for grad in grads]

    same(transformed, operator)


def test_grad_and_vjp(operator):
    values = operands()
    cotangent = draw(*values[0].shape)
    same(lambda f: func.grad(loss(f), ALL)(*values), operator)
    same(lambda f: func.vjp(f, *values)[1](cotangent), operator)
    same(
        lambda f: func.grad(
            lambda x: func.grad(loss(f), 1)(x, *values[1:]).pow(2).sum()
        )(values[0]),
        operator,
    )


DIMS = [
    (0, None, None),
    (3, None, None),
    (None, 0, None),
    (None, None, 1),
    (1, 4, None),
    (4, 2, 0),
]


def batched(in_dims, size=3, layout='contiguous'):
    """Operands, some of them with a batch dimension at that place."""
    values = []
    for x, dim in zip(operands(), in_dims, strict=True):
        if dim is not None:
            shape = [size, *x.shape]
            if x.ndim == 4 and x.shape[-1] != CELLS:
                x = draw(size * shape[1], *shape[2:], layout=layout)
                x = x.reshape(shape)
            else:
                x = draw(*shape)
            x = x.movedim(0, dim)
        values.append(x)
    return values


@pytest.mark.parametrize('in_dims', DIMS)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_vmap(operator, in_dims, layout):
    values = batched(in_dims, layout=layout)
    same(lambda f: func.vmap(f, in_dims)(*values), operator)


@pytest.mark.parametrize('in_dims', DIMS)
def test_vmap_of_gradients(operator, in_dims):
    values = batched(in_dims)
    same(
        lambda f: func.vmap(func.grad(loss(f), ALL), in_dims)(*values),
        operator,
    )


@pytest.mark.parametrize('in_dims', DIMS)
def test_gradient_of_vmap(operator, in_dims):
    values = batched(in_dims)

    def transformed(f):
        leaves = [x.clone().requires_grad_() for x in values]
        loss(func.vmap(f, in_dims))(*leaves).backward()
        return [x.grad for x in leaves]

    same(transformed, operator)


def test_vmap_twice(operator):
    images, weights = draw(2, 3, 1, 2, 3, 4), draw(3, 2, 1, CELLS, CELLS)
    same(
        lambda f: func.vmap(func.vmap(f), (0, None))(images, weights), operator
    )


def test_vmap_without_bias(operator):
    values = batched((0, 0, None))[:2]
    same(lambda f: func.vmap(func.grad(loss(f), (0, 1)))(*values), operator)


@pytest.mark.parametrize('which', [0, 1, 2])
@pytest.mark.parametrize('jacobian', [func.jacrev, func.jacfwd])
def test_jacobians(operator, jacobian, which):
    values = operands(size=(2, 3))
    same(lambda f: jacobian(f, which)(*values), operator)


@pytest.mark.parametrize(
    'outer,inner',
    [
        (func.jacfwd, func.jacrev),
        (func.jacrev, func.jacrev),
        (func.jacrev, func.jacfwd),
        (func.jacfwd, func.jacfwd),
    ],
)
def test_second_derivatives(operator, outer, inner):
    """Every order of the modes, mixed derivatives too."""
    values = operands(channels=1, size=(2, 2))
    same(lambda f: outer(inner(loss(f), (0, 1)), (0, 1))(*values), operator)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(operator, dtype):
    """``torch.func`` acts before autocast casts, which is differentiated."""
    values = [x.float() for x in operands()]
    with torch.autocast('cpu', dtype):
        value, grads = func.vjp(operator, *values)
        grads = grads(torch.ones_like(value))
        tangent = func.jvp(operator, tuple(values), tuple(values))[1]
        leaves = [x.clone().requires_grad_() for x in values]
        expected = operator(*leaves)
        expected.backward(torch.ones_like(expected))
    assert value.dtype == tangent.dtype == dtype
    assert torch.equal(value, expected)
    for grad, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(grad, leaf.grad)


def test_errors_speak_of_what_the_mapped_function_sees():
    weight = draw(2, 1, CELLS, CELLS)
    with pytest.raises(ValueError, match=r'got shape \(3, 4\)'):
        func.vmap(lambda x: peripheral_conv2d(x, weight, GRID))(draw(2, 3, 4))


@pytest.mark.parametrize(
    'transform',
    [
        lambda f: func.vmap(func.grad(loss(f), ALL)),
        lambda f: lambda *x: func.jvp(func.vmap(f), x, x),
        pytest.param(
            lambda f: lambda *x: func.hessian(loss(f), 1)(*(y[0] for y in x)),
            marks=pytest.mark.skipif(
                torch.__version__ < '2.6', reason='not in that torch'
            ),
        ),
    ],
    ids=['vmap(grad)', 'jvp', 'hessian'],
)
def test_compiled(transform):
    """Forward mode too, of which Python's side of torch is not told then."""
    values = batched((0, 0, 0), size=2)
    function = transform(
        lambda input, weight, bias: peripheral_conv2d(
            input, weight, GRID, bias
        )
    )
    compiled = torch.compile(function, backend='aot_eager')
    torch.testing.assert_close(compiled(*values), function(*values))
