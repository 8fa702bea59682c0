"""Networks out of torch's own layers, for runtimes without our operator."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers import (
    PartialPeripheralConv2d,
    PeripheralConv2d,
    SmallConv2d,
    make_permanent,
)
from ..ops import SharingGrid
from ..ops.checks import check_choice

#: How a large kernel is computed; see :func:`to_standard_layers`.
KERNELS = ('dense', 'compact')
#: In compact kernels cells of fewer rows, or columns, are written out as
#: single positions. More boxes save multiply-adds and cost passes over the
#: map; on onnxruntime's CPU kernels these two are at or near the best from
#: maps of 14 x 14 to 128 x 128 and kernels of 13 to 101.
_LEAST_ROWS, _LEAST_COLUMNS = 16, 2
#: onnxruntime keeps channels in blocks of 8 or 16, by the CPU. A depthwise
#: convolution of another number of channels falls back to a kernel that is
#: an order of magnitude slower.
_BLOCK = 16


class StandardPeripheralConv2d(nn.Module):
    """A peripheral convolution out of ordinary depthwise convolutions.

    With ``B_{s,t}`` the sums of boxes of s rows and t columns,
    ``Y(p) = sum_{s,t} sum_{a,b} w(a, b) B_{s,t}(p + o(a, b))`` over the cells
    (a, b) of s x t positions. Boxes are convolutions with ones, first of the
    rows and then of the columns. The cells of one size lie either side by
    side in the centre or as mirrored pairs, so that one dilated convolution
    takes the inner sum. Nothing depends on the size of the map.

    Cells of fewer than ``least_rows`` rows, or ``least_columns`` columns, are
    written out as single positions; with both beyond the largest cell one
    dense convolution is left.
    """

    def __init__(
        self,
        layer: PeripheralConv2d | SmallConv2d,
        least_rows: int,
        least_columns: int,
    ) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.channels = len(weight)
        self.rows, repeats = _groups(layer.grid, least_rows)
        weight = weight.repeat_interleave(repeats, 2)
        self.columns, repeats = _groups(layer.grid, least_columns)
        weight = weight.repeat_interleave(repeats, 3)
        rows, columns = self.rows.values(), self.columns.values()
        for row, column in product(chain(*rows), chain(*columns)):
            taps = weight[:, :, row.cells][..., column.cells]
            self.register_buffer(_taps(row, column), taps.contiguous())
        ones = weight.new_ones(self.channels, 1, 1, 1)
        for size in {size for size, _ in self.rows} - {1}:
            self.register_buffer(f'rows_{size}', ones.repeat(1, 1, size, 1))
        for size in {size for size, _ in self.columns} - {1}:
            self.register_buffer(f'columns_{size}', ones.repeat(1, 1, 1, size))
        bias = layer.bias
        self.register_buffer('bias', None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(N, C, H, W)``; same shape and dtype."""
        output = None
        for (size, pad), rows in self.rows.items():
            strips = x
            if size > 1:
                strips = self._convolve(x, f'rows_{size}', (pad, 0))
            for (size, pad), columns in self.columns.items():
                boxes = strips
                if size > 1:
                    name = f'columns_{size}'
                    boxes = self._convolve(strips, name, (0, pad))
                for row, column in product(rows, columns):
                    pads = row.padding, column.padding
                    dilation = row.dilation, column.dilation
                    bias = self.bias if output is None else None
                    name = _taps(row, column)
                    taps = self._convolve(boxes, name, pads, dilation, bias)
                    output = taps if output is None else output + taps
        return output

    def _convolve(self, x, kernel, padding, dilation=1, bias=None) -> Tensor:
        weight, groups = getattr(self, kernel), self.channels
        return F.conv2d(x, weight, bias, 1, padding, dilation, groups)


@dataclass(frozen=True)
class _Group:
    """Cells of one size along an axis: a run of neighbours, or two."""

    cells: list[int]
    dilation: int
    padding: int


def _taps(row: _Group, column: _Group) -> str:
    """Name of the weights of the cells of both."""
    return f'taps_{row.cells[0]}_{column.cells[0]}'


