"""Pictures of peripheral kernels: their cells, and what they learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, SymLogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor

from ..models import PeLK
from ..ops import SharingGrid
from .figures import INK, STRONG

#: Smallest share of a kernel's largest weight that has a colour of its own.
_FLOOR = 0.01
#: Blur cells from the focus to the border; the lighter, the more is shared.
_BLUR = ('#6ea8dc', '#dbe9f6')


def draw_grid(grid: SharingGrid) -> Figure:
    """Draw the cells of a kernel beside the compact weight that fills them.

    Args:
        grid (SharingGrid): The cells.

    Returns:
        Figure: The compact k' x k' weight on the left, the K x K kernel on
        the right; a cell has the same colour in both, and one blur cell is
        marked in both.
    """
    cells, size = grid.num_cells, grid.kernel_size
    figure = Figure(figsize=(8, 4.6))
    # Drawn smaller, because it is.
    small = figure.add_axes((0.03, 0.24, 0.2875, 0.50))
    large = figure.add_axes((0.53, 0.04, 0.4485, 0.78))
    colours = _cell_colours(grid)
    _draw_cells(small, SharingGrid.from_sizes([1] * cells), colours)
    _draw_cells(large, grid, colours)
    _label_sizes(large, grid)
    _headline(small, f'{cells} × {cells} = {cells**2} weights', 'learned')
    _headline(
        large, f'{size} × {size} = {size**2} positions', 'covered', lift=31
    )
    _mark_cell(small, large, grid)
    _label_regions(small, grid)
    return figure


def _headline(axes: Axes, number: str, meaning: str, lift: int = 6) -> None:
    axes.annotate(
        f'{number} {meaning}',
        (0.5, 1),
        (0, lift),
        xycoords='axes fraction',
        textcoords='offset points',
        ha='center',
        va='bottom',
        color=INK,
        fontsize=11,
        annotation_clip=False,
    )


def _label_sizes(axes: Axes, grid: SharingGrid) -> None:
    """Write the size of every column of cells above it."""

    def write(text: str, place: float, lift: float) -> None:
        axes.annotate(
            text,
            (place, 0),
            (0, lift),
            textcoords='offset points',
            ha='center',
            va='bottom',
            color=INK,
            fontsize=8.5,
            annotation_clip=False,
        )

    # A number needs about this many positions of the kernel.
    room = grid.kernel_size / 34
    start = 0
    for narrow, run in groupby(grid.sizes, lambda size: size < room):
        run = list(run)
        if narrow:
            # Too close together: written above a bracket over all of them.
            span = sum(run)
            axes.annotate(
                '',
                (start, 0),
                (start + span, 0),
                arrowprops=dict(
                    arrowstyle='-',
                    connectionstyle='bar,armA=5,armB=5,fraction=0',
                    color=INK,
                    shrinkA=0,
                    shrinkB=0,
                    linewidth=0.8,
                ),
                annotation_clip=False,
            )
            write(' '.join(map(str, run)), start + span / 2, 14)
            start += span
            continue
        for size in run:
            write(str(size), start + size / 2, 3)
            start += size


def _mark_cell(small: Axes, large: Axes, grid: SharingGrid) -> None:
    """Outline one blur cell in both drawings and join the two."""
    blur = grid.num_cells // 2 - grid.unshared_radius
    if blur == 0:
        return
    # Not in the corner, where it would seem to say something about corners.
    cell = min(1, blur - 1)
    size, start = grid.sizes[cell], grid.starts[cell]
    for axes, corner, side in ((small, cell, 1), (large, start, size)):
        axes.add_patch(
            Rectangle(
                (corner, corner),
                side,
                side,
                fill=False,
                edgecolor=INK,
                linewidth=2,
                zorder=3,
            )
        )
    large.add_artist(
        ConnectionPatch(
            (cell + 1, cell + 0.5),
            (start, start + size / 2),
            small.transData,
            large.transData,
            arrowstyle='-|>',
            mutation_scale=13,
            shrinkB=1,
            color=INK,
            linewidth=1.4,
            zorder=4,
        )
    )
    small.annotate(
        f'one weight for\n{size} × {size} positions',
        (1.36, 0.785),
        xycoords='axes fraction',
        ha='center',
        va='top',
        color=INK,
        fontsize=9.5,
        annotation_clip=False,
    )


def _label_regions(axes: Axes, grid: SharingGrid) -> None:
    """Say below the compact weight what the two kinds of cells are."""
    focus = 2 * grid.unshared_radius + 1
    lines = []
    if focus > 0:
        lines.append(
            (STRONG, f'focus: {focus} × {focus} positions, each with a weight')
        )
    if focus < grid.num_cells:
        lines.append(
            (_BLUR[0], 'blur: cells that grow outwards, each with a weight')
        )
    for i, (colour, text) in enumerate(lines):
        for mark, offset, ink in (('■', 0, colour), (text, 14, INK)):
            axes.annotate(
                mark,
                (0, 0),
                (offset, -16 - 17 * i),
                xycoords='axes fraction',
                textcoords='offset points',
                va='center',
                color=ink,
                fontsize=9.5 if ink == INK else 12,
                annotation_clip=False,
            )


def _cell_colours(grid: SharingGrid) -> np.ndarray:
    """Colours ``(k', k', 3)``: one of the focus, one of each ring around."""
    middle = grid.num_cells // 2
    distance = abs(np.arange(grid.num_cells) - middle)
    ring = np.maximum(distance[:, None], distance)
    outside = np.clip(ring - grid.unshared_radius, 0, None)
    depth = max(int(outside.max()) - 1, 1)
    near, far = (np.array(to_rgb(colour)) for colour in _BLUR)
    share = ((outside - 1) / depth).clip(0, 1)[..., None]
    colours = near + (far - near) * share
    colours[outside == 0] = to_rgb(STRONG)
    return colours


def _boxes(grid: SharingGrid) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, top and left of every cell."""
    for a, top in enumerate(grid.starts):
        for b, left in enumerate(grid.starts):
            yield a, b, top, left


