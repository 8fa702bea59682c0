"""How far do the first steps of AdamW move what a network computes?

A weight of a large kernel is shared by all positions of its cell, and Adam
moves it by about the learning rate whatever its gradient. Takes steps on
generated pictures, each on a new one, with random weights, and prints by how
much the outputs of all stages have changed on other pictures: for 7x7 kernels,
grown and large ones, and several ways to set the kernels' learning rate.
Writes a table and all figures to OUT.md and OUT.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from studies import make_parser, processes, provenance, write_results
from torch import Tensor, nn

from pelk_mm.engine.optimizers.cell_learning_rates import CellLearningRates
from pelk_mm.models import PeLK
from pelk_mm.models.archs import ARCHS, CONVNEXT_BLOCK
from pelk_mm.models.utils import move_kernels

SMALL = dict(kernel_sizes=(7, 7, 7, 7), center_radius=3)
LR = 1e-4
CLASSES = 8


class SquareRootRates(CellLearningRates):
    """Divides by the square root of the area, for comparison."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._factors = {w: f.sqrt() for w, f in self._factors.items()}


#: Factor of the large kernels' learning rate, and what scales their cells.
RATES = {
    'lr': (1.0, None),
    'lr x 0.1': (0.1, None),
    'lr x 0.03': (0.03, None),
    'lr / area': (1.0, CellLearningRates),
    'lr / sqrt(area)': (1.0, SquareRootRates),
}
FEW = 'lr', 'lr / area'

build = partial(PeLK, layer_scale_init_value=1.0, out_indices=range(4))
build_small = partial(build, dict(ARCHS['tiny'], **SMALL))


def grown(before: PeLK, after: PeLK) -> PeLK:
    """The second network with the weights of the first."""
    old, new = (
        [stage.blocks[0].conv.large.grid for stage in model.stages]
        for model in (before, after)
    )
    weights, _ = move_kernels(before.state_dict(), '', old, new)
    after.load_state_dict(weights)
    return after


def convnext(arch: str | None) -> PeLK:
    """A ConvNeXt-T, its kernels grown to those of an arch."""
    small = build(dict(ARCHS['convnext-tiny'], **SMALL), **CONVNEXT_BLOCK)
    return grown(small, build(arch)) if arch else small


#: Each network, how it is made, and the learning rates that it is tried with.
NETWORKS = {
    'ConvNeXt-T, 7 x 7': (partial(convnext, None), ('lr',)),
    'ConvNeXt-T grown to 51': (partial(convnext, 'convnext-tiny'), RATES),
    'ConvNeXt-T grown to 101': (partial(convnext, 'convnext-tiny-101'), RATES),
    'PeLK-T with 7 x 7': (build_small, FEW[:1]),
    'PeLK-T with 7 x 7 grown to 101': (
        lambda: grown(build_small(), build('tiny-101')),
        FEW,
    ),
    'PeLK-T': (partial(build, 'tiny'), FEW),
    'PeLK-101-T': (partial(build, 'tiny-101'), FEW),
    'PeLK-T grown to 101': (
        lambda: grown(build('tiny'), build('tiny-101')),
        FEW,
    ),
}


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('--size', type=int, default=512, help='of the pictures, in pixels')
    add('--batch', type=int, default=1, help='pictures a step')
    add('--after', type=int, nargs='+', default=[1, 5], help='steps')
    add(
        '--networks',
        nargs='+',
        choices=NETWORKS,
        default=list(NETWORKS),
        metavar='NETWORK',
    )
    out = Path(__file__).with_name('results') / 'learning_rate_drift'
    add('--out', type=Path, default=out, help='the results, without suffix')
    return parser.parse_args()


def pictures(count: int, size: int) -> Tensor:
    """Noise with a spectrum of 1 / f, as photographs have, normalised."""
    rows, columns = torch.fft.fftfreq(size), torch.fft.rfftfreq(size)
    frequency = torch.hypot(rows[:, None], columns).clamp(min=1 / size)
    noise = torch.randn(count, 3, size, size)
    # The colours of a photograph are much alike.
    noise = noise + 2 * noise.mean(1, keepdim=True)
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, (size, size))
    return F.instance_norm(smooth)


def loss_of(outputs: tuple[Tensor, ...], heads: list[Tensor], x: Tensor):
    """Cross entropy of random linear heads that tell how bright it is."""
    losses = []
    for output, head in zip(outputs, heads, strict=True):
        brightness = F.adaptive_avg_pool2d(x.mean(1), output.shape[-2:])
        edges = brightness.flatten().quantile(
            torch.arange(1, CLASSES) / CLASSES
        )
        classes = torch.bucketize(brightness, edges)
        losses.append(F.cross_entropy(F.conv2d(output, head), classes))
    return sum(losses)


