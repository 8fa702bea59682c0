"""Does it pay to grow the kernels of a trained network? Two tasks of digits.

A small ConvNeXt with 7 x 7 kernels learns to tell digits. From its weights
networks start whose kernels are still 7 x 7, or have grown, and are trained
alike to segment digit scenes, for which 7 x 7 kernels see far enough, and bar
scenes, for which they do not. Writes a table, a picture and all figures to
RESULTS/growth_study.{md,json} and PICTURE.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from studies import (
    add_folders,
    earlier_run,
    kept_runs,
    kernel_sizes,
    make_parser,
    processes,
    provenance,
    write_results,
)

from pelk_mm.analysis.figures import FAINT, SOFT, STRONG, save_figure
from pelk_mm.apis.conversion import grow_checkpoint
from pelk_mm.apis.launch import build_runner, prepare_training
from pelk_mm.datasets.bar_scenes import BAR_METAINFO, BarRecipe
from pelk_mm.datasets.digit_scenes import (
    ADE_ROOT,
    IMAGENET_ROOT,
    Recipe,
    SceneRecipe,
    make_digit_scenes,
)
from pelk_mm.models.utils import read_checkpoint
from pelk_mm.models.utils.safe_saving import save_checkpoint
from pelk_mm.utils.config import load_config
from pelk_mm.utils.files import write_json

ROOT = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """A network of the study, and how its large kernels learn."""

    name: str
    kernel_size: int  # of the first stage
    paper: bool = False  # the paper's block, or ConvNeXt's
    per_cell: bool = True  # learning rates by the area of the cells


class Task(NamedTuple):
    """Scenes to segment, and how long and fast that is learned."""

    recipe: SceneRecipe
    stages: int
    iterations: int
    lr: float


ROWS = [
    Row('7 × 7', 7, per_cell=False),  # nothing is shared
    Row('grown to 31', 31),
    Row('grown to 51', 51),
    Row('grown to 101', 101),
    Row('grown to 101, one learning rate', 101, per_cell=False),
    Row("paper's block, 31", 31, paper=True),
]
TASKS = {
    'digits': Task(Recipe(800, 100, 128), 4, 400, 2e-3),
    'bars': Task(BarRecipe(800, 100, 160), 2, 300, 4e-3),
}
EPOCHS = 2  # of a classifier
#: Pixels of digits are counted by their distance from the bar, in steps.
STEP, STEPS = 16, 16
#: What the table shows of them: distances in pixels.
RANGES = [(0, 48), (48, 80), (80, 128)]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_folders(parser, 'growth_study')
    picture = str(ROOT / 'docs' / 'assets' / 'growth_by_distance.png')
    text = 'accuracy by distance'
    parser.add_argument('--picture', default=picture, help=text)
    return parser.parse_args()


def load_demo(name: str, kernel_size: int, paper: bool, data: Path) -> Config:
    """The config of a demo, with one of the two blocks."""
    config = load_config(str(ROOT / 'configs' / f'demo_{name}.py'))
    backbone = config.model.backbone
    backbone.arch.kernel_sizes = kernel_sizes(kernel_size)
    if not paper:
        backbone.arch.center_radius = 3
        backbone.update(conv_ratio=1.0, small_kernel=None, pos_embed=False)
    for loader in loaders(config):
        loader.dataset.data_root = str(data)
    return config


def classifier_config(paper: bool, data: Path) -> Config:
    size = 31 if paper else 7
    config = load_demo('pelk_digits', size, paper, data / IMAGENET_ROOT)
    config.train_cfg.update(max_epochs=EPOCHS, val_interval=EPOCHS)
    config.default_hooks.checkpoint.interval = EPOCHS
    return config


def segmentor_config(name: str, row: Row, data: Path, start: Path) -> Config:
    """The demo of segmentation for a task, with another head.

    It sees nothing but its own place in the maps of the stages, so that all
    that comes from farther away comes through the kernels.
    """
    task = TASKS[name]
    demo = 'upernet_pelk_digits_pretrained', row.kernel_size, row.paper
    config = load_demo(*demo, data / ADE_ROOT)
    model, count = config.model, task.stages
    channels = model.backbone.arch.channels[:count]
    model.backbone.out_indices = tuple(range(count))
    model.backbone.init_cfg.checkpoint = str(start)
    model.decode_head.update(type='FCNHead', num_convs=0, concat_input=False)
    model.decode_head.update(
        input_transform='resize_concat',
        in_index=list(range(count)),
        in_channels=channels,
        channels=sum(channels),
    )
    del model.decode_head.pool_scales
    model.auxiliary_head = None
    size = (task.recipe.scene_size,) * 2
    model.data_preprocessor.size = size
    for loader in loaders(config):
        for step in loader.dataset.pipeline:
            for key in {'scale', 'crop_size'} & step.keys():
                step[key] = size
    if name == 'bars':
        model.decode_head.num_classes = len(BAR_METAINFO['classes'])
        for loader in loaders(config):
            loader.dataset.metainfo = BAR_METAINFO
            # With their colours, and whole.
            steps = 'LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'
            loader.dataset.pipeline = [dict(type=step) for step in steps]
    config.optim_wrapper.optimizer.lr = task.lr
    config.optim_wrapper.paramwise_cfg = dict(
        decay_rate=1.0, scale_lr_by_cell_area=row.per_cell
    )
    config.param_scheduler[1].end = task.iterations
    config.train_cfg.update(
        max_iters=task.iterations, val_interval=task.iterations
    )
    config.default_hooks.checkpoint.interval = task.iterations
    return config


def loaders(config: Config) -> list[ConfigDict]:
    return [config[f'{name}_dataloader'] for name in ('train', 'val', 'test')]


def train(config: Config, seed: int, folder: Path) -> tuple[Runner, dict]:
    """Train once, in this process alone; the runner, and what it took."""
    torch.set_num_threads(1)
    for loader in loaders(config):
        loader.update(num_workers=0, persistent_workers=False)
    config.randomness = dict(seed=seed)
    config.log_level = 'WARNING'
    runner = build_runner(prepare_training(config, work_dir=str(folder)))
    start, start_cpu = time.monotonic(), time.process_time()
    runner.train()
    seconds, cpu = time.monotonic() - start, time.process_time() - start_cpu
    loss = float(runner.message_hub.get_scalar('train/loss').mean(20))
    return runner, dict(loss=loss, seconds=seconds, cpu_seconds=cpu)


def classify(paper: bool, seed: int, work_dir: str) -> dict:
    """Train a classifier, from which others start."""
    folder = Path(
        work_dir, 'classifiers', 'paper' if paper else '7', str(seed)
    )
    recipe = TASKS['digits'].recipe
    settings = dict(epochs=EPOCHS, pictures=recipe.train_digits)
    settings['picture_size'] = recipe.digit_size
    run = earlier_run(folder, settings)
    if 'accuracy' not in run:
        config = classifier_config(paper, Path(work_dir, 'digits'))
        runner, found = train(config, seed, folder)
        accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
        checkpoint = str(folder / f'epoch_{EPOCHS}.pth')
        run.update(paper=paper, seed=seed, checkpoint=checkpoint)
        run.update(accuracy=float(accuracy), **found)
        write_json(folder / 'run.json', run)
    figures = f'{run["accuracy"]:.2f} %, {run["seconds"]:.0f} s'
    print(f'classifier, paper {paper}, seed {seed}: {figures}', flush=True)
    return run


def segment(name: str, row: Row, start: Mapping, work_dir: str) -> dict:
    """Train a network on a task from the weights of a classifier."""
    task, seed = TASKS[name], start['seed']
    folder = Path(
        work_dir, 'runs', name, row.name.replace(' ', '_'), str(seed)
    )
    settings = dict(task._asdict(), recipe=asdict(task.recipe))
    settings.update(row=list(row), start=start['settings'])
    run = earlier_run(folder, settings)
    if 'miou' not in run:
        weights = grow(start['checkpoint'], row, folder)
        config = segmentor_config(name, row, Path(work_dir, name), weights)
        runner, found = train(config, seed, folder)
        miou = float(runner.message_hub.get_scalar('val/mIoU').current())
        run.update(task=name, row=row.name, seed=seed, miou=miou, **found)
        run['params'] = sum(p.numel() for p in runner.model.parameters())
        if name == 'bars':
            run['pixels'], run['right'] = count_right(runner)
        write_json(folder / 'run.json', run)
    figures = f'mIoU {run["miou"]:.2f}, {run["seconds"]:.0f} s'
    print(f'{name}, {row.name}, seed {seed}: {figures}', flush=True)
    return run


def grow(source: str, row: Row, folder: Path) -> Path:
    """A classifier whose kernels have grown, but which computes the same."""
    if row.paper or row.kernel_size == 7:
        return Path(source)
    small, large = (
        dict(kernel_sizes=kernel_sizes(size), center_radius=3)
        for size in (7, row.kernel_size)
    )
    grown, stages = grow_checkpoint(read_checkpoint(source), large, small)
    assert not any(stage.error for stage in stages), stages
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(grown, folder / 'start.pth')
    return folder / 'start.pth'


@torch.no_grad()
def count_right(runner: Runner) -> list[list[int]]:
    """Pixels of digits by their distance from the bar: all, right ones."""
    counts = np.zeros((2, STEPS), int)
    runner.model.eval()
    for batch in runner.val_dataloader:
        samples = runner.model.test_step(batch)
        for image, sample in zip(batch['inputs'], samples, strict=True):
            truth = sample.gt_sem_seg.data[0].numpy()
            found = sample.pred_sem_seg.data[0].numpy()
            counts += by_distance(image.numpy(), truth, found)
    return counts.tolist()


def by_distance(
    image: np.ndarray, truth: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """Counts (2, STEPS) of one picture's digits: all pixels, right ones.

    The bar is what is coloured in the image, (3, H, W) uint8.
    """
    grey = (np.ptp(image, axis=0) < 64).astype(np.uint8)
    apart = cv2.distanceTransform(grey, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    digits = (truth > 0) & (grey > 0)
    steps = (apart[digits] // STEP).astype(int)
    right = steps[found[digits] == truth[digits]]
    return np.stack([np.bincount(s, minlength=STEPS) for s in (steps, right)])


def study(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Train the classifiers, then every row on every task, with each seed."""
    for name, task in TASKS.items():
        make_digit_scenes(Path(args.work_dir, name), task.recipe)
    with processes(args.workers) as pool:
        kinds = itertools.product(args.seeds, (False, True))
        futures = [
            pool.submit(classify, paper, seed, args.work_dir)
            for seed, paper in kinds
        ]
        starts = [future.result() for future in futures]
        futures = [
            pool.submit(segment, name, row, start, args.work_dir)
            for start, name, row in itertools.product(starts, TASKS, ROWS)
            if start['paper'] == row.paper
        ]
        return starts, [future.result() for future in futures]