def _draw_cells(axes: Axes, grid: SharingGrid, colours: np.ndarray) -> None:
    size = grid.kernel_size
    for a, b, top, left in _boxes(grid):
        axes.add_patch(
            Rectangle(
                (left, top),
                grid.sizes[b],
                grid.sizes[a],
                facecolor=colours[a, b],
                edgecolor='none',
            )
        )
    # Positions only where they can be told apart.
    if size <= 64:
        axes.hlines(range(size), 0, size, INK, linewidth=0.3, alpha=0.18)
        axes.vlines(range(size), 0, size, INK, linewidth=0.3, alpha=0.18)
    edges = (*grid.starts, size)
    width = 0.9 if size <= 64 else 0.6
    axes.hlines(edges, 0, size, 'white', linewidth=width)
    axes.vlines(edges, 0, size, 'white', linewidth=width)
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_aspect('equal')
    axes.set_axis_off()


@dataclass(frozen=True)
class BlockKernels:
    """The large kernels of one block.

    Attributes:
        name (str): Such as ``'stage 1, block 3'``, counted from 1.
        grid (SharingGrid): Their cells.
        weight (Tensor): Compact, ``(g, k', k')``, float32, on the CPU.
    """

    name: str
    grid: SharingGrid
    weight: Tensor


def collect_kernels(backbone: PeLK, per_stage: int = 1) -> list[BlockKernels]:
    """Take the large kernels out of a backbone, as they are executed.

    BatchNorm and the small kernel are merged in; a kernel's scale then is
    that of its effect.

    Args:
        backbone (PeLK): In either form; not changed.
        per_stage (int): Blocks of each stage, evenly spaced, the last always
            among them; a stage of fewer gives all. Default: 1.

    Returns:
        list[BlockKernels]: In the order of execution.

    Raises:
        TypeError: If the backbone has no peripheral kernels.
        ValueError: If ``per_stage`` is below 1.
    """
    if not isinstance(backbone, PeLK):
        raise TypeError(
            'only PeLK has peripheral kernels, the backbone is a '
            f'{type(backbone).__name__}'
        )
    if per_stage < 1:
        raise ValueError(f'per_stage must be at least 1, got {per_stage}')
    merged = deepcopy(backbone).eval()
    if not merged.deploy:
        merged.switch_to_deploy()
    found = []
    for s, stage in enumerate(merged.stages, 1):
        count = len(stage.blocks)
        wanted = np.linspace(count, 0, min(per_stage, count), endpoint=False)
        for b in sorted({round(number) for number in wanted}):
            weight = stage.blocks[b - 1].conv.large.weight
            found.append(
                BlockKernels(
                    f'stage {s}, block {b}',
                    stage.grid,
                    weight.detach()[:, 0].float(),
                )
            )
    return found