def drift(network: str, rate: str, seed: int, args: argparse.Namespace):
    """Relative change of each stage's output, after each number of steps."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    # In training mode: a BatchNorm has the statistics of the pictures.
    model = NETWORKS[network][0]().train()
    torch.manual_seed(seed)
    shown = pictures(args.batch, args.size)
    with torch.no_grad():
        before = model(shown)
    heads = [
        torch.randn(CLASSES, out.shape[1], 1, 1) / out.shape[1] ** 0.5
        for out in before
    ]
    factor, scale = RATES[rate]
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.endswith('conv.large.weight')].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            dict(params=groups[True], lr=factor * LR),
            dict(params=groups[False]),
        ],
        lr=LR,
        weight_decay=0.0,
    )
    if scale:
        scale(model).attach(optimizer)
    changes = {}
    for step in range(1, max(args.after) + 1):
        x = pictures(args.batch, args.size)
        optimizer.zero_grad()
        loss_of(model(x), heads, x).backward()
        optimizer.step()
        if step in args.after:
            with torch.no_grad():
                now = model(shown)
            changes[step] = [
                float((a - b).norm() / b.norm())
                for a, b in zip(now, before, strict=True)
            ]
    run = dict(network=network, rate=rate, seed=seed, changes=changes)
    first = ', '.join(f'{c[0]:.3f}' for c in changes.values())
    print(f'{network}, {rate}, seed {seed}: stage 0 {first}', flush=True)
    return run


def study(args: argparse.Namespace) -> list[dict]:
    """Every network with each of its rates and seeds, several at a time."""
    with processes(args.workers) as pool:
        futures = [
            pool.submit(drift, network, rate, seed, args)
            for network in args.networks
            for rate, seed in itertools.product(
                NETWORKS[network][1], args.seeds
            )
        ]
        return [future.result() for future in futures]


def summarise(runs: list[dict]) -> list[dict]:
    """One row for each network and rate: means and extremes over seeds."""
    rows: list[dict] = []
    for (network, rate), own in itertools.groupby(
        runs, lambda run: (run['network'], run['rate'])
    ):
        found = [run['changes'] for run in own]
        row = dict(network=network, rate=rate)
        for what, measure in (
            ('mean', statistics.mean),
            ('least', min),
            ('most', max),
        ):
            row[what] = {
                step: [
                    measure(values)
                    for values in zip(*(c[step] for c in found), strict=True)
                ]
                for step in found[0]
            }
        rows.append(row)
    return rows


TEMPLATE = """# How far the first steps of AdamW move the outputs

Relative change of the outputs of the four stages, after {after} steps at lr \
{lr:g}, no weight decay, no schedule; pictures of {size} x {size}, {batch} a \
step; means over seeds ({seeds}), and extremes of stage 0. Random weights as \
PeLK draws them, LayerScale 1; generated pictures. "Kernels" is the learning \
rate of the large kernels; all else has lr.

{table}

{cpu}, {cores} cores, one thread a run; Python {python}, torch {torch}, \
pelk_mm {pelk_mm} ({commit}).

    {command}
"""


def markdown(rows: list[dict], after: list[int]) -> str:
    """The table: a column for each stage and number of steps."""
    columns = list(itertools.product(after, range(4)))
    heads = [f'stage {stage}, {step}' for step, stage in columns]
    lines = [
        f'| network | kernels | {" | ".join(heads)} |',
        '|---' * (2 + len(heads)) + '|',
    ]
    for row in rows:
        cells = [row['network'], row['rate']]
        for step, stage in columns:
            cell = f'{row["mean"][step][stage]:.3f}'
            least, most = (row[end][step][stage] for end in ('least', 'most'))
            if least < most and stage == 0:
                cell += f' ({least:.3f} to {most:.3f})'
            cells.append(cell)
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    runs = study(args)
    rows = summarise(runs)
    about = dict(
        provenance(__file__),
        lr=LR,
        size=args.size,
        batch=args.batch,
        seeds=args.seeds,
        after=args.after,
    )
    everything = dict(about, table=rows, runs=runs)
    about.update(
        table=markdown(rows, args.after),
        seeds=', '.join(map(str, args.seeds)),
        after=' and '.join(map(str, args.after)),
    )
    write_results(args.out, everything, TEMPLATE.format(**about))


if __name__ == '__main__':
    main()
