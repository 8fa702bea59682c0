"""Effective receptive fields: which pixels the centre of a map looks at.

The method of `RepLKNet <https://arxiv.org/abs/2203.06717>`_, which SLaK and
PeLK follow: the gradient of the central position of the last feature map,
summed over channels, to the pixels of an image; negative parts cut off, summed
over colours and averaged over images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.images import IMAGE_SUFFIXES, find_images
from ..ops.checks import check_integer
from ..utils.files import atomic_path, write_json
from ..utils.sampling import evenly
from .backbones import build_backbone
from .figures import INK

#: Shares of the mass that area ratios are given for, as the paper does.
SHARES = (0.2, 0.3, 0.5, 0.99)
#: What makes a backbone return maps, and have its blocks take part untrained.
_MAPS = dict(gap_before_final_norm=False, out_type='featmap')
_UNTRAINED = dict(layer_scale_init_value=1.0)
#: Images whose statistics an untrained network's BatchNorms are given.
_CALIBRATION = 4


def pick_images(folder: str | Path, num: int) -> list[Path]:
    """At most ``num`` images of a folder, evenly spaced; at least one."""
    check_integer('the number of images', num, 1)
    found = list(find_images(folder))
    if not found:
        raise FileNotFoundError(
            f'no images found in {folder} (looked for names ending in '
            f'{", ".join(IMAGE_SUFFIXES)}, in folders of it too)'
        )
    return evenly(found, num)


def build_for_erf(config: Config, checkpoint: str | None = None) -> nn.Module:
    """Build a backbone that returns maps, in eval mode, its parameters frozen.

    Without a checkpoint the weights are random, the same on each call, and
    LayerScale starts at 1: with the recipes' 1e-6 blocks would do nothing.
    """
    options = _MAPS if checkpoint else {**_MAPS, **_UNTRAINED}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build_backbone(config, checkpoint, options)
    backbone.requires_grad_(False)
    # Not chained: `train` of mmpretrain's backbones returns nothing.
    backbone.eval()
    return backbone


@torch.no_grad()
def calibrate(backbone: nn.Module, images: Sequence[Tensor]) -> None:
    """Give BatchNorms statistics of images; untrained they have 0 and 1."""
    found = (m for m in backbone.modules() if isinstance(m, _BatchNorm))
    norms = [norm for norm in found if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # The plain average of all that is seen.
        norm.momentum = None
        norm.train()
    if norms:
        for image in images:
            backbone(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def input_gradient(backbone: nn.Module, image: Tensor) -> np.ndarray:
    """How much each pixel of ``(1, 3, H, W)`` raises the centre of the map.

    ``(H, W)``, float64, not negative.
    """
    image = image.clone().requires_grad_(True)
    output = backbone(image)
    while isinstance(output, (tuple, list)) and output:
        output = output[-1]
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else '?'
        raise ValueError(
            f'{type(backbone).__name__} returns {type(output).__name__} '
            f'{shape} last, expected a map (N, C, H, W); set the argument '
            'that makes it return maps, by --cfg-options model.backbone.…'
        )
    height, width = output.shape[2:]
    centre = output[:, :, height // 2, width // 2].relu().sum()
    (gradient,) = torch.autograd.grad(centre, image)
    field = gradient.relu().sum((0, 1)).double().cpu().numpy()
    if not np.isfinite(field).all():
        raise RuntimeError(
            f'the gradient through {type(backbone).__name__} is not finite'
        )
    return field


class FieldSum:
    """A sum of gradients over images that can be interrupted.

    ``path`` is its ``.npz`` file. It is continued only if ``fingerprint``, of
    all that the sum depends on, is the same.
    """

    def __init__(self, path: str | Path, fingerprint: str) -> None:
        self.path = Path(path)
        self.fingerprint = fingerprint
        self.total: np.ndarray | float = 0.0
        self.count = 0
        try:
            with np.load(self.path) as saved:
                if str(saved['fingerprint']) == fingerprint:
                    self.total = saved['total']
                    self.count = int(saved['count'])
        except (OSError, ValueError, KeyError, BadZipFile):
            # None yet, or not one of ours: start from nothing.
            pass

    def add(self, field: np.ndarray) -> None:
        """Add the gradient of the next image, and write the sum so far."""
        self.total = self.total + field
        self.count += 1
        state = dict(total=self.total, count=self.count)
        with atomic_path(self.path) as path:
            np.savez(path, fingerprint=self.fingerprint, **state)


def area_ratios(
    mass: np.ndarray, shares: Sequence[float] = SHARES
) -> dict[str, float]:
    """Area of the smallest centred square that holds a share of the mass.

    By the share, such as ``'0.5'``, over the whole area. Squares have odd
    sides around ``(H // 2, W // 2)``; the largest is everything.
    """
    total = mass.sum()
    if not total > 0:
        raise ValueError(
            'the gradient is zero everywhere: no pixel has an '
            'influence on the centre of the last map'
        )
    height, width = mass.shape
    rows = np.abs(np.arange(height) - height // 2)
    columns = np.abs(np.arange(width) - width // 2)
    distance = np.maximum(rows[:, None], columns)
    by_distance = np.bincount(distance.ravel(), weights=mass.ravel())
    within = np.cumsum(by_distance) / total
    ratios = {}
    for share in shares:
        side = 2 * int(np.searchsorted(within, share - 1e-12)) + 1
        area = min(side, height) * min(side, width)
        ratios[f'{share:g}'] = area / (height * width)
    return ratios


def describe(mass: np.ndarray) -> list[str]:
    """:func:`area_ratios` of the paper's shares in words."""
    return [
        f'{float(share):.0%} of the mass in {ratio:.1%}'
        for share, ratio in area_ratios(mass).items()
    ]


@dataclass(frozen=True)
class Field:
    """A receptive field: ``(H, W)``, the mean gradient over ``images``."""

    name: str
    matrix: np.ndarray
    images: int
    trained: bool

    @property
    def picture(self) -> np.ndarray:
        """``log10(x + 1)`` of the matrix over its maximum, as published."""
        logarithm = np.log10(self.matrix + 1)
        return logarithm / max(logarithm.max(), 1e-300)

    def summary(self) -> dict[str, Any]:
        """For JSON: area ratios of the picture, and of the matrix itself."""
        return dict(
            name=self.name,
            trained=self.trained,
            images=self.images,
            shape=list(self.matrix.shape),
            # log10(x + 1) depends on the gradient's scale; the second
            # line does not.
            area_ratios=area_ratios(self.picture),
            area_ratios_without_log=area_ratios(self.matrix),
        )


def compute_field(
    name: str,
    backbone: nn.Module,
    images: Sequence[Path],
    read: Callable[[Path], Tensor],
    running: FieldSum,
    trained: bool,
    each: Callable[[int], None] = lambda count: None,
) -> Field:
    """Average the gradient over images, from where ``running`` was left.

    BatchNorms are calibrated unless ``trained``; ``each`` is called with the
    number of images done, before the first and after each.
    """
    device = next(backbone.parameters(), torch.empty(0)).device
    each(running.count)
    if not trained and running.count < len(images):
        first = images[:_CALIBRATION]
        calibrate(backbone, [read(path).to(device) for path in first])
    for path in images[running.count :]:
        running.add(input_gradient(backbone, read(path).to(device)))
        each(running.count)
    return Field(name, running.total / running.count, running.count, trained)


def save_field(
    field: Field, folder: str | Path, more: Mapping[str, Any]
) -> dict[str, Any]:
    """Write NAME.npy and NAME.json, which also holds ``more``."""
    summary = {**field.summary(), **more}
    with atomic_path(Path(folder, f'{field.name}.npy')) as path:
        np.save(path, field.matrix.astype(np.float32))
    write_json(Path(folder, f'{field.name}.json'), summary)
    return summary


def draw_fields(fields: Sequence[Field]) -> Figure:
    """Draw fields side by side, with squares of 50 and 99 % of the mass."""
    size = (2.7 * len(fields) + 0.9, 4.1)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for axis, field in zip(axes, fields, strict=True):
        _draw_field(axis, field)
    place = dict(ax=axes, fraction=0.05, shrink=0.62)
    bar = figure.colorbar(axes[0].images[0], **place)
    bar.set_label('log10(x + 1), over its maximum', fontsize=8)
    bar.ax.tick_params(labelsize=8)
    states = {'trained' if field.trained else 'untrained' for field in fields}
    shape = ' × '.join(map(str, fields[0].matrix.shape))
    what = f'Effective receptive fields, {" and ".join(sorted(states))}'
    title = f'{what}\n{fields[0].images} images of {shape} pixels'
    figure.suptitle(title, fontsize=11, color=INK)
    return figure


def _draw_field(axis: Axes, field: Field) -> None:
    picture = field.picture
    axis.imshow(picture, cmap='magma', vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(field.name, fontsize=10, color=INK)
    lines = describe(picture)
    lines[2] += ' (—)'
    lines[3] += ' (···)'
    axis.set_xlabel('\n'.join(lines), fontsize=8, color=INK)
    height, width = picture.shape
    ratios = area_ratios(picture)
    for share, line in (('0.5', '-'), ('0.99', ':')):
        side = np.sqrt(ratios[share] * height * width)
        corner = (width // 2 - side / 2, height // 2 - side / 2)
        style = dict(fill=False, edgecolor='white', linestyle=line)
        axis.add_patch(Rectangle(corner, side, side, **style))
