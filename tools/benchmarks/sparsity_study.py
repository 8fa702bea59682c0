"""Does width bought with zeros help? Three small classifiers on digits.

Trains the classifier of the demo from scratch, several seeds each: dense,
dense and 1.3 times as wide, and as wide but with 40 % of its weights zero and
the pattern moving, which leaves about as many non-zero weights as the narrow
one has. Writes a table and all figures to RESULTS/sparsity_study.{md,json}.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from studies import (
    add_folders,
    earlier_run,
    kept_runs,
    make_parser,
    processes,
    provenance,
    write_results,
)

from pelk_mm.datasets.digit_scenes import Recipe, make_digit_scenes
from pelk_mm.engine.hooks import DynamicSparsityHook
from pelk_mm.utils.config import load_config
from pelk_mm.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'demo_pelk_digits.py'
# Width, and share of zeros.
VARIANTS = {
    'dense x 1.0': (1.0, 0.0),
    'dense x 1.3': (1.3, 0.0),
    'sparse x 1.3': (1.3, 0.4),
}
#: What a run depends on, beside its epochs.
SETTINGS = dict(
    train_pictures=2000,
    val_pictures=1000,
    picture_size=32,  # pixels
    update_interval=20,  # steps between updates of the masks
)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('--epochs', type=int, default=8)
    add_folders(parser, 'sparsity_study')
    args = parser.parse_args()
    if args.epochs < 3:
        parser.error('--epochs must be at least 3, as the first 2 are warm-up')
    return args


def make_config(variant: str, seed: int, epochs: int, data: Path) -> Config:
    """The demo's config with another width, length and picture size."""
    width, sparsity = VARIANTS[variant]
    config = load_config(str(CONFIG))
    arch = config.model.backbone.arch
    arch.channels = [int(width * channels) for channels in arch.channels]
    config.model.head.in_channels = arch.channels[-1]
    for name in ('train', 'val', 'test'):
        dataset = config[f'{name}_dataloader'].dataset
        dataset.data_root = str(data / 'imagenet')
        for step in dataset.pipeline:
            for key in {'scale', 'crop_size'} & step.keys():
                step[key] = SETTINGS['picture_size']
    config.train_cfg.update(max_epochs=epochs, val_interval=epochs)
    config.default_hooks.checkpoint.interval = epochs
    if sparsity:
        hook = dict(type='DynamicSparsityHook', sparsity=sparsity, seed=seed)
        hook.update(init='snip', include='.')
        hook['update_interval'] = SETTINGS['update_interval']
        config.custom_hooks = [hook]
    config.randomness = dict(seed=seed)
    config.log_level = 'WARNING'
    return config


def train(config: Config) -> dict:
    """Train once; the accuracy, what the network has, and what it took."""
    runner = Runner.from_cfg(config)
    start, start_cpu = time.monotonic(), time.process_time()
    runner.train()
    seconds, cpu = time.monotonic() - start, time.process_time() - start_cpu
    hooks = [h for h in runner.hooks if isinstance(h, DynamicSparsityHook)]
    masks = [mask for h in hooks for mask in h.enforcer.masks.values()]
    params = sum(p.numel() for p in runner.model.parameters())
    scalar = runner.message_hub.get_scalar
    return dict(
        accuracy=float(scalar('val/accuracy/top1').current()),
        loss=float(scalar('train/loss').mean(20)),
        params=params,
        nonzero=params - sum(int((~mask).sum()) for mask in masks),
        seconds=seconds,
        cpu_seconds=cpu,
    )


def run_once(
    variant: str, seed: int, epochs: int, data: Path, work_dir: str
) -> dict:
    """Train one variant with one seed, unless that was done before."""
    torch.set_num_threads(1)
    folder = Path(work_dir) / variant.replace(' ', '_') / str(seed)
    run = earlier_run(folder, dict(SETTINGS, epochs=epochs))
    if 'accuracy' not in run:
        config = make_config(variant, seed, epochs, data)
        config.work_dir = str(folder)
        run.update(variant=variant, seed=seed, **train(config))
        write_json(folder / 'run.json', run)
    figures = f'{run["accuracy"]:.2f} %, {run["seconds"]:.0f} s'
    print(f'{variant}, seed {seed}: {figures}', flush=True)
    return run


