"""Times the peripheral convolution against what one would use instead.

Correctness first: a backend that is wrong is not timed. Peers are the dense
convolution in both layouts, FFT, ConvNeXt's 7x7 and SLaK's pair of 51x5 and
5x51 on all channels (the peripheral convolution takes 3/8 of them), and
copying the map. The last lines hold the results against targets.

    python tools/benchmarks/peripheral_conv.py
    python tools/benchmarks/peripheral_conv.py --clock cpu --threads 1

Everything that is compared within a case is measured in turns. A file keeps
the cases that it has:

    python tools/benchmarks/peripheral_conv.py --cases stage3 --json FILE

On a GPU every call goes through inputs that its cache cannot hold, and is
timed in a CUDA graph, which leaves out the host; what takes the host longer
than the GPU is the eager time. Errors are those of the dtype that is timed.

    python tools/benchmarks/peripheral_conv.py --device cuda \\
        --dtype bfloat16 --rounds 5 --budget 0.2

How often the choice among the backends takes at most 10 % longer than the best
one, over a grid of shapes, and the worst miss; also for the choice that
remains where the compiled backend is absent:

    python tools/benchmarks/peripheral_conv.py --choice
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gpu
import measure as bench
import torch
import torch.nn.functional as F
from torch import Tensor

from pelk_mm.ops import SharingGrid, available_backends, peripheral_conv2d
from pelk_mm.ops.choice import order
from pelk_mm.utils.files import write_json

FORWARD, BOTH = 'forward', 'forward + backward'
#: What goes backward is compared with it in turns: machines change their pace.
FORWARD_ALONE = 'cpp, forward alone'
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One map and one kernel of PeLK."""

    batch: int
    channels: int  # of the convolution
    all_channels: int  # of the layer
    size: int
    kernel_size: int
    center_radius: int = 2

    def __str__(self) -> str:
        extent = f'{self.size}x{self.size}'
        return f'N{self.batch} C{self.channels} {extent} K{self.kernel_size}'

    @property
    def grid(self) -> SharingGrid:
        return SharingGrid(self.kernel_size, self.center_radius)


CASES = {
    'stage1': Case(8, 46, 124, 56, 51),
    'stage2': Case(8, 93, 249, 28, 49),
    'stage3': Case(8, 187, 499, 14, 47),
    'stage4': Case(8, 374, 998, 7, 13),
    'large51': Case(1, 46, 124, 128, 51),
    'large101': Case(1, 46, 124, 128, 101, 3),
}
ON_CPUS = tuple(CASES)
#: By what they are worth, should there be no time for all.
CASES |= {
    'stage1_64': Case(64, 46, 124, 56, 51),
    'large101_8': Case(8, 46, 124, 128, 101, 3),
    'stage2_64': Case(64, 93, 249, 28, 49),
    'stage3_64': Case(64, 187, 499, 14, 47),
    'stage4_64': Case(64, 374, 998, 7, 13),
    'large51_8': Case(8, 46, 124, 128, 51),
}
ON_GPUS = (*tuple(CASES)[len(ON_CPUS) :], 'large101', 'large51')

BOTH_OVER_FORWARD = {**dict.fromkeys(ON_CPUS, 3.3), 'stage4': 2.5}
#: (case, what, above, below, limit of the ratio, whether at least): the goals
#: set for this operator on two CPU cores or a GPU.
TARGETS = (
    ('stage1', FORWARD, 'dense', 'cpp', 5, True),
    ('large101', FORWARD, 'dense', 'cpp', 14, True),
    ('stage1', BOTH, 'dense', 'cpp', 70, True),
    ('large101', BOTH, 'dense', 'cpp', 500, True),
    ('stage1', FORWARD, 'cpp', '7x7 all channels', 2.5, False),
    ('large101', FORWARD, 'cpp', '7x7 all channels', 4, False),
    ('stage3', FORWARD, 'chosen', 'dense', 1.1, False),
    *(
        (case, BOTH, 'cpp', FORWARD_ALONE, limit, False)
        for case, limit in BOTH_OVER_FORWARD.items()
    ),
    ('stage1_64', BOTH, 'dense', 'triton', 5, True),
    ('stage1_64', BOTH, 'triton', '7x7 all channels', 1.5, False),
    ('large101_8', BOTH, 'dense', 'triton', 20, True),
)
ERRORS = {'output': 1e-6, 'input grad': 1e-5, 'weight grad': 1e-5}
#: The same on GPUs, by the dtype that is timed.
GPU_ERRORS = {'bfloat16': 2**-7, 'float16': 1.05 * 2**-11, 'float32': 2e-6}