def right_within(run: Mapping, least: int, most: int) -> float:
    """Per cent of right pixels among those of digits at some distance."""
    steps = slice(least // STEP, most // STEP)
    return 100 * sum(run['right'][steps]) / sum(run['pixels'][steps])


def measures(run: Mapping) -> dict[str, float]:
    """What a table shows of a run, in per cent."""
    found = {'mIoU': run['miou']}
    if 'right' in run:
        for least, most in RANGES:
            found[f'{least}-{most} px'] = right_within(run, least, most)
    return found


def summarise(name: str, row: Row, runs: Iterable[Mapping]) -> dict:
    """One row of a table: each measure's mean and standard deviation."""
    own = [r for r in runs if (r['task'], r['row']) == (name, row.name)]
    found = [measures(run) for run in own]
    values = {key: [each[key] for each in found] for key in found[0]}
    spread = statistics.stdev if len(own) > 1 else lambda _: 0.0
    return dict(
        task=name,
        row=row.name,
        kernel_sizes=kernel_sizes(row.kernel_size)[: TASKS[name].stages],
        params=own[0]['params'],
        mean={key: statistics.mean(each) for key, each in values.items()},
        deviation={key: spread(each) for key, each in values.items()},
        cpu_seconds=statistics.median(run['cpu_seconds'] for run in own),
    )


def verdict(rows: list[dict]) -> str:
    """How the mIoU of each row differs from the first one's, if it does."""
    base, *others = rows
    parts = []
    for other in others:
        apart = other['mean']['mIoU'] - base['mean']['mIoU']
        noise = other['deviation']['mIoU'] + base['deviation']['mIoU']
        word = 'better' if apart > 0 else 'worse'
        word = word if abs(apart) > noise else 'no difference'
        parts.append(f'- {other["row"]}: {apart:+.2f} points of mIoU, {word}')
    return '\n'.join(parts)


def markdown_table(rows: list[dict]) -> str:
    names = list(rows[0]['mean'])
    heads = ['', 'kernels', 'parameters', *names, 'CPU time']
    lines = [heads, ['---'] * len(heads)]
    for row in rows:
        sizes = ', '.join(map(str, row['kernel_sizes']))
        cells = [row['row'], sizes, f'{row["params"] / 1e6:.3f} M']
        for name in names:
            mean, deviation = row['mean'][name], row['deviation'][name]
            cells.append(f'{mean:.1f} ± {deviation:.1f}')
        cpu = row['cpu_seconds'] / rows[0]['cpu_seconds']
        lines.append([*cells, f'{cpu:.2f}'])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


TEMPLATE = """# Does it pay to grow the kernels of a trained network?

Means and standard deviations over seeds {seeds}; CPU time is the training's, \
relative to the first row. A difference from the first row that is smaller \
than the two standard deviations together is called none.

## Digit scenes: 7 × 7 kernels see far enough

{digits_table}

{digits_verdict}

## Bar scenes: they do not

Beside mIoU, per cent of the pixels of digits that are right, by their \
distance from the bar.

{bars_table}

{bars_verdict}

All trainings together took {cpu_minutes:.0f} minutes of CPU time. {cpu}, \
{cores} cores, one thread a run; Python {python}, torch {torch}, \
mmengine {mmengine}, mmcv {mmcv}, mmseg {mmseg}, pelk_mm {pelk_mm} ({commit}).

    {command}
"""


def draw(runs: Iterable[Mapping], path: Path) -> None:
    """Right pixels by distance: a panel a row, over what 7 × 7 reaches."""
    figure = Figure((9, 4.8), layout='constrained')
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    x = STEP * (np.arange(RANGES[-1][1] // STEP) + 0.5)
    lines = {}
    for run in (run for run in runs if run['task'] == 'bars'):
        right, pixels = (np.array(run[key]) for key in ('right', 'pixels'))
        share = 100 * right[: len(x)] / pixels[: len(x)]
        lines.setdefault(run['row'], []).append(share)
    for axes, row in zip(panels.flat, ROWS, strict=True):
        axes.axhline(50, color=FAINT, linewidth=0.8, linestyle=':')
        if row is not ROWS[0]:
            mean = np.mean(lines[ROWS[0].name], axis=0)
            axes.plot(x, mean, color=FAINT, linewidth=1.5)
        for line in lines[row.name]:
            axes.plot(x, line, color=SOFT, linewidth=1)
        mean = np.mean(lines[row.name], axis=0)
        axes.plot(x, mean, color=STRONG, linewidth=2.2)
        axes.set_title(row.name, fontsize=10, loc='left')
        axes.set(xlim=(0, x[-1] + STEP / 2), ylim=(30, 101))
        axes.spines[['top', 'right']].set_visible(False)
    first, second = panels.flat[:2]
    end = dict(x=x[-1], fontsize=8, ha='right')
    first.text(y=92, s='mean', color=STRONG, **end)
    first.text(y=85, s='each seed', color=SOFT, **end)
    first.text(y=51.5, s='guessing the colour', color=FAINT, **end)
    second.text(y=34, s=f'mean of {ROWS[0].name}', color=FAINT, **end)
    figure.supxlabel('distance from the bar in pixels', fontsize=10)
    figure.supylabel('digit pixels that are right, %', fontsize=10)
    save_figure(figure, path, dpi=150)


def main() -> None:
    args = parse_args()
    starts, runs = study(args)
    rows = {
        name: [summarise(name, row, runs) for row in ROWS] for name in TASKS
    }
    about = dict(
        provenance(__file__, 'mmengine', 'mmcv', 'mmseg'),
        seeds=args.seeds,
        cpu_minutes=sum(run['cpu_seconds'] for run in starts + runs) / 60,
        tables=rows,
    )
    cells = dict(about, seeds=', '.join(map(str, args.seeds)))
    for name in TASKS:
        cells[f'{name}_table'] = markdown_table(rows[name])
        cells[f'{name}_verdict'] = verdict(rows[name])
    everything = dict(about, classifiers=starts, runs=runs)
    path = Path(args.results, 'growth_study')
    write_results(path, everything, TEMPLATE.format(**cells))
    draw(runs, Path(args.picture))


if __name__ == '__main__':
    with kept_runs():
        main()