def draw_kernels(blocks: Sequence[BlockKernels], channels: int = 6) -> Figure:
    """Draw learned kernels on a contact sheet.

    Args:
        blocks (Sequence[BlockKernels]): At least one.
        channels (int): How many kernels of each block to draw, evenly spaced
            among its channels. Default: 6.

    Returns:
        Figure: Two rows a block, compact above and written out below; the
        mean magnitude of all channels first, then single kernels, each
        divided by its largest magnitude.

    Raises:
        ValueError: If ``channels`` is below 1.
    """
    if channels < 1:
        raise ValueError(f'channels must be at least 1, got {channels}')
    signed = SymLogNorm(0.03, vmin=-1, vmax=1)
    mean = LogNorm(_FLOOR, 1, clip=True)
    rows = 2 * len(blocks)
    figure = Figure(
        figsize=(1.25 * (channels + 1) + 1.6, 1.3 * rows + 1.1),
        layout='constrained',
    )
    axes = figure.subplots(rows, channels + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, block in enumerate(blocks):
        total = len(block.weight)
        chosen = (
            np.linspace(0, total - 1, min(channels, total)).round().astype(int)
        )
        images = [('mean |w|', block.weight.abs().mean(0), 'magma', mean)]
        images += [
            (f'channel {channel}', block.weight[channel], 'cividis', signed)
            for channel in chosen
        ]
        for column, (caption, weight, colours, norm) in enumerate(images):
            weight = weight / weight.abs().max().clamp(min=1e-30)
            for row, plane in enumerate((weight, block.grid.expand(weight))):
                axis = axes[2 * i + row, column]
                axis.imshow(
                    plane.numpy(),
                    cmap=colours,
                    norm=norm,
                    interpolation='nearest',
                )
            axes[2 * i, column].set_title(caption, fontsize=8, color=INK)
        for row, (kind, size) in enumerate(
            (
                ('compact', block.grid.num_cells),
                ('written out', block.grid.kernel_size),
            )
        ):
            axes[2 * i + row, 0].text(
                -0.12,
                0.5,
                f'{block.name}\n{kind}, {size} × {size}',
                transform=axes[2 * i + row, 0].transAxes,
                ha='right',
                va='center',
                fontsize=8,
                color=INK,
            )
    for norm, colours, label, ticks in (
        (mean, 'magma', 'mean |w| over its maximum', (_FLOOR, 0.1, 1)),
        (
            signed,
            'cividis',
            'w over its largest magnitude',
            (-1, -0.1, 0, 0.1, 1),
        ),
    ):
        bar = figure.colorbar(
            ScalarMappable(norm, colours),
            ax=axes,
            location='bottom',
            shrink=0.4,
            aspect=40,
            pad=0.01,
        )
        bar.set_label(label, fontsize=8)
        bar.set_ticks(
            ticks, labels=[f'{tick:g}' for tick in ticks], fontsize=8
        )
        bar.minorticks_off()
    return figure