class Operands:
    """The tensors of a case; the convolution's input is a channel slice."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        layer, cells = case.all_channels, case.grid.num_cells
        last = torch.channels_last
        x = torch.randn(case.batch, layer, case.size, case.size)
        self.all = x.contiguous(memory_format=last)
        self.planes = x.contiguous()
        self.slice = self.all[:, : case.channels]
        self.last = self.slice.contiguous(memory_format=last)
        self.contiguous = self.slice.contiguous()
        self.grad = torch.randn_like(self.last)
        self.weight = torch.randn(case.channels, 1, cells, cells)
        self.kernel = case.grid.expand(self.weight)
        self.seven = torch.randn(layer, 1, 7, 7)
        self.tall = torch.randn(layer, 1, 51, 5)
        self.flat = torch.randn(layer, 1, 5, 51)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Plain ``F.conv2d``, same size."""
    padding = weight.shape[-2] // 2, weight.shape[-1] // 2
    return F.conv2d(x, weight, padding=padding, groups=x.shape[1])


def stripes(x: Tensor, tall: Tensor, flat: Tensor) -> Tensor:
    return depthwise(x, tall) + depthwise(x, flat)


def both_of(function: Callable[..., Tensor], *tensors: Tensor) -> Call:
    """Forward, and the gradients to every tensor."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    grad = torch.randn_like(tensors[0])  # like any output
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def candidates(case: Case, o: Operands, what: str) -> dict[str, Call]:
    """What to time, by name."""
    reasons = available_backends(o.slice.device, o.slice.dtype)
    names = [n for n in ('cpp', 'triton', 'fft') if reasons[n] is None]
    ours = partial(peripheral_conv2d, grid=case.grid)
    calls = {'chosen': (ours, o.slice, o.weight)}
    for name in names:
        calls[name] = partial(ours, backend=name), o.slice, o.weight
    calls |= {
        'dense channels-last': (depthwise, o.last, o.kernel),
        'dense contiguous': (depthwise, o.contiguous, o.kernel),
        '7x7 all channels': (depthwise, o.all, o.seven),
        '7x7 all channels contiguous': (depthwise, o.planes, o.seven),
        'SLaK pair all channels': (stripes, o.all, o.tall, o.flat),
    }
    if what == FORWARD:
        result = {name: partial(*call) for name, call in calls.items()}
        return {**result, 'copy': o.last.clone}
    result = {name: both_of(*call) for name, call in calls.items()}
    if 'cpp' in calls:
        result[FORWARD_ALONE] = partial(*calls['cpp'])
    return result


def errors(
    case: Case, operands: Operands, backend: str, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Largest error against float64, over the largest value, by region."""

    def run(dtype: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        tensors = operands.slice, operands.weight
        leaves = [x.to(dtype).detach().requires_grad_() for x in tensors]
        y = peripheral_conv2d(*leaves, case.grid, backend=backend)
        return y, *torch.autograd.grad(y, leaves, operands.grad.to(dtype))

    got, truth = run(dtype, backend), run(torch.float64, 'fft')
    return {
        name: by_region((x.double() - y).abs() / y.abs().max())
        for name, x, y in zip(ERRORS, got, truth, strict=True)
    }


def by_region(error: Tensor) -> dict[str, float]:
    """The largest at the corners of maps or kernels, at edges and inside."""
    worst = error.flatten(0, 1).amax(0)
    rows, columns = worst[[0, -1]], worst[:, [0, -1]]
    regions = rows[:, [0, -1]], torch.cat((rows.T, columns)), worst[1:-1, 1:-1]
    values = (region.max().item() for region in regions)
    return dict(zip(('corners', 'edges', 'inside'), values, strict=True))


def targets(results: dict[str, dict]) -> list[dict]:
    """How the cases do, as far as they measured what a target is about."""

    def ms(case: str, name: str, what: str = FORWARD) -> float:
        """The median, of the faster layout; NaN where nothing is measured."""
        entries = results.get(str(CASES[case]), {}).get(what, {})
        names = name, f'{name} channels-last', f'{name} contiguous'
        times = [entries[x]['median_ms'] for x in names if x in entries]
        return min(times, default=math.nan)

    rows = []
    for case, what, above, below, limit, at_least in TARGETS:
        ratio = ms(case, above, what) / ms(case, below, what)
        target = f'{CASES[case]} {what}, {above} over {below}'
        rows.append((target, ratio, limit, at_least))
    pair = [results.get(str(CASES[f'large{k}']), {}) for k in (51, 101)]
    if pair[0].get('environment') == pair[1].get('environment'):  # one run
        ratio = ms('large101', 'cpp') / ms('large51', 'cpp')
        rows.append(('K101 over K51, 128x128', ratio, 1.6))
    where = next(iter(results.values()))['environment']
    for name, limit in ERRORS.items():
        if where['gpu']:
            limit = GPU_ERRORS.get(where['dtype'], limit)
        worst = max(case['errors'][name] for case in results.values())
        rows.append((f'largest error, {name}', worst, limit))
    return [bench.judge(*row) for row in rows if not math.isnan(row[1])]


def measure(case: Case, args: argparse.Namespace) -> dict[str, object]:
    """Check a case, time it and print the times."""
    on_gpu, dtype = args.clock == 'gpu', torch.float32
    with torch.device(args.device):
        operands = [Operands(case)]
        if on_gpu:
            dtype = torch.get_default_dtype()
            inputs = gpu.num_inputs(operands[0].last.nbytes)
            operands += [Operands(case) for _ in range(inputs - 1)]
    backend = chosen(operands[0].slice, case.kernel_size)
    # On CPUs in float32, whatever is timed: their rounding is torch's own.
    regions = errors(case, operands[0], backend, dtype)
    worst = {name: max(of.values()) for name, of in regions.items()}
    if not max(worst.values()) <= max(1e-5, 4 * torch.finfo(dtype).eps):
        raise SystemExit(f'{case}: {backend} is wrong, {regions}')
    result: dict[str, object] = {'chosen': backend, 'errors': worst}
    result['errors by region'] = regions
    for what in (FORWARD, BOTH):
        of_inputs = [candidates(case, o, what) for o in operands]
        calls = of_inputs[0]
        if on_gpu:
            how = args.rounds, args.budget
            entries = {
                name: gpu.measure([of[name] for of in of_inputs], *how)
                for name in calls
            }
            entries['chosen']['kernels'] = gpu.kernels(calls['chosen'])
        else:
            how = args.rounds, args.clock, 0.03, args.budget
            entries = bench.interleave(calls, *how)
        add_memory(entries, calls, args.device)
        print(f'\n{case}, {what}: {HEADS}')
        for name, entry in entries.items():
            show(name, entry, entries['chosen']['median_ms'])
        result[what] = entries
    return result


HEADS = 'ms (median, best), ratio to chosen, MiB; ms eager and of the host'


def add_memory(
    entries: dict[str, dict], calls: dict[str, Call], device: str
) -> None:
    for name, entry in entries.items():
        if entry['median_ms'] < 1000:
            entry['peak_memory'] = bench.peak_memory(calls[name], device)


def show(name: str, entry: dict, unit: float) -> None:
    times = f'{entry["median_ms"]:10.3f}{entry["best_ms"]:10.3f}'
    ratio = f'{entry["median_ms"] / unit:9.2f}'
    memory = f'{entry.get("peak_memory", math.nan) / 2**20:10.1f}'
    host = [f'{entry[k]:10.3f}' for k in ('eager_ms', 'host_ms') if k in entry]
    print(f'  {name:28}{times}{ratio}{memory}', *host)
    for kernel, (spent, count) in entry.get('kernels', {}).items():
        print(f'    {spent:10.1f} us {count:4g} x {kernel[:60]}')


# The choice of a backend ---------------------------------------------------


def chosen(
    x: Tensor,
    kernel_size: int,
    weight_grad: bool = False,
    without: str | None = None,
) -> str:
    """The backend that a call gets, or would get if one were absent."""
    reasons = available_backends(x.device, x.dtype)
    names = order(x.device, kernel_size, weight_grad)
    return next(n for n in names if reasons[n] is None and n != without)


def shapes() -> Iterator[tuple[tuple[int, ...], SharingGrid]]:
    """The maps and kernels to choose for: PeLK's, and others."""
    tiny, base = (46, 93, 187, 374), (62, 124, 249, 499)
    last = SharingGrid(13)
    small = (*(SharingGrid(size) for size in (51, 49, 47)), last)
    large = (*(SharingGrid(size, 3) for size in (101, 69, 67)), last)

    def stages(batch, channels, image, *kernels):
        for stage, stride in enumerate((4, 8, 16, 32)):
            size = [-(-extent // stride) for extent in image]
            for grids in kernels:
                yield (batch, channels[stage], *size), grids[stage]

    for batch in (1, 8):
        yield from stages(batch, tiny, (224, 224), small, large)
    yield from stages(1, base, (384, 384), large)
    for image in ((512, 512), (512, 2048), (800, 1333)):
        yield from stages(1, tiny, image, small, large)
    maps = (1, 46, 56, 56), (1, 187, 14, 14), (1, 374, 7, 7), (1, 8, 32, 32)
    dense = [SharingGrid.from_sizes([1] * k) for k in (1, 3, 5, 7, 13, 31, 51)]
    yield from itertools.product(maps[:2], dense)
    yield (8, 374, 7, 7), dense[4]
    others = SharingGrid(5, 0), SharingGrid(13), SharingGrid(31)
    yield from itertools.product(maps, others)
    yield (16, 3, 32, 32), SharingGrid(31)


def takes_too_long(x: Tensor, grid: SharingGrid, weight_grad: bool) -> bool:
    """Whether dense would compute for seconds: it is not waited for."""
    extents = (min(grid.kernel_size, 2 * size - 1) for size in x.shape[2:])
    work = x.numel() * math.prod(extents)
    last = x.is_contiguous(memory_format=torch.channels_last)
    fast = x.is_cuda or (last and not weight_grad)
    return work > (2e9 if fast else 1.5e8)


def measure_choice(args: argparse.Namespace) -> dict[str, object]:
    """Time every backend on every shape; print how good the choice is."""
    absent = 'triton' if args.device == 'cuda' else 'cpp'
    ratios: dict[str, dict] = {'all': {}, f'without {absent}': {}}
    rows = {}
    axes = ('channels-last', 'contiguous'), ('forward', 'weight gradient')
    for (shape, grid), layout, what in itertools.product(shapes(), *axes):
        weight_grad = what == 'weight gradient'
        with torch.device(args.device):
            x = torch.randn(shape)
            if layout == 'channels-last':
                x = x.contiguous(memory_format=torch.channels_last)
            weight = torch.randn(shape[1], 1, grid.num_cells, grid.num_cells)
        reasons = available_backends(x.device, x.dtype)
        names = [name for name, reason in reasons.items() if reason is None]
        if takes_too_long(x, grid, weight_grad):
            names.remove('dense')
        if weight_grad:
            call = torch.ops.pelk_mm.peripheral_conv2d_weight_grad, x, x
        else:
            call = torch.ops.pelk_mm.peripheral_conv2d, x, weight, None
        calls = {name: partial(*call, grid.sizes, name) for name in names}
        how = args.rounds, args.clock, 0.005, args.budget / 20
        entries = bench.interleave(calls, *how)
        times = {name: entry['best_ms'] for name, entry in entries.items()}
        kernel = f'K{grid.kernel_size} of {grid.num_cells}² cells'
        key = f'{shape} {kernel}, {what}, {layout}'
        rows[key] = times
        print(key, *(f'{name} {ms:.3f}' for name, ms in times.items()))
        for label, without in zip(ratios, (None, absent), strict=True):
            name = chosen(x, grid.kernel_size, weight_grad, without)
            rest = [times[other] for other in times if other != without]
            ratios[label][key] = times.get(name, math.inf) / min(rest)
    summary = {}
    for label, of in ratios.items():
        within = sum(ratio <= 1.1 for ratio in of.values()) / len(of)
        worst = max(of, key=of.get)
        summary[label] = dict(within=within, worst=of[worst], at=worst)
        print(
            f'{label} backends, {len(of)} choices: {within:.1%} within 10 % '
            f'of the best, the worst {of[worst]:.2f} times its time ({worst})'
        )
    return {'summary': summary, 'best_ms': rows}


def main() -> None:
    parser = bench.make_parser(__doc__)
    add = parser.add_argument
    case_help = f'default: {" ".join(ON_CPUS)}; on GPUs {" ".join(ON_GPUS)}'
    add('--cases', nargs='+', choices=CASES, metavar='CASE', help=case_help)
    add('--choice', action='store_true', help='measure the choice instead')
    dtypes = 'float32', 'float16', 'bfloat16', 'float64'
    add('--dtype', default='float32', choices=dtypes)
    add('--rounds', type=int, default=15)
    budget_help = 'seconds per candidate and case; with --choice 1/20 of it'
    add('--budget', type=float, default=6.0, metavar='S', help=budget_help)
    args = bench.parse(parser)
    torch.set_default_dtype(getattr(torch, args.dtype))
    where = bench.show_environment(args.clock, dtype=args.dtype)
    if args.choice:
        result = {'environment': where, **measure_choice(args)}
        if args.json:
            write_json(args.json, result)
        return
    results = bench.earlier(args.json, 'cases')
    cases = args.cases or (ON_GPUS if args.clock == 'gpu' else ON_CPUS)
    for case in (CASES[name] for name in cases):
        results[str(case)] = {'environment': where, **measure(case, args)}
        if args.json:
            content = {'cases': results, 'targets': targets(results)}
            write_json(args.json, content)
    bench.print_targets(targets(results))


if __name__ == '__main__':
    main()
