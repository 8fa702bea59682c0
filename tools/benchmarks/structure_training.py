"""The networks of structure_study.py, how they are trained and measured.

A network has PeLK's stages and one 1 × 1 convolution behind each, so that a
training takes seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from structure_scenes import CLASSES, Scenes, Task, load_scenes
from studies import kernel_sizes
from torch import Tensor, nn

from pelk_mm.analysis.erf import area_ratios, calibrate, input_gradient
from pelk_mm.engine.optimizers.parameter_kinds import DECAYS, parameter_kinds
from pelk_mm.engine.sparsity.enforcer import MaskEnforcer
from pelk_mm.engine.sparsity.masks import draw_masks
from pelk_mm.engine.sparsity.schedule import Schedule
from pelk_mm.engine.sparsity.snip import snip_densities, snip_scores
from pelk_mm.models import PeLK, PeripheralConv2d
from pelk_mm.models.layers import PartialPeripheralConv2d
from pelk_mm.ops import SharingGrid

BATCH = 8
BACKGROUND = -1
WEIGHT_DECAY = 0.05
#: Pictures whose gradients a receptive field is the mean of.
FIELD_PICTURES = 16


@dataclass(frozen=True)
class Network:
    """What a row of the study is; the default is the paper's block."""

    kernel_size: int = 31  # of the first stage
    center_radius: int = 2
    cells: str = 'growing'  # or 'equal', as many, or 'single' ones: dense
    conv_ratio: float = 3 / 8
    small_kernel: int | None = 5  # 0: the BatchNorm alone; None: not even it
    pos_embed: str = 'behind'  # the BatchNorms, or 'before' them, or 'none'
    width: int = 24  # of the first stage
    sparsity: float = 0.0


# Networks -------------------------------------------------------------------


class EmbeddedBefore(PartialPeripheralConv2d):
    """The positional embedding where the paper's Eq. 3 has it.

    The convolution's constant is then in front of its BatchNorm, not behind.
    """

    def forward(self, x: Tensor, pos_sums: Tensor | None = None) -> Tensor:
        head, tail = x.split(self.split, 1)
        constant = self._constant(pos_sums)[:, None, None]
        y = self.large_norm(self.large(head) + constant)
        y = y + self.small_norm(self.small(head))
        return torch.cat((y, tail), 1)


