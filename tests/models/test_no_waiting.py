"""A training step hands work to its device and never waits for it.

Whatever copies from the host, or asks for a value, stops the host until the
device is done, and cannot be part of a CUDA graph. Meta tensors stand for a
GPU's: they are of another device than the host's, too.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pelk_mm.models import PeLK
from pelk_mm.ops import peripheral_conv

#: What runs an operator, whose own operations a mode would not see.
KERNELS = {
    'peripheral_conv2d': peripheral_conv._forward,
    'peripheral_conv2d_weight_grad': peripheral_conv._weight_grad,
    'peripheral_conv2d_backward': peripheral_conv._backward,
}
#: To Python's values, and of a size that depends on values.
WAITING = {
    '_local_scalar_dense',
    'nonzero',
    'masked_select',
    'repeat_interleave',
}


class Constructions(TorchFunctionMode):
    """Of tensors from Python's values; meta tensors take none."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.tensor, torch.as_tensor):
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Lists those that make the host wait, in and out of the operators."""

    def __init__(self, found):
        super().__init__()
        self.found, self.operators = found, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if function.namespace == 'pelk_mm':
            self.operators.add(name)
            with Constructions(self.found), self:
                return KERNELS[name](*args)
        result = function(*args, **(kwargs or {}))
        devices = {
            value.device.type
            for value in (*args, result)
            # Operations take numbers as tensors without dimensions.
            if isinstance(value, torch.Tensor) and value.ndim
        }
        if name in WAITING or len(devices) > 1:
            self.found.append(name)
        return result


@contextmanager
def waits():
    operations = Operations([])
    with Constructions(operations.found), operations:
        yield operations


@pytest.mark.parametrize(
    ('backend', 'device'),
    [
        ('dense', 'meta'),
        ('fft', 'meta'),
        pytest.param('dense', 'cuda', marks=pytest.mark.gpu),
        pytest.param('fft', 'cuda', marks=pytest.mark.gpu),
        pytest.param('triton', 'cuda', marks=pytest.mark.gpu),
    ],
)
def test_training(backend, device):
    arch = dict(
        depths=(1, 1, 2, 1),
        channels=(8, 12, 17, 24),
        kernel_sizes=(13, 9, 7, 5),
    )
    model = PeLK(arch, backend=backend, drop_path_rate=0.2, use_grn=True)
    model.to(device)
    images = torch.empty(2, 3, 64, 64, device=device)
    for _ in range(2):  # tables may be made in the first
        with waits() as seen:
            model(images)[0].sum().backward()
    assert seen.operators == {
        'peripheral_conv2d',
        'peripheral_conv2d_backward',
    }
    assert not seen.found


@pytest.mark.parametrize(
    'wait',
    [
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.ones(2).to(x.device),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
    ],
)
def test_waits_are_found(wait):
    x = torch.empty(2, device='meta')
    with waits() as seen:
        try:
            wait(x)
        # Of meta tensors, which hold no value to ask for.
        except (RuntimeError, NotImplementedError):
            return
    assert seen.found
