"""Widths filled up for a GPU's sake, and what that leaves as it is.

Where it is done depends on the device: the tests ask for it on any.
"""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.ao import quantization
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm.models import PeLK
from pelk_mm.models.layers import pointwise, pointwise_mlp

PRODUCTS = {'mm', 'addmm', 'bmm', 'baddbmm', 'linear'}


class Widths(TorchDispatchMode):
    """Collects the widths of the matrices that are multiplied."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in PRODUCTS:
            for value in args:
                if isinstance(value, torch.Tensor) and value.ndim > 1:
                    # A matrix or its transpose: from one line to the next.
                    self.seen.add(max(value.stride()))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def padded(monkeypatch):
    """A function that makes every device one that pads to a dtype."""

    def pad(dtype):
        monkeypatch.setattr(pointwise, 'padded_dtype', lambda x: dtype)

    return pad


def layers(width=5, hidden=11, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Identity(),
        nn.Linear(hidden, width),
    ).to(dtype)


def inside(x, mlp):
    """Without the zeros that are behind the output where it is filled up."""
    y = pointwise_mlp(x, mlp)
    width = mlp[-1].out_features
    assert not y[..., width:].any()
    return y[..., :width]


def values(mlp, x):
    """The output and all gradients."""
    y = inside(x, mlp)
    signs = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)
    operands = (x, *mlp.parameters())
    return y, *torch.autograd.grad((y * signs).sum(), operands)


@pytest.mark.parametrize(
    ('width', 'hidden'), [(5, 11), (8, 12), (7, 16), (1, 1), (8, 16)]
)
def test_same_values(width, hidden, padded):
    mlp = layers(width, hidden)
    x = torch.randn(2, 3, 4, width, dtype=torch.float64, requires_grad=True)
    expected = values(mlp, x)
    padded(torch.float64)
    with Widths() as widths:
        got = values(mlp, x)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert widths.seen and not any(width % 8 for width in widths.seen)


def test_derivatives(padded):
    padded(torch.float64)
    mlp = layers(3, 4)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    # The parameters are checked where they are.
    def run(x, *parameters):
        return inside(x, mlp)

    operands = x, *mlp.parameters()
    torch.autograd.gradcheck(run, operands)
    torch.autograd.gradgradcheck(run, operands)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(dtype, padded):
    """As autocast's own casts, and the parameters' gradients are float32."""
    mlp = layers(dtype=torch.float32)
    x = torch.randn(2, 3, 5, requires_grad=True)
    results = []
    for target in (None, dtype):
        padded(target)
        with torch.autocast('cpu', dtype):
            results.append(values(mlp, x))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(
            a.float(), b.float(), rtol=0, atol=0.02 * b.abs().max().item()
        )


def test_frozen_and_without_gradients(padded):
    padded(torch.float64)
    mlp, x = layers().requires_grad_(False), torch.randn(2, 5).double()
    assert not pointwise_mlp(x, mlp).requires_grad
    mlp[0].bias.requires_grad_()
    pointwise_mlp(x, mlp).sum().backward()
    assert mlp[0].bias.grad.any() and mlp[3].weight.grad is None


def hooked(mlp):
    mlp[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def hooked_between(mlp):
    mlp[1].register_forward_pre_hook(lambda module, inputs: 2 * inputs[0])


def pruned(mlp):
    prune.l1_unstructured(mlp[3], 'weight', 0.5)


def parametrized(mlp):
    parametrizations.weight_norm(mlp[0])
    mlp[0].parametrizations.weight.original0.mul_(2)


def patched(mlp):
    mlp[3].forward = lambda x: 2 * x[..., :5]


def not_zero_at_zero(mlp):
    mlp[2] = nn.Sigmoid()


def quantised(mlp):
    quantization.quantize_dynamic(mlp, {nn.Linear}, inplace=True)
    assert not any(type(layer) is nn.Linear for layer in mlp)


def other_linear(mlp):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    mlp[0].__class__ = Doubled


def no_bias(mlp):
    mlp[0].register_parameter('bias', None)


class OwnTensor(torch.Tensor):
    """As quantised weights are, it takes functions over."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return (
                super()
                .__torch_function__(function, types, args, kwargs)
                .mul(2)
            )
        return super().__torch_function__(function, types, args, kwargs)


