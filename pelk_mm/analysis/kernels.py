"""Pictures of peripheral kernels: their cells, and what they learned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, SymLogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

from ..models import PeLK, PeripheralConv2d
from ..ops import SharingGrid
from ..ops.checks import check_integer
from ..utils.sampling import evenly
from .figures import INK, STRONG

#: Blur cells from the focus to the border; the lighter, the more is shared.
_BLUR = ('#6ea8dc', '#dbe9f6')


def draw_grid(grid: SharingGrid) -> Figure:
    """Draw the K x K cells of a kernel beside the compact k' x k' weight."""
    cells, size = grid.num_cells, grid.kernel_size
    figure = Figure(figsize=(8, 4.6))
    # Drawn smaller, because it is.
    small = figure.add_axes((0.03, 0.24, 0.2875, 0.50))
    large = figure.add_axes((0.53, 0.04, 0.4485, 0.78))
    style = dict(fontsize=11, color=INK)
    weights = f'{cells} × {cells} = {cells**2} weights learned'
    small.set_title(weights, **style)
    covered = f'{size} × {size} = {size**2} positions covered'
    large.set_title(covered, pad=31, **style)
    colours = _cell_colours(grid)
    _draw_cells(small, SharingGrid.from_sizes([1] * cells), colours)
    _draw_cells(large, grid, colours)
    _label_sizes(large, grid)
    blur = cells // 2 - grid.unshared_radius
    if blur > 0:
        # Not in the corner, where it would seem to say something about it.
        _mark_cell(small, large, grid, min(1, blur - 1))
    _label_regions(figure, grid)
    return figure


def _cell_colours(grid: SharingGrid) -> np.ndarray:
    """Colours ``(k', k', 3)``: one of the focus, one of each ring around."""
    distance = abs(np.arange(grid.num_cells) - grid.num_cells // 2)
    ring = np.maximum(distance[:, None], distance) - grid.unshared_radius
    share = ((ring - 1) / max(ring.max() - 1, 1)).clip(0, 1)[..., None]
    near, far = (np.array(to_rgb(colour)) for colour in _BLUR)
    colours = near + (far - near) * share
    colours[ring <= 0] = to_rgb(STRONG)
    return colours


def _draw_cells(axes: Axes, grid: SharingGrid, colours: np.ndarray) -> None:
    size = grid.kernel_size
    edges = (*grid.starts, size)
    few = size <= 64
    axes.pcolormesh(
        edges, edges, colours, edgecolor='white', linewidth=0.9 if few else 0.6
    )
    if few:
        # Positions only where they can be told apart.
        inner = sorted(set(range(size)).difference(edges))
        axes.hlines(inner, 0, size, INK, linewidth=0.3, alpha=0.18)
        axes.vlines(inner, 0, size, INK, linewidth=0.3, alpha=0.18)
    axes.set(xlim=(0, size), ylim=(size, 0), aspect='equal')
    axes.set_axis_off()


def _label_sizes(axes: Axes, grid: SharingGrid) -> None:
    """Write the size of every column of cells above it."""
    style = dict(ha='center', va='bottom', color=INK, fontsize=8.5)
    # A number needs about this many positions of the kernel.
    room = grid.kernel_size / 34
    start = 0
    for narrow, run in groupby(grid.sizes, lambda size: size < room):
        sizes = list(run)
        if narrow:
            # Too close together: written above a line over all of them.
            end = start + sum(sizes)
            axes.hlines(
                -0.5 * room, start, end, INK, linewidth=0.8, clip_on=False
            )
            text = ' '.join(map(str, sizes))
            axes.text((start + end) / 2, -1.9 * room, text, **style)
            start = end
            continue
        for size in sizes:
            axes.text(start + size / 2, -0.4 * room, size, **style)
            start += size


def _mark_cell(small: Axes, large: Axes, grid: SharingGrid, cell: int) -> None:
    """Outline a blur cell in both drawings and join the two."""
    size, start = grid.sizes[cell], grid.starts[cell]
    style = dict(fill=False, edgecolor=INK, linewidth=2, zorder=3)
    small.add_patch(Rectangle((cell, cell), 1, 1, **style))
    large.add_patch(Rectangle((start, start), size, size, **style))
    ends = (start, start + size / 2), (cell + 1, cell + 0.5)
    arrow = dict(arrowstyle='-|>', color=INK, linewidth=1.4)
    style = dict(arrowprops=arrow, annotation_clip=False)
    large.annotate('', *ends, textcoords=small.transData, **style)
    text = f'one weight for\n{size} × {size} positions'
    style = dict(ha='center', va='top', color=INK, fontsize=9.5)
    small.text(1.36, 0.785, text, transform=small.transAxes, **style)


def _label_regions(figure: Figure, grid: SharingGrid) -> None:
    """Say below the compact weight what the two kinds of cells are."""
    focus = 2 * grid.unshared_radius + 1
    handles = []
    if focus > 0:
        text = f'focus: {focus} × {focus} positions, each with a weight'
        handles.append(Patch(color=STRONG, label=text))
    if focus < grid.num_cells:
        text = 'blur: cells that grow outwards, each with a weight'
        handles.append(Patch(color=_BLUR[0], label=text))
    place = dict(loc='upper left', bbox_to_anchor=(0.02, 0.23), borderpad=0)
    style = dict(handlelength=0.7, fontsize=9.5, labelcolor=INK)
    figure.legend(handles=handles, frameon=False, **place, **style)


@dataclass(frozen=True)
class BlockKernels:
    """The large kernels of a block: compact, ``(g, k', k')``, float32."""

    name: str
    grid: SharingGrid
    weight: Tensor


def collect_kernels(
    backbone: nn.Module, per_stage: int = 1
) -> list[BlockKernels]:
    """Take large kernels as executed, BatchNorm and small kernel merged in.

    ``per_stage`` blocks of each stage, evenly spaced, the last among them. In
    other networks than PeLK, layers with weights of one shape are a stage.
    """
    check_integer('per_stage', per_stage, 1)
    merged = deepcopy(backbone).eval()
    if isinstance(merged, PeLK):
        merged.switch_to_deploy()
    found = []
    for convs in _stages(merged):
        # From the end, so that the last is there if it is the only one.
        for name, conv in evenly(convs[::-1], per_stage)[::-1]:
            weight = conv.weight.detach()[:, 0].float()
            found.append(BlockKernels(name, conv.grid, weight))
    return found


def _stages(network: nn.Module) -> list[list[tuple[str, PeripheralConv2d]]]:
    """Large kernels with their names, by stage; a TypeError if none."""
    if isinstance(network, PeLK):
        return [
            [
                (f'stage {s}, block {b}', block.conv.large)
                for b, block in enumerate(stage.blocks, 1)
            ]
            for s, stage in enumerate(network.stages, 1)
        ]
    by_shape = defaultdict(list)
    for name, module in network.named_modules():
        if isinstance(module, PeripheralConv2d):
            by_shape[module.weight.shape].append((name, module))
    if not by_shape:
        raise TypeError(
            f'the backbone, a {type(network).__name__}, has no peripheral '
            'kernels; PeLK and what enlarge_kernels was called with have'
        )
    return list(by_shape.values())


def draw_kernels(blocks: Sequence[BlockKernels], channels: int = 6) -> Figure:
    """Draw learned kernels, two rows a block: compact, and written out.

    The mean magnitude of all channels first, then ``channels`` single kernels,
    evenly spaced, each divided by its largest magnitude.
    """
    check_integer('channels', channels, 1)
    mean = dict(cmap='magma', norm=LogNorm(0.01, 1, clip=True))
    signed = dict(cmap='cividis', norm=SymLogNorm(0.03, vmin=-1, vmax=1))
    rows = 2 * len(blocks)
    size = (1.25 * (channels + 1) + 1.6, 1.3 * rows + 1.1)
    figure = Figure(figsize=size, layout='constrained')
    bare = dict(subplot_kw=dict(xticks=[], yticks=[], frame_on=False))
    axes = figure.subplots(rows, channels + 1, squeeze=False, **bare)
    small = dict(fontsize=8, color=INK)
    pairs = axes.reshape(-1, 2, channels + 1)
    for block, (upper, lower) in zip(blocks, pairs, strict=True):
        images = [('mean |w|', block.weight.abs().mean(0), mean)]
        for channel in evenly(range(len(block.weight)), channels):
            kernel = block.weight[channel]
            images.append((f'channel {channel}', kernel, signed))
        panels = zip(upper, lower, images, strict=False)
        for above, below, (caption, weight, style) in panels:
            weight = weight / weight.abs().max().clamp(min=1e-30)
            above.imshow(weight, **style)
            below.imshow(block.grid.expand(weight), **style)
            above.set_title(caption, **small)
        for axis, kind, size in (
            (upper[0], 'compact', block.grid.num_cells),
            (lower[0], 'written out', block.grid.kernel_size),
        ):
            text = f'{block.name}\n{kind}, {size} × {size}'
            axis.set_ylabel(text, rotation=0, ha='right', va='center', **small)
    for column, label, ticks in (
        (0, 'mean |w| over its maximum', (0.01, 0.1, 1)),
        (1, 'w over its largest magnitude', (-1, -0.1, 0, 0.1, 1)),
    ):
        image = axes[0, column].images[0]
        place = dict(location='bottom', shrink=0.4, aspect=40, pad=0.01)
        style = dict(ticks=ticks, format='{x:g}')
        bar = figure.colorbar(image, ax=axes, **place, **style)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.minorticks_off()
    return figure
