"""The same bits from the same start, with torch told to insist on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pelk_mm.models import PeLK
from pelk_mm.ops import available_backends
from tests.helpers.operator_cases import BACKENDS, require

#: Kernels larger than the maps of 64 x 96 pixels, and odd widths.
ARCH = dict(
    depths=(1, 1, 2, 1), channels=(8, 12, 17, 24), kernel_sizes=(31, 13, 9, 7)
)


@pytest.fixture(autouse=True)
def insisting() -> Iterator[None]:
    """torch raises where it has only an algorithm that varies.

    It then also fills with NaN what it allocates, so that reading memory
    before writing it shows.
    """
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads() -> Iterator:
    """``torch.set_num_threads`` until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def train(
    backend: str | None,
    device: str = 'cpu',
    steps: int = 3,
    dtype: torch.dtype = torch.float32,
    **kwargs,
) -> list[Tensor]:
    """Losses, then weights and statistics behind a few steps."""
    torch.manual_seed(0)
    model = PeLK(
        ARCH,
        backend=backend,
        drop_path_rate=0.2,
        layer_scale_init_value=1.0,
        gap_before_final_norm=False,
        **kwargs,
    )
    model.init_weights()
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # Four images, so that threads share them out.
    images = torch.randn(4, 3, 64, 96).to(device)
    target = torch.randn(4, 24, 2, 3).to(device)
    losses = []
    for _ in range(steps):
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = (model(images)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < losses[0], 'it does not train'
    return [*losses, *(value.clone() for value in model.state_dict().values())]


def same_bits(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('backend', [*BACKENDS, None])
def test_two_runs_agree(backend, dtype):
    reason = available_backends().get(backend)
    if reason is not None:
        pytest.skip(reason)
    first = train(backend, dtype=dtype)
    assert all(value.isfinite().all() for value in first)
    assert same_bits(first, train(backend, dtype=dtype))


def test_checkpointed_runs_agree():
    assert same_bits(train(None, with_cp=True), train(None, with_cp=True))


def test_each_number_of_threads_agrees_with_itself(threads):
    """A sum is split by how many there are, not by which is the faster."""
    require('cpp')
    threads(1)
    one = train('cpp', steps=2)
    threads(2)
    two = train('cpp', steps=2)
    assert same_bits(two, train('cpp', steps=2))
    # Other splits round differently: no promise across numbers of threads.
    torch.testing.assert_close(one[0], two[0], rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('backend', ['triton', 'fft', 'dense', None])
def test_two_runs_agree_on_a_gpu(backend, dtype, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    assert same_bits(
        train(backend, 'cuda', dtype=dtype),
        train(backend, 'cuda', dtype=dtype),
    )