class Segmentor(nn.Module):
    """PeLK whose stages each vote at their own places of the maps.

    What comes from elsewhere comes through the kernels.
    """

    def __init__(self, network: Network, task: Task) -> None:
        super().__init__()
        stages = len(task.depths)
        channels = [network.width << stage for stage in range(4)]
        # PeLK has the BatchNorms with a branch alone: it is removed below.
        small = 5 if network.small_kernel == 0 else network.small_kernel
        self.backbone = PeLK(
            arch=dict(
                # Four are asked for, those behind the last are not built.
                depths=(*task.depths, *[1] * (4 - stages)),
                channels=channels,
                kernel_sizes=kernel_sizes(network.kernel_size),
                center_radius=network.center_radius,
            ),
            conv_ratio=network.conv_ratio,
            small_kernel=small,
            pos_embed=network.pos_embed != 'none',
            layer_scale_init_value=1.0,
            out_indices=range(stages),
        )
        for module in self.backbone.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                # So few channels need more than PeLK's std of 0.02.
                nn.init.kaiming_normal_(module.weight, nonlinearity='linear')
        if network.cells != 'growing':
            self._recut(network.cells)
        for module in self.backbone.modules():
            if isinstance(module, PartialPeripheralConv2d):
                if network.pos_embed == 'before':
                    module.__class__ = EmbeddedBefore
                if network.small_kernel == 0:
                    module.small, module.small_norm = None, nn.Identity()
        self.heads = nn.ModuleList(
            nn.Conv2d(count, CLASSES[task.kind], 1)
            for count in channels[:stages]
        )

    def _recut(self, cells: str) -> None:
        """Exchange the kernels for some of the same size with other cells."""
        for stage in self.backbone.stages:
            size, count = stage.grid.kernel_size, stage.grid.num_cells
            sizes = [1] * size if cells == 'single' else equal(size, count)
            stage.grid = SharingGrid.from_sizes(sizes)
            backend = 'fft' if cells == 'single' else None
            for block in stage.blocks:
                old = block.conv.large
                bias = old.bias is not None
                block.conv.large = PeripheralConv2d(
                    old.channels, stage.grid, bias, backend
                )

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to votes ``(N, classes, H / 4, W / 4)``."""
        maps = self.backbone(images)
        size = maps[0].shape[2:]
        votes = [h(x) for h, x in zip(self.heads, maps, strict=True)]
        return sum(F.interpolate(vote, size) for vote in votes)


def equal(kernel_size: int, count: int) -> list[int]:
    """Sizes of cells that are as equal as whole numbers can be."""
    edges = [round(kernel_size * i / count) for i in range(count // 2 + 1)]
    side = np.diff(edges).tolist()
    return [*side, kernel_size - 2 * sum(side), *reversed(side)]


# Training -------------------------------------------------------------------


def loss_of(model: Segmentor, images: Tensor, labels: Tensor) -> Tensor:
    """Of digits alone: the background is no class."""
    return F.cross_entropy(model(images), labels, ignore_index=BACKGROUND)


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate: up for a tenth, then a cosine to 0."""
    warm_up = max(1, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def trainer(
    model: Segmentor, scenes: Scenes, lr: float, steps: int, seed: int
) -> tuple[torch.optim.Optimizer, Iterator[float]]:
    """The optimizer, and an iterator that takes a step and gives its loss."""
    kinds = parameter_kinds(model)
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (decayed if DECAYS[kinds[name]] else others).append(parameter)
    optimizer = torch.optim.AdamW(
        [dict(params=decayed), dict(params=others, weight_decay=0.0)],
        lr=lr,
        weight_decay=WEIGHT_DECAY,
    )

    def run() -> Iterator[float]:
        for step, part in enumerate(batches(len(scenes.images), seed)):
            if step == steps:
                return
            for group in optimizer.param_groups:
                group['lr'] = lr * rate_at(step, steps)
            images, labels = scenes.batch(part)
            optimizer.zero_grad()
            loss = loss_of(model, images, labels)
            loss.backward()
            optimizer.step()
            yield float(loss.detach())

    return optimizer, run()


def batches(count: int, seed: int) -> Iterator[np.ndarray]:
    """Endless: all scenes in another order each time."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


class Pruning:
    """Dynamic sparsity as the paper has it, without a Runner."""

    MOVES = 15  # in a training

    def __init__(
        self,
        model: Segmentor,
        sparsity: float,
        optimizer: torch.optim.Optimizer,
        first: tuple[Tensor, Tensor],
        steps: int,
        seed: int,
    ) -> None:
        weights = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.ndim in (2, 4)
        }
        loss_of(model, *first).backward()
        scores = {
            name: snip_scores(weight, weight.grad)
            for name, weight in weights.items()
        }
        self.generator = torch.Generator().manual_seed(seed)
        densities = snip_densities(scores, 1 - sparsity)
        masks = draw_masks(weights, densities, self.generator)
        self.enforcer = MaskEnforcer(masks, weights, [optimizer], [])
        self.enforcer.attach()
        interval = max(1, steps // self.MOVES)
        self.schedule = Schedule(0.5, 0.005, interval, steps)

    def after(self, step: int) -> None:
        """To be called with the number of steps taken."""
        if self.schedule.moves_at(step):
            rate = self.schedule.rate_at(step)
            self.enforcer.move(rate, self.generator)


def train(
    network: Network, task: Task, lr: float, seed: int, folder: Path
) -> tuple[Segmentor, dict]:
    """Train once; the network, and its loss and CPU time."""
    scenes = load_scenes(task, 'train', folder)
    torch.manual_seed(seed)
    model = Segmentor(network, task)
    start = time.process_time()
    optimizer, steps = trainer(model, scenes, lr, task.steps, seed)
    pruning = None
    if network.sparsity:
        first = scenes.batch(next(batches(len(scenes.images), seed)))
        about = network.sparsity, optimizer, first, task.steps, seed
        pruning = Pruning(model, *about)
    losses = []
    for step, loss in enumerate(steps, 1):
        losses.append(loss)
        if pruning is not None:
            pruning.after(step)
    seconds = time.process_time() - start
    loss = float(np.mean(losses[-20:]))
    return model, dict(loss=loss, cpu_seconds=seconds)


def step_timer(
    network: Network, task: Task, folder: Path
) -> Callable[[], object]:
    """What takes one training step when it is called."""
    scenes = load_scenes(task, 'train', folder)
    model = Segmentor(network, task)
    _, steps = trainer(model, scenes, 1e-3, 10**9, 0)
    return lambda: next(steps)


# Measures -------------------------------------------------------------------


@torch.no_grad()
def count_right(model: Segmentor, scenes: Scenes) -> dict[str, list[int]]:
    """Positions of digits by their distance from the bar: all, right ones."""
    model.eval()
    most = scenes.distances.max() + 1
    counts = np.zeros((2, most), int)
    for start in range(0, len(scenes.images), 50):
        part = slice(start, start + 50)
        images, labels = scenes.batch(part)
        right = (model(images).argmax(1) == labels).numpy()
        steps = scenes.distances[part]
        for row, shown in zip(counts, (steps >= 0, right), strict=True):
            row += np.bincount(steps[(steps >= 0) & shown], minlength=most)
    return dict(zip(('pixels', 'right'), counts.tolist(), strict=True))


def reach(model: Segmentor, scenes: Scenes) -> tuple[float, np.ndarray]:
    """The effective receptive field of the last stage.

    Returns:
        tuple[float, ndarray]: Side in pixels of the centred square with half
        of the mass, and the field ``(H, W)``, its maximum 1.
    """
    model.eval()
    images, _ = scenes.batch(slice(FIELD_PICTURES))
    field = sum(input_gradient(model.backbone, i[None]) for i in images)
    half = area_ratios(field, [0.5])['0.5']
    return math.sqrt(half * field.size), field / field.max()


def initial_reach(
    network: Network, task: Task, seed: int, scenes: Scenes
) -> tuple[float, np.ndarray]:
    """That of a network before its training."""
    torch.manual_seed(seed)
    model = Segmentor(network, task)
    calibrate(model.backbone, [scenes.batch(slice(FIELD_PICTURES))[0]])
    return reach(model, scenes)


@torch.no_grad()
def size_of(model: Segmentor, task: Task) -> dict[str, int]:
    """Parameters, and multiply-accumulates of a picture as the paper counts.

    Kernels executed dense, zero weights not at all.
    """
    model.eval()  # or BatchNorms would learn from a blank picture
    counted = []

    def count(module: nn.Module, _: tuple, output: Tensor) -> None:
        weight, places = module.weight, output.numel()
        places //= len(weight)  # each weight works at all of them
        each = int(weight.count_nonzero())
        if isinstance(module, PeripheralConv2d):
            grid = module.grid
            each = round(each * (grid.kernel_size / grid.num_cells) ** 2)
        counted.append(each * places)

    kinds = nn.Conv2d, nn.Linear, PeripheralConv2d
    parts = [m for m in model.modules() if isinstance(m, kinds)]
    handles = [part.register_forward_hook(count) for part in parts]
    model(torch.zeros(1, 3, task.size, task.size))
    for handle in handles:
        handle.remove()
    params = sum(int(p.count_nonzero()) for p in model.parameters())
    return dict(params=params, macs=sum(counted))


def examine(
    network: Network, task: Task, lr: float, seed: int, folder: Path
) -> tuple[dict, np.ndarray]:
    """Train, and measure on the test scenes.

    Returns:
        tuple[dict, ndarray]: Figures, and the receptive fields before and
        after, ``(2, H, W)``, float32.
    """
    model, found = train(network, task, lr, seed, folder)
    scenes = load_scenes(task, 'test', folder)
    found.update(size_of(model, task), **count_right(model, scenes))
    found['reach_before'], before = initial_reach(network, task, seed, scenes)
    found['reach_after'], after = reach(model, scenes)
    return found, np.stack([before, after]).astype(np.float32)


def try_rate(
    network: Network, task: Task, lr: float, seed: int, folder: Path
) -> dict:
    """A trial, measured on the scenes for choosing the rate."""
    short = replace(task, steps=max(1, int(task.trial * task.steps)))
    model, found = train(network, short, lr, seed, folder)
    scenes = load_scenes(task, 'val', folder)
    return found | count_right(model, scenes)