def _groups(
    grid: SharingGrid, least: int
) -> tuple[dict[tuple[int, int], list[_Group]], Tensor]:
    """Split the cells of an axis, those below ``least`` as single positions.

    Returns the groups by the boxes that they read, which are those of one size
    and padding; and how often each weight repeats.
    """
    repeats = [size if size < least else 1 for size in grid.sizes]
    sizes: list[int] = []
    for size, repeat in zip(grid.sizes, repeats, strict=True):
        sizes += [size // repeat] * repeat
    starts = SharingGrid.from_sizes(sizes).starts
    last = len(sizes) - 1
    first = last // 2
    while first > 0 and sizes[first - 1] == sizes[first]:
        first -= 1
    centre = list(range(first, last - first + 1))
    groups: dict[tuple[int, int], list[_Group]] = defaultdict(list)
    for cells in (centre, *([i, last - i] for i in range(first))):
        size = sizes[cells[0]]
        offsets = [starts[cell] - grid.kernel_size // 2 for cell in cells]
        dilation = offsets[1] - offsets[0] if len(offsets) > 1 else 1
        # How far the box of the outermost cell reaches from the centre. Boxes
        # are computed wherever they meet the map, the taps see zeros beyond.
        reach = offsets[-1] + size - 1
        pad = min(size - 1, reach)
        groups[size, pad].append(_Group(cells, dilation, reach - pad))
    return dict(groups), torch.tensor(repeats)


class StandardAdaptiveAvgPool2d(nn.Module):
    """Adaptive average pooling as two matrix products, for maps of any size.

    ONNX has no such operator: exporters write down what one size needs.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``(N, C, H, W)``."""
        rows = _bins(x.shape[2], self.output_size[0], x)
        columns = _bins(x.shape[3], self.output_size[1], x)
        return rows @ x @ columns.transpose(0, 1)


def _bins(size: int, bins: int, like: Tensor) -> Tensor:
    """What each of the ``bins`` takes of each position, ``(bins, size)``."""
    # In float32: a whole quotient is exact, others are far from whole ones.
    # Integer division would become a dozen operators in ONNX.
    options = dict(device=like.device, dtype=torch.float32)
    edges = torch.arange(bins + 1, **options) * size / bins
    first, end = edges[:-1, None].floor(), edges[1:, None].ceil()
    position = torch.arange(size, **options)
    inside = (position >= first) & (position < end)
    return (inside.to(torch.float32) / (end - first)).to(like.dtype)


def to_standard_layers(model: nn.Module, kernels: str) -> nn.Module:
    """Copy a network, merged or a ValueError, with torch's layers for ours.

    Kernels ``'dense'`` writes large ones out as single K x K convolutions,
    ``'compact'`` computes them by box sums. Both are exact.
    """
    check_choice('kernels', kernels, KERNELS)
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, (PeripheralConv2d, SmallConv2d)):
            make_permanent(module, 'weight', 'bias')
    for module in model.modules():
        if isinstance(module, PartialPeripheralConv2d):
            if not module.merged:
                raise ValueError(
                    'only merged networks can have standard layers: call '
                    'switch_to_deploy() first'
                )
            _fill_block(module)
    # Listed first: what is found is replaced.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (PeripheralConv2d, SmallConv2d)):
                least = (_LEAST_ROWS, _LEAST_COLUMNS)
                if kernels == 'dense':
                    least = (child.grid.kernel_size + 1,) * 2
                setattr(parent, name, StandardPeripheralConv2d(child, *least))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                size = size if isinstance(size, tuple) else (size, size)
                if None not in size and size != (1, 1):
                    setattr(parent, name, StandardAdaptiveAvgPool2d(size))
    return model


def _fill_block(conv: PartialPeripheralConv2d) -> None:
    """Convolve a few more channels, with kernels that change nothing.

    Their number becomes a multiple of what onnxruntime's blocked kernels want.
    A one in the centre and zeros around it pass a channel on exactly.
    """
    convolved, passed = conv.split
    more = -convolved % _BLOCK
    grid = conv.large.grid
    if more > passed or grid.unshared_radius < 0:
        return
    conv.split = (convolved + more, passed - more)
    for layer in filter(None, (conv.large, conv.small)):
        for name, value in list(layer.named_parameters()):
            padding = (0, 0) * (value.ndim - 1) + (0, more)
            filled = F.pad(value.detach(), padding)
            setattr(layer, name, nn.Parameter(filled, requires_grad=False))
    middle = grid.num_cells // 2
    conv.large.weight[convolved:, :, middle, middle] = 1
