"""Times the peripheral convolution against what one would use instead.

Correctness first: a backend that is wrong is not timed. Peers are the dense
convolution in both layouts, FFT, ConvNeXt's 7x7 and SLaK's pair of 51x5 and
5x51 on all channels (the peripheral convolution takes 3/8 of them), and
copying the map. The last lines hold the results against targets.

    python tools/benchmarks/peripheral_conv.py
    python tools/benchmarks/peripheral_conv.py --clock cpu --threads 1

Everything that is compared within a case is measured in turns. Cases may be
measured one after the other into one file, which keeps those that it has:

    python tools/benchmarks/peripheral_conv.py --cases stage3 --json FILE

On a GPU:

    python tools/benchmarks/peripheral_conv.py --device cuda \\
        --dtype bfloat16 --cases stage1_64
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure import (
    add_device_arguments,
    environment,
    interleave,
    peak_memory,
    read_json,
    set_device,
    write_json,
)
from torch import Tensor

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.choice import select_backend


@dataclass(frozen=True)
class Case:
    """One map and one kernel of PeLK."""

    batch: int
    channels: int  # of the convolution
    all_channels: int  # of the layer
    size: int
    kernel_size: int
    center_radius: int

    def __str__(self) -> str:
        return (
            f'N{self.batch} C{self.channels} {self.size}x{self.size} '
            f'K{self.kernel_size}'
        )

    @property
    def grid(self) -> SharingGrid:
        return SharingGrid(self.kernel_size, self.center_radius)


STAGE1 = Case(8, 46, 124, 56, 51, 2)
STAGE2 = Case(8, 93, 249, 28, 49, 2)
STAGE3 = Case(8, 187, 499, 14, 47, 2)
STAGE4 = Case(8, 374, 998, 7, 13, 2)
LARGE51 = Case(1, 46, 124, 128, 51, 2)
LARGE101 = Case(1, 46, 124, 128, 101, 3)
STAGE1_64 = Case(64, 46, 124, 56, 51, 2)  # for GPUs
CASES = {
    'stage1': STAGE1,
    'stage2': STAGE2,
    'stage3': STAGE3,
    'stage4': STAGE4,
    'large51': LARGE51,
    'large101': LARGE101,
    'stage1_64': STAGE1_64,
}
DEFAULT = tuple(name for name in CASES if name != 'stage1_64')


class Operands:
    """The tensors of a case; the convolution's input is a channel slice."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        cells, size = case.grid.num_cells, case.kernel_size
        shape = case.batch, case.all_channels, case.size, case.size
        self.all = torch.randn(shape).contiguous(
            memory_format=torch.channels_last
        )
        self.slice = self.all[:, : case.channels]
        self.last = self.slice.contiguous(memory_format=torch.channels_last)
        self.contiguous = self.slice.contiguous()
        self.grad = torch.randn_like(self.last)
        self.weight = torch.randn(case.channels, 1, cells, cells)
        self.kernel = case.grid.expand(self.weight)
        channels = case.all_channels
        self.seven = torch.randn(channels, 1, 7, 7)
        self.tall = torch.randn(channels, 1, 51, 5)
        self.flat = torch.randn(channels, 1, 5, 51)
        assert self.kernel.shape[-1] == size


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Plain ``F.conv2d``, same size."""
    padding = weight.shape[-2] // 2, weight.shape[-1] // 2
    return F.conv2d(x, weight, padding=padding, groups=x.shape[1])


def with_backward(
    function: Callable[..., Tensor], *tensors: Tensor
) -> Callable[[], object]:
    """Forward, and the gradients to every tensor."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    grad = torch.ones_like(function(*leaves))

    def call() -> object:
        return torch.autograd.grad(function(*leaves), leaves, grad)

    return call


def alone(name: str) -> str:
    """What the forward is called among calls that go backward too."""
    return f'{name}, forward alone'


