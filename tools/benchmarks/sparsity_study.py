"""Does width bought with zeros help? Three small classifiers on digits.

Trains the classifier of the demo from scratch, several seeds each: dense,
dense and 1.3 times as wide, and as wide but with 40 % of its weights zero and
the pattern moving, which leaves about as many non-zero weights as the narrow
one has. Writes a table and all figures to RESULTS/sparsity_study.{md,json}.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import pelk_mm
from pelk_mm.datasets.digit_scenes import Recipe, make_digit_scenes
from pelk_mm.engine.hooks import DynamicSparsityHook
from pelk_mm.utils.config import load_config
from pelk_mm.utils.files import atomic_path

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs' / 'demo_pelk_digits.py'
# Width, and share of zeros.
VARIANTS = {
    'dense x 1.0': (1.0, 0.0),
    'dense x 1.3': (1.3, 0.0),
    'sparse x 1.3': (1.3, 0.4),
}
METRIC = 'accuracy/top1'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument(
        '--train-pictures', type=int, default=2000, help='a run and epoch'
    )
    parser.add_argument('--val-pictures', type=int, default=1000)
    parser.add_argument(
        '--picture-size', type=int, default=32, help='side in pixels'
    )
    parser.add_argument(
        '--update-interval',
        type=int,
        default=20,
        help='steps between updates of the masks',
    )
    parser.add_argument(
        '--workers', type=int, default=2, help='runs side by side'
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/sparsity_study',
        help='folder of data, logs and finished runs, which are not repeated',
    )
    parser.add_argument(
        '--results',
        default=str(ROOT / 'tools' / 'benchmarks' / 'results'),
        help='folder of the table',
    )
    args = parser.parse_args()
    if args.epochs < 3:
        parser.error('--epochs must be at least 3, as the first 2 are warm-up')
    return args


def make_config(
    variant: str,
    seed: int,
    args: argparse.Namespace,
    data: Path,
    work_dir: Path,
) -> Config:
    """The demo's config with another width, length and picture size."""
    width, sparsity = VARIANTS[variant]
    config = load_config(str(CONFIG))
    arch = config.model.backbone.arch
    arch.channels = [int(width * channels) for channels in arch.channels]
    config.model.head.in_channels = arch.channels[-1]
    for name in ('train', 'val', 'test'):
        loader = config[f'{name}_dataloader']
        loader.dataset.data_root = str(data / 'imagenet')
        for step in loader.dataset.pipeline:
            for key in ('scale', 'crop_size'):
                if key in step:
                    step[key] = args.picture_size
    config.train_cfg.max_epochs = args.epochs
    config.train_cfg.val_interval = args.epochs
    config.default_hooks.checkpoint.interval = args.epochs
    config.custom_hooks = (
        [
            dict(
                type='DynamicSparsityHook',
                sparsity=sparsity,
                init='snip',
                update_interval=args.update_interval,
                include='.',
                seed=seed,
            )
        ]
        if sparsity
        else []
    )
    config.randomness = dict(seed=seed)
    config.work_dir = str(work_dir)
    config.log_level = 'WARNING'
    return config


def train(config: Config) -> dict:
    """Train once; the accuracy, what the network has, and what it took."""
    runner = Runner.from_cfg(config)
    start, start_cpu = time.monotonic(), time.process_time()
    runner.train()
    seconds, cpu = time.monotonic() - start, time.process_time() - start_cpu
    hook = next(
        (h for h in runner.hooks if isinstance(h, DynamicSparsityHook)), None
    )
    dead = (
        sum(int((~mask).sum()) for mask in hook.enforcer.masks.values())
        if hook
        else 0
    )
    params = sum(p.numel() for p in runner.model.parameters())
    return dict(
        accuracy=float(
            runner.message_hub.get_scalar(f'val/{METRIC}').current()
        ),
        loss=float(runner.message_hub.get_scalar('train/loss').mean(20)),
        params=params,
        nonzero=params - dead,
        seconds=seconds,
        cpu_seconds=cpu,
    )


def run_once(
    variant: str, seed: int, args: argparse.Namespace, data: Path
) -> dict:
    """Train one variant with one seed, unless that was done before."""
    torch.set_num_threads(1)
    folder = Path(args.work_dir) / variant.replace(' ', '_') / str(seed)
    done = folder / 'run.json'
    run = json.loads(done.read_text()) if done.is_file() else {}
    if run.get('settings') != settings_of(args):
        run = dict(
            variant=variant,
            seed=seed,
            settings=settings_of(args),
            **train(make_config(variant, seed, args, data, folder)),
        )
        with atomic_path(done) as path:
            path.write_text(json.dumps(run))
    print(
        f'{variant}, seed {seed}: {run["accuracy"]:.2f} %, '
        f'{run["seconds"]:.0f} s',
        flush=True,
    )
    return run


