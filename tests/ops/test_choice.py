"""Which backend a call without a name gets, and what if it cannot run."""

import json
import logging
from pathlib import Path

import pytest
import torch

from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.ops.backends import BACKENDS, BackendError
from pelk_mm.ops.choice import select_backend
from pelk_mm.ops.cost_model import cheapest_first, kind, work

RESULTS = (
    Path(__file__).parents[2]
    / 'tools'
    / 'benchmarks'
    / 'results'
    / 'cpu_backends.json'
)
CPU = torch.device('cpu')


def brute_force(grid, extent, cells):
    sizes = grid.sizes if cells else [1] * grid.kernel_size
    count = 0
    for y in range(extent):
        begin = y - grid.kernel_size // 2
        for size in sizes:
            count += begin < extent and begin + size > 0
            begin += size
    return count


@pytest.mark.parametrize('grid', [SharingGrid(13), SharingGrid(51)])
@pytest.mark.parametrize('extent', [1, 7, 60])
def test_work_counts_what_meets_the_map(grid, extent):
    shape = 2, 16, extent, extent
    assert work('cpp', shape, grid)[0] == (
        32 * brute_force(grid, extent, True) ** 2
    )
    assert work('dense', shape, grid)[0] == (
        32 * brute_force(grid, extent, False) ** 2
    )


def test_choice_is_within_10_percent_of_the_best_measured():
    """On every measured shape."""
    ratios = []
    for row in json.loads(RESULTS.read_text())['rows']:
        times = row['best_ms']
        order = cheapest_first(
            tuple(row['shape']),
            SharingGrid.from_sizes(row['sizes']),
            row['weight_grad'],
            row['channels_last'],
        )
        chosen = next(name for name in order if name in times)
        ratios.append(times[chosen] / min(times.values()))
    assert len(ratios) > 100
    assert max(ratios) <= 1.1


def test_large_kernels_are_box_sums():
    for shape in ((1, 46, 128, 512), (8, 46, 56, 56), (1, 46, 200, 334)):
        for weight_grad in (False, True):
            backend = select_backend(
                None,
                CPU,
                torch.float32,
                torch.Size(shape),
                SharingGrid(51),
                weight_grad,
            )
            if BACKENDS['cpp'].can_run(CPU, torch.float32)[0]:
                assert backend.name == 'cpp'


def test_every_kind_of_call_has_its_prices():
    for backend in ('cpp', 'dense', 'fft'):
        for weight_grad in (False, True):
            for channels_last in (False, True):
                assert kind(backend, weight_grad, channels_last)
    assert set(
        cheapest_first((1, 3, 5, 5), SharingGrid(13), False, False)
    ) == {'cpp', 'dense', 'fft'}


def test_next_backend_where_one_cannot_be_prepared(monkeypatch, caplog):
    def fail():
        raise BackendError("backend 'cpp' could not be built: no luck")

    monkeypatch.setattr(BACKENDS['cpp'], 'prepare', fail)
    with caplog.at_level(logging.WARNING, 'pelk_mm'):
        backend = select_backend(
            None,
            CPU,
            torch.float32,
            torch.Size((8, 46, 56, 56)),
            SharingGrid(51),
        )
    assert backend.name == 'fft'
    assert caplog.text.count('no luck') == 1
    with pytest.raises(BackendError, match='no luck'):
        select_backend(
            'cpp',
            CPU,
            torch.float32,
            torch.Size((1, 1, 9, 9)),
            SharingGrid(13),
        )


def test_nothing_runs(monkeypatch):
    for name, backend in BACKENDS.items():
        monkeypatch.setattr(
            backend,
            'can_run',
            lambda *_, name=name: (False, f'no {name} today'),
        )
    with pytest.raises(RuntimeError) as raised:
        peripheral_conv2d(
            torch.randn(1, 1, 3, 3), torch.randn(1, 1, 9, 9), SharingGrid(13)
        )
    for name in BACKENDS:
        assert f'no {name} today' in str(raised.value)