def candidates(
    case: Case,
    operands: Operands,
    backward: bool,
    slow: bool,
    without: Collection[str],
) -> dict[str, Callable[[], object]]:
    """What to time, by name. ``slow`` includes what may take seconds."""
    grid = case.grid
    o = operands

    available = available_backends(o.slice.device, o.slice.dtype)

    def ours(backend):
        return lambda x, w: peripheral_conv2d(x, w, grid, backend=backend)

    calls = {
        'chosen': (ours(None), o.slice, o.weight),
        **{
            name: (ours(name), o.slice, o.weight)
            for name in ('cpp', 'triton', 'fft')
            if available[name] is None
        },
        'dense channels-last': (depthwise, o.last, o.kernel),
        'dense contiguous': (depthwise, o.contiguous, o.kernel),
        '7x7 all channels': (depthwise, o.all, o.seven),
        'SLaK pair all channels': (
            lambda x, tall, flat: depthwise(x, tall) + depthwise(x, flat),
            o.all,
            o.tall,
            o.flat,
        ),
    }
    if not slow:
        for name in (
            'dense contiguous',
            *(
                ('dense channels-last', 'SLaK pair all channels')
                if backward
                else ()
            ),
        ):
            del calls[name]
    calls = {name: call for name, call in calls.items() if name not in without}
    forward = {
        name: lambda call=call: call[0](*call[1:])
        for name, call in calls.items()
    }
    if backward:
        # In turns with what it is compared with: machines change their pace.
        return {
            **{name: with_backward(*call) for name, call in calls.items()},
            **{
                alone(name): forward[name]
                for name in ('cpp', 'triton')
                if name in forward
            },
        }
    result = forward
    result['copy'] = lambda: o.last.clone()
    return result


