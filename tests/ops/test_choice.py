"""Which backend a call without a name gets, and what if it cannot run."""

import logging

import pytest
import torch

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.backends import BACKENDS, BackendError
from pelk_mm.ops.choice import order, select_backend
from tests.helpers.operator_cases import require

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


@pytest.mark.parametrize(
    ('device', 'kernel_size', 'weight_grad', 'expected'),
    [
        (CPU, 13, False, ('cpp', 'dense', 'fft', 'triton')),
        (CPU, 15, False, ('cpp', 'fft', 'dense', 'triton')),
        (CPU, 3, True, ('cpp', 'dense', 'fft', 'triton')),
        (CPU, 5, True, ('cpp', 'fft', 'dense', 'triton')),
        (CUDA, 31, False, ('triton', 'dense', 'fft', 'cpp')),
        (CUDA, 31, True, ('triton', 'dense', 'fft', 'cpp')),
        (CUDA, 33, False, ('triton', 'fft', 'dense', 'cpp')),
        (CUDA, 33, True, ('triton', 'fft', 'dense', 'cpp')),
    ],
)
def test_order(device, kernel_size, weight_grad, expected):
    assert order(device, kernel_size, weight_grad) == expected
    assert set(expected) == set(BACKENDS)


@pytest.mark.parametrize('kernel_size', [1, 13, 51, 151])
@pytest.mark.parametrize('weight_grad', [False, True])
def test_box_sums_on_cpus(kernel_size, weight_grad):
    require('cpp')
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        backend = select_backend(None, CPU, dtype, kernel_size, weight_grad)
        assert backend.name == 'cpp'


@pytest.mark.parametrize(
    ('kernel_size', 'weight_grad', 'expected'),
    [
        (13, False, 'dense'),
        (15, False, 'fft'),
        (3, True, 'dense'),
        (5, True, 'fft'),
    ],
)
def test_thresholds_without_cpp(
    monkeypatch, kernel_size, weight_grad, expected
):
    monkeypatch.setattr(BACKENDS['cpp'], 'why_not', lambda *_: 'no compiler')
    backend = select_backend(
        None, CPU, torch.float32, kernel_size, weight_grad
    )
    assert backend.name == expected


def test_next_backend_where_one_cannot_be_prepared(monkeypatch, caplog):
    def fail():
        raise BackendError("backend 'cpp' could not be built: no luck")

    monkeypatch.setattr(BACKENDS['cpp'], 'prepare', fail)
    # Where it really failed before, it is not tried again.
    monkeypatch.setattr(BACKENDS['cpp'], 'failure', None)
    with caplog.at_level(logging.WARNING, 'pelk_mm'):
        backend = select_backend(None, CPU, torch.float32, 51)
    assert backend.name == 'fft'
    assert caplog.text.count('no luck') == 1
    with pytest.raises(BackendError, match='no luck'):
        select_backend('cpp', CPU, torch.float32, 13)


def test_nothing_runs(monkeypatch):
    for name, backend in BACKENDS.items():
        monkeypatch.setattr(
            backend, 'why_not', lambda *_, name=name: f'no {name} today'
        )
    with pytest.raises(RuntimeError) as raised:
        peripheral_conv2d(
            torch.randn(1, 1, 3, 3), torch.randn(1, 1, 9, 9), SharingGrid(13)
        )
    for name in BACKENDS:
        assert f'no {name} today' in str(raised.value)
