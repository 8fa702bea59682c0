"""Measures the CPU backends and fits the prices of the cost model to it.

    python tools/benchmarks/fit_cost_model.py measure RESULTS.json
    python tools/benchmarks/fit_cost_model.py fit RESULTS.json

``measure`` adds to the file, so it may be interrupted. ``fit`` rewrites
pelk_mm/ops/cost_model.json and says how good the choices are: the time of
the chosen backend over that of the best one, shape by shape.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measure import environment, interleave, write_json
from scipy.optimize import nnls

from pelk_mm.ops import SharingGrid
from pelk_mm.ops.backends import BACKENDS
from pelk_mm.ops.cost_model import PRICES, cheapest_first, kind, work

NAMES = ('cpp', 'dense', 'fft')
#: Multiply-adds of a dense call above which it is not waited for.
DENSE_LIMIT = {
    'forward channels_last': 2e9,
    'forward contiguous': 8e7,
    'weight_grad': 1.5e8,
}


def pelk(
    kernel_sizes: tuple[int, ...], center_radius: int
) -> tuple[SharingGrid, ...]:
    return tuple(
        SharingGrid(size, center_radius if size > 13 else 2)
        for size in kernel_sizes
    )


def shapes() -> Iterator[tuple[tuple[int, ...], SharingGrid]]:
    """The maps and kernels to choose for."""
    tiny, base = (46, 93, 187, 374), (62, 124, 249, 499)
    small_kernels = pelk((51, 49, 47, 13), 2)
    large_kernels = pelk((101, 69, 67, 13), 3)
    for batch in (1, 8):  # 224 x 224
        for stage, size in enumerate((56, 28, 14, 7)):
            yield (batch, tiny[stage], size, size), small_kernels[stage]
            yield (batch, tiny[stage], size, size), large_kernels[stage]
    for stage, size in enumerate((96, 48, 24, 12)):  # 384 x 384
        yield (1, base[stage], size, size), large_kernels[stage]
    for height, width in ((512, 512), (512, 2048), (800, 1333)):
        for stage, stride in enumerate((4, 8, 16, 32)):
            size = -(-height // stride), -(-width // stride)
            yield (1, tiny[stage], *size), small_kernels[stage]
            yield (1, tiny[stage], *size), large_kernels[stage]
    for size in (1, 3, 5, 7, 13, 31, 51):
        grid = SharingGrid.from_sizes([1] * size)
        for shape in ((1, 46, 56, 56), (1, 187, 14, 14)):
            yield shape, grid
    yield (8, 374, 7, 7), SharingGrid.from_sizes([1] * 13)
    for grid in (SharingGrid(5, 0), SharingGrid(13), SharingGrid(31)):
        for shape in (
            (1, 46, 56, 56),
            (1, 187, 14, 14),
            (1, 374, 7, 7),
            (1, 8, 32, 32),
        ):
            yield shape, grid
    yield (16, 3, 32, 32), SharingGrid(31)


def dense_is_too_slow(shape, grid, weight_grad, channels_last) -> bool:
    name = (
        'weight_grad'
        if weight_grad
        else (
            'forward ' + ('channels_last' if channels_last else 'contiguous')
        )
    )
    return work('dense', shape, grid)[0] > DENSE_LIMIT[name]


def measure(path: Path, rounds: int) -> None:
    """Time every backend on every shape, skipping what is in the file."""
    torch.set_num_threads(1)
    results = {'environment': environment('cpu'), 'rows': []}
    if path.exists():
        results['rows'] = json.loads(path.read_text())['rows']
    done = {
        json.dumps(
            [
                row[key]
                for key in ('shape', 'sizes', 'weight_grad', 'channels_last')
            ]
        )
        for row in results['rows']
    }
    for shape, grid in shapes():
        cells = grid.num_cells
        weight = torch.randn(shape[1], 1, cells, cells)
        for channels_last in (True, False):
            x = torch.randn(shape)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            for weight_grad in (False, True):
                key = [
                    list(shape),
                    list(grid.sizes),
                    weight_grad,
                    channels_last,
                ]
                if json.dumps(key) in done:
                    continue
                names = [
                    name
                    for name in NAMES
                    if name != 'dense'
                    or not dense_is_too_slow(
                        shape, grid, weight_grad, channels_last
                    )
                ]
                times = interleave(
                    {
                        name: call(name, x, weight, grid, weight_grad)
                        for name in names
                    },
                    rounds,
                    'cpu',
                    slice_s=0.005,
                    budget_s=0.3,
                )
                results['rows'].append(
                    dict(
                        zip(
                            ('shape', 'sizes', 'weight_grad', 'channels_last'),
                            key,
                            strict=True,
                        ),
                        best_ms={
                            name: entry['best_ms']
                            for name, entry in times.items()
                        },
                    )
                )
                print(
                    *shape,
                    f'K{grid.kernel_size}',
                    f'{cells} cells',
                    'weight_grad' if weight_grad else 'forward',
                    'channels_last' if channels_last else 'contiguous',
                    *(
                        f'{name} {entry["best_ms"]:.3f}'
                        for name, entry in times.items()
                    ),
                    flush=True,
                )
                write_json(path, results)


def call(name, x, weight, grid, weight_grad):
    backend = BACKENDS[name]
    if weight_grad:
        return lambda: backend.weight_grad(x, x, grid)
    return lambda: backend.forward(x, weight, None, grid)


def fit(path: Path) -> None:
    """Non-negative prices with the least relative error."""
    rows = json.loads(path.read_text())['rows']
    samples: dict[str, list] = {}
    for row in rows:
        grid = SharingGrid.from_sizes(row['sizes'])
        for name, time in row['best_ms'].items():
            samples.setdefault(
                kind(name, row['weight_grad'], row['channels_last']), []
            ).append((work(name, row['shape'], grid), time))
    prices = {}
    for key, measured in sorted(samples.items()):
        amounts = np.array([amount for amount, _ in measured], float)
        times = np.array([time for _, time in measured])
        scale = amounts.max(0)
        relative = amounts / scale / times[:, None]
        # A few rounds of weights that tame outliers: what a noisy moment
        # slowed down must not bend the fit.
        weights = np.ones(len(times))
        for _ in range(10):
            solution, _ = nnls(relative * weights[:, None], weights)
            off = np.abs(relative @ solution - 1)
            weights = 1 / np.sqrt(np.maximum(off, 0.1))
        if key == 'dense forward contiguous':
            # oneDNN declines some of these shapes and what runs instead is
            # far slower. Nothing announces which, so expect the slowest.
            solution = solution / (relative @ solution).min()
        prices[key] = [float(f'{price:.4g}') for price in solution / scale]
        print(
            f'{key}: {len(times)} measurements, relative error median '
            f'{np.median(off):.0%}, 90th percentile '
            f'{np.quantile(off, 0.9):.0%}'
        )
    write_json(
        PRICES, {'fitted to': path.name, 'unit': 'ms', 'prices': prices}
    )
    cheapest_first.cache_clear()
    report(rows)


def report(rows: list[dict]) -> None:
    """How much slower the choice is than the best, per measured row."""
    ratios = []
    for row in rows:
        grid = SharingGrid.from_sizes(row['sizes'])
        order = cheapest_first(
            tuple(row['shape']), grid, row['weight_grad'], row['channels_last']
        )
        times = row['best_ms']
        chosen = next(name for name in order if name in times)
        ratio = times[chosen] / min(times.values())
        ratios.append(ratio)
        if ratio > 1.1:
            print(
                f'{ratio:.2f} x: {row["shape"]} {row["sizes"]}',
                'weight_grad' if row['weight_grad'] else 'forward',
                'channels_last' if row['channels_last'] else 'contiguous',
                f'chose {chosen},',
                ' '.join(f'{name} {time:.3f}' for name, time in times.items()),
            )
    ratios = np.array(ratios)
    print(
        f'{len(ratios)} choices: {np.mean(ratios <= 1.1):.1%} within 10 % '
        f'of the best, the worst {ratios.max():.2f} times its time'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('what', choices=('measure', 'fit'))
    parser.add_argument('results', type=Path)
    parser.add_argument('--rounds', type=int, default=20)
    args = parser.parse_args()
    if args.what == 'measure':
        measure(args.results, args.rounds)
    else:
        fit(args.results)


if __name__ == '__main__':
    main()