def regions(height: int, width: int) -> dict[str, tuple]:
    """Where errors are looked for: a global one hides a wrong border."""
    return {
        'centre': (
            slice(height // 3, -(height // 3) or None),
            slice(width // 3, -(width // 3) or None),
        ),
        'top': (slice(0, 1), slice(None)),
        'bottom': (slice(-1, None), slice(None)),
        'left': (slice(None), slice(0, 1)),
        'right': (slice(None), slice(-1, None)),
        'all': (slice(None), slice(None)),
    }


def errors(case: Case, operands: Operands, backend: str) -> dict[str, float]:
    """Largest error of any region against float64, over the largest value.

    In float32, whatever is timed: where a result is rounded says little.
    """
    names = 'output', 'input grad', 'weight grad'

    def run(dtype, backend):
        leaves = [
            tensor.to(dtype).detach().requires_grad_()
            for tensor in (operands.slice, operands.weight)
        ]
        y = peripheral_conv2d(*leaves, case.grid, backend=backend)
        return y, *torch.autograd.grad(y, leaves, operands.grad.to(dtype))

    result = {}
    for name, got, truth in zip(
        names,
        run(torch.float32, backend),
        run(torch.float64, 'fft'),
        strict=True,
    ):
        error = (got.double() - truth).abs() / truth.abs().max()
        result[name] = max(
            error[(..., *region)].max().item()
            for region in regions(*error.shape[-2:]).values()
        )
    return result


def targets(results: dict[str, dict]) -> list[dict]:
    """The goals set for this operator on two CPU cores or a GPU."""

    def ms(case, name, what='forward'):
        entry = results.get(str(case), {}).get(what, {}).get(name)
        return None if entry is None else entry['median_ms']

    def dense(case, what='forward'):
        found = [
            ms(case, f'dense {layout}', what)
            for layout in ('channels-last', 'contiguous')
        ]
        return min((t for t in found if t is not None), default=None)

    both = 'forward + backward'
    rows = []

    def row(text, value, limit, at_least, goal=None):
        if value is None:
            verdict = 'not measured'
        else:
            met = value >= limit if at_least else value <= limit
            verdict = 'pass' if met else 'falls short'
        rows.append(
            {
                'target': text,
                'value': value,
                'limit': limit,
                'goal': goal,
                'at_least': at_least,
                'verdict': verdict,
            }
        )

    def ratio(above, below):
        return None if above is None or below is None else above / below

    row(
        f'{STAGE1} forward, times faster than dense',
        ratio(dense(STAGE1), ms(STAGE1, 'cpp')),
        5,
        True,
        8,
    )
    row(
        f'{LARGE101} forward, times faster than dense',
        ratio(dense(LARGE101), ms(LARGE101, 'cpp')),
        14,
        True,
        20,
    )
    row(
        f'{STAGE1} forward + backward, times faster than dense',
        ratio(dense(STAGE1, both), ms(STAGE1, 'cpp', both)),
        70,
        True,
        120,
    )
    row(
        f'{LARGE101} forward + backward, times faster than dense',
        ratio(dense(LARGE101, both), ms(LARGE101, 'cpp', both)),
        500,
        True,
        800,
    )
    row(
        f'{STAGE1} forward, over 7x7 on all channels',
        ratio(ms(STAGE1, 'cpp'), ms(STAGE1, '7x7 all channels')),
        2.5,
        False,
        1.5,
    )
    row(
        f'{LARGE101} forward, over 7x7 on all channels',
        ratio(ms(LARGE101, 'cpp'), ms(LARGE101, '7x7 all channels')),
        4,
        False,
        2,
    )
    one_run = results.get(str(LARGE101), {}).get('environment') == results.get(
        str(LARGE51), {}
    ).get('environment')
    row(
        'K101 over K51, 128x128',
        ratio(ms(LARGE101, 'cpp'), ms(LARGE51, 'cpp')) if one_run else None,
        1.6,
        False,
    )
    row(
        f'{STAGE3} forward, chosen over dense',
        ratio(ms(STAGE3, 'chosen'), dense(STAGE3)),
        1.1,
        False,
    )
    for case in (CASES[name] for name in DEFAULT):
        row(
            f'{case} forward + backward over forward',
            ratio(ms(case, 'cpp', both), ms(case, alone('cpp'), both)),
            3.3,
            False,
        )
    if str(STAGE1_64) in results:
        ours = ms(STAGE1_64, 'triton', both)
        row(
            f'{STAGE1_64} forward + backward, times faster than dense',
            ratio(dense(STAGE1_64, both), ours),
            5,
            True,
            20,
        )
        row(
            f'{STAGE1_64} forward + backward, over 7x7 on all channels',
            ratio(ours, ms(STAGE1_64, '7x7 all channels', both)),
            1.5,
            False,
        )
    for name, limit in (
        ('output', 1e-6),
        ('input grad', 1e-5),
        ('weight grad', 1e-5),
    ):
        row(
            f'largest error, {name}',
            max(case['errors'][name] for case in results.values()),
            limit,
            False,
        )
    return rows


def print_times(case: Case, what: str, entries: dict[str, dict]) -> None:
    print(f'\n{case}, {what}: milliseconds (median, best), ratio to chosen')
    unit = entries['chosen']['median_ms']
    for name, entry in entries.items():
        memory = entry.get('peak_memory')
        print(
            f'  {name:24}{entry["median_ms"]:10.2f}{entry["best_ms"]:10.2f}'
            f'{entry["median_ms"] / unit:9.2f}'
            + ('' if memory is None else f'{memory / 2**20:10.1f} MiB')
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--cases',
        nargs='+',
        choices=CASES,
        default=DEFAULT,
        help=f'default: {" ".join(DEFAULT)}',
    )
    parser.add_argument(
        '--json', help='write everything to this file, or add to it'
    )
    add_device_arguments(parser)
    parser.add_argument(
        '--dtype',
        default='float32',
        choices=('float32', 'float16', 'bfloat16', 'float64'),
    )
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument(
        '--budget',
        type=float,
        default=6.0,
        metavar='S',
        help='seconds per candidate and case',
    )
    parser.add_argument(
        '--without',
        nargs='+',
        default=[],
        metavar='NAME',
        help="what not to time, such as 'dense contiguous'",
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='leave out what takes seconds a call',
    )
    args = parser.parse_args()
    set_device(parser, args)
    torch.set_default_dtype(getattr(torch, args.dtype))
    return args


def main() -> None:
    args = parse_args()
    where = {**environment(args.clock), 'dtype': args.dtype}
    print('\n'.join(f'{key}: {value}' for key, value in where.items()))
    results = read_json(args.json).get('cases', {})
    for case in (CASES[name] for name in args.cases):
        result = measure(case, args)
        results[str(case)] = {'environment': where, **result}
        if args.json:
            write_json(
                args.json, {'cases': results, 'targets': targets(results)}
            )
    print()
    for row in targets(results):
        value = '-' if row['value'] is None else f'{row["value"]:.3g}'
        goal = '' if row['goal'] is None else f', goal {row["goal"]:g}'
        bound = 'at least' if row['at_least'] else 'at most'
        print(
            f'{row["verdict"]:12} {row["target"]}: {value} '
            f'({bound} {row["limit"]:g}{goal})'
        )


def measure(case: Case, args: argparse.Namespace) -> dict[str, object]:
    """Check a case, time it and print the times."""
    with torch.device(args.device):
        operands = Operands(case)
    backend = select_backend(
        None,
        operands.slice.device,
        operands.slice.dtype,
        operands.slice.shape,
        case.grid,
        channels_last=True,
    ).name
    worst = errors(case, operands, backend)
    if worst['output'] > 1e-5:
        raise SystemExit(f'{case}: {backend} is wrong, {worst}')
    result: dict[str, object] = {'chosen': backend, 'errors': worst}
    for what in ('forward', 'forward + backward'):
        calls = candidates(
            case, operands, what != 'forward', not args.quick, args.without
        )
        entries = interleave(
            calls, args.rounds, args.clock, budget_s=args.budget
        )
        for name, call in calls.items():
            if entries[name]['median_ms'] < 1000:
                entries[name]['peak_memory'] = peak_memory(call, args.device)
        result[what] = entries
        print_times(case, what, entries)
    return result


if __name__ == '__main__':
    main()
