"""A demo from data to picture, the same for every task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..apis.launch import build_runner, prepare_training
from ..compat import require_ops
from ..datasets.digit_scenes import Recipe, make_digit_scenes
from ..utils.config import load_config
from ..utils.sampling import evenly
from .pictures import draw_rows
from .tasks import TASKS, Task

#: Where the demo configs expect the data.
DATA_ROOT = 'data/digit_scenes'


@dataclass(frozen=True)
class Result:
    """Figures from 0 to 1 over validation images, and their picture."""

    figures: dict[str, float]
    images: int
    picture: Path
    seconds: float


def run_demo(
    name: str,
    configs: str | Path,
    data_root: str | Path = DATA_ROOT,
    work_dir: str | Path | None = None,
    recipe: Recipe | None = None,
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Make the data if need be, train, evaluate and draw.

    ``name`` is one of :data:`~pelk_mm.demo.TASKS`. A demo that starts from
    another one's weights runs that first, unless it was run before. Raises
    FileExistsError if something else is in ``data_root``, LaunchError if mmcv
    lacks what the task needs.
    """
    start = time.monotonic()
    recipe = recipe or Recipe()
    task = TASKS[name]
    if task.needs_ops:
        require_ops(f'the demo of {name}')
    # Before the config: it fails early where the folder is taken.
    root = make_digit_scenes(data_root, recipe)
    config = load_config(str(Path(configs, task.config)), options)
    _replace_root(config, root)
    _make_weights(task, config, configs, root, recipe)
    if work_dir is not None:
        config.work_dir = str(work_dir)
    runner = build_runner(prepare_training(config))
    runner.train()
    found = runner.test()
    scale = 100 if task.percent else 1
    figures = {metric: found[metric] / scale for metric in task.metrics}
    images = len(runner.test_dataloader.dataset)
    text = ', '.join(f'{name} {value:.3f}' for name, value in figures.items())
    title = f'{text} over {images} validation pictures'
    picture = _draw(task, runner, title)
    return Result(figures, images, picture, time.monotonic() - start)


def _make_weights(
    task: Task, config: Config, configs: str | Path, root: Path, recipe: Recipe
) -> None:
    """Run the demo whose checkpoint the config starts from, if need be."""
    weights = (config.model.backbone.get('init_cfg') or {}).get('checkpoint')
    if task.after is None or weights is None or Path(weights).exists():
        return
    work_dir = Path('work_dirs', Path(TASKS[task.after].config).stem)
    if Path(weights).parent != work_dir:
        return  # of the user's own; its absence is an error later on
    text = f'{weights} does not exist yet: running the demo of {task.after}'
    print_log(text, 'current')
    run_demo(task.after, configs, root, work_dir, recipe)


def _replace_root(node: Any, root: Path) -> Any:
    """Write another root for DATA_ROOT into a config, wherever it is."""
    if isinstance(node, (Config, dict)):
        for key, value in node.items():
            node[key] = _replace_root(value, root)
    elif isinstance(node, (list, tuple)):
        return type(node)(_replace_root(value, root) for value in node)
    elif isinstance(node, str) and f'{node}/'.startswith(f'{DATA_ROOT}/'):
        return str(root) + node[len(DATA_ROOT) :]
    return node


@torch.no_grad()
def _draw(task: Task, runner: Runner, title: str) -> Path:
    """Predictions beside the ground truth, in the runner's folder."""
    dataset = runner.test_dataloader.dataset
    meta = dataset.metainfo
    runner.model.eval()
    rows = []
    # One at a time: detection's pictures may differ in size.
    for index in evenly(range(len(dataset)), task.examples):
        (sample,) = runner.model.test_step(pseudo_collate([dataset[index]]))
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        rows.append(task.panels(image, sample, meta))
    legend = None
    if task.legend:
        legend = dict(zip(meta['classes'], meta['palette'], strict=True))
    path = Path(runner.work_dir, 'predictions.png')
    return draw_rows(rows, path, title, legend)
