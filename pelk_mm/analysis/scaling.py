"""What a larger kernel costs: weights, operations and time, dense and not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models import PeripheralConv2d
from ..ops import SharingGrid, available_backends, peripheral_conv2d
from .figures import FAINT, INK, SOFT, STRONG

#: Odd, about evenly spaced on a logarithmic axis; the paper's among them.
KERNEL_SIZES = (7, 9, 13, 21, 31, 51, 67, 101, 151)
#: The paper's networks up to 51 have an unshared 5 x 5, those beyond 7 x 7.
_SMALL_CENTER = 51
#: Largest difference to the dense convolution, over its largest output.
_TOLERANCE = 1e-4


def paper_grid(kernel_size: int) -> SharingGrid:
    """The cells that the paper would give a kernel of this size."""
    return SharingGrid(kernel_size, 2 if kernel_size <= _SMALL_CENTER else 3)


def count_convnext(
    kernel_sizes: Sequence[int] = KERNEL_SIZES, image: int = 224
) -> list[dict[str, Any]]:
    """Count ConvNeXt-T with every kernel replaced, for the paper's Fig. 6.

    For each size ``kernel_size``, ``cells`` (k'), and ``params`` and ``macs``
    of the classifier of 1000 classes, each with ``'dense'`` and
    ``'peripheral'``; multiply-accumulates are of one image.
    """
    grids = [paper_grid(size) for size in kernel_sizes]
    convnext = dict(type='ConvNeXt', arch='tiny', _scope_='mmpretrain')
    backbone = MODELS.build(convnext)
    head = nn.Linear(backbone.channels[-1], 1000)
    model = nn.Sequential(backbone, head).to('meta').eval()
    blocks = [block for stage in backbone.stages for block in stage]
    rows = []
    for grid in grids:
        params, macs = {}, {}
        for kind, build in (('dense', _dense), ('peripheral', _peripheral)):
            for block in blocks:
                width = block.depthwise_conv.weight.shape[0]
                block.depthwise_conv = build(width, grid).to('meta')
            params[kind] = sum(p.numel() for p in model.parameters())
            macs[kind] = _count(model, image)
        row = dict(kernel_size=grid.kernel_size, cells=grid.num_cells)
        rows.append(dict(row, params=params, macs=macs))
    return rows


def _dense(width: int, grid: SharingGrid) -> nn.Module:
    size = grid.kernel_size
    with torch.device('meta'):
        return nn.Conv2d(width, width, size, padding=size // 2, groups=width)


def _peripheral(width: int, grid: SharingGrid) -> nn.Module:
    return PeripheralConv2d(width, grid)


@torch.no_grad()
def _count(model: nn.Sequential, image: int) -> int:
    with FlopCounterMode(display=False) as counter:
        features = model[0](torch.empty(1, 3, image, image, device='meta'))
        model[1](features[-1])
    return counter.get_total_flops() // 2


def candidates(
    kernel_size: int,
    shape: Sequence[int],
    backends: Sequence[str] | None = None,
) -> dict[str, Callable[[], Tensor]]:
    """Ways to compute one convolution, checked against each other, by name.

    ``'dense'`` is torch's own with the kernel written out beforehand. Maps of
    ``shape`` ``(N, C, H, W)`` are float32, channels-last, on the CPU;
    ``backends`` are all but the dense one that run here unless given.
    """
    if backends is None:
        reasons = available_backends('cpu')
        runs = [name for name, reason in reasons.items() if reason is None]
        backends = [name for name in runs if name != 'dense']
    grid = paper_grid(kernel_size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(tuple(shape), generator=generator)
    image = image.to(memory_format=torch.channels_last)
    cells, width = grid.num_cells, shape[1]
    weight = torch.randn(width, 1, cells, cells, generator=generator)
    kernel = grid.expand(weight).contiguous()

    def dense() -> Tensor:
        return F.conv2d(image, kernel, padding=kernel_size // 2, groups=width)

    def peripheral(name: str) -> Tensor:
        return peripheral_conv2d(image, weight, grid, backend=name)

    calls = {'dense': dense}
    calls |= {name: partial(peripheral, name) for name in backends}
    expected = calls['dense']()
    for name in backends:
        error = (calls[name]() - expected).abs().max() / expected.abs().max()
        if not error < _TOLERANCE:
            raise RuntimeError(
                f'backend {name!r} differs from the dense convolution by '
                f'{error:.1e} at K = {kernel_size}, at most {_TOLERANCE:g} '
                'is expected: its time would mean nothing'
            )
    return calls


# Pictures ------------------------------------------------------------------

#: Dark and solid, light and dashed, …: apart without colours too.
_STYLES = dict(
    color=[STRONG, SOFT, FAINT, INK],
    marker=['o', 's', '^', 'D'],
    linestyle=['-', '--', ':', '-.'],
)
#: Field of the counts, unit, title and the unit's name.
_COUNTS = (
    ('params', 1e6, 'Parameters', 'millions'),
    ('macs', 1e9, 'Multiply-accumulates', 'billions an image'),
)


def draw_scaling(
    counts: Sequence[Mapping[str, Any]],
    times: Sequence[Mapping[str, Any]],
    subtitle: str,
) -> Figure:
    """Draw parameters, operations and time over K, whichever are given.

    ``counts`` are from :func:`count_convnext`; ``times`` hold ``kernel_size``
    and ``median_ms`` by name, and are drawn relative to the smallest dense
    kernel's.
    """
    panels = [_counted(counts, *what) for what in _COUNTS if counts]
    if times:
        panels.append(_timed(times))
    size = (4.1 * len(panels) + 1, 4.0)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_series(axis, *panel)
    if times:
        axes[-1].set_xlabel(f'{axes[-1].get_xlabel()}\n{subtitle}')
    return figure


#: Values by the size of the kernel, of each name.
_Series = dict[str, dict[int, float]]


def _counted(
    counts: Sequence[Mapping[str, Any]],
    field: str,
    scale: float,
    title: str,
    unit: str,
) -> tuple[_Series, str, str]:
    series = {
        kind: {row['kernel_size']: row[field][kind] / scale for row in counts}
        for kind in ('dense', 'peripheral')
    }
    return series, f'{title} of ConvNeXt-T', unit


def _timed(times: Sequence[Mapping[str, Any]]) -> tuple[_Series, str, str]:
    smallest = min(times, key=itemgetter('kernel_size'))
    series: _Series = {}
    for row in times:
        for name, value in row['median_ms'].items():
            label = 'dense' if name == 'dense' else f'peripheral, {name}'
            ratio = value / smallest['median_ms']['dense']
            series.setdefault(label, {})[row['kernel_size']] = ratio
    size = smallest['kernel_size']
    unit = f'time of the dense {size} × {size} = 1'
    return series, 'Time of one convolution', unit


def _draw_series(axis: Axes, series: _Series, title: str, unit: str) -> None:
    axis.set_prop_cycle(**_STYLES)
    size = dict(markersize=4.5, linewidth=1.6)
    for label, values in series.items():
        axis.loglog(list(values), list(values.values()), label=label, **size)
    axis.set_title(title, fontsize=10.5, color=INK)
    axis.set_xlabel('K, size of the kernel', fontsize=8.5)
    axis.set_ylabel(unit, fontsize=9)
    sizes = sorted(set().union(*series.values()))
    axis.set_xticks(sizes, labels=map(str, sizes), fontsize=7.5)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=99))
    axis.yaxis.set_major_formatter('{x:g}')
    axis.tick_params('y', labelsize=8)
    axis.minorticks_off()
    axis.grid(True, linewidth=0.4, alpha=0.5)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(fontsize=8.5, frameon=False)
