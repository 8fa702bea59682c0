"""Draw what a kernel of 7 to 151 costs, dense and peripheral.

Counts the parameters (Fig. 6 of the paper) and multiply-accumulates of
ConvNeXt-T with every kernel replaced, and measures the time of one convolution
on this machine, relative to the smallest dense kernel. Writes OUT.png and
OUT.json.
"""

import argparse
import sys
from pathlib import Path

import torch
from rich.progress import track

import pelk_mm  # noqa: F401, registers PeLK
from pelk_mm.analysis.figures import save_figure
from pelk_mm.analysis.scaling import (
    KERNEL_SIZES,
    candidates,
    count_convnext,
    draw_scaling,
)
from pelk_mm.utils.command_line import command
from pelk_mm.utils.files import write_json
from pelk_mm.utils.output import quiet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
import measure as bench


def parse_args() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=layout
    )
    default = '(default: %(default)s)'
    add = parser.add_argument
    text = f'name of the files without ending {default}'
    add('--out', default='work_dirs/kernel_scaling', help=text)
    text = f'odd, at least 5 {default}'
    sizes = dict(default=KERNEL_SIZES, metavar='K', help=text)
    add('--kernel-sizes', type=int, nargs='+', **sizes)
    text = f'map that is convolved for the time {default}'
    shape = dict(default=(1, 16, 56, 56), metavar=tuple('NCHW'), help=text)
    add('--shape', type=int, nargs=4, **shape)
    text = 'of the peripheral convolution (default: all that run)'
    add('--backends', nargs='+', metavar='NAME', help=text)
    text = 'count, or measure, and not both'
    add('--only', choices=('counts', 'time'), help=text)
    text = f'measurements, of which the median is drawn {default}'
    add('--rounds', type=int, default=11, help=text)
    seconds = dict(metavar='SECONDS', help=f'for each point {default}')
    add('--budget', type=float, default=2.0, **seconds)
    bench.add_clock(parser)
    parser.set_defaults(device='cpu')
    return bench.parse(parser)


def measure(args: argparse.Namespace) -> list[dict]:
    # All in turns, since all are drawn relative to one of them.
    calls = {
        (size, name): call
        for size in track(args.kernel_sizes, 'checking', transient=True)
        for name, call in candidates(size, args.shape, args.backends).items()
    }
    print('timing ...', flush=True)
    how = args.rounds, args.clock, 0.03, args.budget
    found = bench.interleave(calls, *how)
    rows = []
    for size in args.kernel_sizes:
        of_size = {name: t for (k, name), t in found.items() if k == size}
        row = {'kernel_size': size}
        for field in ('median_ms', 'best_ms', 'rounds'):
            row[field] = {
                name: times[field] for name, times in of_size.items()
            }
        rows.append(row)
    return rows


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    counts, times = [], []
    with command(OSError, RuntimeError, ValueError):
        if args.only != 'time':
            with quiet():
                counts = count_convnext(args.kernel_sizes)
        if args.only != 'counts':
            with torch.no_grad():
                times = measure(args)
        where = bench.environment(args.clock)
        where['command'] = bench.command(__file__)
        result = dict(environment=where, shape=list(args.shape))
        result.update(counts=counts, times=times)
        write_json(out.with_name(f'{out.name}.json'), result)
        shape = ' × '.join(map(str, args.shape))
        threads = f'{where["threads"]} thread' + 's' * (where['threads'] > 1)
        what = f'map of {shape}, float32, {threads}, {where["cpu"]}'
        figure = draw_scaling(counts, times, what)
        print(save_figure(figure, out.with_name(f'{out.name}.png')))
    if not counts:
        return
    last = counts[-1]
    millions = {kind: n / 1e6 for kind, n in last['params'].items()}
    print(
        f'K = {last["kernel_size"]}: {millions["dense"]:.1f} M parameters '
        f'dense, {millions["peripheral"]:.1f} M peripheral'
    )


if __name__ == '__main__':
    main()
