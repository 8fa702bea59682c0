"""Draw what a kernel of 7 to 151 costs, dense and peripheral.

The parameters (Fig. 6 of the paper) and multiply-accumulates of ConvNeXt-T
with every kernel replaced are counted; the time of one convolution is measured
on this machine. Writes OUT.png and OUT.json.
"""

import argparse
import json
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
from pelk_mm.utils.files import atomic_path
from pelk_mm.utils.output import quiet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
from measure import CLOCKS, environment, interleave


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--out',
        default='work_dirs/kernel_scaling',
        metavar='OUT',
        help='name of the files without ending (default: %(default)s)',
    )
    parser.add_argument(
        '--kernel-sizes',
        type=int,
        nargs='+',
        default=KERNEL_SIZES,
        metavar='K',
        help='odd, at least 5 (default: %(default)s)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=4,
        default=(1, 16, 56, 56),
        metavar=('N', 'C', 'H', 'W'),
        help='map that is convolved for the time (default: %(default)s)',
    )
    parser.add_argument(
        '--backends',
        nargs='+',
        metavar='NAME',
        help='of the peripheral convolution (default: all that run)',
    )
    parser.add_argument(
        '--no-time', action='store_true', help='measure nothing'
    )
    parser.add_argument(
        '--rounds',
        type=int,
        default=11,
        help='measurements, of which the median is drawn (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--budget',
        type=float,
        default=2.0,
        metavar='SECONDS',
        help='for each point (default: %(default)s)',
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='(default: %(default)s)',
    )
    parser.add_argument(
        '--clock',
        choices=list(CLOCKS),
        default='wall',
        help='cpu, with one thread, is less disturbed by other programs '
        '(default: %(default)s)',
    )
    return parser.parse_args()


def measure(args: argparse.Namespace) -> list[dict]:
    rows = []
    for size in track(args.kernel_sizes, 'timing', transient=True):
        calls = candidates(size, args.shape, args.backends)
        found = interleave(
            calls, args.rounds, args.clock, budget_s=args.budget
        )
        rows.append(
            dict(
                kernel_size=size,
                **{
                    field: {
                        name: times[field] for name, times in found.items()
                    }
                    for field in ('median_ms', 'best_ms', 'rounds')
                },
            )
        )
    return rows


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    with command(OSError, RuntimeError, ValueError):
        with quiet():
            counts = count_convnext(args.kernel_sizes)
        with torch.no_grad():
            times = [] if args.no_time else measure(args)
        setting = environment(args.clock)
        result = dict(
            environment=setting,
            shape=list(args.shape),
            counts=counts,
            times=times,
        )
        with atomic_path(out.with_name(f'{out.name}.json')) as path:
            path.write_text(json.dumps(result, indent=2) + '\n')
        shape = ' × '.join(map(str, args.shape))
        figure = draw_scaling(
            counts,
            times,
            f'map of {shape}, float32, {args.threads} '
            f'thread{"s" * (args.threads > 1)}',
        )
        print(save_figure(figure, out.with_name(f'{out.name}.png')))
    last = counts[-1]
    print(
        'K = {}: {:.1f} M parameters dense, {:.1f} M peripheral'.format(
            last['kernel_size'],
            last['params']['dense'] / 1e6,
            last['params']['peripheral'] / 1e6,
        )
    )


if __name__ == '__main__':
    main()