def study(args: argparse.Namespace) -> list[dict]:
    """Train every variant with every seed, several at a time."""
    digits = SETTINGS['train_pictures'], SETTINGS['val_pictures']
    recipe = Recipe(1, 1, 128, *digits, SETTINGS['picture_size'])
    data = make_digit_scenes(Path(args.work_dir) / 'data', recipe)
    with processes(args.workers) as pool:
        same = args.epochs, data, args.work_dir
        futures = [
            pool.submit(run_once, variant, seed, *same)
            for seed, variant in itertools.product(args.seeds, VARIANTS)
        ]
        return [future.result() for future in futures]


def summarise(variant: str, runs: list[dict]) -> dict:
    """One row of the table: mean, standard deviation and extremes."""
    own = [run for run in runs if run['variant'] == variant]
    accuracies = [run['accuracy'] for run in own]
    return dict(
        variant=variant,
        runs=len(own),
        params=own[0]['params'],
        nonzero=own[0]['nonzero'],
        mean=statistics.mean(accuracies),
        deviation=statistics.stdev(accuracies) if len(own) > 1 else 0.0,
        least=min(accuracies),
        most=max(accuracies),
        loss=statistics.mean(run['loss'] for run in own),
        cpu_seconds=statistics.median(run['cpu_seconds'] for run in own),
    )


def verdict(rows: list[dict]) -> str:
    """What the figures say about the sparse network, if anything."""
    *others, sparse = rows
    parts = []
    for other in others:
        apart = sparse['mean'] - other['mean']
        # Standard error of the difference of two means.
        variances = [r['deviation'] ** 2 / r['runs'] for r in (sparse, other)]
        error = sum(variances) ** 0.5
        word = 'better' if apart > 0 else 'worse'
        if abs(apart) < 2 * error:
            word = 'no difference that these runs could show'
        parts.append(
            f'Against {other["variant"]}, {sparse["variant"]} is {apart:+.2f} '
            f'points (standard error {error:.2f}): {word}.'
        )
    return '\n\n'.join(parts)


TEMPLATE = """# Does width bought with zeros help?

Top-1 accuracy on {val_pictures} validation pictures of handwritten digits \
after {epochs} epochs of {train_pictures} pictures of {picture_size} x \
{picture_size} pixels, from scratch; seeds {seeds}. Spread: standard \
deviation over seeds, and extremes.

| | parameters | non-zero | top-1 % | min to max | training loss | CPU time |
|---|---|---|---|---|---|---|
{rows}

{verdict}

CPU time is relative to the first row, median over seeds; zeros save nothing \
at run time.

{cpu}, {cores} cores, one thread a run; Python {python}, torch {torch}, \
mmengine {mmengine}, pelk_mm {pelk_mm} ({commit}).

    {command}
"""


def markdown_row(row: dict, base: float) -> str:
    cells = [row['variant']]
    cells += [f'{row[key] / 1e6:.3f} M' for key in ('params', 'nonzero')]
    cells.append(f'{row["mean"]:.2f} ± {row["deviation"]:.2f}')
    cells.append(f'{row["least"]:.2f} to {row["most"]:.2f}')
    cells += [f'{row["loss"]:.3f}', f'{row["cpu_seconds"] / base:.2f}']
    return f'| {" | ".join(cells)} |'


def main() -> None:
    args = parse_args()
    runs = study(args)
    rows = [summarise(variant, runs) for variant in VARIANTS]
    settings = dict(SETTINGS, epochs=args.epochs)
    about = dict(
        provenance(__file__, 'mmengine'),
        seeds=args.seeds,
        settings=settings,
        table=rows,
        verdict=verdict(rows),
    )
    base = rows[0]['cpu_seconds']
    cells = dict(
        seeds=', '.join(map(str, args.seeds)),
        rows='\n'.join(markdown_row(row, base) for row in rows),
    )
    table = TEMPLATE.format(**{**about, **settings, **cells})
    path = Path(args.results, 'sparsity_study')
    write_results(path, dict(about, runs=runs), table)


if __name__ == '__main__':
    with kept_runs():
        main()