def study(args: argparse.Namespace) -> list[dict]:
    """Train every variant with every seed, several at a time."""
    data = make_digit_scenes(
        Path(args.work_dir) / 'data',
        Recipe(
            train_scenes=1,
            val_scenes=1,
            train_digits=args.train_pictures,
            val_digits=args.val_pictures,
            digit_size=args.picture_size,
        ),
    )
    # One thread a run: two runs side by side take less time than two threads
    # a run, and the figures do not depend on how many run.
    with ProcessPoolExecutor(
        args.workers, mp_context=get_context('spawn')
    ) as pool:
        futures = [
            pool.submit(run_once, variant, seed, args, data)
            for seed in args.seeds
            for variant in VARIANTS
        ]
        return [future.result() for future in futures]


def settings_of(args: argparse.Namespace) -> dict:
    """What a run depends on."""
    return {
        key: value
        for key, value in vars(args).items()
        if key not in ('seeds', 'work_dir', 'results', 'workers')
    }


def summarise(runs: list[dict]) -> list[dict]:
    """One row a variant: mean, standard deviation and extremes."""
    rows = []
    for variant in VARIANTS:
        own = [run for run in runs if run['variant'] == variant]
        accuracies = [run['accuracy'] for run in own]
        rows.append(
            dict(
                variant=variant,
                runs=len(own),
                params=own[0]['params'],
                nonzero=own[0]['nonzero'],
                mean=statistics.mean(accuracies),
                deviation=(
                    statistics.stdev(accuracies) if len(own) > 1 else 0.0
                ),
                least=min(accuracies),
                most=max(accuracies),
                loss=statistics.mean(run['loss'] for run in own),
                cpu_seconds=statistics.median(
                    run['cpu_seconds'] for run in own
                ),
            )
        )
    return rows


def verdict(rows: list[dict]) -> str:
    """What the figures say about the sparse network, if anything."""
    by_name = {row['variant']: row for row in rows}
    sparse = by_name['sparse x 1.3']
    parts = []
    for name in ('dense x 1.0', 'dense x 1.3'):
        other = by_name[name]
        apart = sparse['mean'] - other['mean']
        # Standard error of the difference of two means.
        error = (
            sparse['deviation'] ** 2 / sparse['runs']
            + other['deviation'] ** 2 / other['runs']
        ) ** 0.5
        word = (
            'no difference that these runs could show'
            if abs(apart) < 2 * error
            else 'better'
            if apart > 0
            else 'worse'
        )
        parts.append(
            f'Against {name}, sparse x 1.3 is {apart:+.2f} points '
            f'(standard error {error:.2f}): {word}.'
        )
    return '\n'.join(parts)


def to_markdown(rows: list[dict], about: dict) -> str:
    settings = about['settings']
    base = rows[0]['cpu_seconds']
    lines = [
        '# Does width bought with zeros help?',
        '',
        f'Top-1 accuracy on {settings["val_pictures"]} validation pictures of '
        f'handwritten digits after {settings["epochs"]} epochs of '
        f'{settings["train_pictures"]} pictures of {settings["picture_size"]} '
        f'x {settings["picture_size"]} pixels, from scratch; seeds '
        f'{", ".join(map(str, about["seeds"]))}. Spread: standard deviation '
        'over seeds, and extremes.',
        '',
        '| | parameters | non-zero | top-1 % | min to max | training loss | '
        'CPU time |',
        '|---|---|---|---|---|---|---|',
    ]
    lines += [
        f'| {r["variant"]} | {r["params"] / 1e6:.3f} M | '
        f'{r["nonzero"] / 1e6:.3f} M | {r["mean"]:.2f} ± '
        f'{r["deviation"]:.2f} | {r["least"]:.2f} to {r["most"]:.2f} | '
        f'{r["loss"]:.3f} | {r["cpu_seconds"] / base:.2f} |'
        for r in rows
    ]
    lines += [
        '',
        verdict(rows).replace('\n', '\n\n'),
        '',
        'CPU time is relative to the first row, median over seeds; zeros save '
        'nothing at run time.',
        '',
        f'{about["machine"]}; Python {about["python"]}, torch '
        f'{about["torch"]}, mmengine {about["mmengine"]}, pelk_mm '
        f'{about["pelk_mm"]} ({about["commit"]}).',
        '',
        f'    {about["command"]}',
        '',
    ]
    return '\n'.join(lines)


def describe(args: argparse.Namespace) -> dict:
    """Machine, versions and settings, for the record."""
    commit = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    command = ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return dict(
        machine=f'{_processor()}, {os.cpu_count()} cores, one thread a run',
        python=platform.python_version(),
        torch=torch.__version__,
        mmengine=mmengine.__version__,
        pelk_mm=pelk_mm.__version__,
        commit=commit or 'no commit',
        command=f'python tools/benchmarks/{command}',
        seeds=args.seeds,
        settings=settings_of(args),
    )


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        name = next(x for x in lines if x.startswith('model name'))
        return name.split(':')[1].strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    args = parse_args()
    rows = summarise(runs := study(args))
    about = describe(args)
    results = Path(args.results)
    with atomic_path(results / 'sparsity_study.json') as path:
        path.write_text(
            json.dumps(
                dict(about, table=rows, verdict=verdict(rows), runs=runs),
                indent=2,
            )
            + '\n'
        )
    table = to_markdown(rows, about)
    with atomic_path(results / 'sparsity_study.md') as path:
        path.write_text(table)
    print(table)


if __name__ == '__main__':
    main()