def own_tensor(mlp):
    weight = mlp[0].weight.detach().as_subclass(OwnTensor)
    mlp[0].weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize(
    'change',
    [
        hooked,
        hooked_between,
        pruned,
        parametrized,
        patched,
        not_zero_at_zero,
        quantised,
        other_linear,
        no_bias,
        own_tensor,
    ],
)
@pytest.mark.filterwarnings('ignore')
@torch.no_grad()
def test_what_is_attached_is_called(change, padded):
    mlp, x = layers(dtype=torch.float32), torch.randn(2, 5)
    plain = copy.deepcopy(mlp)(x)
    change(mlp)
    expected = mlp(x)
    assert not torch.equal(plain, expected)
    padded(torch.float32)
    assert torch.equal(pointwise_mlp(x, mlp), expected)


def test_global_hooks_are_called(padded):
    padded(torch.float64)
    mlp, x, seen = layers(), torch.randn(2, 5).double(), []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(module)
    )
    try:
        pointwise_mlp(x, mlp)
    finally:
        hook.remove()
    assert seen == [*mlp]


def test_errors_stay_those_of_the_layers(padded):
    padded(torch.float32)
    mlp = layers(dtype=torch.float32)
    for x in (torch.randn(2, 4), torch.randn(2, 5).double()):
        with pytest.raises(RuntimeError) as expected:
            mlp(x)
        with pytest.raises(RuntimeError) as raised:
            pointwise_mlp(x, mlp)
        assert str(raised.value) == str(expected.value)


def test_only_where_a_gpu_multiplies_16_bits():
    assert pointwise.padded_dtype(torch.ones(1024, 1024).half()) is None
    with FakeTensorMode():
        dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
        tensors = [
            torch.empty(1024, 1024, dtype=dtype, device='cuda')
            for dtype in dtypes
        ]
        few = torch.empty(1024, dtype=torch.bfloat16, device='cuda')
        assert pointwise.padded_dtype(few) is None
        got = [pointwise.padded_dtype(x) for x in tensors]
        assert got == [torch.bfloat16, torch.float16, None, None]
        before = torch.is_autocast_enabled('cuda')
        torch.set_autocast_enabled('cuda', True)
        try:
            got = [pointwise.padded_dtype(x) for x in tensors]
        finally:
            torch.set_autocast_enabled('cuda', before)
        assert got == [torch.float16] * 3 + [None]
        # Transforms and forward mode have the layers' own formulas.
        got = []
        torch.vmap(lambda x: got.append(pointwise.padded_dtype(x)) or x)(
            tensors[0]
        )
        with forward_ad.dual_level():
            got.append(pointwise.padded_dtype(tensors[0]))
        assert got == [None, None]


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype, monkeypatch):
    mlp = layers(249, 996, torch.float32).to('cuda')
    x = torch.randn(3, 32, 32, 249, device='cuda', requires_grad=True)
    results = []
    with torch.autocast('cuda', dtype), Widths() as widths:
        results.append(values(mlp, x))
        assert not any(width % 8 for width in widths.seen)
        monkeypatch.setattr(pointwise, 'padded_dtype', lambda x: None)
        results.append(values(mlp, x))
        assert any(width % 8 for width in widths.seen)
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 0.02 * b.abs().max()


@pytest.mark.parametrize('with_cp', [False, True])
def test_network(with_cp, padded):
    """A step of a whole network, checkpointed or not."""
    torch.manual_seed(0)
    arch = dict(
        depths=(1, 1, 2, 1),
        channels=(8, 9, 10, 17),
        kernel_sizes=(13, 9, 7, 5),
    )
    network = PeLK(arch, layer_scale_init_value=1.0, with_cp=with_cp).double()
    twin, x = copy.deepcopy(network), torch.randn(2, 3, 64, 64).double()
    network(x)[0].square().sum().backward()
    padded(torch.float64)
    with Widths() as widths:
        twin(x)[0].square().sum().backward()
    assert not any(width % 8 for width in widths.seen)
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
